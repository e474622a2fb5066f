//! What a training step of STDiT-2 XL/2 keeps: this compiler's choice beside the usual rules.
//!
//! `cargo run --release -p tests --example checkpoints -- [DEPTH] [FRAMES HEIGHT WIDTH]` plans forward and backward
//! pass (28 blocks, 16 frames of 240x426 without arguments; nothing is run) with every value kept, with the inputs of
//! blocks kept, with those of every so many blocks kept, and with what `choose_checkpoints` keeps within the
//! bytes of each.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "it is a program")]

use std::time::Instant;

use compiler::{Checkpoints, Chunking, choose_checkpoints, chunk_tokens, recompute_where};
use kernels::Isa;
use ops::{Graph, ValueId};
use tests::compiled::target;
use tests::gradients::{forward_end, stdit2_xl};

const MIB: f64 = 1048576.0;

/// The block that a value is of.
fn block(graph: &Graph, value: ValueId) -> Option<usize> {
    graph.node(value).scope.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

/// The values that are read by another block than they are made in, up to position `end`: what a block passes
/// on.
fn passes_on(graph: &Graph, end: usize) -> Vec<bool> {
    let mut passes = vec![false; graph.nodes.len()];
    for value in graph.values().take(end) {
        for &arg in &graph.node(value).args {
            passes[arg.index()] |= block(graph, arg) != block(graph, value);
        }
    }
    passes
}

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse().unwrap()).collect();
    let depth = numbers.first().copied().unwrap_or(28);
    let size = match numbers[..] {
        [_, frames, height, width] => [frames, height, width],
        _ => [16, 240, 426],
    };
    let graph = stdit2_xl(depth, size);
    let end = forward_end(&graph);
    println!("{} values, {:.1} TFLOP", graph.nodes.len(), graph.flops() as f64 / 1e12);
    let target = target(Isa::detect(), 2);
    let show = |name: &str, checkpoints: &Checkpoints, start: Instant| {
        let chosen = start.elapsed().as_secs_f64();
        let graph = chunk_tokens(&checkpoints.graph, Chunking::of(&target));
        let plan = compiler::plan(&graph, &target).unwrap();
        println!(
            "{name:<24} {:>9.1} MiB live {:>9.1} MiB arena {:+.2} % of bound, {:>5} values again, {:+7.2} % FLOPs, {chosen:.1} s",
            checkpoints.live_bytes as f64 / MIB,
            plan.arena_bytes as f64 / MIB,
            100.0 * (plan.arena_bytes as f64 / plan.lower_bound_bytes as f64 - 1.0),
            checkpoints.recomputed.len(),
            100.0 * checkpoints.added_flops as f64
                / (plan.flops() - checkpoints.added_flops) as f64,
        );
    };
    let timed = |name: &str, make: &dyn Fn() -> Checkpoints| -> Checkpoints {
        let start = Instant::now();
        let checkpoints = make();
        show(name, &checkpoints, start);
        checkpoints
    };
    timed("keep all", &|| choose_checkpoints(&graph, usize::MAX));
    let passes = passes_on(&graph, end);
    let every = |n: usize| {
        recompute_where(&graph, end, |value| {
            let own = block(&graph, value);
            own.is_some_and(|own| !passes[value.index()] || (own + 1) % n != 0)
        })
    };
    let root = (depth as f64).sqrt().round() as usize;
    for (name, n) in [("inputs of blocks", 1), ("inputs of every sqrt(n)", root)] {
        let rule = timed(name, &|| every(n));
        timed("  chosen, same bytes", &|| choose_checkpoints(&graph, rule.live_bytes));
    }
    timed("least", &|| choose_checkpoints(&graph, 0));
}
