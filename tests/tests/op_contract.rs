//! What every op owes, checked on every example of every op; and that text which is no graph is
//! refused without a panic.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;

use ops::{
    Builder, Data, Error, Example, Graph, Op, OpDef, Rounding, Tensor, TensorType, ValueId,
    append_gradients, defs, eval, parse, verify,
};
use tests::{Rng, relative_l2};

/// Every example with a name to report it by.
fn examples() -> Vec<(String, Example)> {
    let name = |(i, example): (usize, Example)| {
        let def = example.op.def();
        (format!("{} (example {i}, {})", def.name(), types(&example.args)), example)
    };
    Op::examples().into_iter().enumerate().map(name).collect()
}

fn types(types: &[TensorType]) -> String {
    types.iter().map(TensorType::to_string).collect::<Vec<_>>().join(", ")
}

/// The example as a graph of inputs `0`, `1`, ... and one output.
fn graph(example: &Example) -> Graph {
    let mut b = Builder::new("example");
    let args = inputs(&mut b, example);
    let out = b.op(example.op.clone(), &args).unwrap();
    b.finish(&[out])
}

fn inputs(b: &mut Builder, example: &Example) -> Vec<ValueId> {
    example.args.iter().enumerate().map(|(i, ty)| b.input(&i.to_string(), ty.clone())).collect()
}

fn given(operands: &[Tensor]) -> BTreeMap<String, Tensor> {
    operands.iter().enumerate().map(|(i, tensor)| (i.to_string(), tensor.clone())).collect()
}

fn run(graph: &Graph, operands: &[Tensor], rounding: Rounding) -> Vec<Tensor> {
    eval(graph, &given(operands), rounding).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    match tensor.data() {
        Data::Float(values) => values.clone(),
        Data::Int(values) => values.iter().map(|&x| x as f64).collect(),
    }
}

#[test]
fn every_op_has_examples_of_odd_size() {
    for name in Op::names() {
        let of: Vec<Example> =
            Op::examples().into_iter().filter(|example| example.op.def().name() == name).collect();
        assert!(of.len() >= 2, "{name} has {} examples", of.len());
        let odd = |example: &Example| example.args.iter().any(|ty| ty.count() % 2 == 1);
        assert!(of.iter().any(odd), "{name} has no operand of odd size");
    }
}

#[test]
fn names_are_unique_and_the_list_is_sorted() {
    let names = Op::names();
    let tables = defs::unary::Unary::ALL.len()
        + defs::binary::Binary::ALL.len()
        + defs::scalar::ScalarFn::ALL.len();
    assert!(names[tables..].is_sorted(), "{:?}", &names[tables..]);
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), names.len(), "an op's name is taken twice: {names:?}");
}

#[test]
fn text_parses_back_to_the_same_graph() {
    for (name, example) in examples() {
        let graph = graph(&example);
        let text = format!("{graph:#}");
        let parsed = parse(&text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        assert_eq!(parsed, graph, "{name}\n{text}");
        assert_eq!(format!("{parsed:#}"), text, "{name}");
    }
}

#[test]
fn examples_and_their_gradients_verify() {
    for (name, example) in examples() {
        assert_eq!(verify(&graph(&example)), Vec::<String>::new(), "{name}");
        if let Some(graph) = gradient_graph(&example) {
            assert_eq!(verify(&graph), Vec::<String>::new(), "{name}\n{graph}");
            let text = format!("{graph:#}");
            assert_eq!(parse(&text).as_ref(), Ok(&graph), "{name}\n{text}");
        }
    }
}

#[test]
fn values_have_the_inferred_type_and_are_finite() {
    for (name, example) in examples() {
        let graph = graph(&example);
        let operands = Rng::named(&name).operands(&example);
        for rounding in [Rounding::Stored, Rounding::Exact] {
            let out = run(&graph, &operands, rounding).remove(0);
            assert_eq!(out.ty(), graph.ty(graph.outputs[0]), "{name}");
            assert!(floats(&out).iter().all(|x| x.is_finite()), "{name}: {out:?}");
            if rounding == Rounding::Stored {
                assert_eq!(out.clone().rounded(), out, "{name} is not stored as its type");
            }
        }
    }
}

#[test]
fn decompositions_agree_with_values() {
    let mut composites = 0;
    for (name, example) in examples() {
        let mut b = Builder::new("decomposition");
        let args = inputs(&mut b, &example);
        let Some(value) = example.op.def().decompose(&mut b, &args) else { continue };
        composites += 1;
        let graph_of_parts = b.finish(&[value.unwrap()]);
        let whole = graph(&example);
        assert_eq!(
            graph_of_parts.ty(graph_of_parts.outputs[0]),
            whole.ty(whole.outputs[0]),
            "{name}"
        );
        let operands = Rng::named(&name).operands(&example);
        let parts = run(&graph_of_parts, &operands, Rounding::Exact).remove(0);
        assert_eq!(parts, run(&whole, &operands, Rounding::Exact).remove(0), "{name}");
        // What the fallback loses by rounding each part: f32 inside, and one step of the result.
        let stored = run(&graph_of_parts, &operands, Rounding::Stored).remove(0);
        let step = match whole.ty(whole.outputs[0]).dtype() {
            ops::DType::Bf16 => 1.0 / 256.0,
            ops::DType::F16 => 1.0 / 2048.0,
            _ => 1e-6,
        };
        let distance = relative_l2(&floats(&stored), &floats(&parts));
        assert!(distance <= step, "{name}: rounding the parts moves the result by {distance}");
    }
    assert!(composites >= 7 * 2, "only {composites} examples of composites");
}

/// Forward and backward: operands as in [`graph`], the cotangent as the last input; outputs are the
/// gradients of the float operands. `None` where the result is not a float.
fn gradient_graph(example: &Example) -> Option<Graph> {
    let mut b = Builder::new("gradient");
    let args = inputs(&mut b, example);
    let out = b.op(example.op.clone(), &args).unwrap();
    let ty = b.ty(out).clone();
    if !ty.dtype().is_float() {
        return None;
    }
    let cotangent = b.input(&args.len().to_string(), ty);
    let wrt: Vec<ValueId> = args.into_iter().filter(|&arg| b.ty(arg).dtype().is_float()).collect();
    let grads = append_gradients(&mut b, out, cotangent, &wrt).unwrap();
    let grads: Vec<ValueId> = grads.into_iter().flatten().collect();
    (!grads.is_empty()).then(|| b.finish(&grads))
}

#[test]
fn gradients_agree_with_central_differences() {
    // The error of a central difference is about h^2 in truncation and 1e-16 / h in rounding.
    const STEP: f64 = 1e-5;
    const TOLERANCE: f64 = 2e-7;
    let mut checked = 0;
    for (name, example) in examples() {
        let Some(backward) = gradient_graph(&example) else { continue };
        let forward = graph(&example);
        let mut rng = Rng::named(&name);
        let mut operands = rng.operands(&example);
        let cotangent = rng.tensor(forward.ty(forward.outputs[0]), (-1.0, 1.0));
        let mut all = operands.clone();
        all.push(cotangent.clone());
        let grads = run(&backward, &all, Rounding::Exact);
        let is_float = |i: &usize| example.args[*i].dtype().is_float();
        let positions: Vec<usize> = (0..operands.len()).filter(is_float).collect();
        assert_eq!(positions.len(), grads.len(), "{name}: an operand has no gradient");
        for (position, grad) in positions.into_iter().zip(grads) {
            assert_eq!(grad.ty(), &example.args[position], "{name}: operand {position}");
            let values = floats(&operands[position]);
            let mut loss = |i: usize, step: f64| {
                let mut moved = values.clone();
                moved[i] += step;
                operands[position] = Tensor::floats(example.args[position].clone(), moved);
                let out = run(&forward, &operands, Rounding::Exact).remove(0);
                let terms = floats(&out).into_iter().zip(floats(&cotangent));
                terms.map(|(y, c)| y * c).sum::<f64>()
            };
            let difference: Vec<f64> = (0..values.len())
                .map(|i| (loss(i, STEP) - loss(i, -STEP)) / (2.0 * STEP))
                .collect();
            operands[position] = Tensor::floats(example.args[position].clone(), values);
            let distance = relative_l2(&floats(&grad), &difference);
            assert!(distance <= TOLERANCE, "{name}: operand {position} is off by {distance}");
            checked += 1;
        }
    }
    assert!(checked > 200, "only {checked} gradients were checked");
}

#[test]
fn one_value_may_be_several_operands() {
    let ty = TensorType::new(ops::DType::F32, [2, 3, 1, 2]).unwrap();
    let mut b = Builder::new("shared");
    let x = b.input("0", ty.clone());
    let y = b.attention([x, x, x], None, None, 0.7).unwrap();
    let y = b.mul(y, x).unwrap();
    let forward = b.clone().finish(&[y]);
    let cotangent = b.input("1", ty.clone());
    let grad = append_gradients(&mut b, y, cotangent, &[x]).unwrap()[0].unwrap();
    let backward = b.finish(&[grad]);
    let mut rng = Rng::new(7);
    let operands = [rng.tensor(&ty, (-1.0, 1.0)), rng.tensor(&ty, (-1.0, 1.0))];
    let grad = run(&backward, &operands, Rounding::Exact).remove(0);
    let loss = |i: usize, step: f64| {
        let mut moved = floats(&operands[0]);
        moved[i] += step;
        let out = run(&forward, &[Tensor::floats(ty.clone(), moved)], Rounding::Exact).remove(0);
        floats(&out).iter().zip(floats(&operands[1])).map(|(y, c)| y * c).sum::<f64>()
    };
    let difference: Vec<f64> =
        (0..ty.count()).map(|i| (loss(i, 1e-5) - loss(i, -1e-5)) / 2e-5).collect();
    assert!(relative_l2(&floats(&grad), &difference) < 1e-8);
}

/// What reaches `x` through another operand is passed on once, by the node that made that operand.
#[test]
fn operands_of_a_composite_may_depend_on_each_other() {
    let ty = TensorType::new(ops::DType::F32, [2, 3, 1, 2]).unwrap();
    let mut b = Builder::new("dependent");
    let x = b.input("0", ty.clone());
    let k = b.sin(x).unwrap();
    let v = b.mul(k, x).unwrap();
    let y = b.attention([x, k, v], None, None, 0.7).unwrap();
    let forward = b.clone().finish(&[y]);
    let cotangent = b.input("1", ty.clone());
    let grad = append_gradients(&mut b, y, cotangent, &[x]).unwrap()[0].unwrap();
    let backward = b.finish(&[grad]);
    let mut rng = Rng::new(8);
    let operands = [rng.tensor(&ty, (-1.0, 1.0)), rng.tensor(&ty, (-1.0, 1.0))];
    let grad = run(&backward, &operands, Rounding::Exact).remove(0);
    let loss = |i: usize, step: f64| {
        let mut moved = floats(&operands[0]);
        moved[i] += step;
        let out = run(&forward, &[Tensor::floats(ty.clone(), moved)], Rounding::Exact).remove(0);
        floats(&out).iter().zip(floats(&operands[1])).map(|(y, c)| y * c).sum::<f64>()
    };
    let difference: Vec<f64> =
        (0..ty.count()).map(|i| (loss(i, 1e-5) - loss(i, -1e-5)) / 2e-5).collect();
    assert!(relative_l2(&floats(&grad), &difference) < 1e-8);
}

/// `x` times what it is now: the gradient is that of one factor.
#[test]
fn no_gradient_passes_a_stopped_value() {
    let ty = TensorType::new(ops::DType::F32, [5]).unwrap();
    let mut b = Builder::new("stopped");
    let x = b.input("0", ty.clone());
    let cotangent = b.input("1", ty.clone());
    let given = b.stop_gradient(x).unwrap();
    let y = b.mul(x, given).unwrap();
    let z = b.exp(given).unwrap();
    let grads = [y, z].map(|out| append_gradients(&mut b, out, cotangent, &[x]).unwrap()[0]);
    assert_eq!(grads[1], None);
    let backward = b.finish(&[grads[0].unwrap(), y]);
    let mut rng = Rng::new(9);
    let operands = [rng.tensor(&ty, (-1.0, 1.0)), rng.tensor(&ty, (1.0, 1.0))];
    let found = run(&backward, &operands, Rounding::Exact);
    assert_eq!(floats(&found[0]), floats(&operands[0]));
    let squares: Vec<f64> = floats(&operands[0]).iter().map(|x| x * x).collect();
    assert_eq!(floats(&found[1]), squares);
}

#[test]
fn gradients_of_a_deep_chain_grow_linearly() {
    let ty = TensorType::new(ops::DType::F32, [2, 4]).unwrap();
    let nodes = |depth: usize| {
        let mut b = Builder::new("chain");
        let x = b.input("x", ty.clone());
        let y = (0..depth).fold(x, |y, _| b.layer_norm(y, 1e-6).unwrap());
        let cotangent = b.input("g", ty.clone());
        append_gradients(&mut b, y, cotangent, &[x]).unwrap();
        b.graph().nodes.len()
    };
    assert_eq!(nodes(9) - nodes(8), nodes(2) - nodes(1));
}

#[test]
fn gradients_refuse_a_cotangent_of_another_type() {
    let mut b = Builder::new("mismatch");
    let x = b.input("x", TensorType::new(ops::DType::F32, [2]).unwrap());
    let g = b.input("g", TensorType::new(ops::DType::F32, [3]).unwrap());
    let y = b.exp(x).unwrap();
    let error = append_gradients(&mut b, y, g, &[x]).unwrap_err();
    assert_eq!(error.to_string(), "the cotangent is f32[3], the output is f32[2]");
}

#[test]
fn wrong_operand_counts_are_refused_by_name() {
    for (name, example) in examples() {
        let def: &dyn OpDef = example.op.def();
        let args: Vec<&TensorType> = example.args.iter().collect();
        let mut too_many = args.clone();
        // Any number of operands can be joined, if of one shape: not these.
        let other = TensorType::new(ops::DType::U8, [97]).unwrap();
        too_many.extend([&other; 7]);
        let too_few = if def.name() == "concat" { &[] } else { &args[1..] };
        for wrong in [&[], too_few, &too_many] {
            let error = def.infer(wrong).map(|ty| ty.to_string());
            let Err(error) = error else { panic!("{name}: takes {}", types_of(wrong)) };
            assert!(error.to_string().starts_with(&format!("{}: ", def.name())), "{name}: {error}");
        }
        assert!(matches!(def.infer(&[]), Err(Error::Arity { .. })), "{name}");
    }
}

fn types_of(args: &[&TensorType]) -> String {
    types(&args.iter().map(|&ty| ty.clone()).collect::<Vec<_>>())
}

#[test]
fn every_op_takes_half_precision_where_it_takes_floats() {
    let takes_floats = |name: &str| {
        let is_float = |example: &Example| example.args.iter().any(|ty| ty.dtype().is_float());
        Op::examples().iter().any(|example| example.op.def().name() == name && is_float(example))
    };
    let takes_halves = |name: &&str| *name != "fused" && takes_floats(name);
    for name in Op::names().into_iter().filter(takes_halves) {
        let half = |example: &Example| {
            example.op.def().name() == name && example.args.iter().any(|ty| ty.dtype().size() == 2)
        };
        assert!(Op::examples().iter().any(half), "{name} has no example in bf16 or f16");
    }
}

/// Why a graph with these lines is refused.
fn refused(body: &str) -> String {
    let text = format!("graph @g {{\n{body}\n  return %0\n}}\n");
    parse(&text).expect_err(&text).to_string()
}

#[test]
fn text_that_is_no_graph_is_refused_with_its_line() {
    let input = "%0 : f32[2, 4] = input \"x\"";
    let cases: &[(&str, &str)] = &[
        ("%0 : f32[0] = input \"x\"", "line 2: shape [0] has an empty axis"),
        ("%0 : f33[1] = input \"x\"", "line 2: unknown element type `f33`"),
        ("%0 : f32[x] = input \"x\"", "line 2: expected a dim, found `x`"),
        ("%0 : f32[1] = input \"x", "line 2: the string does not end on its line"),
        ("%0 : f32[1] = input \"\\x\"", "line 2: unknown escape in a string"),
        ("%1 : f32[1] = input \"x\"", "line 2: expected the next value, %0"),
        ("%0 : f32[2] = constant [1.0]", "line 2: 1 elements do not fill f32[2]"),
        ("%0 : f32[1] = constant [0.1]", "line 2: an element is not a value of f32"),
        ("%0 : u8[1] = constant [256]", "line 2: an element is not a value of u8"),
        ("%0 : f32[9] = constant #1", "line 2: no data line for constant #0000000000000001"),
        ("%0 : f32[9] = constant #x", "line 2: expected a constant's hash"),
        ("%0 : f32[9] = constant [1]", "line 2: constants above 8 elements print as #hash"),
        ("%0 : f32[2, 4] = neg %0", "line 2: value %0 does not exist at this point of the graph"),
        ("I\n%1 : f32[2, 4] = negate %0", "line 3: unknown op `negate`"),
        ("I\n%1 : f32[2, 5] = neg %0", "line 3: declared f32[2, 5], inferred f32[2, 4]"),
        ("I\n%1 : f32[2, 4] = neg %0 {x = 1}", "line 3: neg: unknown attribute `x`"),
        ("I\n%1 : f32[2, 4] = neg %0 {x = ?}", "line 3: `` is not an attribute value"),
        ("I\n%1 : f32[8] = reshape %0", "line 3: reshape: expected {shape = <integers>}"),
        (
            "I\n%1 : f32[8] = reshape %0 {shape = 8}",
            "line 3: reshape: shape: expected a list of integers",
        ),
        (
            "I\n%1 : f32[8] = reshape %0 {shape = [-8]}",
            "line 3: reshape: shape: expected non-negative integers",
        ),
        (
            "I\n%1 : f32[8] = reshape %0 {shape = [9]}",
            "line 3: reshape: operand 0 is f32[2, 4], expected 9 elements, for shape [9]",
        ),
        (
            "I\n%1 : f32[8] = reshape %0 {shape = [1099511627776, 1099511627776]}",
            "line 3: reshape: shape [1099511627776, 1099511627776] has more than 1099511627776 elements",
        ),
        (
            "I\n%1 : f32[4, 2] = permute %0 {axes = [1, 1]}",
            "line 3: permute: axes [1, 1] must be a permutation of those of f32[2, 4]",
        ),
        (
            "I\n%1 : f32[2, 1] = reduce_sum %0 {axes = [1, 0]}",
            "line 3: reduce_sum: axes [1, 0] must be ascending, distinct axes of f32[2, 4]",
        ),
        (
            "I\n%1 : f32[2, 1] = reduce_max %0 {axes = []}",
            "line 3: reduce_max: axes [] must be ascending, distinct axes of f32[2, 4]",
        ),
        (
            "I\n%1 : f32[1, 4] = slice %0 {start = [1, 0], stop = [1, 4], step = [1, 1]}",
            "line 3: slice: 1..1 by 1 is not a range of axis 0 of f32[2, 4]",
        ),
        (
            "I\n%1 : f32[1, 4] = slice %0 {start = [0, 0], stop = [1, 4], step = [1, 0]}",
            "line 3: slice: 0..4 by 0 is not a range of axis 1 of f32[2, 4]",
        ),
        (
            "I\n%1 : f32[2, 4] = pad %0 {low = [0], high = [0, 0]}",
            "line 3: pad: low has 1 entries for 2 axes",
        ),
        (
            "I\n%1 : f32[2, 4] = softmax %0 {axis = 2}",
            "line 3: softmax: axis 2 is not an axis of f32[2, 4]",
        ),
        (
            "I\n%1 : f32[2, 4] = layer_norm %0 {eps = NaN}",
            "line 3: layer_norm: eps NaN must be finite and not negative",
        ),
        (
            "I\n%1 : f32[2, 4] = add_scalar %0 {value = NaN}",
            "line 3: add_scalar: value must not be NaN",
        ),
        (
            "I\n%1 : f32[2, 4] = group_norm %0, %0, %0 {groups = 0, eps = 1e-6}",
            "line 3: group_norm: 4 channels do not split into 0 groups",
        ),
        (
            "I\n%1 : f32[2, 4] = matmul %0, %0 {transpose_a = false, transpose_b = false}",
            "line 3: matmul: operand 1 is f32[2, 4], expected [.., 4, N] of rank 2, or with the \
             batch dims of f32[2, 4]",
        ),
        (
            "I\n%1 : f32[2, 4] = fused %0 {kind = \"map\", body = graph @b {\n%0 : f32[2] = input \"0\"\nreturn %0\n}}",
            "line 3: fused: operand 0 is f32[2, 4], expected f32[2]",
        ),
        (
            "I\n%1 : f32[2, 4] = fused %0 {kind = \"map\", body = graph @b {\n%0 : f32[2, 4] = input \"x\"\nreturn %0\n}}",
            "line 3: fused: input 0 of the body must be named `0`, not `x`",
        ),
        (
            "I\n%1 : f32[2, 4] = fused %0 {kind = \"map\", body = graph @b {\n%0 : f32[2, 4] = input \"0\"\nreturn %0, %0\n}}",
            "line 3: fused: body must have one output",
        ),
    ];
    for (body, message) in cases {
        assert_eq!(refused(&body.replacen('I', input, 1)), *message, "{body}");
    }
    let whole: &[(&str, &str)] = &[
        ("", "line 1: expected `graph`"),
        ("graph g", "line 1: expected `@`"),
        ("graph @g {\n  return %0\n}", "line 2: %0 does not exist"),
        ("graph @g {\n}", "line 2: expected `return`"),
        (
            "graph @g {\n%0 : f32[] = constant [1.0]\nreturn %0\n}\nmore",
            "line 5: expected the end of the text",
        ),
        (
            "graph @g {\n%0 : f32[] = constant [1.0]\nreturn %0\n}\ndata x",
            "line 5: expected the end of the text",
        ),
        ("data #x\n", "line 1: expected `data #<hash> = [`"),
    ];
    for (text, message) in whole {
        assert_eq!(parse(text).expect_err(text).to_string(), *message, "{text}");
    }
}

#[test]
fn bodies_nest_to_a_limit() {
    let mut text = "graph @g {\n%0 : f32[] = input \"0\"\nreturn %0\n}".to_string();
    for depth in 2..=5 {
        text = format!(
            "graph @g {{\n%0 : f32[] = input \"0\"\n\
             %1 : f32[] = fused %0 {{kind = \"map\", body = {text}}}\nreturn %1\n}}"
        );
        match parse(&text) {
            Ok(graph) => {
                assert!(depth <= 4);
                assert_eq!(parse(&format!("{graph:#}")), Ok(graph));
            }
            Err(error) => {
                assert_eq!(depth, 5);
                assert!(error.to_string().ends_with("graphs nest deeper than 4"), "{error}");
            }
        }
    }
    // Far beyond the limit the stack must hold too.
    let opening = "graph @g {\n%0 : f32[] = fused %0 {body = ".repeat(100_000);
    assert!(parse(&opening).is_err());
}

#[test]
fn changed_data_of_a_large_constant_is_refused() {
    let mut b = Builder::new("g");
    let values: Vec<f32> = (0..9).map(|i| i as f32 / 2.0).collect();
    let c = b.constant(Tensor::f32(&[9], &values).unwrap());
    let text = format!("{:#}", b.finish(&[c]));
    assert!(parse(&text).is_ok());
    let error = parse(&text.replace("0.5", "1.5")).unwrap_err().to_string();
    assert!(error.ends_with("has another hash"), "{error}");
    let error = parse(&text.replace("4.0]", "4.0] x")).unwrap_err().to_string();
    assert!(error.ends_with("expected the end of the line"), "{error}");
}

#[test]
fn names_and_scopes_survive_text() {
    let mut b = Builder::new("a b{//");
    let ty = TensorType::new(ops::DType::F32, [1]).unwrap();
    let x = b.input("quote \" slash \\ line \n tab \t snow \u{2603}", ty);
    let y = b.scope("two\nlines", |b| b.neg(x)).unwrap();
    let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0];
    let ty = TensorType::new(ops::DType::F32, [4]).unwrap();
    let c = b.constant(Tensor::floats(ty, special.to_vec()));
    let graph = b.finish(&[y, c]);
    assert_eq!(parse(&format!("{graph:#}")), Ok(graph));
}

#[test]
fn damaged_text_is_refused_or_valid_but_never_a_panic() {
    let texts: Vec<String> =
        examples().iter().map(|(_, example)| format!("{:#}", graph(example))).collect();
    let snippets: [&[u8]; 9] = [
        b"-1",
        b"18446744073709551615",
        b"9223372036854775807",
        b"1099511627776",
        b"0",
        b"NaN",
        b"%4294967295",
        b"{",
        b"\"",
    ];
    let mut rng = Rng::new(11);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut text = texts[rng.below(texts.len())].clone().into_bytes();
        for _ in 0..=rng.below(3) {
            if text.is_empty() {
                break;
            }
            let at = rng.below(text.len());
            let end = (at + rng.below(4)).min(text.len());
            match rng.below(4) {
                0 => text[at] = (rng.bits() & 0x7f) as u8,
                1 => drop(text.drain(at..end)),
                2 => text.truncate(at.max(1)),
                _ => drop(text.splice(at..end, snippets[rng.below(9)].iter().copied())),
            }
        }
        let Ok(text) = String::from_utf8(text) else { continue };
        if let Ok(graph) = parse(&text) {
            accepted += 1;
            assert_eq!(verify_types(&graph), Vec::<String>::new(), "{text}");
            assert_eq!(parse(&format!("{graph:#}")), Ok(graph.clone()), "{text}");
            let _ = graph.flops();
        }
    }
    assert!(accepted > 100, "only {accepted} damaged texts were graphs, too few to mean much");
}

/// Problems other than names, which the text may well give twice.
fn verify_types(graph: &Graph) -> Vec<String> {
    verify(graph).into_iter().filter(|problem| !problem.contains("are both called")).collect()
}
