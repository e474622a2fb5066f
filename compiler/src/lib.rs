//! Graph x target -> plan. Pure: no device, no I/O, the same input gives the same text.
//!
//! [`plan()`] takes an optimized graph to a [`Plan`]: [`order_steps`](mod@order_steps), then storage
//! and kernels (`lower.rs`), then offsets (`plan_memory.rs`). [`check_plan`] shares no code with
//! these and is run on every plan before it is executed.

mod check_plan;
mod dot;
mod error;
mod lower;
pub mod order_steps;
mod pass;
mod passes;
mod place_buffers;
mod plan;
mod plan_memory;
mod plan_text;
mod rewrite;

use kernels::Target;
use ops::Graph;

pub use check_plan::check_plan;
pub use dot::to_dot;
pub use error::Error;
pub use pass::{PIPELINE, Pass, Stage, optimize, passes, pipeline_through, run_passes};
pub use plan::{ALIGN_BYTES, Buffer, BufferId, Operand, Place, Plan, Port, Step};
pub use plan_text::{describe, parse_plan};

/// Compiles a graph as a model builder made it: every pass, then [`plan()`].
///
/// # Errors
/// As [`plan()`].
pub fn compile(graph: Graph, target: &Target) -> Result<Plan, Error> {
    plan(optimize(graph, &mut |_| {}), target)
}

/// Compiles an optimized graph: orders steps, chooses storage and kernels, plans memory.
///
/// # Errors
/// [`Error::NoKernel`] if the target has no kernel for an op.
pub fn plan(graph: Graph, target: &Target) -> Result<Plan, Error> {
    let ordered = order_steps::order_steps(graph);
    let lowered = lower::lower(&ordered, target)?;
    Ok(plan_memory::plan_memory(lowered, target))
}
