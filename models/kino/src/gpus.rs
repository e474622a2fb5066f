//! GPUs by name: the numbers of their vendor's data sheets, and the generation that plans are for.

use kernels::cuda::Gpu;

use crate::failure::{Failure, Outcome};

/// What the vendor states of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataSheet {
    /// As the option takes it.
    pub name: &'static str,
    /// As people call it.
    pub title: &'static str,
    /// Its generation.
    pub generation: Gpu,
    /// FLOP/s of dense bf16 products that are summed in f32, on tensor cores.
    pub tensor: f64,
    /// FLOP/s of f32 outside tensor cores.
    pub f32: f64,
    /// Bytes a second of its memory.
    pub bandwidth: f64,
    /// Bytes of its level 2 cache.
    pub l2_bytes: u64,
    /// Bytes of its memory.
    pub memory_bytes: u64,
}

/// Source: NVIDIA's data sheets of the H100, H200, A100 80GB and L40S, and the Ada architecture's
/// white paper for the RTX 4090. Tensor rates are those without sparsity.
pub(crate) const DATA_SHEETS: [DataSheet; 5] = [
    DataSheet {
        name: "h100",
        title: "H100 SXM",
        generation: Gpu(90),
        tensor: 989e12,
        f32: 67e12,
        bandwidth: 3350e9,
        l2_bytes: 50_000_000,
        memory_bytes: 80_000_000_000,
    },
    DataSheet {
        name: "h200",
        title: "H200 SXM",
        generation: Gpu(90),
        tensor: 989e12,
        f32: 67e12,
        bandwidth: 4800e9,
        l2_bytes: 50_000_000,
        memory_bytes: 141_000_000_000,
    },
    DataSheet {
        name: "a100",
        title: "A100 80GB SXM",
        generation: Gpu(80),
        tensor: 312e12,
        f32: 19.5e12,
        bandwidth: 2039e9,
        l2_bytes: 40_000_000,
        memory_bytes: 80_000_000_000,
    },
    DataSheet {
        name: "rtx4090",
        title: "RTX 4090",
        generation: Gpu(89),
        tensor: 165e12,
        f32: 82.6e12,
        bandwidth: 1008e9,
        l2_bytes: 72_000_000,
        memory_bytes: 24_000_000_000,
    },
    DataSheet {
        name: "l40s",
        title: "L40S",
        generation: Gpu(89),
        tensor: 362e12,
        f32: 91.6e12,
        bandwidth: 864e9,
        l2_bytes: 96_000_000,
        memory_bytes: 48_000_000_000,
    },
];

fn names() -> String {
    DATA_SHEETS.map(|sheet| sheet.name).join(", ")
}

fn generations() -> String {
    Gpu::ALL.map(Gpu::code_name).join(", ")
}

/// The device called `name`, of which there are numbers.
pub(crate) fn data_sheet(name: &str) -> Outcome<&'static DataSheet> {
    DATA_SHEETS
        .iter()
        .find(|sheet| sheet.name == name)
        .ok_or_else(|| Failure::usage(format!("--gpu {name}; expected one of {}", names())))
}

/// The generation called `name` by the option `option`.
pub(crate) fn generation(option: &str, name: &str) -> Outcome<Gpu> {
    Gpu::from_name(name).ok_or_else(|| {
        Failure::usage(format!("{option} {name}; expected one of {}", generations()))
    })
}

/// The generations called `names`, each once, oldest first.
#[cfg(feature = "compile")]
pub(crate) fn generations_of(option: &str, names: &[String]) -> Outcome<Vec<Gpu>> {
    let gpus: Outcome<Vec<Gpu>> = names.iter().map(|name| generation(option, name)).collect();
    let mut gpus = gpus?;
    gpus.sort_unstable();
    gpus.dedup();
    Ok(gpus)
}

/// The generation of `--gpu`, which is a device or a generation, and the device if it is one.
pub(crate) fn device_or_generation(name: &str) -> Outcome<(Gpu, Option<&'static DataSheet>)> {
    if let Ok(sheet) = data_sheet(name) {
        return Ok((sheet.generation, Some(sheet)));
    }
    let gpu = Gpu::from_name(name).ok_or_else(|| {
        Failure::usage(format!("--gpu {name}; expected one of {}, {}", names(), generations()))
    })?;
    Ok((gpu, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_generations_have_names() {
        assert_eq!(data_sheet("a100").unwrap().generation, Gpu(80));
        assert_eq!(device_or_generation("h200").unwrap().1.unwrap().title, "H200 SXM");
        let (gpu, sheet) = device_or_generation("sm_90a").unwrap();
        assert!(gpu == Gpu(90) && sheet.is_none());
        for name in ["", "H100", "sm_70", "h1000"] {
            assert!(device_or_generation(name).is_err(), "{name}");
        }
        assert!(data_sheet("sm_90a").is_err(), "a generation has no data sheet");
    }

    #[test]
    fn every_device_is_of_a_generation_that_has_kernels() {
        for sheet in &DATA_SHEETS {
            assert!(Gpu::ALL.contains(&sheet.generation), "{}", sheet.name);
        }
    }
}
