//! A kernel of a CUDA device: its launches, and what a plan needs to know of them.

use ops::Attr;

use crate::kernel::{KernelDef, Packing, Site};
use crate::pool::Pool;

use super::attention;
use super::conv::Conv;
use super::gather::Gather;
use super::map::Map;
use super::matmul::Matmul;
use super::normal::Normal;
use super::rows::Rows;
use super::{Gpu, Launch, group_norm, join, rope};

/// What one step launches.
#[derive(Clone, PartialEq, Debug)]
pub struct CudaKernel {
    /// The printed name, as of the CPU kernel of the same kind: `matmul`.
    pub name: &'static str,
    /// Choices that were made, in print order.
    pub tunables: Vec<(&'static str, Attr)>,
    /// In order.
    pub launches: Vec<Launch>,
    /// Working memory of all launches.
    pub scratch_bytes: usize,
    /// The form of the weight that is not read as it is stored.
    pub packed: Option<Packed>,
    /// Which operands the result may lie over.
    pub in_place: Vec<bool>,
}

/// A weight in another order of axes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packed {
    /// Which operand.
    pub operand: usize,
    /// Its dense shape.
    pub shape: Vec<usize>,
    /// Bytes of an element.
    pub element_bytes: usize,
    /// Axes of the dense tensor, in the order in which they lie in the packed one.
    pub axes: Vec<usize>,
}

/// The first kernel of the list that takes this site.
pub fn select(site: &Site<'_>, gpu: Gpu) -> Option<CudaKernel> {
    let selects: [fn(&Site<'_>, Gpu) -> Option<CudaKernel>; 11] = [
        attention::select,
        Conv::select,
        Matmul::select,
        group_norm::select,
        Rows::select,
        Gather::select,
        Normal::select,
        rope::select,
        join::concat,
        join::pad,
        Map::select,
    ];
    selects.into_iter().find_map(|select| select(site, gpu))
}

impl KernelDef for CudaKernel {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        self.tunables.clone()
    }

    fn scratch_bytes(&self, _: usize) -> usize {
        self.scratch_bytes
    }

    fn packing(&self, operand: usize) -> Option<Packing> {
        let packed = self.packed.as_ref().filter(|packed| packed.operand == operand)?;
        let digits: String = packed.axes.iter().map(usize::to_string).collect();
        let bytes = packed.shape.iter().product::<usize>() * packed.element_bytes;
        Some(Packing { name: format!("permuted.{digits}"), bytes })
    }

    fn pack(&self, operand: usize, dense: &[u8], packed: &mut [u8], _: &Pool) {
        let form = self.packed.as_ref().filter(|form| form.operand == operand);
        form.expect("`packing` says which operand is packed").permute(dense, packed);
    }

    fn may_alias(&self, operand: usize) -> bool {
        self.in_place.get(operand).copied().unwrap_or(false)
    }
}

impl Packed {
    /// Writes the packed form of `dense`.
    pub fn permute(&self, dense: &[u8], packed: &mut [u8]) {
        let strides = ops::row_major_strides(&self.shape);
        let size = self.element_bytes;
        let dims: Vec<usize> = self.axes.iter().map(|&axis| self.shape[axis]).collect();
        let steps: Vec<usize> = self.axes.iter().map(|&axis| strides[axis]).collect();
        for (index, to) in packed.chunks_exact_mut(size).enumerate() {
            let (mut rest, mut from) = (index, 0);
            for (&dim, &step) in dims.iter().zip(&steps).rev() {
                from += rest % dim * step;
                rest /= dim;
            }
            to.copy_from_slice(&dense[from * size..][..size]);
        }
    }
}
