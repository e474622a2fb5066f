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

/// Level 1, level 2 and last-level data caches in bytes where the system does not tell.
const USUAL_CACHES: [usize; 3] = [32 << 10, 1 << 20, 16 << 20];

/// Most bytes of the last-level cache that are counted on: a virtual machine is told of all that its socket has, and
/// shares it with others.
const MAX_LAST_LEVEL: usize = 32 << 20;

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
    let [l1_bytes, l2_bytes, l3_bytes] = caches();
    Ok(Target { isa, threads, l1_bytes, l2_bytes, l3_bytes, gpu: None, tiles: None })
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

/// Bytes of data caches: level 1 and 2 of a core, and what may be counted on of the last level.
pub(crate) fn caches() -> [usize; 3] {
    let mut caches = USUAL_CACHES;
    for index in 0..8 {
        let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name: &str| fs::read_to_string(Path::new(&folder).join(name)).ok();
        let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size"))
        else {
            continue;
        };
        let level = level.trim().parse::<usize>().ok().filter(|level| (1..=3).contains(level));
        if let (Some(level), Some(size), false) =
            (level, cache_size(&size), kind.trim() == "Instruction")
        {
            caches[level - 1] = size;
        }
    }
    caches[2] = caches[2].min(MAX_LAST_LEVEL);
    caches
}

/// `48K` in bytes.
fn cache_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => (text.strip_suffix('M')?, 1 << 20),
    };
    number.parse::<usize>().ok()?.checked_mul(unit).filter(|&size| size > 0)
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
    fn cache_sizes_have_units() {
        assert_eq!(cache_size("48K\n"), Some(48 << 10));
        assert_eq!(cache_size("32M"), Some(32 << 20));
        for bad in ["", "K", "48", "0K", "99999999999999999999K"] {
            assert_eq!(cache_size(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn memory_that_is_not_there_is_refused() {
        assert!(check_memory(1.0, "").is_ok());
        let message = check_memory(1e30, "at least ").unwrap_err().to_string();
        assert!(message.contains("needs at least"), "{message}");
    }
}
