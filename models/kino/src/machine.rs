//! The machine: what plans are compiled for, and how much memory there is.
//!
//! Everything is read from the operating system at run time; what cannot be read has a value that
//! is right for most machines, which affects speed only.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use kernels::cuda::Gpu;
use kernels::{Isa, Target};

use crate::failure::{Failure, Outcome};
use crate::units;

/// Names an instruction set to use instead of the best: `amx`, `avx512bf16`, `avx512`, `avx2`, `neon`, `portable`.
pub(crate) const ISA_VARIABLE: &str = "KINO_CPU";

/// Most threads: far above any machine, far below what a process may have.
const MAX_THREADS: usize = 1024;

/// What a plan for this machine is compiled for.
pub(crate) fn target(forced_isa: Option<&str>, threads: Option<usize>) -> Outcome<Target> {
    let isa = match forced_isa {
        Some(name) => Isa::from_name(name)
            .map_err(|error| Failure::Usage(format!("{ISA_VARIABLE}: {error}")))?,
        None => Isa::detect(),
    };
    let threads = match threads {
        None => cores().min(MAX_THREADS),
        Some(count) if (1..=MAX_THREADS).contains(&count) => count,
        Some(count) => {
            let reason = format!("--threads {count}; expected 1 to {MAX_THREADS}");
            return Err(Failure::Usage(reason));
        }
    };
    Ok(Target::of_cpu(isa, threads))
}

/// What a plan for a GPU is compiled for: nothing of this machine.
pub(crate) fn gpu_target(gpu: Gpu) -> Target {
    Target {
        isa: Isa::PORTABLE,
        threads: 1,
        l1_bytes: 0,
        l2_bytes: 0,
        l3_bytes: 0,
        gpu: Some(gpu),
        tiles: None,
    }
}

/// What plans for `target` run on, for people.
pub(crate) fn describe(target: &Target) -> String {
    match target.gpu {
        Some(gpu) => format!("a GPU of generation {}", gpu.code_name()),
        None => {
            let threads = units::counted(target.threads, "thread");
            format!("{}, {threads}, {}", cpu_name(), target.isa)
        }
    }
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Memory in bytes: what there is, and what a new program may take. `None` where it is unknown.
pub(crate) fn memory() -> Option<[u64; 2]> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some([kilobytes(&text, "MemTotal:")?, kilobytes(&text, "MemAvailable:")?])
}

/// The line `NAME: 12 kB` of a status file, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Refuses a need that exceeds the memory that is free, before anything is allocated.
pub(crate) fn check_memory(needed: f64, qualifier: &str) -> Outcome<()> {
    let Some([_, available]) = memory() else { return Ok(()) };
    if needed <= available as f64 {
        return Ok(());
    }
    Err(Failure::Run(anyhow::anyhow!(
        "this needs {qualifier}{} of memory, {} is free: use a smaller size, fewer frames or a \
         smaller batch",
        units::bytes(needed),
        units::bytes(available as f64)
    )))
}

/// Bytes that this process has in memory now, and the most since it began or since [`forget_peak`].
pub(crate) fn resident_bytes() -> Option<[u64; 2]> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    Some([kilobytes(&text, "VmRSS:")?, kilobytes(&text, "VmHWM:")?])
}

/// Lets the most memory of this process be what it has now. Where the system cannot, the most since
/// the process began stays.
pub(crate) fn forget_peak() {
    // 5 means the peak, see proc_pid_clear_refs(5).
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// The CPU's name.
pub(crate) fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |name| name.trim().to_string())
}

/// The CUDA driver's library, if one is installed. It is looked for, not loaded.
pub(crate) fn cuda_driver() -> Option<PathBuf> {
    const FOLDERS: [&str; 7] = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
        "/usr/local/nvidia/lib64",
        "/run/opengl-driver/lib",
    ];
    FOLDERS.iter().map(|folder| Path::new(folder).join("libcuda.so.1")).find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_refused() {
        assert!(check_memory(1.0, "").is_ok());
        let message = check_memory(1e30, "at least ").unwrap_err().to_string();
        assert!(message.contains("needs at least"), "{message}");
    }
}
