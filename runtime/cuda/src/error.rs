//! What can go wrong when an engine meets a device.

use engine::{Arch, Engine, Image, ImageKind, Kernel};
use thiserror::Error;

use crate::device::{Device, KernelId};

/// Why an engine could not be bound or run.
#[derive(Debug, Error)]
pub enum Error {
    /// The machine has no CUDA driver. The world's.
    #[error(
        "no CUDA driver: {looked_for} is not on this machine; install NVIDIA's driver, or run on the CPU"
    )]
    NoDriver {
        /// Name of the library.
        looked_for: &'static str,
    },
    /// The driver is older than what is called. The world's.
    #[error(
        "the CUDA driver is of version {}.{}, at least {}.{} is needed: install a newer one",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    OldDriver {
        /// Its version, as 1000 times the first number and 10 times the second.
        found: u32,
        /// The least version that works, alike.
        needed: u32,
    },
    /// The driver sees no GPU, or not the one that was asked for. The world's, or the caller's.
    #[error(
        "no GPU {index}: the driver shows {n_devices}; choose one of them, and see CUDA_VISIBLE_DEVICES, which \
         may hide some"
    )]
    NoDevice {
        /// Number asked for, from 0.
        index: usize,
        /// How many there are.
        n_devices: usize,
    },
    /// The GPU has not enough memory. The world's.
    #[error(
        "{bytes} bytes for the {what} are not free on {device} ({free} of {total} are): use a smaller size, or \
         close other programs that use it"
    )]
    OutOfMemory {
        /// What the memory is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// Name of the GPU.
        device: String,
        /// Bytes free.
        free: u64,
        /// Bytes in all.
        total: u64,
    },
    /// None of the engine's programs are for this device. The caller's.
    #[error(
        "{device} has compute capability {}.{}, and the engine is for {targets}: compile the model for it",
        arch.major, arch.minor
    )]
    NoTarget {
        /// Name of the device.
        device: String,
        /// Its architecture.
        arch: Arch,
        /// What the engine's programs are for, and what keeps the device from running them.
        targets: String,
    },
    /// A kernel was not compiled for this device. The caller's.
    #[error(
        "kernel `{kernel}` was compiled for {targets}; {device} is {arch}{also}: compile the model for it"
    )]
    NoImage {
        /// Kind of kernel.
        kernel: String,
        /// What it was compiled for.
        targets: String,
        /// Name of the device.
        device: String,
        /// Its architecture.
        arch: Arch,
        /// What else the device wants of an image.
        also: &'static str,
    },
    /// The driver refused, or a kernel failed. The world's, or the kernel's.
    #[error("cannot {doing}: the CUDA driver says {code} ({meaning})")]
    Driver {
        /// What was tried.
        doing: String,
        /// Name of the code.
        code: String,
        /// What the driver says of it.
        meaning: String,
    },
    /// The emulated device refused, or a kernel did what it must not do. The kernel's.
    #[error("cannot {doing}: {reason}")]
    Emulated {
        /// What was tried.
        doing: String,
        /// Why.
        reason: emulator::Error,
    },
    /// The device has no library of products. The caller's, who can do without.
    #[error("{device} computes no products by cuBLASLt: use the engine's own kernels")]
    NoProducts {
        /// Its name.
        device: String,
    },
    /// The machine has no library of products. The world's, or the caller's, who can do without.
    #[error(
        "no cuBLASLt of version 12 or 13: none of {looked_for} is where libraries are looked for; install NVIDIA's \
         cuBLAS, or use the engine's own kernels"
    )]
    NoLibrary {
        /// Names of the library.
        looked_for: String,
    },
    /// The library of products refused. The world's.
    #[error("cannot {doing}: cuBLASLt says {status}")]
    Library {
        /// What was tried.
        doing: &'static str,
        /// What it says.
        status: String,
    },
    /// A step failed. Says which.
    #[error("program `{program}`, step {index} ({label}, {scope}): {reason}")]
    Step {
        /// Program.
        program: String,
        /// Position of the step.
        index: usize,
        /// Kind of kernel.
        label: String,
        /// Where in the model.
        scope: String,
        /// What is wrong.
        reason: Box<Error>,
    },
    /// A call that does not fit what the device holds. The caller of a [`crate::Device`].
    #[error("{0}")]
    Misuse(String),
    /// The device runs launches one by one only. The caller's, who can do without.
    #[error("{device} has no graphs of launches: run without one")]
    NoGraphs {
        /// Its name.
        device: String,
    },
    /// A weight is missing or of another shape. The caller's checkpoint.
    #[error(transparent)]
    Weights(#[from] runtime::Error),
    /// The engine has no such program, or it is not bound. The caller's.
    #[error("no program `{name}`; choose one of {known}")]
    NoProgram {
        /// Name asked for.
        name: String,
        /// Names that there are.
        known: String,
    },
    /// An input or output is missing, unknown, of another size, or asked for at the wrong time. The caller's.
    #[error("{what} `{name}` of program `{program}`: {reason}")]
    Port {
        /// Input or output.
        what: &'static str,
        /// Its name.
        name: String,
        /// Program.
        program: String,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    /// `device` runs the programs of `engine` for none of its targets.
    pub(crate) fn no_target(engine: &Engine, device: &dyn Device) -> Error {
        let arch = device.arch();
        let target = |target: &Arch| {
            // A target of a later device needs no explanation.
            let is_for_it = target.runs_on(arch, ImageKind::Ptx);
            let mut kernels = engine.kernels_of(*target).filter(|_| is_for_it);
            match kernels.find_map(|kernel| device.refusal(kernel)) {
                Some(reason) => format!("{target} ({reason})"),
                None => target.to_string(),
            }
        };
        let targets: Vec<String> = engine.targets().iter().map(target).collect();
        let targets = if targets.is_empty() { "no device".into() } else { targets.join(", ") };
        Error::NoTarget { device: device.name().to_string(), arch, targets }
    }

    /// `device` runs no image of `kernel`; `also` is what it wants beside its architecture.
    pub(crate) fn no_image(kernel: &Kernel, device: &dyn Device, also: &'static str) -> Error {
        let target = |image: &Image| match image.kind {
            ImageKind::Ptx => format!("{} (PTX)", image.arch),
            ImageKind::Cubin => image.arch.to_string(),
        };
        Error::NoImage {
            kernel: kernel.name.clone(),
            targets: kernel.images.iter().map(target).collect::<Vec<_>>().join(", "),
            device: device.name().to_string(),
            arch: device.arch(),
            also,
        }
    }

    pub(crate) fn unknown_kernel(kernel: KernelId) -> Error {
        Error::Misuse(format!("kernel {} is not loaded on this device", kernel.0))
    }

    pub(crate) fn unknown_mark(mark: usize) -> Error {
        Error::Misuse(format!("mark {mark} was not made on this device"))
    }

    /// Whether a kernel gets as many pointers as it takes.
    pub(crate) fn check_pointers(entry: &str, found: usize, expected: u32) -> Result<(), Error> {
        if found == expected as usize {
            return Ok(());
        }
        Err(Error::Misuse(format!(
            "launch of `{entry}` with {found} pointers, expected {expected}"
        )))
    }
}
