//! A GPU behind NVIDIA's driver: one context, one stream.
//!
//! The library is loaded when the first [`Context`] is opened. Every handle that is kept here comes from the driver
//! and belongs to the context that the device retains until it is dropped; each method makes that context the
//! thread's own first, so that a device may move between threads. Addresses that callers give are checked
//! against the allocations.

mod cublaslt;
mod image;
mod staging;

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use engine::{Arch, Kernel, Product};

use crate::device::{Device, GraphId, KernelId, ProductId};
use crate::error::Error;
use crate::lt::Workspace;
use crate::multiplier::{Multiplier, spans};
use cublaslt::CublasLt;
use staging::Staging;

/// The library that is looked for; others are names of it on other systems.
const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
/// The least version of the driver, as it tells it: 12.0 is the first that knows 9.0, and has every function that is
/// called here; the binding would panic where one is missing.
const LEAST_VERSION: u32 = 12_000;
/// Shared memory of a block that needs no consent.
const DEFAULT_SHARED_BYTES: i32 = 48 << 10;

/// A GPU that is held open. The driver takes a tenth of a second to open one, and closes it when nobody holds it any
/// more: who runs one program after the other, each on a [`Driver`] of its own, holds it in between.
#[derive(Debug)]
pub struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
    name: String,
    arch: Arch,
    /// Most bytes of shared memory of a block, with consent.
    shared_bytes: u32,
}

// SAFETY: the driver's functions take handles of devices and contexts from any thread; the handle is never changed.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Opens GPU `index`, from 0.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::NoDevice`], or what the driver says.
    pub fn open(index: usize) -> Result<Context, Error> {
        let devices = devices()?;
        let n_devices = devices.len();
        let chosen = devices.into_iter().nth(index);
        let chosen = chosen.ok_or(Error::NoDevice { index, n_devices })?;
        let Found { device, name, arch, shared_bytes } = chosen;
        let open = failed(format!("open {name}"));
        // SAFETY: the device comes from the driver; the context is released when the value is dropped.
        let handle = unsafe { result::primary_ctx::retain(device) }.map_err(open)?;
        Ok(Context { device, handle, name, arch, shared_bytes })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once, when the value was made. Failures cannot be told any more.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory, kernels and a stream on a GPU.
#[derive(Debug)]
pub struct Driver {
    context: Arc<Context>,
    stream: sys::CUstream,
    /// Bytes by first address.
    allocations: BTreeMap<u64, u64>,
    staging: Option<Staging>,
    kernels: Vec<Loaded>,
    /// The library of products, once it is opened.
    library: Option<Multiplier<CublasLt>>,
    marks: Vec<Option<sys::CUevent>>,
    graphs: Vec<sys::CUgraphExec>,
    /// Pointers to the parameters of a launch; kept so that a run allocates nothing.
    params: Vec<*mut c_void>,
}

// SAFETY: handles of the driver and of the library may be used from any thread that has made the context its own,
// which every method does first; `params` is only filled and read within one call under `&mut self`.
unsafe impl Send for Driver {}

/// A kernel that can be launched.
#[derive(Debug)]
struct Loaded {
    module: sys::CUmodule,
    function: sys::CUfunction,
    entry: String,
    block: (u32, u32, u32),
    shared_bytes: u32,
    n_pointers: u32,
    info: Box<[u64]>,
}

/// The error of a call that was `doing` something.
fn failed(doing: impl Into<String>) -> impl FnOnce(DriverError) -> Error {
    let doing = doing.into();
    |error| Error::Driver { doing, code: code(error), meaning: meaning(error) }
}

fn code(error: DriverError) -> String {
    error.error_name().map_or(format!("{:?}", error.0), |name| name.to_string_lossy().into())
}

fn meaning(error: DriverError) -> String {
    let unknown = "an error that it cannot explain".to_string();
    error.error_string().map_or(unknown, |text| text.to_string_lossy().into())
}

/// What the driver shows of a GPU without opening it.
struct Found {
    device: sys::CUdevice,
    name: String,
    arch: Arch,
    shared_bytes: u32,
}

/// What the driver shows of the GPUs.
fn devices() -> Result<Vec<Found>, Error> {
    // SAFETY: loads a library by name, and runs its initializers: the system's driver, as any CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver { looked_for: LIBRARY });
    }
    let mut version = 0;
    // SAFETY: writes the one number that it is given.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(failed("ask for the driver's version"))?;
    let (found, needed) = (version.unsigned_abs(), LEAST_VERSION);
    if found < needed {
        return Err(Error::OldDriver { found, needed });
    }
    match result::init() {
        // A driver without a GPU.
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(vec![]),
        outcome => outcome.map_err(failed("initialize the driver"))?,
    }
    let count = result::device::get_count().map_err(failed("count the GPUs"))?;
    let describe = |index: i32| {
        let device = result::device::get(index)?;
        let attribute = |attribute| {
            // SAFETY: the device comes from the driver.
            unsafe { result::device::get_attribute(device, attribute) }
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        Ok(Found {
            device,
            name: result::device::get_name(device)?,
            arch: Arch::of_device(major.unsigned_abs(), minor.unsigned_abs()),
            shared_bytes: shared.unsigned_abs(),
        })
    };
    (0..count)
        .map(|index| describe(index).map_err(failed(format!("look at GPU {index}"))))
        .collect()
}

impl Driver {
    /// Name and architecture of each GPU that the driver shows.
    ///
    /// # Errors
    /// [`Error::NoDriver`], or what the driver says.
    pub fn list() -> Result<Vec<(String, Arch)>, Error> {
        Ok(devices()?.into_iter().map(|found| (found.name, found.arch)).collect())
    }

    /// Opens GPU `index`, from 0.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::NoDevice`], or what the driver says.
    pub fn open(index: usize) -> Result<Driver, Error> {
        Driver::new(Arc::new(Context::open(index)?))
    }

    /// A driver of an open GPU, without memory or kernels.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(context: Arc<Context>) -> Result<Driver, Error> {
        let mut driver = Driver {
            context,
            stream: ptr::null_mut(),
            allocations: BTreeMap::new(),
            staging: None,
            kernels: vec![],
            library: None,
            marks: vec![],
            graphs: vec![],
            params: vec![],
        };
        driver.enter()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        driver.stream = stream.map_err(failed("make a stream"))?;
        driver.staging = Some(Staging::new()?);
        Ok(driver)
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), Error> {
        // SAFETY: the context is retained until the value is dropped.
        unsafe { result::ctx::set_current(self.context.handle) }.map_err(failed("use the GPU"))
    }

    /// Checks that a range is inside of one allocation.
    fn check_range(&self, address: u64, bytes: u64) -> Result<(), Error> {
        let below = self.allocations.range(..=address).next_back();
        let is_inside = |(start, n): (&u64, &u64)| {
            (address - start).checked_add(bytes).is_some_and(|end| end <= *n)
        };
        if below.is_some_and(is_inside) {
            return Ok(());
        }
        Err(Error::Misuse(format!("{bytes} bytes at {address:#x} are not inside of an allocation")))
    }

    /// The event of a mark that was made.
    fn event(&self, mark: usize) -> Result<sys::CUevent, Error> {
        self.marks.get(mark).copied().flatten().ok_or_else(|| Error::unknown_mark(mark))
    }

    fn staging(&mut self) -> &mut Staging {
        self.staging.as_mut().expect("`open` makes it, and only `drop` takes it")
    }

    fn library(&mut self) -> Result<&mut Multiplier<CublasLt>, Error> {
        let closed = || Error::Misuse("the library of products was not opened".into());
        self.library.as_mut().ok_or_else(closed)
    }
}

impl Device for Driver {
    fn name(&self) -> &str {
        &self.context.name
    }

    fn arch(&self) -> Arch {
        self.context.arch
    }

    fn shared_bytes(&self) -> u32 {
        self.context.shared_bytes
    }

    fn alloc(&mut self, what: &'static str, bytes: u64) -> Result<u64, Error> {
        self.enter()?;
        // SAFETY: the memory is only written and read as bytes, within the allocation that is noted.
        match unsafe { result::malloc_sync(bytes as usize) } {
            Ok(address) => {
                self.allocations.insert(address, bytes);
                Ok(address)
            }
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) =
                    result::mem_get_info().map_err(failed("ask for free memory"))?;
                let (free, total, device) = (free as u64, total as u64, self.context.name.clone());
                Err(Error::OutOfMemory { what, bytes, device, free, total })
            }
            Err(error) => Err(failed(format!("allocate {bytes} bytes for the {what}"))(error)),
        }
    }

    fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.enter()?;
        self.check_range(address, bytes.len() as u64)?;
        let stream = self.stream;
        // SAFETY: the range is allocated, and the stream is of the current context.
        unsafe { self.staging().upload(stream, address, bytes) }
            .map_err(failed(format!("upload {} bytes", bytes.len())))
    }

    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.enter()?;
        self.check_range(address, bytes.len() as u64)?;
        let stream = self.stream;
        let doing = format!("download {} bytes, or run what was launched before", bytes.len());
        // SAFETY: the range is allocated, and the stream is of the current context.
        unsafe { self.staging().download(stream, address, bytes) }.map_err(failed(doing))
    }

    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), Error> {
        self.enter()?;
        self.check_range(from, bytes)?;
        self.check_range(to, bytes)?;
        // SAFETY: both ranges are allocated, and the stream is of the current context.
        unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.stream) }
            .map_err(failed(format!("copy {bytes} bytes on the GPU")))
    }

    fn zero(&mut self, address: u64, bytes: u64) -> Result<(), Error> {
        self.enter()?;
        self.check_range(address, bytes)?;
        // SAFETY: the range is allocated, and the stream is of the current context.
        unsafe { result::memset_d8_async(address, 0, bytes as usize, self.stream) }
            .map_err(failed(format!("write {bytes} zeros")))
    }

    fn load(&mut self, kernel: &Kernel) -> Result<KernelId, Error> {
        self.enter()?;
        let image = self.image(kernel).ok_or_else(|| Error::no_image(kernel, self, ""))?;
        let (module, function) = image::load(image, &kernel.entry, &kernel.name)?;
        // Noted first, so that the module is unloaded whatever follows.
        let [x, y, z] = kernel.block;
        self.kernels.push(Loaded {
            module,
            function,
            entry: kernel.entry.clone(),
            block: (x, y, z),
            shared_bytes: kernel.shared_bytes,
            n_pointers: kernel.n_pointers,
            info: kernel.info.clone().into(),
        });
        use sys::CUfunction_attribute_enum as Attribute;
        let dynamic = kernel.shared_bytes as i32;
        let doing =
            || failed(format!("give kernel `{}` {dynamic} bytes of shared memory", kernel.name));
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the function is of a module that stays loaded.
        let fixed = unsafe { result::function::get_function_attribute(function, attribute) };
        if fixed.map_err(doing())?.saturating_add(dynamic) > DEFAULT_SHARED_BYTES {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            unsafe { result::function::set_function_attribute(function, attribute, dynamic) }
                .map_err(doing())?;
        }
        Ok(KernelId(self.kernels.len() - 1))
    }

    fn launch(&mut self, kernel: KernelId, grid: [u32; 3], pointers: &[u64]) -> Result<(), Error> {
        self.enter()?;
        let loaded = self.kernels.get(kernel.0).ok_or_else(|| Error::unknown_kernel(kernel))?;
        Error::check_pointers(&loaded.entry, pointers.len(), loaded.n_pointers)?;
        self.params.clear();
        // The driver copies what these point to before the call returns, and writes none of it.
        self.params.extend(pointers.iter().map(|pointer| ptr::from_ref(pointer).cast_mut().cast()));
        if !loaded.info.is_empty() {
            self.params.push(loaded.info.as_ptr().cast_mut().cast());
        }
        let [x, y, z] = grid;
        let Loaded { function, block, shared_bytes, .. } = *loaded;
        // SAFETY: function and stream are of the current context. The kernel's parameters are the pointers and the
        // words of `info`, as the engine says; a kernel is trusted with what it does to the GPU's memory.
        unsafe {
            let (stream, params) = (self.stream, &mut self.params);
            result::launch_kernel(function, (x, y, z), block, shared_bytes, stream, params)
        }
        .map_err(|error| failed(format!("launch `{}`", loaded.entry))(error))
    }

    fn open_library(&mut self) -> Result<(), Error> {
        self.enter()?;
        if self.library.is_none() {
            self.library = Some(Multiplier::new(CublasLt::open(self.stream)?)?);
        }
        Ok(())
    }

    fn prepare(
        &mut self,
        product: &Product,
        pointers: &[u64],
        workspace: Workspace,
    ) -> Result<Option<ProductId>, Error> {
        self.enter()?;
        for (address, bytes) in spans(product, pointers)? {
            self.check_range(address, bytes)?;
        }
        if workspace.bytes > 0 {
            self.check_range(workspace.address, workspace.bytes)?;
        }
        let library = self.library()?;
        let prepared = library.prepare(product, pointers, workspace)?;
        // The library loads a kernel when it first launches it, which must not be while launches are recorded.
        prepared.map_or(Ok(()), |product| library.multiply(product))?;
        Ok(prepared)
    }

    fn multiply(&mut self, product: ProductId) -> Result<(), Error> {
        self.enter()?;
        self.library()?.multiply(product)
    }

    fn synchronize(&mut self) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the stream is of the current context.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("run what was launched"))
    }

    fn mark(&mut self, mark: usize) -> Result<(), Error> {
        self.enter()?;
        if self.marks.len() <= mark {
            self.marks.resize(mark + 1, None);
        }
        let event = match self.marks[mark] {
            Some(event) => event,
            None => {
                // Who waits for a mark sleeps: a run takes seconds, and the host has noise to draw.
                let event = result::event::create(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC);
                *self.marks[mark].insert(event.map_err(failed("make an event"))?)
            }
        };
        // SAFETY: event and stream are of the current context.
        unsafe { result::event::record(event, self.stream) }.map_err(failed("record an event"))
    }

    fn wait(&mut self, mark: usize) -> Result<(), Error> {
        self.enter()?;
        let event = self.event(mark)?;
        // SAFETY: the event is of the current context.
        unsafe { result::event::synchronize(event) }.map_err(failed("run what was launched"))
    }

    fn elapsed(&mut self, from: usize, to: usize) -> Result<Duration, Error> {
        self.enter()?;
        let (from, to) = (self.event(from)?, self.event(to)?);
        // SAFETY: both events are of the current context and its one stream.
        let milliseconds = unsafe { result::event::elapsed(from, to) }
            .map_err(failed("tell the time between two events"))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    fn begin_capture(&mut self) -> Result<(), Error> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is of the current context.
        unsafe { result::stream::begin_capture(self.stream, mode) }
            .map_err(failed("record launches"))
    }

    fn end_capture(&mut self) -> Result<GraphId, Error> {
        self.enter()?;
        // SAFETY: the stream is of the current context.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        let graph = graph.map_err(failed("record launches"))?;
        if graph.is_null() {
            return Err(Error::Misuse("the driver recorded no graph".into()));
        }
        // SAFETY: the graph is what was recorded; it is not needed once it is instantiated.
        let outcome = unsafe {
            let instance = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph).and(instance)
        };
        self.graphs.push(outcome.map_err(failed("make a graph of launches"))?);
        Ok(GraphId::new(self.graphs.len() - 1))
    }

    fn launch_graph(&mut self, graph: GraphId) -> Result<(), Error> {
        self.enter()?;
        let unknown = || Error::Misuse(format!("graph {} is not of this device", graph.number()));
        let instance = *self.graphs.get(graph.number()).ok_or_else(unknown)?;
        // SAFETY: graph and stream are of the current context; kernels and memory that the graph refers to live as
        // long as the device.
        unsafe { result::graph::launch(instance, self.stream) }.map_err(failed("launch a graph"))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Failures cannot be told any more; after a kernel's fault every call fails, and the driver frees all with
        // the process.
        if self.enter().is_err() {
            return;
        }
        // SAFETY: everything is of the current context, is released once, and is not used by the GPU any more after
        // the stream has ended.
        unsafe {
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
            }
            for &graph in &self.graphs {
                let _ = result::graph::exec_destroy(graph);
            }
            for &event in self.marks.iter().flatten() {
                let _ = result::event::destroy(event);
            }
            drop(self.library.take());
            drop(self.staging.take());
            for &address in self.allocations.keys() {
                let _ = result::free_sync(address);
            }
            for kernel in &self.kernels {
                let _ = result::module::unload(kernel.module);
            }
            if !self.stream.is_null() {
                let _ = result::stream::destroy(self.stream);
            }
        }
    }
}
