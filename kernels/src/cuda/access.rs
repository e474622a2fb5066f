//! Elements behind one pointer of a device function.

use ops::DType;

use crate::Layout;

/// Element type and, for each loop dim of a function, the distance between neighbors in elements.
/// Where the first element is, the launch says.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Access {
    /// Element type.
    pub dtype: DType,
    /// One for each loop dim; 0 repeats.
    pub strides: Vec<u32>,
}

impl Access {
    /// Whether `vector` consecutive elements of the innermost dim can be read at once from
    /// `offset` bytes: they lie one after the other, or are one and the same, and every run of them
    /// starts at a multiple of its size.
    pub fn takes_vectors(&self, vector: usize, offset: usize) -> bool {
        let Some((&inner, outer)) = self.strides.split_last() else { return vector == 1 };
        match inner {
            0 => true,
            1 => {
                let size = vector * self.dtype.size();
                let is_even = |elements: &u32| (*elements as usize).is_multiple_of(vector);
                offset.is_multiple_of(size.min(MAX_ACCESS_BYTES)) && outer.iter().all(is_even)
            }
            _ => vector == 1,
        }
    }
}

/// The most bytes that a thread reads at once.
pub(crate) const MAX_ACCESS_BYTES: usize = 16;

/// Bytes from the start of a layout's buffer to its first element.
pub(crate) fn offset_bytes(layout: &Layout) -> usize {
    layout.offset * layout.dtype.size()
}

/// Whether positions fit the 32 bits that device code counts in.
pub(crate) fn is_addressable(layout: &Layout) -> bool {
    layout.extent() - layout.offset <= u32::MAX as usize
}
