//! Graph x target -> plan. Pure: no device, no I/O, the same input gives the same text.
//!
//! [`plan()`] takes an optimized graph to a [`Plan`]: [`order_steps`](mod@order_steps), then storage
//! and kernels (`lower.rs`), then offsets (`plan_memory.rs`). [`check_plan`] shares no code with
//! these and is run on every plan before it is executed. [`Plan::residents`] and [`Plan::works`] tell
//! what a plan holds and does; [`cost`] how long that takes on a machine that was measured.

mod check_plan;
pub mod cost;
mod destinations;
mod dot;
mod error;
mod join_steps;
mod lower;
mod order_carries;
mod order_steps;
mod pass;
mod passes;
mod place_buffers;
mod plan;
mod plan_memory;
mod plan_text;
mod recompute;
mod report;
mod residents;
mod rewrite;
mod touches;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use kernels::Target;
use ops::{Graph, ValueId};

pub use check_plan::check_plan;
pub use dot::to_dot;
pub use error::Error;
pub use pass::{PIPELINE, Pass, Stage, optimize, passes, pipeline_through, run_passes};
pub use passes::choose_checkpoints::{
    Checkpoints, choose_checkpoints, choose_checkpoints_beside, recompute_where,
};
pub use passes::chunk_tokens::{Chunking, chunk_tokens};
pub use plan::{ALIGN_BYTES, Buffer, BufferId, Carry, Memory, Operand, Place, Plan, Port, Step};
pub use plan_text::{describe, parse_plan};
pub use report::{Holds, Live, Report, StepCost};
pub use residents::{Content, Purpose, Resident};
pub use work::{Shape, Touch, Work};

/// Compiles a graph as a model builder made it: every pass, then [`plan()`].
///
/// # Errors
/// As [`plan()`].
pub fn compile(graph: Graph, target: &Target) -> Result<Plan, Error> {
    let fused = run_passes(graph, pass::BEFORE_CHUNKING, &mut |_| {});
    plan(&chunk_tokens(&fused, Chunking::of(target)), target)
}

/// What a plan is held to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Options {
    /// Most bytes of arena and weights together; `None` for no limit.
    pub memory: Option<usize>,
}

/// [`compile()`] within `options`: branches are cut into finer chunks until arena and weights fit,
/// the coarsest first.
///
/// # Errors
/// As [`plan()`], and [`Error::Memory`] with the smallest limit that works.
pub fn compile_with(graph: Graph, target: &Target, options: &Options) -> Result<Plan, Error> {
    let Some(memory) = options.memory else { return compile(graph, target) };
    let name = graph.name.clone();
    let fused = run_passes(graph, pass::BEFORE_CHUNKING, &mut |_| {});
    let mut smallest: Option<Plan> = None;
    let Chunking { bytes, max_chunks } = Chunking::of(target);
    for fineness in 0..=MAX_FINENESS {
        let max_chunks = max_chunks << fineness.min(MAX_SPLITS);
        let chunking = Chunking { bytes: bytes >> fineness, max_chunks };
        let plan = plan(&chunk_tokens(&fused, chunking), target)?;
        if plan.held_bytes() <= memory {
            return Ok(plan);
        }
        if smallest.as_ref().is_none_or(|least| plan.held_bytes() < least.held_bytes()) {
            smallest = Some(plan);
        }
    }
    let smallest = smallest.expect("at least one fineness was tried");
    Err(Error::Memory {
        name,
        memory,
        smallest: smallest.held_bytes(),
        arena: smallest.arena_bytes,
        weights: smallest.weight_bytes(),
    })
}

/// A plan of a training step, and what it makes again.
#[derive(Debug)]
pub struct TrainingPlan {
    /// The plan.
    pub plan: Plan,
    /// Bytes of the values that are not kept.
    pub recomputed_bytes: usize,
    /// How many values are not kept.
    pub n_recomputed: usize,
    /// FLOPs that are done again, which the plan's include.
    pub added_flops: u64,
}

/// [`compile()`] for a training step: all values are kept where that takes at most `memory` bytes for
/// arena and weights; otherwise what takes the least work is made again ([`choose_checkpoints`]).
///
/// # Errors
/// As [`plan()`], and [`Error::Memory`] with the smallest limit that works.
pub fn compile_training(
    graph: Graph,
    target: &Target,
    memory: Option<usize>,
) -> Result<TrainingPlan, Error> {
    compile_training_carrying(graph, target, memory, &[])
}

/// [`compile_training`] with state that goes from run to run, see [`plan_carrying`]. It counts to `memory`.
///
/// # Errors
/// As [`compile_training`] and [`plan_carrying`].
pub fn compile_training_carrying(
    graph: Graph,
    target: &Target,
    memory: Option<usize>,
    carries: &[Carry],
) -> Result<TrainingPlan, Error> {
    check_carries(&graph, carries)?;
    let name = graph.name.clone();
    let fused = run_passes(graph, pass::BEFORE_CHUNKING, &mut |_| {});
    let planned = |budget: usize| -> Result<TrainingPlan, Error> {
        let checkpoints = choose_checkpoints_beside(&fused, budget, carries);
        Ok(TrainingPlan {
            plan: plan_carrying(&checkpoints.graph, target, carries)?,
            recomputed_bytes: checkpoints.recomputed_bytes,
            n_recomputed: checkpoints.recomputed.len(),
            added_flops: checkpoints.added_flops,
        })
    };
    let all = planned(usize::MAX)?;
    let Some(memory) = memory.filter(|&memory| all.plan.held_bytes() > memory) else {
        return Ok(all);
    };
    let mut best = planned(0)?;
    if best.plan.held_bytes() > memory {
        return Err(Error::Memory {
            name,
            memory,
            smallest: best.plan.held_bytes(),
            arena: best.plan.arena_bytes,
            weights: best.plan.weight_bytes(),
        });
    }
    // What the budget estimates is close to the arena, but not equal: operands are overwritten.
    let (mut low, mut high) = (0, all.plan.arena_bytes.saturating_mul(2));
    for _ in 0..MAX_BUDGETS {
        let budget = low + (high - low) / 2;
        let tried = planned(budget)?;
        if tried.plan.held_bytes() <= memory {
            low = budget;
            if tried.added_flops <= best.added_flops {
                best = tried;
            }
        } else {
            high = budget;
        }
    }
    Ok(best)
}

/// Budgets that are tried for a training step's limit: the last two differ by less than a hundredth.
const MAX_BUDGETS: usize = 8;

/// Each step of fineness halves chunks. Below 1 MiB on a CPU they would cost time and save nothing that
/// a machine that holds the weights could not spare.
const MAX_FINENESS: usize = 5;

/// How often the greatest number of chunks is doubled: 128 of each branch make plans of some ten
/// thousand steps.
const MAX_SPLITS: usize = 3;

/// Compiles an optimized graph: orders steps, chooses storage and kernels, plans memory.
///
/// # Errors
/// [`Error::NoKernel`] if the target has no kernel for an op.
pub fn plan(graph: &Graph, target: &Target) -> Result<Plan, Error> {
    plan_carrying(graph, target, &[])
}

/// [`plan()`] with inputs that keep their values from run to run. Each has memory of its own. The output that
/// replaces it is made after its last reader where that can be, and then written over it; otherwise it has to be
/// copied. Neighboring elementwise steps that share what they read run as one loop.
///
/// # Errors
/// As [`plan()`], and [`Error::Carry`] for an input or output that is not there, is named twice, or has another type.
pub fn plan_carrying(graph: &Graph, target: &Target, carries: &[Carry]) -> Result<Plan, Error> {
    check_carries(graph, carries)?;
    let in_order = |graph: &Graph| -> Result<Plan, Error> {
        let ordered = match carries {
            [] => None,
            carries => order_carries::order_carries(graph, carries),
        };
        let lowered = lower::lower(ordered.as_ref().unwrap_or(graph), target)?;
        Ok(plan_memory::plan_memory(lowered, target, carries))
    };
    let given = in_order(graph)?;
    let Some(other) = order_steps::order_steps(graph, carries) else { return Ok(given) };
    let other = in_order(&other)?;
    Ok(if other.arena_bytes < given.arena_bytes { other } else { given })
}

fn check_carries(graph: &Graph, carries: &[Carry]) -> Result<(), Error> {
    let mut inputs: BTreeMap<&str, ValueId> = match carries {
        [] => BTreeMap::new(),
        _ => graph.inputs().map(|(value, name)| (name, value)).collect(),
    };
    let mut outputs = BTreeSet::new();
    for Carry { input, output } in carries {
        let fail = |reason: String| Err(Error::Carry { input: input.to_string(), reason });
        let Some(value) = inputs.remove(&**input) else {
            return fail("the graph has no such input, or it is named twice".into());
        };
        let Some(output) = *output else { continue };
        let Some(&new) = graph.outputs.get(output) else {
            let n = graph.outputs.len();
            return fail(format!("output {output} should replace it, but there are {n} outputs"));
        };
        if graph.ty(new) != graph.ty(value) {
            let (old, new) = (graph.ty(value), graph.ty(new));
            return fail(format!("it is {old}, but output {output}, which replaces it, is {new}"));
        }
        if !outputs.insert(output) {
            return fail(format!("output {output} replaces another input too"));
        }
    }
    Ok(())
}
