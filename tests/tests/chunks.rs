//! Branches in chunks, and concats that are written in place: the same bits as without, in less
//! memory, within the limit that is asked for.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;

use compiler::{Chunking, Holds, Options, PIPELINE, Plan, chunk_tokens, run_passes};
use kernels::Isa;
use models::config::Stdit2;
use models::{Bucket, stdit2};
use ops::{Builder, Class, DType, Example, Graph, Op, Rounding, Tensor, ValueId, eval, verify};
use serde_json::json;
use tests::compiled;
use tests::random_graph::{random_graph, random_values, shrink};

const N_GRAPHS: u64 = 200;

/// Cuts whatever can be cut.
const FINEST: Chunking = Chunking { bytes: 1, max_chunks: 64 };

/// What is wrong with the chunks of `graph`, if something is.
fn difference(graph: &Graph, seed: u64) -> Option<String> {
    let after = chunk_tokens(graph, FINEST);
    let problems = verify(&after);
    if !problems.is_empty() {
        return Some(format!("{problems:?}\nafter: {after}"));
    }
    let values = random_values(graph, seed);
    let expected = eval(graph, &values, Rounding::Exact).expect("the graph is valid");
    let found = eval(&after, &values, Rounding::Exact).expect("the chunks are valid");
    // `NaN` is not equal to itself: compared as text.
    (format!("{expected:?}") != format!("{found:?}")).then(|| format!("after: {after}"))
}

#[test]
fn chunks_keep_the_values_of_random_graphs() {
    let mut n_changed = 0;
    for seed in 0..N_GRAPHS {
        let raw = random_graph(seed);
        let fused = run_passes(raw.clone(), &PIPELINE[..PIPELINE.len() - 1], &mut |_| {});
        for graph in [raw, fused] {
            n_changed += u32::from(chunk_tokens(&graph, FINEST) != graph);
            if difference(&graph, seed).is_some() {
                let small = shrink(&graph, |graph| difference(graph, seed).is_some());
                let what = difference(&small, seed).expect("shrinking keeps the failure");
                panic!("seed {seed}: {what}\nbefore: {small:#}");
            }
        }
    }
    assert!(n_changed >= 20, "only {n_changed} graphs had something to cut");
}

#[test]
fn chunks_are_not_cut_again() {
    for seed in 0..N_GRAPHS {
        let coarse = Chunking { bytes: 256, max_chunks: 64 };
        let once = chunk_tokens(&random_graph(seed), coarse);
        assert_eq!(chunk_tokens(&once, coarse), once, "seed {seed}");
    }
}

/// A small STDiT-2 of two blocks in the pipeline's form before chunks, with values for it.
fn model(bucket: &Bucket) -> (Graph, BTreeMap<String, Tensor>) {
    let config = json!({
        "hidden_size": 96, "depth": 2, "num_heads": 4, "caption_channels": 24,
        "model_max_length": 7, "qk_norm": true,
    });
    let config = Stdit2::from_json(&config).expect("the configuration is valid");
    let graph = stdit2::graph(&config, bucket).expect("the bucket fits");
    // Without comments, which plans print and parsing drops.
    let graph = ops::parse(&format!("{graph:#}")).expect("graphs parse back");
    let mut values = random_values(&graph, 1);
    // Weights of ordinary size, so that nothing saturates.
    for (value, name) in graph.params() {
        let scaled = values[name].as_floats().iter().map(|x| x * 0.1).collect();
        values.insert(name.into(), Tensor::floats(graph.ty(value).clone(), scaled).rounded());
    }
    (run_passes(graph, &PIPELINE[..PIPELINE.len() - 1], &mut |_| {}), values)
}

fn bucket(dtype: DType, frame_mask: bool) -> Bucket {
    let bucket = Bucket::new(1, [5, 6, 10], [48.0, 80.0], 7);
    Bucket { dtype, frame_mask, guided: true, ..bucket }
}

#[test]
fn a_model_in_chunks_gives_the_same_bits_in_less_memory() {
    for (dtype, frame_mask) in [(DType::F32, false), (DType::Bf16, false), (DType::F32, true)] {
        let (whole, values) = model(&bucket(dtype, frame_mask));
        for isa in Isa::available() {
            let target = compiled::target(isa, 2);
            let expected = compiled::run_plan(compiler::plan(&whole, &target).unwrap(), &values);
            for chunking in [Chunking { bytes: 40_000, max_chunks: 64 }, FINEST] {
                let chunked = chunk_tokens(&whole, chunking);
                let plan = compiler::plan(&chunked, &target).unwrap();
                let problems = compiler::check_plan(&plan);
                assert!(problems.is_empty(), "{problems:?}");
                let text = format!("{plan:#}");
                let parsed = compiler::parse_plan(&text).unwrap();
                assert_eq!(format!("{parsed:#}"), text);
                assert!(
                    compiled::run_plan(plan, &values) == expected,
                    "{dtype} {isa} {chunking:?}"
                );
            }
        }
    }
}

/// A plan without weights, for a machine as most.
fn plan(graph: &Graph) -> Plan {
    compiler::plan(graph, &compiled::target(Isa::detect(), 2)).expect("every model has kernels")
}

#[test]
fn no_branch_holds_its_wide_activations_whole() {
    let (whole, _) = model(&Bucket::new(1, [16, 32, 32], [256.0, 256.0], 7));
    let stream = 16 * 256 * 96 * 4;
    assert!(plan(&whole).arena_bytes > 5 * stream);
    // What stays is the stream, an eighth of the widest branch, and the conditions.
    let chunking = Chunking { bytes: 1, max_chunks: 8 };
    let report = plan(&chunk_tokens(&whole, chunking)).report();
    let values = report.live.iter().filter(|live| live.holds != Holds::Scratch);
    let bytes: usize = values.map(|live| live.bytes).sum();
    assert!(bytes < 2 * stream, "{bytes} of {stream}: {report:?}");
}

#[test]
fn a_limit_is_kept_or_refused_with_the_smallest_that_works() {
    let config = Stdit2::from_json(&json!({ "hidden_size": 288, "depth": 1, "num_heads": 4 }));
    let bucket = Bucket::new(1, [32, 40, 40], [320.0, 320.0], 20);
    let graph = stdit2::graph(&config.unwrap(), &bucket).unwrap();
    let target = compiled::target(Isa::detect(), 2);
    let compile =
        |memory: Option<usize>| compiler::compile_with(graph.clone(), &target, &Options { memory });
    let free = compile(None).unwrap();
    assert_eq!(free.to_string(), compile(Some(free.held_bytes())).unwrap().to_string());
    let tight = compile(Some(free.held_bytes() - 1)).unwrap();
    assert!(tight.held_bytes() < free.held_bytes());
    assert!(tight.steps.len() > free.steps.len());

    let Err(compiler::Error::Memory { smallest, memory: 1000, arena, weights, .. }) =
        compile(Some(1000))
    else {
        panic!("1000 bytes are not enough");
    };
    assert_eq!(smallest, arena + weights);
    assert_eq!(compile(Some(smallest)).unwrap().held_bytes(), smallest);
    assert!(compile(Some(smallest - 1)).is_err());
}

/// The example's op twice, on operands of their own: the results as outputs, or joined along `axis`.
fn twice(example: &Example, axis: Option<usize>) -> Graph {
    let mut b = Builder::new("twice");
    let mut results = Vec::new();
    for copy in 0..2 {
        let input = |(i, ty): (usize, &ops::TensorType)| (format!("{copy}.{i}"), ty.clone());
        let args: Vec<(String, ops::TensorType)> =
            example.args.iter().enumerate().map(input).collect();
        let args: Vec<ValueId> = args.into_iter().map(|(name, ty)| b.input(&name, ty)).collect();
        results.push(b.op(example.op.clone(), &args).expect("examples are valid"));
    }
    match axis {
        None => b.finish(&results),
        Some(axis) => {
            let joined = b.concat(&results, axis).expect("the axis exists");
            b.finish(&[joined])
        }
    }
}

#[test]
fn every_kernel_writes_its_part_of_a_concat() {
    let mut n_in_place = 0;
    for example in Op::examples() {
        let name = example.op.def().name();
        let rank = twice(&example, None).ty(twice(&example, None).outputs[0]).rank();
        let is_view = example.op.def().class() == Class::Movement;
        if name == "scatter_add" || is_view {
            continue;
        }
        let apart = twice(&example, None);
        let values = random_values(&apart, 3);
        for isa in Isa::available() {
            let target = compiled::target(isa, 2);
            let parts = compiled::run(&apart, &values, &target);
            for axis in 0..rank {
                let joined = twice(&example, Some(axis));
                let expected = {
                    let mut b = Builder::new("join");
                    let args: Vec<ValueId> = parts
                        .iter()
                        .enumerate()
                        .map(|(i, part)| b.input(&i.to_string(), part.ty().clone()))
                        .collect();
                    let out = b.concat(&args, axis).unwrap();
                    let given = parts.iter().enumerate();
                    let given = given.map(|(i, part)| (i.to_string(), part.clone())).collect();
                    eval(&b.finish(&[out]), &given, Rounding::Stored).unwrap()
                };
                let plan = compiler::compile(joined.clone(), &target).unwrap();
                n_in_place +=
                    usize::from(plan.steps.iter().all(|step| step.kernel.def().name() != "concat"));
                let found = compiled::run_plan(plan, &values);
                let same = found.iter().zip(&expected).all(|(f, e)| f.to_bytes() == e.to_bytes());
                assert!(same, "{name} {isa}, axis {axis}\n{joined}\n{found:?}\n{expected:?}");
            }
        }
    }
    assert!(n_in_place > 100, "{n_in_place}");
}

#[test]
fn what_no_step_makes_is_copied_into_a_concat() {
    let ty = |shape: &[usize]| ops::TensorType::new(DType::F32, shape).unwrap();
    // Width of the third operand, next to two of width 3; whether it is the first one again; concats that are left.
    for (width, is_again, n_concats) in [(3, false, 0), (3, true, 1), (7, false, 1)] {
        let mut b = Builder::new("parts");
        let (x, y) = (b.input("x", ty(&[4, 5, 3])), b.input("y", ty(&[4, 5, 9])));
        // Made in another shape, and with other axes first.
        let first = b.exp(x).unwrap();
        let first = b.reshape(first, &[4, 1, 5, 3]).unwrap();
        let turned = b.permute(x, &[1, 0, 2]).unwrap();
        let second = b.exp(turned).unwrap();
        let second = b.permute(second, &[1, 0, 2]).unwrap();
        let second = b.reshape(second, &[4, 1, 5, 3]).unwrap();
        let whole = b.exp(y).unwrap();
        let third = if is_again {
            first
        } else {
            let part = b.slice_axis(whole, 2, 1, 1 + width).unwrap();
            b.reshape(part, &[4, 1, 5, width]).unwrap()
        };
        let joined = b.concat(&[first, second, third], 3).unwrap();
        let graph = b.finish(&[joined, whole]);
        let values = random_values(&graph, 1);
        let expected = eval(&graph, &values, Rounding::Stored).unwrap();
        for isa in Isa::available() {
            let plan = compiler::compile(graph.clone(), &compiled::target(isa, 2)).unwrap();
            assert_eq!(compiler::check_plan(&plan), Vec::<String>::new(), "{width} {is_again}");
            let concats = plan.steps.iter().filter(|step| step.kernel.def().name() == "concat");
            assert_eq!(concats.count(), n_concats, "{width} {is_again}");
            for (found, expected) in compiled::run_plan(plan, &values).iter().zip(&expected) {
                let pairs = found.as_floats().iter().zip(expected.as_floats());
                let worst = pairs.map(|(f, e)| (f - e).abs() / e.abs()).fold(0.0, f64::max);
                assert!(worst < 1e-6, "{width} {is_again} {isa}: {worst}");
            }
        }
    }
}
