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
    /// The distance between neighbors of the innermost dim.
    pub fn inner_stride(&self) -> usize {
        self.strides.last().map_or(0, |&stride| stride as usize)
    }

    /// Whether `vector` consecutive elements of the innermost dim can be read at once from
    /// `offset` bytes: they lie one after the other, or are one and the same, and every run of them
    /// starts at a multiple of its size.
    pub fn takes_vectors(&self, vector: usize, offset: usize) -> bool {
        let Some((&inner, outer)) = self.strides.split_last() else { return vector == 1 };
        match inner {
            0 => true,
            1 => {
                let size = self.dtype.size();
                let bytes = (vector * size).min(MAX_ACCESS_BYTES);
                let is_even = |elements: &u32| (*elements as usize * size).is_multiple_of(bytes);
                offset.is_multiple_of(bytes) && outer.iter().all(is_even)
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

/// Most elements that a thread takes at a time: 16 bytes of halves, or twice that of f32.
const MAX_VECTOR: usize = 8;

/// The most consecutive elements, a power of two, that all of these take at a time from their offsets
/// in bytes, and that a row of `len` consists of.
pub(crate) fn widest_vector<'a>(
    accesses: impl Iterator<Item = (&'a Access, usize)>,
    len: u32,
) -> u32 {
    let accesses: Vec<(&Access, usize)> = accesses.collect();
    let is_run = |access: &Access| access.strides.last() == Some(&1);
    let runs = accesses.iter().filter(|(access, _)| is_run(access));
    let smallest = runs.map(|(access, _)| access.dtype.size()).min().unwrap_or(MAX_ACCESS_BYTES);
    let mut vector = (MAX_ACCESS_BYTES / smallest).min(MAX_VECTOR);
    let fits = |vector: usize| {
        (len as usize).is_multiple_of(vector)
            && accesses.iter().all(|(access, offset)| access.takes_vectors(vector, *offset))
    };
    while vector > 1 && !fits(vector) {
        vector /= 2;
    }
    vector as u32
}
