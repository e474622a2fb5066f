//! A roofline of GPUs: how long steps would take on a device, from its data sheet and from the
//! shares of it that kernels were measured to reach on an H100 SXM.
//!
//! `seconds = launches * LAUNCH_SECONDS + max(FLOPs / rate, bytes / bandwidth) + prepared / bandwidth`
//! for each step, where what is prepared in scratch by launches of its own overlaps with nothing. All
//! bytes come from memory: what a level 2 cache keeps from one step to the next is not modelled.

use compiler::cost::{Estimate, Limit};
use ops::DType;

use crate::gpus::DataSheet;

/// Seconds from one node of a graph of launches to the next.
pub(crate) const LAUNCH_SECONDS: f64 = 1.5e-6;

/// Operations per byte from which attention counts as long: some 500 keys.
pub(crate) const LONG_INTENSITY: f64 = 256.0;

/// What the shares below are shares of: FLOP/s and bytes a second of an H100 SXM.
const H100_TENSOR: f64 = 989e12;
const H100_BANDWIDTH: f64 = 3350e9;

/// What kernels were measured to reach there: products on groups of four warps (`wgmma`) and on
/// single ones (`mma.sync`), convolutions, attention with many keys and with few, elementwise code.
const GROUP_PRODUCT: f64 = 520e12;
const WARP_PRODUCT: f64 = 430e12;
const CONV: f64 = 420e12;
const LONG_ATTENTION: f64 = 285e12;
const SHORT_ATTENTION: f64 = 100e12;
const MOVED: f64 = 2700e9;

/// Share of the f32 rate that f32 products and attention are taken to reach; not measured.
const F32_SHARE: f64 = 0.5;

/// What one step asks of a device.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Kind of kernel: `matmul`.
    pub kernel: String,
    /// FLOPs.
    pub flops: u64,
    /// Bytes read and written, each once.
    pub bytes: u64,
    /// Bytes of scratch, which launches before the main one fill from as many.
    pub scratch_bytes: u64,
    /// Launches.
    pub launches: usize,
}

/// Which code runs on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Code {
    /// It multiplies on groups of four warps, as only `sm_90a` can.
    Groups,
    /// It multiplies on single warps.
    Warps,
}

/// What a device does in a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roofline {
    /// The device.
    pub sheet: &'static DataSheet,
    /// FLOP/s of products.
    pub product: f64,
    /// FLOP/s of convolutions.
    pub conv: f64,
    /// FLOP/s of attention with many keys.
    pub long_attention: f64,
    /// FLOP/s of attention with few keys.
    pub short_attention: f64,
    /// Bytes a second.
    pub bandwidth: f64,
}

impl Roofline {
    /// The rates of `code` on operands of `dtype`.
    pub(crate) fn new(sheet: &'static DataSheet, code: Code, dtype: DType) -> Roofline {
        // Only on this generation do single warps leave tensor cores waiting.
        let product = match code {
            Code::Warps if sheet.generation.0 == 90 => WARP_PRODUCT,
            Code::Warps | Code::Groups => GROUP_PRODUCT,
        };
        let rate = |measured: f64| match dtype {
            DType::F32 => F32_SHARE * sheet.f32,
            _ => sheet.tensor * measured / H100_TENSOR,
        };
        Roofline {
            sheet,
            product: rate(product),
            conv: rate(CONV),
            long_attention: rate(LONG_ATTENTION),
            short_attention: rate(SHORT_ATTENTION),
            bandwidth: sheet.bandwidth * MOVED / H100_BANDWIDTH,
        }
    }

    /// Modelled time of a step.
    pub(crate) fn estimate(&self, task: &Task) -> Estimate {
        let rate = match task.kernel.as_str() {
            "matmul" => self.product,
            "conv" => self.conv,
            "attention" if intensity(task.flops, task.bytes) >= LONG_INTENSITY => {
                self.long_attention
            }
            "attention" => self.short_attention,
            _ => self.sheet.f32,
        };
        let start = task.launches as f64 * LAUNCH_SECONDS;
        let (compute, memory) = (task.flops as f64 / rate, task.bytes as f64 / self.bandwidth);
        let prepare = 2.0 * task.scratch_bytes as f64 / self.bandwidth;
        let limit = if start > prepare + compute.max(memory) {
            Limit::Launch
        } else if memory + prepare > compute {
            Limit::Memory
        } else {
            Limit::Compute
        };
        Estimate { seconds: start + prepare + compute.max(memory), limit }
    }

    /// What the times rest on, for people: one line each.
    pub(crate) fn assumptions(&self, dtype: DType) -> Vec<String> {
        let sheet = self.sheet;
        let tera = |rate: f64| format!("{:.0} TFLOP/s", rate / 1e12);
        let source = if sheet.name == "h100" { "measured" } else { "share measured on an H100" };
        let peak = match dtype {
            DType::F32 => format!("f32, {} peak, half of it assumed", tera(sheet.f32)),
            _ => format!("{dtype}, {} dense peak, {source}", tera(sheet.tensor)),
        };
        vec![
            "a step takes its launches + the longer of FLOPs / rate and bytes / bandwidth".into(),
            "what launches before the main one prepare in scratch is moved twice and overlaps with nothing".into(),
            format!("peaks are those of the vendor's data sheet of the {}", sheet.title),
            format!("matmul    {} ({peak})", tera(self.product)),
            format!("conv      {} (the same)", tera(self.conv)),
            format!(
                "attention {}, {} below {LONG_INTENSITY} FLOP/byte (the same)",
                tera(self.long_attention),
                tera(self.short_attention)
            ),
            format!("others    {} of f32 (the whole peak)", tera(sheet.f32)),
            format!(
                "memory    {:.2} TB/s of {:.2} ({source}); what caches save is not counted",
                self.bandwidth / 1e12,
                sheet.bandwidth / 1e12
            ),
            format!("launch    {:.1} us (a node of a graph)", LAUNCH_SECONDS * 1e6),
        ]
    }
}

/// FLOPs per byte; 0 if nothing moves.
pub(crate) fn intensity(flops: u64, bytes: u64) -> f64 {
    if bytes == 0 { 0.0 } else { flops as f64 / bytes as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::data_sheet;

    fn task(kernel: &str, flops: u64, bytes: u64) -> Task {
        Task { kernel: kernel.into(), flops, bytes, scratch_bytes: 0, launches: 1 }
    }

    fn h100(code: Code, dtype: DType) -> Roofline {
        Roofline::new(data_sheet("h100").unwrap(), code, dtype)
    }

    #[test]
    fn the_longest_part_is_the_limit() {
        let model = h100(Code::Groups, DType::Bf16);
        let product = model.estimate(&task("matmul", 520_000_000_000, 1000));
        assert_eq!(product.limit, Limit::Compute);
        assert!((product.seconds - 1e-3 - LAUNCH_SECONDS).abs() < 1e-9, "{product:?}");
        let moved = model.estimate(&task("map", 1000, 2_700_000_000));
        assert_eq!(moved.limit, Limit::Memory);
        assert!((moved.seconds - 1e-3 - LAUNCH_SECONDS).abs() < 1e-9, "{moved:?}");
        assert_eq!(model.estimate(&task("map", 1, 1)).limit, Limit::Launch);
    }

    #[test]
    fn attention_with_few_keys_is_slower() {
        let model = h100(Code::Groups, DType::Bf16);
        let short = model.estimate(&task("attention", 1 << 40, (1 << 32) + (1 << 28)));
        let long = model.estimate(&task("attention", 1 << 40, 1 << 30));
        assert!(short.seconds > 2.5 * long.seconds, "{short:?} {long:?}");
    }

    #[test]
    fn rates_follow_code_type_and_device() {
        let bf16 = DType::Bf16;
        assert!(h100(Code::Warps, bf16).product < h100(Code::Groups, bf16).product);
        assert!(h100(Code::Groups, DType::F32).product < 67e12);
        let a100 = Roofline::new(data_sheet("a100").unwrap(), Code::Warps, bf16);
        assert!(a100.product < 312e12 && a100.bandwidth < 2039e9);
        assert!(a100.assumptions(bf16).iter().any(|line| line.contains("share measured")));
    }
}
