//! What is printed of a program.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use engine::{Port, Program};
use ops::{DType, Tensor};

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// `n` per second, in units of 10^12.
fn tera(n: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() / 1e12 }
}

/// Times of whole runs.
pub(crate) struct Timing {
    median: Duration,
    least: Duration,
    /// As the caller sees it, waiting included.
    host: Duration,
}

impl Timing {
    /// Of runs, each with its time on the device and on the host.
    pub(crate) fn of(times: &[(Duration, Duration)]) -> Timing {
        let (device, host): (Vec<Duration>, Vec<Duration>) = times.iter().copied().unzip();
        let least = device.iter().min().copied().unwrap_or_default();
        Timing { median: median(&device), least, host: median(&host) }
    }

    pub(crate) fn line(&self, flops: u64) -> String {
        let Timing { median, least, host } = *self;
        format!(
            "median {:.3} ms, least {:.3} ms, {:.1} TFLOP/s; host {:.3} ms",
            ms(median),
            ms(least),
            tera(flops, median),
            ms(host)
        )
    }
}

/// Size and work.
pub(crate) fn work(program: &Program) -> String {
    let n_launches: usize = program.steps.iter().map(|step| step.launches.len()).sum();
    let gflop = program.flops() as f64 / 1e9;
    format!("{} steps, {n_launches} launches, {gflop:.3} GFLOP", program.steps.len())
}

/// An output in a line: type, size of its numbers, how many are none.
pub(crate) fn output(port: &Port, bytes: &[u8]) -> String {
    let head = format!("{} {}", port.name, port.ty);
    match Tensor::from_bytes(port.ty.clone(), bytes) {
        Ok(tensor) => {
            let values = tensor.to_f32();
            let finite: Vec<f64> =
                values.iter().filter(|x| x.is_finite()).map(|x| f64::from(*x)).collect();
            let n = finite.len().max(1) as f64;
            let mean = finite.iter().sum::<f64>() / n;
            let rms = (finite.iter().map(|x| x * x).sum::<f64>() / n).sqrt();
            let n_bad = values.len() - finite.len();
            let bad = match (n_bad, port.ty.dtype()) {
                (0, _) => String::new(),
                (_, DType::F32 | DType::F16 | DType::Bf16) => {
                    format!(", {n_bad} NOT FINITE of {}", values.len())
                }
                (_, DType::I64 | DType::I32 | DType::U8 | DType::Bool) => String::new(),
            };
            format!("{head}, mean {mean:.6}, rms {rms:.6}{bad}")
        }
        Err(error) => format!("{head}, {error}"),
    }
}

/// Time by kind of kernel, and the slowest steps, each with its rates.
pub(crate) fn steps(program: &Program, times: &[Vec<Duration>], n_slowest: usize) -> String {
    let medians: Vec<Duration> = times.iter().map(|times| median(times)).collect();
    let total: Duration = medians.iter().sum();
    let mut text = format!("    steps    {:.3} ms in all, each timed alone\n", ms(total));
    let share = |time: Duration| 100.0 * time.as_secs_f64() / total.as_secs_f64().max(1e-12);
    let row = |text: &mut String, time: Duration, flops: u64, bytes: u64, what: &str| {
        let (rate, bandwidth) = (tera(flops, time), tera(bytes, time));
        let _ = writeln!(
            text,
            "      {:>9.3} ms {:>5.1} %  {rate:>7.1} TFLOP/s  {bandwidth:>6.3} TB/s  {what}",
            ms(time),
            share(time)
        );
    };
    let mut kinds: BTreeMap<&str, (usize, Duration, u64, u64)> = BTreeMap::new();
    for (step, &time) in program.steps.iter().zip(&medians) {
        let kind = kinds.entry(&step.label).or_default();
        *kind = (kind.0 + 1, kind.1 + time, kind.2 + step.flops, kind.3 + step.bytes);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|&(label, (_, time, ..))| (std::cmp::Reverse(time), label));
    for (label, (n, time, flops, bytes)) in kinds {
        row(&mut text, time, flops, bytes, &format!("{label}, {n} steps"));
    }
    let mut order: Vec<usize> = (0..medians.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(medians[index]), index));
    let _ = writeln!(text, "    slowest");
    for &index in order.iter().take(n_slowest) {
        let step = &program.steps[index];
        let what = format!("{index} {} {}", step.label, step.scope);
        row(&mut text, medians[index], step.flops, step.bytes, &what);
    }
    text
}
