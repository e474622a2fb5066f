//! What a training step keeps and what it makes again: the same bits, fewer bytes, little work.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;
use std::sync::Arc;

use compiler::{
    Checkpoints, Chunking, Plan, check_plan, choose_checkpoints, chunk_tokens, recompute_where,
};
use kernels::{Isa, Pool};
use models::config::{AutoencoderKl, Stdit2};
use models::vae::{self, FrameBucket};
use models::{Bucket, stdit2};
use ops::{Builder, DType, Graph, Rounding, Tensor, TensorType, ValueId, eval};
use runtime::{Session, WeightStore};
use serde_json::json;
use tests::Rng;
use tests::compiled::{Table, target};
use tests::gradients::{forward_end, stdit2_xl, with_gradients};
use tests::random_graph::{Random, random_graph, random_values};

/// Layers of different widths: products, activations, sums.
fn layers(seed: u64, n_layers: usize) -> Graph {
    let mut random = Random::new(seed);
    let ty = |shape: [usize; 2]| TensorType::new(DType::F32, shape).unwrap();
    let mut b = Builder::new(format!("layers{seed}"));
    let rows = 64;
    let mut width = 4 + random.below(8);
    let mut x = b.input("x", ty([rows, width]));
    for layer in 0..n_layers {
        let next = 2 + random.below(24);
        let weight = b.param(&format!("w{layer}"), ty([next, width]));
        x = b.linear(x, weight, None).unwrap();
        x = match random.below(3) {
            0 => b.silu(x).unwrap(),
            1 => b.tanh(x).unwrap(),
            _ => b.mul(x, x).unwrap(),
        };
        width = next;
    }
    with_gradients(b.finish(&[x]))
}

fn peak(checkpoints: &Checkpoints) -> usize {
    checkpoints.live_bytes
}

fn given(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut rng = Rng::new(seed);
    let declared = graph.inputs().chain(graph.params());
    declared
        .map(|(value, name)| (name.to_string(), rng.tensor(graph.ty(value), (-1.0, 1.0))))
        .collect()
}

#[test]
fn copies_compute_what_the_originals_did() {
    for seed in 0..40 {
        let graph = random_graph(seed);
        let given = random_values(&graph, seed);
        let expected = eval(&graph, &given, Rounding::Stored).unwrap();
        for budget in [0, 200, 1000] {
            let found = choose_checkpoints(&graph, budget);
            assert_eq!(
                eval(&found.graph, &given, Rounding::Stored).unwrap(),
                expected,
                "seed {seed}"
            );
        }
        for last in 0..graph.nodes.len() {
            let found = recompute_where(&graph, last, |value| value.index() % 3 != 0);
            assert_eq!(
                eval(&found.graph, &given, Rounding::Stored).unwrap(),
                expected,
                "seed {seed} at {last}"
            );
            assert_eq!(found.graph.flops(), graph.flops() + found.added_flops);
        }
    }
}

#[test]
fn budgets_are_kept_with_nearly_the_least_work() {
    let (mut chosen, mut least, mut n_cases) = (0, 0, 0);
    for seed in 0..16 {
        let graph = layers(seed, 6);
        let end = forward_end(&graph);
        let keep_all = peak(&choose_checkpoints(&graph, usize::MAX));
        let smallest = peak(&choose_checkpoints(&graph, 0));
        if smallest == keep_all {
            // The fullest place is one that no value is kept over.
            continue;
        }
        // Every set of values that the forward part keeps.
        let crossing = recompute_where(&graph, end, |_| true).recomputed;
        let sets: Vec<Checkpoints> = (0..1u32 << crossing.len())
            .map(|set| {
                let is_in = |value: ValueId| {
                    crossing
                        .iter()
                        .position(|&other| other == value)
                        .is_some_and(|at| set >> at & 1 == 1)
                };
                recompute_where(&graph, end, is_in)
            })
            .collect();
        for share in [1, 2, 3] {
            let budget = smallest + (keep_all - smallest) * share / 4;
            let found = choose_checkpoints(&graph, budget);
            assert!(peak(&found) <= budget, "seed {seed}: {} of {budget}", peak(&found));
            let fitting = sets.iter().filter(|set| peak(set) <= budget);
            let Some(best) = fitting.map(|set| set.added_flops).min() else { continue };
            println!("{seed} {share}: {} of {best}", found.added_flops);
            chosen += found.added_flops;
            least += best;
            n_cases += 1;
        }
    }
    assert!(n_cases >= 24, "{n_cases}");
    let ratio = chosen as f64 / least as f64;
    println!("{n_cases} cases: {ratio:.3} of the least work");
    assert!(ratio <= 1.05, "{ratio}");
}

fn stdit2_step(depth: usize) -> Graph {
    let config = json!({
        "hidden_size": 48, "num_heads": 4, "depth": depth, "caption_channels": 32, "qk_norm": true,
        "model_max_length": 10, "input_sq_size": 32, "in_channels": 4, "patch_size": [1, 2, 2],
    });
    let config = Stdit2::from_json(&config).unwrap();
    let bucket = Bucket::new(1, [4, 8, 8], [64.0, 64.0], 10);
    with_gradients(stdit2::graph(&config, &Bucket { guided: false, ..bucket }).unwrap())
}

/// An autoencoder's decoder.
fn decoder_step() -> Graph {
    let config = json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 8,
        "block_out_channels": [16, 32], "layers_per_block": 1,
    });
    let config = AutoencoderKl::from_json(&config).unwrap();
    let bucket = FrameBucket { dtype: DType::F32, frames: 2, height: 7, width: 6 };
    with_gradients(vae::decoder_graph(&config, &bucket).unwrap())
}

/// Steps of `plan` that run kernel `name`.
fn n_steps(plan: &Plan, name: &str) -> usize {
    plan.steps.iter().filter(|step| step.kernel.def().name() == name).count()
}

#[test]
fn gradients_of_a_transformer_have_the_same_bits_at_every_budget() {
    same_bits_at_every_budget(&stdit2_step(2));
}

#[test]
fn gradients_of_a_decoder_have_the_same_bits_at_every_budget() {
    let [all, least] = same_bits_at_every_budget(&decoder_step());
    assert!(n_steps(&least, "conv") > n_steps(&all, "conv"));
    for kernel in ["conv_input_grad", "conv_weight_grad"] {
        assert!(n_steps(&all, kernel) > 10);
        assert_eq!(n_steps(&least, kernel), n_steps(&all, kernel));
    }
}

/// The plans without a limit and with the lowest that is possible.
fn same_bits_at_every_budget(graph: &Graph) -> [Arc<Plan>; 2] {
    let given = given(graph, 1);
    let target = target(Isa::detect(), 2);
    let pool = Arc::new(Pool::new(2).unwrap());
    let run = |memory: Option<usize>| {
        let training = compiler::compile_training(graph.clone(), &target, memory).unwrap();
        assert!(check_plan(&training.plan).is_empty());
        let weights = WeightStore::new(Table(given.clone()));
        let plan = Arc::new(training.plan);
        let mut session = Session::new(Arc::clone(&plan), &weights, Arc::clone(&pool)).unwrap();
        let inputs: Vec<(String, Vec<u8>)> =
            graph.inputs().map(|(_, name)| (name.to_string(), given[name].to_bytes())).collect();
        let inputs: Vec<(&str, &[u8])> =
            inputs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        session.run(&inputs).unwrap();
        let outputs: Vec<Vec<u8>> =
            (0..plan.outputs.len()).map(|at| session.output(at).to_vec()).collect();
        (outputs, plan, training.added_flops)
    };
    let (expected, all, _) = run(None);
    let smallest = compiler::compile_training(graph.clone(), &target, Some(0)).unwrap_err();
    let compiler::Error::Memory { smallest, weights, .. } = smallest else { panic!("{smallest}") };
    let (mut before, mut last) = (0, Arc::clone(&all));
    for share in [3, 2, 1, 0] {
        let memory = smallest + (all.held_bytes() - smallest) * share / 4;
        let (found, plan, added) = run(Some(memory));
        assert!(plan.held_bytes() <= memory, "{} of {memory}", plan.held_bytes());
        assert!(added >= before, "{share}: {added} after {before}");
        assert!(plan.arena_bytes <= all.arena_bytes && weights > 0);
        assert!(found == expected, "{share}");
        (before, last) = (added, plan);
    }
    assert!(before > 0);
    [all, last]
}

#[test]
fn the_step_that_keeps_least_is_placed_near_its_bound() {
    let graph = stdit2_xl(28, [16, 240, 426]);
    let target = target(Isa::detect(), 2);
    let least = choose_checkpoints(&graph, 0);
    let graph = chunk_tokens(&least.graph, Chunking::of(&target));
    let plan = compiler::plan(&graph, &target).unwrap();
    assert!(plan.report().gap() <= 1.02, "{} of {}", plan.arena_bytes, plan.lower_bound_bytes);
}
