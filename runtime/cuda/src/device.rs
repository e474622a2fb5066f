//! What an engine needs of a device.

use std::fmt::Debug;
use std::time::Duration;

use engine::{Arch, Image, Kernel, Product};

use crate::Error;
use crate::lt::Workspace;

/// A loaded kernel of one device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KernelId(pub(crate) usize);

/// A captured sequence of launches of one device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GraphId(usize);

impl GraphId {
    /// Names a recording by a number of the device's own.
    pub fn new(number: usize) -> GraphId {
        GraphId(number)
    }

    /// That number.
    pub fn number(self) -> usize {
        self.0
    }
}

/// A product of one device that its library computes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProductId(usize);

impl ProductId {
    /// Names a product by a number of the device's own.
    pub fn new(number: usize) -> ProductId {
        ProductId(number)
    }

    /// That number.
    pub fn number(self) -> usize {
        self.0
    }
}

/// Memory, kernels and a clock. Everything happens in the order of the calls; launches, marks and uploads may
/// still be under way when their call returns, and whatever fails then is told by a later call.
pub trait Device: Debug + Send {
    /// What people call it.
    fn name(&self) -> &str;

    /// Which code it runs.
    fn arch(&self) -> Arch;

    /// Most bytes of shared memory of a block.
    fn shared_bytes(&self) -> u32;

    /// The image of a kernel that this device runs best. `None` if it runs none of them.
    fn image<'k>(&self, kernel: &'k Kernel) -> Option<&'k Image> {
        kernel.image_for(self.arch())
    }

    /// Why the device does not run a kernel; `None` if it does.
    fn refusal(&self, kernel: &Kernel) -> Option<String> {
        if self.image(kernel).is_none() {
            return Some(format!("no code of `{}` is for it", kernel.name));
        }
        let (needed, most) = (kernel.shared_bytes, self.shared_bytes());
        (needed > most).then(|| {
            format!("a block of `{}` needs {needed} bytes of shared memory of {most}", kernel.name)
        })
    }

    /// Reserves bytes that nothing has written, and returns their address, a multiple of 256. They are released
    /// with the device. `what` names them in messages.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what the device says.
    fn alloc(&mut self, what: &'static str, bytes: u64) -> Result<u64, Error>;

    /// Writes to a part of an allocation; `bytes` may be used again when it returns.
    ///
    /// # Errors
    /// [`Error::Misuse`] outside of allocations, or what the device says.
    fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Waits for everything before it and reads a part of an allocation.
    ///
    /// # Errors
    /// As [`Device::upload`], and failures of what was waited for.
    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// Copies from one part of an allocation to another, or to one of another allocation; they do not overlap.
    ///
    /// # Errors
    /// As [`Device::upload`].
    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), Error>;

    /// Writes zeros to a part of an allocation.
    ///
    /// # Errors
    /// As [`Device::upload`].
    fn zero(&mut self, address: u64, bytes: u64) -> Result<(), Error>;

    /// Loads the kernel's best image for this device.
    ///
    /// # Errors
    /// [`Error::NoImage`] if it has none, or what the device says of the image.
    fn load(&mut self, kernel: &Kernel) -> Result<KernelId, Error>;

    /// Launches `grid` blocks. `pointers` are the addresses that the kernel takes.
    ///
    /// # Errors
    /// [`Error::Misuse`] for another number of pointers, or what the device says.
    fn launch(&mut self, kernel: KernelId, grid: [u32; 3], pointers: &[u64]) -> Result<(), Error>;

    /// Opens the library of products, before the first is prepared.
    ///
    /// # Errors
    /// [`Error::NoProducts`] if the device has none, [`Error::NoLibrary`] if the machine has none, or what it says.
    fn open_library(&mut self) -> Result<(), Error> {
        Err(Error::NoProducts { device: self.name().to_string() })
    }

    /// Makes a product ready, on the pointers of its launch, all of them parts of allocations. What the result is
    /// written to, and the workspace, may be overwritten. `None` if the library does not compute it on this device.
    ///
    /// # Errors
    /// As [`Device::open_library`]; [`Error::Misuse`] outside of allocations.
    fn prepare(
        &mut self,
        product: &Product,
        pointers: &[u64],
        workspace: Workspace,
    ) -> Result<Option<ProductId>, Error> {
        let _ = (product, pointers, workspace);
        Err(Error::NoProducts { device: self.name().to_string() })
    }

    /// Computes a product that was prepared; like a launch, it may be recorded.
    ///
    /// # Errors
    /// [`Error::Misuse`] for one that was not, or what the library says.
    fn multiply(&mut self, product: ProductId) -> Result<(), Error> {
        let _ = product;
        Err(Error::NoProducts { device: self.name().to_string() })
    }

    /// Waits for everything before it.
    ///
    /// # Errors
    /// Failures of what was waited for.
    fn synchronize(&mut self) -> Result<(), Error>;

    /// Notes the time at which everything before it is done, as mark number `mark`. Numbers are used again.
    ///
    /// # Errors
    /// What the device says.
    fn mark(&mut self, mark: usize) -> Result<(), Error>;

    /// Waits until a mark is reached, which was made before; what comes after it goes on.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a mark that was never made, and failures of what was waited for.
    fn wait(&mut self, mark: usize) -> Result<(), Error>;

    /// Time from one mark to a later one, which must have been reached ([`Device::wait`], [`Device::synchronize`]).
    ///
    /// # Errors
    /// [`Error::Misuse`] for a mark that was never made, or what the device says.
    fn elapsed(&mut self, from: usize, to: usize) -> Result<Duration, Error>;

    /// Begins to record launches and copies instead of running them.
    ///
    /// # Errors
    /// [`Error::NoGraphs`], or what the device says.
    fn begin_capture(&mut self) -> Result<(), Error> {
        Err(Error::NoGraphs { device: self.name().to_string() })
    }

    /// Ends a recording. Also after a failed launch, so that the device can be used again.
    ///
    /// # Errors
    /// [`Error::NoGraphs`], or what the device says of the recording.
    fn end_capture(&mut self) -> Result<GraphId, Error> {
        Err(Error::NoGraphs { device: self.name().to_string() })
    }

    /// Runs what was recorded.
    ///
    /// # Errors
    /// [`Error::NoGraphs`]; [`Error::Misuse`] if there is no such recording; what the device says.
    fn launch_graph(&mut self, graph: GraphId) -> Result<(), Error> {
        let _ = graph;
        Err(Error::NoGraphs { device: self.name().to_string() })
    }
}
