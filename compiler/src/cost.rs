//! How long a step takes on a machine: a pure function of the step's [`Work`] and of what was
//! measured there once, a [`CostModel`].
//!
//! `seconds = launch + wake + max(compute + farther, memory)`, where only steps that are spread over threads wake them,
//! `compute = core FLOPs / rate(kernel, type, shape) + side FLOPs / rate of elementwise code` and
//! `memory = bytes / bandwidth of the smallest cache that holds them, and all that was moved since they were touched`;
//! weights come from where all weights of the plan fit. What was measured had just been touched, so what it takes longer
//! where that is not so, `farther`, is added. Kernels without a core are paid by the byte: their `rate` is in bytes a
//! second. A rate between the measured shapes is interpolated in the
//! logarithms of the dims; beyond them it is that of the nearest.

use ops::DType;

use crate::work::{Shape, Work};
use crate::{Error, Plan};

/// A level of the memory, over all threads of the machine.
#[derive(Clone, PartialEq, Debug)]
pub struct Level {
    /// `L2`, `L3`, `memory`.
    pub name: String,
    /// Working sets up to this many bytes are served from here.
    pub bytes: u64,
    /// Bytes a second that all threads together read.
    pub read: f64,
    /// Bytes a second that all threads together write.
    pub write: f64,
}

/// The measured speed of one kernel on one shape.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// The kernel's printed name.
    pub kernel: String,
    /// Element type of its operands.
    pub dtype: DType,
    /// [`Shape::coordinates`].
    pub shape: Vec<f64>,
    /// Core FLOPs a second; bytes a second for kernels without a core.
    pub rate: f64,
}

/// What one machine does in a second, with one count of threads.
#[derive(Clone, PartialEq, Debug)]
pub struct CostModel {
    /// Seconds of a step with nothing to do.
    pub launch_seconds: f64,
    /// Seconds to spread a step over all threads and to wait for the last of them.
    pub wake_seconds: f64,
    /// f32 multiply-add FLOP/s when nothing but registers is involved.
    pub peak_f32: f64,
    /// FLOP/s of the CPU's bf16 dot product, if it has one.
    pub peak_bf16: Option<f64>,
    /// FLOP/s of fused elementwise code on data in the nearest cache.
    pub elementwise: f64,
    /// Levels of the memory, nearest first; the last serves working sets of any size.
    pub levels: Vec<Level>,
    /// Speeds of kernels.
    pub samples: Vec<Sample>,
}

/// Steps that move fewer bytes run on one thread.
const SPREAD_BYTES: u64 = 64 << 10;

/// What limits a step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Limit {
    /// Arithmetic.
    Compute,
    /// Bytes.
    Memory,
    /// Starting the step.
    Launch,
}

impl Limit {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Limit::Compute => "compute",
            Limit::Memory => "memory",
            Limit::Launch => "launch",
        }
    }
}

/// Expected time of a step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    /// In all.
    pub seconds: f64,
    /// What most of it is.
    pub limit: Limit,
}

impl CostModel {
    /// Fails if a number is not finite and positive, or if a level or every sample of elementwise
    /// code is missing: what a file that was cut or edited may lack.
    ///
    /// # Errors
    /// [`Error::CostModel`] says what is wrong.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::CostModel(reason));
        let levels = self.levels.iter().flat_map(|level| [level.read, level.write]);
        let samples = self.samples.iter().map(|sample| sample.rate);
        let peaks = [self.launch_seconds, self.wake_seconds, self.peak_f32, self.elementwise];
        let all = peaks.into_iter().chain(self.peak_bf16).chain(levels).chain(samples);
        if let Some(bad) = all.into_iter().find(|x| !(x.is_finite() && *x > 0.0)) {
            return fail(format!("a rate is {bad}; expected a positive number"));
        }
        if self.levels.is_empty() {
            return fail("it has no level of memory".into());
        }
        if !self.levels.is_sorted_by_key(|level| level.bytes) {
            return fail("its levels of memory are not in ascending order".into());
        }
        for kernel in ["map", "matmul", "attention", "conv"] {
            if !self.samples.iter().any(|sample| sample.kernel == kernel) {
                return fail(format!("it has no sample of {kernel}"));
            }
        }
        for sample in &self.samples {
            let first = self.samples.iter().find(|other| other.kernel == sample.kernel);
            let rank = first.map_or(0, |first| first.shape.len());
            let is_dim = |x: &f64| x.is_finite() && *x >= 1.0;
            if rank == 0 || sample.shape.len() != rank || !sample.shape.iter().all(is_dim) {
                return fail(format!("a sample of {} has no shape", sample.kernel));
            }
        }
        Ok(())
    }

    /// Expected time of a step.
    pub fn estimate(&self, work: &Work) -> Estimate {
        let rate = self.rate(work);
        let side = work.side_flops as f64 / self.elementwise;
        let memory = self.memory_seconds(work);
        let (compute, memory) = match work.shape {
            // The measured rate is that of moving bytes, faster or slower than a plain copy, that were just moved.
            Shape::Columns(bytes) | Shape::Rows { bytes, .. } | Shape::Bytes(bytes) => {
                (side, bytes as f64 / rate + self.farther_seconds(work))
            }
            Shape::Product { .. } | Shape::Attention { .. } | Shape::Conv { .. } => {
                (work.core_flops as f64 / rate + side + self.farther_seconds(work), memory)
            }
        };
        let start = self.start_seconds(work);
        let seconds = start + compute.max(memory);
        let limit = if start > compute.max(memory) {
            Limit::Launch
        } else if memory > compute {
            Limit::Memory
        } else {
            Limit::Compute
        };
        Estimate { seconds, limit }
    }

    /// Seconds of a step that are not its work: of its launch, and of its threads.
    pub fn start_seconds(&self, work: &Work) -> f64 {
        let is_spread = work.core_flops > 0 || work.bytes() > SPREAD_BYTES;
        self.launch_seconds + if is_spread { self.wake_seconds } else { 0.0 }
    }

    /// Expected seconds of one run of a plan.
    pub fn plan_seconds(&self, plan: &Plan) -> f64 {
        plan.works().iter().map(|work| self.estimate(work).seconds).sum()
    }

    /// Seconds that no kernel can beat: all FLOPs at the multiply-add peak of the type, or all bytes
    /// at full bandwidth.
    pub fn limit_seconds(&self, work: &Work) -> f64 {
        (work.flops() as f64 / self.peak(work.dtype)).max(self.memory_seconds(work))
    }

    /// FLOP/s that no kernel exceeds on operands of `dtype`.
    pub fn peak(&self, dtype: DType) -> f64 {
        match (dtype, self.peak_bf16) {
            (DType::Bf16, Some(peak)) => peak.max(self.peak_f32),
            _ => self.peak_f32,
        }
    }

    /// The level that serves a working set of so many bytes.
    pub fn level(&self, bytes: u64) -> &Level {
        let last = self.levels.len() - 1;
        let found = self.levels[..last].iter().find(|level| bytes <= level.bytes);
        found.unwrap_or(&self.levels[last])
    }

    /// Seconds to read and write a step's bytes at full bandwidth.
    fn memory_seconds(&self, work: &Work) -> f64 {
        // What was moved since memory was touched, or is moved by the step, has taken its place in near levels.
        let level = |since: u64| self.level(since.max(work.bytes()));
        let activations =
            work.activations.iter().map(|touch| touch.bytes as f64 / level(touch.since).read);
        // A weight was last read one run ago.
        work.weight_bytes as f64 / level(work.plan_weight_bytes).read
            + activations.sum::<f64>()
            + work.bytes_written as f64 / level(work.written_since).write
    }

    /// Seconds that it takes longer where memory was not just touched.
    pub fn farther_seconds(&self, work: &Work) -> f64 {
        let near = self.level(work.bytes());
        let read = work.activations.iter().map(|touch| {
            touch.bytes as f64 * (1.0 / self.level(touch.since).read - 1.0 / near.read).max(0.0)
        });
        let written = 1.0 / self.level(work.written_since).write - 1.0 / near.write;
        read.sum::<f64>() + work.bytes_written as f64 * written.max(0.0)
    }

    /// The rate of a step's kernel at its shape.
    fn rate(&self, work: &Work) -> f64 {
        let at = work.shape.coordinates();
        let of = |kernel: &str, dtype: DType| -> Vec<&Sample> {
            let same = |sample: &&Sample| sample.kernel == kernel && sample.dtype == dtype;
            self.samples.iter().filter(same).collect()
        };
        // Kernels that are not measured are taken for what they are gradients or forms of, and others move bytes
        // as `map` does; a type that is not is taken for f32, in which every kernel computes.
        let name = work.shape.sample_name(work.kernel);
        let plain = match name {
            "biased_attention" | "attention_grad" => "attention",
            "conv_input_grad" | "conv_weight_grad" => "conv",
            "norm_grad" => "norm",
            "reduce_columns" => "reduce",
            name => name,
        };
        let names = [name, plain].into_iter();
        let choices = names.flat_map(|name| [(name, work.dtype), (name, DType::F32)]);
        let fits = |samples: &Vec<&Sample>| {
            samples.first().is_some_and(|sample| sample.shape.len() == at.len())
        };
        if let Some(samples) = choices.map(|(kernel, dtype)| of(kernel, dtype)).find(fits) {
            return interpolate(&samples, &at);
        }
        match work.shape {
            Shape::Columns(bytes) | Shape::Rows { bytes, .. } | Shape::Bytes(bytes) => {
                interpolate(&of("map", DType::F32), &[bytes as f64])
            }
            _ => self.elementwise,
        }
    }
}

/// Inverse-distance weighting (Shepard, "A two-dimensional interpolation function for irregularly-spaced
/// data") of the logarithms of the rates, over the logarithms of the dims.
fn interpolate(samples: &[&Sample], at: &[f64]) -> f64 {
    let log: Vec<f64> = (0..at.len())
        .map(|axis| {
            let dims = samples.iter().map(|sample| sample.shape[axis]);
            let (low, high) =
                dims.fold((f64::MAX, 1.0), |(low, high), dim| (dim.min(low), dim.max(high)));
            at[axis].clamp(low, high.max(low)).log2()
        })
        .collect();
    let (mut sum, mut weights) = (0.0, 0.0);
    for sample in samples {
        let distance: f64 =
            sample.shape.iter().zip(&log).map(|(dim, log)| (dim.log2() - log).powi(2)).sum();
        // A shape that was measured has its own rate.
        if distance < 1e-12 {
            return sample.rate;
        }
        // The fourth power of the distance: near samples decide, far ones hardly matter.
        let weight = distance.powi(-2);
        sum += weight * sample.rate.ln();
        weights += weight;
    }
    (sum / weights).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::Touch;

    fn sample(kernel: &str, shape: &[f64], rate: f64) -> Sample {
        Sample { kernel: kernel.into(), dtype: DType::F32, shape: shape.to_vec(), rate }
    }

    fn model() -> CostModel {
        let level =
            |name: &str, bytes, rate| Level { name: name.into(), bytes, read: rate, write: rate };
        CostModel {
            launch_seconds: 1e-6,
            wake_seconds: 2e-6,
            peak_f32: 1e12,
            peak_bf16: None,
            elementwise: 1e11,
            levels: vec![level("L2", 1 << 20, 4e11), level("memory", u64::MAX, 1e10)],
            samples: vec![
                sample("matmul", &[16.0, 1024.0, 1024.0], 1e11),
                sample("matmul", &[1024.0, 1024.0, 1024.0], 4e11),
                sample("attention", &[16.0, 16.0, 64.0], 1e11),
                sample("conv", &[1024.0, 64.0, 64.0, 9.0], 1e11),
                sample("map", &[4096.0], 1e11),
                sample("map", &[1e9], 1e10),
            ],
        }
    }

    fn product(rows: usize, bytes: u64) -> Work {
        Work {
            kernel: "matmul",
            dtype: DType::F32,
            core_flops: 2 * rows as u64 * 1024 * 1024,
            side_flops: 0,
            bytes_read: bytes,
            weight_bytes: 0,
            plan_weight_bytes: 0,
            activations: vec![Touch { bytes, since: 0 }],
            bytes_written: 0,
            written_since: 0,
            shape: Shape::Product { rows, columns: 1024, depth: 1024 },
        }
    }

    #[test]
    fn measured_shapes_have_their_rate_and_others_one_between() {
        let model = model();
        assert_eq!(model.rate(&product(16, 0)), 1e11);
        assert_eq!(model.rate(&product(1024, 0)), 4e11);
        let middle = model.rate(&product(128, 0));
        assert!((middle / 2e11 - 1.0).abs() < 1e-9, "{middle}");
        // Beyond the measured shapes nothing is extrapolated.
        assert_eq!(model.rate(&product(1, 0)), 1e11);
        assert_eq!(model.rate(&product(1 << 20, 0)), 4e11);
    }

    #[test]
    fn the_slower_of_compute_and_memory_counts() {
        let model = model();
        let compute = model.estimate(&product(1024, 1 << 10));
        assert_eq!(compute.limit, Limit::Compute);
        let expected = 3e-6 + 2.0 * 1024f64.powi(3) / 4e11;
        assert!((compute.seconds / expected - 1.0).abs() < 1e-9);
        let memory = model.estimate(&product(16, 1 << 30));
        assert_eq!(memory.limit, Limit::Memory);
        assert!((memory.seconds - 3e-6 - f64::from(1 << 30) / 1e10).abs() < 1e-9);
        let nothing = Work { core_flops: 1, ..product(16, 0) };
        assert_eq!(model.estimate(&nothing).limit, Limit::Launch);
    }

    #[test]
    fn weights_come_from_where_all_of_them_fit() {
        let model = model();
        let near = Work {
            core_flops: 0,
            weight_bytes: 1 << 16,
            activations: vec![],
            ..product(1, 1 << 16)
        };
        let far = Work { plan_weight_bytes: 1 << 30, ..near.clone() };
        assert!((model.limit_seconds(&near) - f64::from(1 << 16) / 4e11).abs() < 1e-12);
        assert!((model.limit_seconds(&far) - f64::from(1 << 16) / 1e10).abs() < 1e-12);
    }

    #[test]
    fn bytes_that_were_left_long_ago_come_from_far() {
        let model = model();
        let near = Work { core_flops: 0, shape: Shape::Bytes(1 << 16), ..product(1, 1 << 16) };
        let since = 1 << 21;
        let touch = Touch { bytes: 1 << 16, since };
        let far = Work { activations: vec![touch], ..near.clone() };
        let more = model.estimate(&far).seconds - model.estimate(&near).seconds;
        let expected = f64::from(1 << 16) * (1.0 / 1e10 - 1.0 / 4e11);
        assert!((more / expected - 1.0).abs() < 1e-9, "{more}");
        let product = Work { core_flops: 1 << 20, ..product(16, 1 << 16) };
        let far_product = Work { activations: vec![touch], ..product.clone() };
        let later = model.estimate(&far_product).seconds - model.estimate(&product).seconds;
        assert!((later / expected - 1.0).abs() < 1e-9, "{later}");
        let written = Work { bytes_written: 1 << 16, ..near };
        let more = model.limit_seconds(&Work { written_since: since, ..written.clone() })
            - model.limit_seconds(&written);
        assert!((more / expected - 1.0).abs() < 1e-9, "{more}");
    }

    #[test]
    fn side_flops_cost_more() {
        let model = model();
        let plain = product(1024, 0);
        let fused = Work { side_flops: 1 << 30, ..plain.clone() };
        let more = model.estimate(&fused).seconds - model.estimate(&plain).seconds;
        assert!((more - f64::from(1 << 30) / 1e11).abs() < 1e-9);
    }

    #[test]
    fn kernels_and_types_that_were_not_measured_are_taken_for_others() {
        let model = model();
        let moved = Work { kernel: "pad", shape: Shape::Bytes(4096), ..product(1, 4096) };
        assert_eq!(model.rate(&moved), 1e11);
        let half = Work { dtype: DType::F16, ..product(1024, 0) };
        assert_eq!(model.rate(&half), 4e11);
    }

    #[test]
    fn only_steps_of_all_threads_wake_them() {
        let model = model();
        let moved = |bytes| Work {
            kernel: "map",
            core_flops: 0,
            shape: Shape::Bytes(bytes),
            ..product(1, bytes)
        };
        assert_eq!(model.start_seconds(&product(1, 0)), 3e-6);
        assert_eq!(model.start_seconds(&moved(4096)), 1e-6);
        assert_eq!(model.start_seconds(&moved(1 << 20)), 3e-6);
    }

    #[test]
    fn attention_with_a_bias_has_samples_of_its_own() {
        let mut model = model();
        let shape = |is_biased| Shape::Attention { queries: 16, keys: 16, width: 64, is_biased };
        let work = |is_biased| Work { shape: shape(is_biased), ..product(16, 0) };
        assert_eq!(model.rate(&work(true)), 1e11, "without one, it is taken for plain attention");
        model.samples.push(sample("biased_attention", &[16.0, 16.0, 64.0], 2e10));
        assert_eq!((model.rate(&work(true)), model.rate(&work(false))), (2e10, 1e11));
    }

    #[test]
    fn gradients_and_columns_have_samples_of_their_own() {
        let mut model = model();
        model.samples.push(sample("reduce", &[4096.0], 5e10));
        let conv = Shape::Conv { positions: 1024, inputs: 64, outputs: 64, taps: 9 };
        let attention = Shape::Attention { queries: 16, keys: 16, width: 64, is_biased: false };
        for (kernel, shape, plain) in [
            ("conv_input_grad", conv, 1e11),
            ("conv_weight_grad", conv, 1e11),
            ("attention_grad", attention, 1e11),
            ("reduce", Shape::Columns(4096), 5e10),
        ] {
            let work = Work { kernel, shape, ..product(16, 4096) };
            assert_eq!(model.rate(&work), plain, "{kernel} without a sample");
            let name = shape.sample_name(kernel);
            model.samples.push(sample(name, &shape.coordinates(), 2e10));
            assert_eq!(model.rate(&work), 2e10, "{kernel}");
        }
        // What they are of keeps its own.
        let rows = Work { kernel: "reduce", shape: Shape::Bytes(4096), ..product(16, 4096) };
        let forward = Work { kernel: "conv", shape: conv, ..product(16, 4096) };
        assert_eq!((model.rate(&rows), model.rate(&forward)), (5e10, 1e11));
    }

    #[test]
    fn no_step_beats_its_limit_by_the_model_of_its_own_rates() {
        let model = model();
        for work in [product(16, 1 << 10), product(1024, 1 << 24), product(128, 1 << 30)] {
            assert!(model.limit_seconds(&work) <= model.estimate(&work).seconds, "{work:?}");
        }
    }

    #[test]
    fn damaged_models_are_refused() {
        let damaged: [fn(&mut CostModel); 6] = [
            |model| model.launch_seconds = 0.0,
            |model| model.peak_f32 = f64::NAN,
            |model| model.levels.clear(),
            |model| model.levels.reverse(),
            |model| model.samples.retain(|sample| sample.kernel != "map"),
            |model| model.samples[0].shape.clear(),
        ];
        assert!(model().check().is_ok());
        for damage in damaged {
            let mut model = model();
            damage(&mut model);
            assert!(model.check().is_err(), "{model:?}");
        }
    }
}
