//! The emulated device: an engine's PTX on the CPU, with checks that no GPU makes.

use std::time::{Duration, Instant};

use emulator::{Launch, Module, Options, Program};
use engine::{Arch, Image, ImageKind, Kernel};
use kernels::cuda::Gpu;

use crate::device::{Device, KernelId};
use crate::error::Error;

/// A device without hardware.
#[derive(Debug)]
pub struct Emulated {
    device: emulator::Device,
    arch: Arch,
    options: Options,
    kernels: Vec<Loaded>,
    marks: Vec<Option<Instant>>,
}

/// A kernel that can be launched.
#[derive(Debug)]
struct Loaded {
    program: Program,
    entry: String,
    block: [u32; 3],
    shared_bytes: u32,
    n_pointers: u32,
    /// Bytes of the parameter that is passed by value.
    info: Vec<u8>,
}

fn failed(doing: impl Into<String>) -> impl FnOnce(emulator::Error) -> Error {
    let doing = doing.into();
    |reason| Error::Emulated { doing, reason }
}

impl Emulated {
    /// A device of architecture `arch` with nothing in it. `options` say what is checked beyond bounds and
    /// alignment, in which order warps run, and on how many threads.
    pub fn new(arch: Arch, options: Options) -> Emulated {
        let device = emulator::Device::new();
        Emulated { device, arch, options, kernels: vec![], marks: vec![] }
    }
}

impl Device for Emulated {
    fn name(&self) -> &str {
        "the emulated device"
    }

    fn arch(&self) -> Arch {
        self.arch
    }

    fn shared_bytes(&self) -> u32 {
        Gpu(10 * self.arch.major + self.arch.minor).shared_bytes().1 as u32
    }

    fn image<'k>(&self, kernel: &'k Kernel) -> Option<&'k Image> {
        let is_usable = |image: &&Image| {
            image.kind == ImageKind::Ptx && image.arch.runs_on(self.arch, image.kind)
        };
        let usable = kernel.images.iter().filter(is_usable);
        usable.max_by_key(|image| (image.arch.is_specific, image.arch))
    }

    fn alloc(&mut self, what: &'static str, bytes: u64) -> Result<u64, Error> {
        self.device.alloc(bytes).map_err(failed(format!("allocate the {what}")))
    }

    fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.device.upload(address, bytes).map_err(failed("upload"))
    }

    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.device.download(address, bytes).map_err(failed("download"))
    }

    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), Error> {
        // What nothing has written is not made to look as if it had been.
        if let Some(at) = self.device.first_unwritten(from, bytes) {
            let reason = format!("copy of global memory that nothing has written ({at:#x})");
            return Err(Error::Misuse(reason));
        }
        let mut buffer = vec![0; bytes as usize];
        self.device.download(from, &mut buffer).map_err(failed("copy"))?;
        self.device.upload(to, &buffer).map_err(failed("copy"))
    }

    fn zero(&mut self, address: u64, bytes: u64) -> Result<(), Error> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut at = 0;
        while at < bytes {
            let n = (bytes - at).min(ZEROS.len() as u64);
            self.upload(address + at, &ZEROS[..n as usize])?;
            at += n;
        }
        Ok(())
    }

    fn load(&mut self, kernel: &Kernel) -> Result<KernelId, Error> {
        let image = self.image(kernel);
        let image = image.ok_or_else(|| Error::no_image(kernel, self, " and takes PTX only"))?;
        let text = String::from_utf8_lossy(&image.bytes);
        let doing = || failed(format!("load kernel `{}`", kernel.name));
        let module = Module::parse(&text).map_err(doing())?;
        let program = self.device.load(&module).map_err(doing())?;
        if !program.entries().any(|entry| entry == kernel.entry) {
            let (name, entry) = (&kernel.name, &kernel.entry);
            return Err(Error::Misuse(format!(
                "the PTX of kernel `{name}` has no entry `{entry}`"
            )));
        }
        self.kernels.push(Loaded {
            program,
            entry: kernel.entry.clone(),
            block: kernel.block,
            shared_bytes: kernel.shared_bytes,
            n_pointers: kernel.n_pointers,
            info: kernel.info.iter().flat_map(|word| word.to_le_bytes()).collect(),
        });
        Ok(KernelId(self.kernels.len() - 1))
    }

    fn launch(&mut self, kernel: KernelId, grid: [u32; 3], pointers: &[u64]) -> Result<(), Error> {
        let loaded = self.kernels.get(kernel.0).ok_or_else(|| Error::unknown_kernel(kernel))?;
        Error::check_pointers(&loaded.entry, pointers.len(), loaded.n_pointers)?;
        let pointers: Vec<[u8; 8]> = pointers.iter().map(|address| address.to_le_bytes()).collect();
        let mut params: Vec<&[u8]> = pointers.iter().map(|bytes| &bytes[..]).collect();
        if !loaded.info.is_empty() {
            params.push(&loaded.info);
        }
        let Loaded { program, entry, block, shared_bytes, .. } = loaded;
        let launch = Launch { grid, block: *block, shared_bytes: *shared_bytes, params: &params };
        self.device
            .launch(program, entry, &launch, &self.options)
            .map_err(failed("run a kernel"))?;
        Ok(())
    }

    fn synchronize(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn mark(&mut self, mark: usize) -> Result<(), Error> {
        if self.marks.len() <= mark {
            self.marks.resize(mark + 1, None);
        }
        self.marks[mark] = Some(Instant::now());
        Ok(())
    }

    fn wait(&mut self, mark: usize) -> Result<(), Error> {
        // Everything is done when its call returns.
        let known = self.marks.get(mark).copied().flatten();
        known.map(|_| ()).ok_or_else(|| Error::unknown_mark(mark))
    }

    fn elapsed(&mut self, from: usize, to: usize) -> Result<Duration, Error> {
        let time = |mark: usize| {
            self.marks.get(mark).copied().flatten().ok_or_else(|| Error::unknown_mark(mark))
        };
        Ok(time(to)?.saturating_duration_since(time(from)?))
    }
}
