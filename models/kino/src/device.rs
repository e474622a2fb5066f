//! `--engine` and `--device`: a GPU, or the emulated one, in place of this CPU.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use cuda::{Context, Device, Driver, Emulated, EngineBackend, OpenDevice, Products};
use engine::{Arch, Engine};
use kernels::cuda::Gpu;
use ops::DType;

use crate::failure::{Failure, Outcome};
use crate::machine;

/// Where an engine runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// GPU number so and so.
    Gpu(usize),
    /// The CPU, instruction by instruction, as a GPU of this architecture.
    Emulated(Option<Arch>),
}

/// An engine on a device.
#[derive(Debug)]
pub(crate) struct OnDevice {
    /// What runs plans.
    pub backend: EngineBackend,
    /// The generation that the programs are for which the device runs.
    pub gpu: Gpu,
    /// What it stores activations in.
    pub dtype: DType,
}

/// The device without `--device`.
pub(crate) const DEFAULT: &str = "cuda:0";

/// The engine of a file on the device called `device`, which times every step if `times_steps`. What a library can
/// compute as well is computed by `products`.
pub(crate) fn open(
    path: &Path,
    device: Option<&str>,
    times_steps: bool,
    products: Products,
) -> Outcome<OnDevice> {
    let place = parse(device.unwrap_or(DEFAULT))?;
    let engine = Engine::open(path).map_err(|error| Failure::Run(error.into()))?;
    let threads = NonZeroUsize::new(machine::cores()).unwrap_or(NonZeroUsize::MIN);
    let open: Box<OpenDevice> = match place {
        Place::Gpu(index) => {
            let context = Context::open(index).map_err(|error| Failure::Run(error.into()))?;
            let context = Arc::new(context);
            Box::new(move || Ok(Box::new(Driver::new(Arc::clone(&context))?) as Box<dyn Device>))
        }
        Place::Emulated(arch) => {
            // What the engine is for at best, where nothing else is asked for.
            let arch = arch.or(engine.targets().last().copied());
            let arch = arch.ok_or_else(|| {
                Failure::Run(anyhow::anyhow!("{}: it has no programs", path.display()))
            })?;
            Box::new(move || {
                let options = emulator::Options { threads, ..emulator::Options::default() };
                Ok(Box::new(Emulated::new(arch, options)) as Box<dyn Device>)
            })
        }
    };
    // Found out before anything is prepared.
    let mut device = open().map_err(|error| Failure::Run(error.into()))?;
    if products == Products::Library {
        device.open_library().map_err(|error| {
            Failure::Run(anyhow::anyhow!("--products cublaslt: {error} (--products own)"))
        })?;
    }
    let target = cuda::target_for(&engine, &*device)
        .map_err(|error| Failure::Run(anyhow::anyhow!("{}: {error}", path.display())))?;
    let gpu = Gpu::from_name(&target.to_string()).ok_or_else(|| {
        Failure::Run(anyhow::anyhow!(
            "{}: {target} is no generation of this version",
            path.display()
        ))
    })?;
    let dtype = engine.dtype;
    let backend = EngineBackend::new(Arc::new(engine), open).with_products(products);
    let backend = if times_steps { backend.with_step_times() } else { backend };
    Ok(OnDevice { backend, gpu, dtype })
}

/// The number of the GPU called `device`; `None` for the emulated one.
#[cfg(feature = "compile")]
pub(crate) fn gpu_index(device: &str) -> Outcome<Option<usize>> {
    Ok(match parse(device)? {
        Place::Gpu(index) => Some(index),
        Place::Emulated(_) => None,
    })
}

fn parse(device: &str) -> Outcome<Place> {
    let unknown = || {
        Failure::usage(format!(
            "--device {device}; expected cuda:0, cuda:1, …, cuda-emulated or such as \
             cuda-emulated:sm_80"
        ))
    };
    if let Some(rest) = device.strip_prefix("cuda-emulated") {
        let arch = match rest.strip_prefix(':') {
            Some(name) => Some(name.parse::<Arch>().map_err(|_| unknown())?),
            None if rest.is_empty() => None,
            None => return Err(unknown()),
        };
        return Ok(Place::Emulated(arch));
    }
    match device.strip_prefix("cuda") {
        Some("") => Ok(Place::Gpu(0)),
        Some(rest) => {
            let index = rest.strip_prefix(':').and_then(|index| index.parse().ok());
            index.map(Place::Gpu).ok_or_else(unknown)
        }
        None => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!(parse("cuda").unwrap(), Place::Gpu(0));
        assert_eq!(parse("cuda:3").unwrap(), Place::Gpu(3));
        assert_eq!(parse("cuda-emulated").unwrap(), Place::Emulated(None));
        let arch = "sm_80".parse().unwrap();
        assert_eq!(parse("cuda-emulated:sm_80").unwrap(), Place::Emulated(Some(arch)));
        for text in
            ["", "cpu", "cuda:", "cuda:x", "cuda3", "cuda:-1", "cuda-emulated:", "cuda-emulatedx"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
