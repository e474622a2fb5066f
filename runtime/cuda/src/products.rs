//! Who computes the products of an engine: its kernels, or a library.

use engine::{Launch, Product};

use crate::device::{Device, ProductId};
use crate::error::Error;
use crate::lt::Workspace;

/// Who computes products that an engine marks as plain, which a library can do in one call.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Products {
    /// The engine's kernels.
    #[default]
    Own,
    /// cuBLASLt; a machine without it is an error.
    Library,
    /// cuBLASLt where it was measured to be faster, as the engine says, and is there.
    Measured,
}

impl Products {
    /// Whether the library is to compute `product`.
    fn takes(self, product: &Product) -> bool {
        match self {
            Products::Own => false,
            Products::Library => true,
            Products::Measured => product.is_faster,
        }
    }
}

/// What the library does in one session.
#[derive(Debug, Default)]
pub(crate) struct LibraryUse {
    /// Which products it is asked for.
    products: Products,
    /// How many they are.
    n_asked: usize,
    /// How many of them it cannot compute.
    n_refused: usize,
    workspace: Workspace,
    /// Why it is not asked for any, if that is not what was wanted.
    unused: Option<String>,
}

impl LibraryUse {
    /// Opens the library of `device` if it is wanted for some of `launches`.
    ///
    /// # Errors
    /// As [`Device::open_library`]; where only measured products are wanted, a missing library is none.
    pub(crate) fn open<'a>(
        device: &mut dyn Device,
        products: Products,
        launches: impl Iterator<Item = &'a Launch>,
    ) -> Result<LibraryUse, Error> {
        let plain = launches.filter_map(|launch| launch.product.as_ref());
        let n_asked = plain.filter(|product| products.takes(product)).count();
        let unused = |reason: String| LibraryUse { unused: Some(reason), ..LibraryUse::default() };
        if n_asked == 0 {
            return Ok(match products {
                Products::Own | Products::Measured => LibraryUse::default(),
                Products::Library => unused("cuBLASLt can compute none of its products".into()),
            });
        }
        match device.open_library() {
            Ok(()) => Ok(LibraryUse { products, n_asked, ..LibraryUse::default() }),
            Err(error @ (Error::NoProducts { .. } | Error::NoLibrary { .. }))
                if products == Products::Measured =>
            {
                Ok(unused(format!(
                    "{n_asked} products for which cuBLASLt was measured to be faster are computed without it: {error}"
                )))
            }
            Err(error) => Err(error),
        }
    }

    /// Reserves the workspace, if the library is used at all.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub(crate) fn reserve(&mut self, device: &mut dyn Device, bytes: u64) -> Result<(), Error> {
        if self.products != Products::Own && bytes > 0 {
            self.workspace = Workspace { address: device.alloc("workspace", bytes)?, bytes };
        }
        Ok(())
    }

    /// What computes `launch`, which has these pointers, if that is the library.
    ///
    /// # Errors
    /// As [`Device::prepare`].
    pub(crate) fn bind(
        &mut self,
        device: &mut dyn Device,
        launch: &Launch,
        pointers: &[u64],
    ) -> Result<Option<ProductId>, Error> {
        let product = launch.product.as_ref().filter(|product| self.products.takes(product));
        let Some(product) = product else { return Ok(None) };
        let prepared = device.prepare(product, pointers, self.workspace)?;
        self.n_refused += usize::from(prepared.is_none());
        Ok(prepared)
    }

    /// Bytes of the workspace.
    pub(crate) fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes
    }

    /// What users should know of it.
    pub(crate) fn note(&self) -> Option<String> {
        let LibraryUse { n_asked, n_refused, .. } = self;
        let refused = (*n_refused > 0).then(|| {
            format!(
                "{n_refused} of {n_asked} products are computed by the engine's kernels: cuBLASLt has no algorithm for \
                 them on this device"
            )
        });
        self.unused.clone().or(refused)
    }
}
