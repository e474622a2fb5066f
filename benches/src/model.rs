//! Whole models as `kino` runs them, on made-up weights.
//!
//! Invariant: the peak is measured in turns with the model, because a shared machine's clock changes
//! from second to second.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kernels::{Isa, Pool, Target};
use ops::{DType, Graph, TensorType};
use runtime::{Session, WeightSource, WeightStore};

use crate::peak::fma_peak;

/// Small numbers for any tensor that is asked for.
struct MadeUp(BTreeMap<String, TensorType>);

impl WeightSource for MadeUp {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let Some(ty) = self.0.get(name) else { return Ok(None) };
        let wave = |i: usize| (((i * 37) % 101) as f32 - 50.0) * 4e-4;
        let ones =
            name.ends_with("norm.weight") || name.contains("norm1") || name.contains("norm2");
        let value = |i| if ones { 1.0 + wave(i) } else { wave(i) };
        let ty32 = ty.with_dtype(DType::F32);
        let bytes = (0..ty.count()).flat_map(|i| value(i).to_le_bytes()).collect();
        Ok(Some((ty32, Cow::Owned(bytes))))
    }
}

/// A target with the caches of a current server core.
pub fn target(threads: usize) -> Target {
    let isa = Isa::detect();
    Target { isa, threads, l1_bytes: 48 << 10, l2_bytes: 1 << 20, l3_bytes: 32 << 20 }
}

/// A model's times and where they go.
#[derive(Debug)]
pub struct Measured {
    /// FLOPs of one run, by the definition of its ops.
    pub flops: f64,
    /// Seconds to compile.
    pub compile_seconds: f64,
    /// Seconds of the fastest run.
    pub seconds: f64,
    /// The highest multiply-add peak meanwhile, in f32 FLOP/s.
    pub peak: f64,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// The planner's lower bound of it.
    pub lower_bound_bytes: usize,
    /// Bytes of all weights as they are kept.
    pub weight_bytes: usize,
    /// For each step: kernel, what it makes, seconds a run on average, FLOPs.
    pub steps: Vec<(&'static str, String, f64, u64)>,
}

/// Runs `graph` on the threads of `pool`, once to warm up and `repetitions` times.
///
/// # Errors
/// Those of compiling and running.
pub fn measure(
    graph: Graph,
    pool: &Arc<Pool>,
    repetitions: usize,
) -> Result<Measured, Box<dyn std::error::Error>> {
    let target = target(pool.threads());
    let start = Instant::now();
    let plan = Arc::new(compiler::compile(graph, &target)?);
    let compile_seconds = start.elapsed().as_secs_f64();
    let params =
        plan.graph.params().map(|(value, name)| (name.to_string(), plan.graph.ty(value).clone()));
    let weights = WeightStore::new(MadeUp(params.collect()));
    let mut session = Session::new(Arc::clone(&plan), &weights, Arc::clone(pool))?;
    let inputs: Vec<(String, Vec<u8>)> = plan
        .inputs
        .iter()
        .map(|port| {
            let byte = if port.ty.dtype() == DType::Bool { 1 } else { 0 };
            (port.name.to_string(), vec![byte; port.ty.bytes()])
        })
        .collect();
    let inputs: Vec<(&str, &[u8])> =
        inputs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    session.run(&inputs)?;
    let before: Vec<f64> = session.times().iter().map(|time| time.seconds).collect();
    let mut best = f64::MAX;
    let mut peak = 0f64;
    for _ in 0..repetitions {
        peak = peak.max(fma_peak(target.isa, pool));
        let start = Instant::now();
        session.run(&inputs)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let steps =
        plan.steps.iter().zip(session.times()).zip(&before).map(|((step, time), before)| {
            let node = plan.graph.node(step.value);
            let what = format!("{} {}", node.ty, node.scope);
            let seconds = (time.seconds - before) / repetitions as f64;
            (step.kernel.def().name(), what, seconds, plan.graph.node_flops(step.value))
        });
    Ok(Measured {
        flops: plan.flops() as f64,
        compile_seconds,
        seconds: best,
        peak,
        arena_bytes: plan.arena_bytes,
        lower_bound_bytes: plan.lower_bound_bytes,
        weight_bytes: weights.bytes(),
        steps: steps.collect(),
    })
}

/// Seconds and GFLOP/s by kernel.
pub fn profile(name: &str, measured: &Measured) -> String {
    let mut kernels: BTreeMap<&str, (f64, u64, usize)> = BTreeMap::new();
    for (kernel, _, seconds, flops) in &measured.steps {
        let row = kernels.entry(kernel).or_default();
        row.0 += seconds;
        row.1 += flops;
        row.2 += 1;
    }
    let total: f64 = kernels.values().map(|row| row.0).sum();
    let mut rows: Vec<_> = kernels.into_iter().collect();
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    let mut text = format!("{name}\n");
    for (kernel, (seconds, flops, steps)) in rows {
        text += &format!(
            "  {kernel:<12} {steps:>4} steps  {:>9.3} ms  {:>5.1} %  {:>5.0} GFLOP/s\n",
            seconds * 1e3,
            100.0 * seconds / total,
            flops as f64 / seconds / 1e9
        );
    }
    text
}
