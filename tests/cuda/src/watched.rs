//! An emulated device that says what passes between it and the host, and may have what the emulated one lacks:
//! graphs of launches, and a library of products.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cuda::lt::Workspace;
use cuda::{Device, Emulated, Error, GraphId, KernelId, Multiplier, ProductId};
use emulator::Options;
use engine::{Arch, Image, Kernel, Product};

use crate::lt_model::LtModel;

/// What passed between host and device, and what the device did.
#[derive(Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes of each upload.
    pub uploaded: Vec<usize>,
    /// Bytes of each download.
    pub downloaded: Vec<usize>,
    /// Launches of kernels, outside of graphs.
    pub n_launches: usize,
    /// Launches of graphs.
    pub n_graphs: usize,
    /// Products that the library computed, in graphs too.
    pub n_products: usize,
}

/// What a device does with launches that are to be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Graphs {
    /// It has no graphs.
    #[default]
    None,
    /// It has no memory for them.
    Failing,
    /// It records them.
    Recorded,
}

/// What products the device's library computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Library {
    /// There is none.
    #[default]
    None,
    /// It finds no algorithm for any.
    Unable,
    /// All.
    Model,
}

/// A call that is recorded.
#[derive(Debug)]
enum Call {
    Launch(KernelId, [u32; 3], Vec<u64>),
    Copy(u64, u64, u64),
    Product(ProductId),
}

/// The device.
#[derive(Debug)]
pub struct Watched {
    device: Emulated,
    traffic: Arc<Mutex<Traffic>>,
    graphs: Graphs,
    library: Library,
    multiplier: Option<Multiplier<LtModel>>,
    recording: Option<Vec<Call>>,
    recorded: Vec<Vec<Call>>,
}

/// What passed so far.
pub fn seen(traffic: &Mutex<Traffic>) -> MutexGuard<'_, Traffic> {
    traffic.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    /// A device of architecture `arch` that adds to `traffic`.
    pub fn new(arch: Arch, options: Options, traffic: Arc<Mutex<Traffic>>) -> Watched {
        Watched {
            device: Emulated::new(arch, options),
            traffic,
            graphs: Graphs::None,
            library: Library::None,
            multiplier: None,
            recording: None,
            recorded: vec![],
        }
    }

    /// With graphs.
    #[must_use]
    pub fn with_graphs(self, graphs: Graphs) -> Watched {
        Watched { graphs, ..self }
    }

    /// With a library.
    #[must_use]
    pub fn with_library(self, library: Library) -> Watched {
        Watched { library, ..self }
    }

    fn multiplier(&mut self) -> Result<&mut Multiplier<LtModel>, Error> {
        self.multiplier.as_mut().ok_or_else(|| Error::Misuse("the library is not open".into()))
    }

    /// Computes what the library was called for.
    fn compute(&mut self, product: ProductId) -> Result<(), Error> {
        seen(&self.traffic).n_products += 1;
        let multiplier = self.multiplier()?;
        multiplier.multiply(product)?;
        let calls = multiplier.api().take_calls();
        calls.iter().try_for_each(|call| call.compute(&mut self.device))
    }
}

impl Device for Watched {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn arch(&self) -> Arch {
        self.device.arch()
    }

    fn shared_bytes(&self) -> u32 {
        self.device.shared_bytes()
    }

    fn image<'k>(&self, kernel: &'k Kernel) -> Option<&'k Image> {
        self.device.image(kernel)
    }

    fn alloc(&mut self, what: &'static str, bytes: u64) -> Result<u64, Error> {
        self.device.alloc(what, bytes)
    }

    fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        seen(&self.traffic).uploaded.push(bytes.len());
        self.device.upload(address, bytes)
    }

    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        seen(&self.traffic).downloaded.push(bytes.len());
        self.device.download(address, bytes)
    }

    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), Error> {
        if let Some(recording) = &mut self.recording {
            recording.push(Call::Copy(from, to, bytes));
            return Ok(());
        }
        self.device.copy(from, to, bytes)
    }

    fn zero(&mut self, address: u64, bytes: u64) -> Result<(), Error> {
        self.device.zero(address, bytes)
    }

    fn load(&mut self, kernel: &Kernel) -> Result<KernelId, Error> {
        self.device.load(kernel)
    }

    fn launch(&mut self, kernel: KernelId, grid: [u32; 3], pointers: &[u64]) -> Result<(), Error> {
        if let Some(recording) = &mut self.recording {
            recording.push(Call::Launch(kernel, grid, pointers.to_vec()));
            return Ok(());
        }
        seen(&self.traffic).n_launches += 1;
        self.device.launch(kernel, grid, pointers)
    }

    fn open_library(&mut self) -> Result<(), Error> {
        let model = match self.library {
            Library::None => return self.device.open_library(),
            Library::Unable => LtModel::unable(),
            Library::Model => LtModel::default(),
        };
        self.multiplier = Some(Multiplier::new(model)?);
        Ok(())
    }

    fn prepare(
        &mut self,
        product: &Product,
        pointers: &[u64],
        workspace: Workspace,
    ) -> Result<Option<ProductId>, Error> {
        self.multiplier()?.prepare(product, pointers, workspace)
    }

    fn multiply(&mut self, product: ProductId) -> Result<(), Error> {
        if let Some(recording) = &mut self.recording {
            recording.push(Call::Product(product));
            return Ok(());
        }
        self.compute(product)
    }

    fn synchronize(&mut self) -> Result<(), Error> {
        self.device.synchronize()
    }

    fn mark(&mut self, mark: usize) -> Result<(), Error> {
        self.device.mark(mark)
    }

    fn wait(&mut self, mark: usize) -> Result<(), Error> {
        self.device.wait(mark)
    }

    fn elapsed(&mut self, from: usize, to: usize) -> Result<Duration, Error> {
        self.device.elapsed(from, to)
    }

    fn begin_capture(&mut self) -> Result<(), Error> {
        match self.graphs {
            Graphs::None => self.device.begin_capture(),
            Graphs::Failing => Err(Error::Misuse("no memory for a graph".into())),
            Graphs::Recorded => {
                self.recording = Some(vec![]);
                Ok(())
            }
        }
    }

    fn end_capture(&mut self) -> Result<GraphId, Error> {
        let recording = self.recording.take();
        self.recorded.push(recording.expect("a recording was begun"));
        Ok(GraphId::new(self.recorded.len() - 1))
    }

    fn launch_graph(&mut self, graph: GraphId) -> Result<(), Error> {
        seen(&self.traffic).n_graphs += 1;
        for at in 0..self.recorded[graph.number()].len() {
            match &self.recorded[graph.number()][at] {
                Call::Launch(kernel, grid, pointers) => {
                    self.device.launch(*kernel, *grid, pointers)?;
                }
                Call::Copy(from, to, bytes) => self.device.copy(*from, *to, *bytes)?,
                Call::Product(product) => {
                    let product = *product;
                    self.compute(product)?;
                }
            }
        }
        Ok(())
    }
}
