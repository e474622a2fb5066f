//! `kino doctor`: what this machine offers and what is used of it.

use std::fmt::Write;
use std::hint::black_box;
use std::time::Instant;

use clap::Args;
use kernels::{Isa, Kernel};
use serde_json::json;

use crate::failure::Outcome;
use crate::{VERSION, machine, progress, source, units};

/// What to print.
#[derive(Args, Debug)]
pub(crate) struct DoctorOptions {
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// The command.
pub(crate) fn run(options: &DoctorOptions, forced_isa: Option<&str>) -> Outcome<()> {
    let target = machine::target(forced_isa, None)?;
    let available: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    let memory = machine::memory();
    let read = read_bandwidth();
    let cuda = machine::cuda_driver();
    let embedded = source::HAS_EMBEDDED.then_some(source::EMBEDDED);
    let caches = [target.l1_bytes, target.l2_bytes, target.l3_bytes];
    if options.json {
        let document = json!({
            "version": VERSION, "kernels_key": measure::KERNELS_KEY, "cpu": machine::cpu_name(), "arch": std::env::consts::ARCH,
            "features": cpu_features(), "isa": target.isa.name(), "isa_available": available,
            "isa_forced": forced_isa.is_some(), "avx512_bf16": Isa::available().iter().any(|isa| isa.bf16_dot().is_some()),
            "threads": target.threads, "cache_bytes": caches,
            "memory_bytes": memory.map(|[total, _]| total),
            "memory_available_bytes": memory.map(|[_, free]| free),
            "read_bytes_per_second": read, "kernels": Kernel::names(),
            "cuda_driver": cuda.map(|path| path.display().to_string()),
            "embedded_model": embedded,
        });
        progress::write_out(&format!("{document:#}\n"));
        return Ok(());
    }
    let bytes = |count: usize| units::bytes(count as f64);
    let forced = match forced_isa {
        Some(_) => format!(", forced by {}", machine::ISA_VARIABLE),
        None => String::new(),
    };
    let rows = [
        ("version", VERSION.to_string()),
        ("cpu", format!("{} ({})", machine::cpu_name(), std::env::consts::ARCH)),
        ("features", cpu_features().join(" ")),
        ("kernels for", format!("{}{forced}; this CPU has {}", target.isa, available.join(", "))),
        ("threads", target.threads.to_string()),
        ("caches", format!("{}, {}, {}", bytes(caches[0]), bytes(caches[1]), bytes(caches[2]))),
        (
            "memory",
            memory.map_or("unknown".to_string(), |[total, free]| {
                format!("{}, {} free", units::bytes(total as f64), units::bytes(free as f64))
            }),
        ),
        ("memory read", format!("{}/s, one thread", units::bytes(read))),
        ("kernels", Kernel::names().join(", ")),
        (
            "cuda driver",
            cuda.map_or("none; sampling runs on the CPU".into(), |path| {
                format!("{} (not used: sampling runs on the CPU)", path.display())
            }),
        ),
        ("embedded", embedded.unwrap_or("no model; give --ckpt-path").to_string()),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        writeln!(text, "{name:<12} {value}").expect("a string takes any text");
    }
    progress::write_out(&text);
    Ok(())
}

/// Features of this CPU that kernels use or will use.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let features = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512fp16", is_x86_feature_detected!("avx512fp16")),
        ];
        let features = features.into_iter().filter(|(_, has)| *has).map(|(name, _)| name);
        features
            .chain(Isa::available().iter().any(|isa| isa.tiles().is_some()).then_some("amx"))
            .collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}

/// Bytes a second that one thread reads from memory: the best of three passes over a block that no
/// cache holds.
fn read_bandwidth() -> f64 {
    const WORDS: usize = 16 << 20;
    let block: Vec<u64> = (0..WORDS as u64).collect();
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        let sums = block.chunks_exact(8).fold([0u64; 8], |mut sums, chunk| {
            for (sum, word) in sums.iter_mut().zip(chunk) {
                *sum = sum.wrapping_add(*word);
            }
            sums
        });
        black_box(sums);
        best = best.min(start.elapsed().as_secs_f64());
    }
    (WORDS * 8) as f64 / best
}
