//! Measures a machine: limits first, then every kernel on every case.
//!
//! Numbers are the best of several repetitions: a cost model says what the machine can do, and
//! whatever else runs on it can only slow a repetition down.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use compiler::Work;
use compiler::cost::{CostModel, Level, Sample};
use kernels::peak::{bf16_peak, f32_peak, memory_rates};
use kernels::{Pool, Target};
use ops::DType;

use crate::cases::{Case, cases, elementwise, launch};
use crate::{Error, Rehearsal};

/// Rounds over all cases: what disturbs the machine for seconds spoils one of them only.
const ROUNDS: usize = 2;

/// In each round a case is repeated until its runs took this long, ...
const SECONDS: f64 = 0.03;

/// ... at least and at most so often.
const RUNS: [usize; 2] = [2, 50];

/// Work of each thread while the waking of threads is timed, long enough that all take part.
const WAKE_ITEM: Duration = Duration::from_micros(10);

/// How often threads are woken, of which the mean counts.
const WAKES: u32 = 2000;

/// Element types that models are stored in; f16 is taken for f32, in which it is computed.
const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Measures what `target`'s kernels do on `pool`, which has its number of threads. Takes seconds, in
/// which nothing else should run. `on_case` is told how many cases of how many are done.
///
/// # Errors
/// [`Error::Run`] when interrupted, or if there is not enough memory.
pub fn calibrate(
    target: &Target,
    pool: &Arc<Pool>,
    interrupt: Option<&AtomicBool>,
    on_case: &mut dyn FnMut(usize, usize),
) -> Result<CostModel, Error> {
    let machine = Machine { target, pool, interrupt };
    // Several times what the last cache holds: the next layer's weights are then never in it.
    let weight_bytes = 4 * target.l3_bytes;
    let mut all = vec![launch()?, elementwise()?];
    for dtype in DTYPES {
        all.extend(cases(dtype, weight_bytes)?);
    }
    let total = ROUNDS * all.len();
    on_case(0, total);
    let mut model = machine.limits();
    let mut best: Vec<Vec<(Work, f64)>> = vec![vec![]; all.len()];
    for round in 0..ROUNDS {
        for (number, case) in all.iter().enumerate() {
            let steps = machine.time(case)?;
            if round == 0 {
                best[number] = steps;
            } else {
                for (best, step) in best[number].iter_mut().zip(steps) {
                    best.1 = best.1.min(step.1);
                }
            }
            on_case(round * all.len() + number + 1, total);
        }
        raise_limits(&mut model, machine.limits());
    }
    let [launch, elementwise, rest @ ..] = &best[..] else { unreachable!("two cases come first") };
    model.launch_seconds = launch.iter().map(|(_, seconds)| *seconds).fold(f64::MAX, f64::min);
    for (work, seconds) in elementwise {
        model.elementwise = work.side_flops as f64 / busy(&model, work, *seconds);
    }
    for steps in rest {
        add_samples(&mut model, steps);
    }
    Ok(model)
}

/// Takes the better of both measurements of each limit.
fn raise_limits(model: &mut CostModel, other: CostModel) {
    model.wake_seconds = model.wake_seconds.min(other.wake_seconds);
    model.peak_f32 = model.peak_f32.max(other.peak_f32);
    model.peak_bf16 = model.peak_bf16.zip(other.peak_bf16).map(|(a, b)| a.max(b));
    for (level, other) in model.levels.iter_mut().zip(other.levels) {
        level.read = level.read.max(other.read);
        level.write = level.write.max(other.write);
    }
}

struct Machine<'a> {
    target: &'a Target,
    pool: &'a Arc<Pool>,
    interrupt: Option<&'a AtomicBool>,
}

impl Machine<'_> {
    /// A model without kernels.
    fn limits(&self) -> CostModel {
        let Target { isa, threads, l2_bytes, l3_bytes, .. } = *self.target;
        let near = l2_bytes.saturating_mul(threads);
        // Half of a cache is certainly in it; eight times the last one hardly.
        let level = |name: &str, holds: u64, block: usize| {
            let [read, write] = memory_rates(isa, self.pool, block);
            Level { name: name.into(), bytes: holds, read, write }
        };
        let mut levels = vec![level("L2", near as u64, near / 2)];
        if l3_bytes > near {
            levels.push(level("L3", l3_bytes as u64, l3_bytes / 2));
        }
        levels.push(level("memory", u64::MAX, (8 * l3_bytes).clamp(64 << 20, 512 << 20)));
        CostModel {
            launch_seconds: 0.0,
            wake_seconds: self.wake_seconds(),
            peak_f32: f32_peak(isa, self.pool),
            peak_bf16: bf16_peak(isa, self.pool),
            elementwise: 0.0,
            levels,
            samples: vec![],
        }
    }

    /// Seconds that a job of one short item for each thread takes beyond an item.
    fn wake_seconds(&self) -> f64 {
        let item = || {
            let start = Instant::now();
            while start.elapsed() < WAKE_ITEM {
                std::hint::spin_loop();
            }
        };
        let start = Instant::now();
        for _ in 0..WAKES {
            self.pool.run(self.pool.threads(), &|_, _| item());
        }
        let each = start.elapsed().as_secs_f64() / f64::from(WAKES);
        (each - WAKE_ITEM.as_secs_f64()).max(1e-9)
    }

    /// The steps of a case's kernel with the least seconds of each.
    fn time(&self, case: &Case) -> Result<Vec<(Work, f64)>, Error> {
        let plan = Arc::new(compiler::compile(case.graph.clone(), self.target)?);
        let mut rehearsal = Rehearsal::new(Arc::clone(&plan), Arc::clone(self.pool))?;
        rehearsal.warm_up(self.interrupt)?;
        let mut passed = 0.0;
        while rehearsal.runs() < RUNS[0] || (passed < SECONDS && rehearsal.runs() < RUNS[1]) {
            passed += rehearsal.run(self.interrupt, &mut |_| {})?;
        }
        let steps = plan.works().into_iter().zip(rehearsal.steps());
        let steps = steps.map(|(work, step)| (work, step.least));
        Ok(steps.filter(|(work, _)| work.kernel == case.kernel).collect())
    }
}

/// Seconds of a step without its start; never nothing, however coarse the clock.
fn busy(model: &CostModel, work: &Work, seconds: f64) -> f64 {
    (seconds - model.start_seconds(work)).max(seconds / 10.0).max(1e-9)
}

/// One sample for each shape among `steps`.
fn add_samples(model: &mut CostModel, steps: &[(Work, f64)]) {
    let mut by_shape: Vec<(&Work, f64, f64)> = vec![];
    for (work, seconds) in steps {
        let busy = busy(model, work, *seconds);
        // The side's share is taken off at most by half: it may overlap with the core.
        let (amount, busy) = if work.core_flops > 0 {
            let side = work.side_flops as f64 / model.elementwise;
            (work.core_flops as f64, (busy - side).max(busy / 2.0))
        } else {
            // So is what takes longer only because memory is far.
            (work.bytes() as f64, (busy - model.farther_seconds(work)).max(busy / 2.0))
        };
        match by_shape.iter_mut().find(|(other, ..)| other.shape == work.shape) {
            Some(found) => (found.1, found.2) = (found.1 + amount, found.2 + busy),
            None => by_shape.push((work, amount, busy)),
        }
    }
    model.samples.extend(by_shape.into_iter().map(|(work, amount, busy)| Sample {
        kernel: work.shape.sample_name(work.kernel).into(),
        dtype: work.dtype,
        shape: work.shape.coordinates(),
        rate: amount / busy,
    }));
}

#[cfg(test)]
mod tests {
    use compiler::Shape;

    use super::*;

    fn model() -> CostModel {
        let level = Level { name: "memory".into(), bytes: u64::MAX, read: 1e10, write: 1e10 };
        CostModel {
            launch_seconds: 1e-6,
            wake_seconds: 1e-6,
            peak_f32: 1e12,
            peak_bf16: Some(2e12),
            elementwise: 1e9,
            levels: vec![level],
            samples: vec![],
        }
    }

    fn product(rows: usize, side_flops: u64) -> Work {
        Work {
            kernel: "matmul",
            dtype: DType::F32,
            core_flops: 2000 * rows as u64,
            side_flops,
            bytes_read: 0,
            weight_bytes: 0,
            plan_weight_bytes: 0,
            activations: vec![],
            bytes_written: 0,
            written_since: 0,
            shape: Shape::Product { rows, columns: 10, depth: 100 },
        }
    }

    #[test]
    fn samples_give_back_the_times_that_they_were_made_of() {
        let mut model = model();
        let moved = Work {
            kernel: "map",
            core_flops: 0,
            bytes_read: 1000,
            shape: Shape::Bytes(1000),
            ..product(1, 0)
        };
        // Side FLOPs take 1 and 2 us here, of steps of 11 and 33 us.
        let steps = [(product(8, 1000), 11e-6), (product(64, 2000), 33e-6), (moved.clone(), 5e-6)];
        add_samples(&mut model, &steps);
        assert_eq!(model.samples.len(), 3);
        for (work, seconds) in &steps {
            let expected = model.estimate(work).seconds;
            assert!((expected / seconds - 1.0).abs() < 1e-9, "{work:?}: {expected}");
        }
    }

    #[test]
    fn steps_of_one_shape_are_one_sample() {
        let mut model = model();
        add_samples(&mut model, &[(product(8, 0), 3e-6), (product(8, 0), 5e-6)]);
        let [sample] = &model.samples[..] else { panic!("{:?}", model.samples) };
        // 16 kFLOP each, in 1 and 3 us behind launch and threads.
        assert!((sample.rate / 8e9 - 1.0).abs() < 1e-9, "{sample:?}");
    }

    #[test]
    fn the_better_of_two_measurements_counts() {
        let mut first = model();
        let mut second = model();
        second.peak_f32 = 3e12;
        second.levels[0].read = 1e9;
        second.levels[0].write = 2e10;
        raise_limits(&mut first, second);
        let level = &first.levels[0];
        assert_eq!((first.peak_f32, level.read, level.write), (3e12, 1e10, 2e10));
    }
}
