//! The gradient of a bias, which the gradient of the weight adds up as it packs the cotangent: the same bytes as a
//! reduction by itself, wherever the sum was in the graph, on every instruction set and for any number of threads.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;
use std::sync::Arc;

use compiler::{Plan, check_plan, compile};
use kernels::{Isa, Pool, Target};
use ops::{Builder, DType, Error, Graph, Tensor, TensorType, ValueId};
use runtime::{Session, WeightStore};
use tests::Rng;
use tests::compiled::{Table, target};

/// Tokens, columns of the cotangent and of what the layer read.
type Dims = [usize; 3];

/// What is computed of the cotangent, besides the gradient of the weight.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Sum {
    Before,
    After,
    /// Added to what there is of it already, which another step makes last.
    Accumulated,
    /// By itself, without the gradient of the weight.
    Alone,
}

fn gradients([tokens, columns, width]: Dims, dtype: DType, sum: Sum) -> Graph {
    let build = || -> Result<Graph, Error> {
        let mut b = Builder::new("gradients");
        let ty = |shape: &[usize]| TensorType::new(dtype, shape).unwrap();
        let grad = b.input("grad", ty(&[2, tokens / 2, columns]));
        let x = b.input("x", ty(&[tokens, width]));
        let so_far = b.input("so far", ty(&[columns]));
        let rows = b.reshape(grad, &[tokens, columns])?;
        let by_weight = |b: &mut Builder| b.matmul(rows, x, true, false);
        let by_bias = |b: &mut Builder| {
            let sums = b.reduce_sum(grad, &[0, 1])?;
            b.reshape(sums, &[columns])
        };
        let outputs: Vec<ValueId> = match sum {
            Sum::Before => {
                let bias = by_bias(&mut b)?;
                vec![by_weight(&mut b)?, bias]
            }
            Sum::After => vec![by_weight(&mut b)?, by_bias(&mut b)?],
            Sum::Accumulated => {
                let weight = by_weight(&mut b)?;
                let so_far = b.softmax(so_far, 0)?;
                let bias = by_bias(&mut b)?;
                vec![weight, b.add(bias, so_far)?]
            }
            Sum::Alone => vec![by_bias(&mut b)?],
        };
        Ok(b.finish(&outputs))
    };
    build().unwrap()
}

fn values(graph: &Graph) -> BTreeMap<String, Tensor> {
    let mut rng = Rng::named("gradients");
    let named = graph.inputs().map(|(value, name)| (name.to_string(), graph.ty(value)));
    named.map(|(name, ty)| (name, rng.tensor(ty, (-1.0, 1.5)))).collect()
}

fn run(plan: &Plan, values: &BTreeMap<String, Tensor>) -> Vec<Vec<u8>> {
    let problems = check_plan(plan);
    assert!(problems.is_empty(), "{problems:?}\n{plan}");
    let pool = Arc::new(Pool::new(plan.target.threads).unwrap());
    let store = WeightStore::new(Table(BTreeMap::new()));
    let mut session = Session::new(Arc::new(plan.clone()), &store, pool).unwrap();
    let inputs: Vec<(String, Vec<u8>)> = plan
        .inputs
        .iter()
        .map(|port| (port.name.to_string(), values[&*port.name].to_bytes()))
        .collect();
    let inputs: Vec<(&str, &[u8])> =
        inputs.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    // The second run finds what the first one left in scratch.
    session.run(&inputs).unwrap();
    session.run(&inputs).unwrap();
    (0..plan.outputs.len()).map(|index| session.output(index).to_vec()).collect()
}

fn sums_joined(plan: &Plan) -> usize {
    (1..plan.steps.len()).filter(|&step| plan.is_summed_before(step)).count()
}

/// Few rows, which are packed once for all; some blocks of rows; a depth of several passes and parts, whose bounds
/// are within what is packed at a time; enough for digits of f32; widths that no vector divides.
const DIMS: [Dims; 7] = [
    [2, 2, 3],
    [34, 17, 5],
    [120, 384, 40],
    [606, 5, 33],
    [1022, 70, 530],
    [2500, 300, 270],
    [5002, 97, 31],
];

#[test]
fn products_add_up_bias_gradients_as_reductions_do() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for dims in DIMS {
            let alone = gradients(dims, dtype, Sum::Alone);
            let values = values(&gradients(dims, dtype, Sum::After));
            for isa in Isa::available() {
                let small = Target { l2_bytes: 128 << 10, l3_bytes: 300 << 10, ..target(isa, 2) };
                for target in [target(isa, 1), target(isa, 3), small] {
                    let run = |graph: &Graph| {
                        let plan = compile(graph.clone(), &target).unwrap();
                        (sums_joined(&plan), run(&plan, &values))
                    };
                    let what = format!("{dims:?} {dtype} on {isa}, {} threads", target.threads);
                    let (_, expected) = run(&alone);
                    let after = run(&gradients(dims, dtype, Sum::After));
                    assert_eq!(after.0, 1, "{what}: the sum is by itself");
                    assert_eq!(after.1[1], expected[0], "{what}");
                    let before = run(&gradients(dims, dtype, Sum::Before));
                    assert_eq!(before, after, "{what}, before the product");
                }
            }
        }
    }
}

#[test]
fn sums_wait_for_what_they_are_added_to() {
    let [tokens, columns, width] = [120, 70, 40];
    let graph = gradients([tokens, columns, width], DType::F32, Sum::Accumulated);
    let plan = compile(graph.clone(), &target(Isa::detect(), 2)).unwrap();
    let values = values(&graph);
    let plain = gradients([tokens, columns, width], DType::F32, Sum::After);
    let joined = compile(plain, &target(Isa::detect(), 2)).unwrap();
    let (found, sums) = (run(&plan, &values), run(&joined, &values));
    assert_eq!(found[0], sums[0]);
    let expected = ops::eval(&graph, &values, ops::Rounding::Exact).unwrap();
    let bias = Tensor::from_bytes(expected[1].ty().clone(), &found[1]).unwrap();
    let error = tests::relative_l2(bias.as_floats(), expected[1].as_floats());
    assert!(error < 1e-6, "{error:e}\n{plan}");
}

#[test]
fn the_checker_rejects_sums_of_what_the_product_does_not_read() {
    let graph = gradients([64, 48, 20], DType::F32, Sum::After);
    let good = compile(graph, &target(Isa::detect(), 2)).unwrap();
    let sums = (1..good.steps.len()).find(|&step| good.is_summed_before(step)).unwrap();
    assert_eq!(sums_joined(&good), 1, "{good}");
    let x = good.inputs.iter().find(|port| *port.name == *"x").unwrap().buffer;
    type Damage<'a> = (&'a str, Box<dyn Fn(&mut Plan) + 'a>);
    let damages: Vec<Damage<'_>> = vec![
        (
            "another operand is summed",
            Box::new(|plan| plan.steps[sums].operands[0].place = compiler::Place::Buffer(x)),
        ),
        (
            "the product reads another operand",
            Box::new(|plan| plan.steps[sums - 1].operands[0].place = compiler::Place::Buffer(x)),
        ),
        (
            "scratch is shared",
            Box::new(|plan| plan.steps[sums].scratch = plan.steps[sums - 1].scratch),
        ),
        (
            "sums are scratch of the product",
            Box::new(|plan| plan.steps[sums].result = plan.steps[sums - 1].scratch.unwrap()),
        ),
        (
            "two products run together",
            Box::new(|plan| plan.steps[sums].kernel = plan.steps[sums - 1].kernel.clone()),
        ),
        (
            "the sum comes first",
            Box::new(|plan| {
                plan.steps.swap(sums - 1, sums);
                (plan.steps[sums - 1].joins, plan.steps[sums].joins) = (false, true);
            }),
        ),
    ];
    for (what, damage) in damages {
        let mut bad = good.clone();
        damage(&mut bad);
        assert!(!check_plan(&bad).is_empty(), "{what}\n{bad}");
    }
}
