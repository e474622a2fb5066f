//! Where a tensor's elements lie in a blob, checked once when the checkpoint is opened.
//!
//! Invariant: every [`Entry`] was made by one of the constructors here, so reading it cannot leave its blob
//! and cannot need more memory than the limits below allow.

use std::borrow::Cow;

use crate::{DType, Error};

/// Most axes a tensor may have; real weights have at most 5.
pub(crate) const MAX_RANK: usize = 8;

/// Elements that a strided tensor may have whatever its storage's size (see [`Entry::strided`]).
const SMALL_EXPANSION: u64 = 1 << 16;

/// One tensor: its type, and its place in a blob.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// Index into the checkpoint's blobs.
    pub(crate) blob: usize,
    /// First element's byte within the blob.
    offset: usize,
    /// Product of `shape` times the element size.
    pub(crate) n_bytes: usize,
    /// Strides in elements, absent for row-major contiguous tensors.
    strides: Option<Vec<usize>>,
}

/// The part of a blob that holds one torch storage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StorageRegion {
    pub(crate) dtype: DType,
    pub(crate) blob: usize,
    /// First byte within the blob; the caller has checked that all elements lie inside.
    pub(crate) offset: usize,
    pub(crate) n_elements: u64,
}

/// A shape or stride list as untrusted numbers.
pub(crate) type Dims = Vec<u64>;

/// Bytes of a tensor, or the error that names it.
pub(crate) fn byte_len(name: &str, dtype: DType, shape: &[u64]) -> Result<u64, Error> {
    if shape.len() > MAX_RANK {
        return Err(Error::TooLarge {
            what: format!("tensor {name}: the number of axes"),
            found: shape.len() as u64,
            limit: MAX_RANK as u64,
        });
    }
    // A zero anywhere makes the tensor empty, but the other dims must still be addressable.
    let overflow = || Error::ShapeOverflow { name: name.into(), shape: shape.to_vec(), dtype };
    let nonzero = shape
        .iter()
        .filter(|dim| **dim != 0)
        .try_fold(dtype.size() as u64, |bytes, dim| bytes.checked_mul(*dim))
        .filter(|bytes| *bytes <= isize::MAX as u64)
        .ok_or_else(overflow)?;
    Ok(if shape.contains(&0) { 0 } else { nonzero })
}

fn to_usize(dims: &[u64]) -> Vec<usize> {
    dims.iter()
        .map(|dim| usize::try_from(*dim).expect("byte_len bounded every dim by isize::MAX"))
        .collect()
}

impl Entry {
    /// A row-major tensor in `begin..end` of a blob; the caller has checked the range against the blob.
    pub(crate) fn contiguous(
        name: &str,
        dtype: DType,
        shape: &[u64],
        blob: usize,
        begin: usize,
        found: u64,
    ) -> Result<Entry, Error> {
        let expected = byte_len(name, dtype, shape)?;
        if expected != found {
            return Err(Error::SizeMismatch {
                name: name.into(),
                dtype,
                shape: shape.to_vec(),
                expected,
                found,
            });
        }
        let n_bytes = usize::try_from(expected).expect("byte_len bounds it by isize::MAX");
        Ok(Entry { dtype, shape: to_usize(shape), blob, offset: begin, n_bytes, strides: None })
    }

    /// A view of a torch storage.
    ///
    /// A tensor with more elements than its storage (an expanded one, stride 0) is read only up to
    /// [`SMALL_EXPANSION`] elements: otherwise a file of a kilobyte could ask for terabytes.
    pub(crate) fn strided(
        name: &str,
        storage: StorageRegion,
        first: u64,
        shape: &[u64],
        strides: &[u64],
    ) -> Result<Entry, Error> {
        let dtype = storage.dtype;
        let outside = || Error::OutsideStorage {
            name: name.into(),
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            offset: first,
            storage_len: storage.n_elements,
        };
        if shape.len() != strides.len() {
            return Err(outside());
        }
        let n_bytes = byte_len(name, dtype, shape)?;
        let shape_usize = to_usize(shape);
        if n_bytes == 0 {
            let blob = storage.blob;
            return Ok(Entry {
                dtype,
                shape: shape_usize,
                blob,
                offset: 0,
                n_bytes: 0,
                strides: None,
            });
        }
        let last = shape
            .iter()
            .zip(strides)
            .try_fold(first, |at, (dim, stride)| at.checked_add((dim - 1).checked_mul(*stride)?))
            .ok_or_else(outside)?;
        if last >= storage.n_elements {
            return Err(outside());
        }
        let n_elements = n_bytes / dtype.size() as u64;
        let limit = storage.n_elements.max(SMALL_EXPANSION);
        if n_elements > limit {
            return Err(Error::TooLarge {
                what: format!(
                    "tensor {name}, expanded from a storage of {} elements: its element count",
                    storage.n_elements
                ),
                found: n_elements,
                limit,
            });
        }
        let mut dense = 1;
        let mut is_contiguous = true;
        for (dim, stride) in shape.iter().zip(strides).rev().filter(|(dim, _)| **dim != 1) {
            is_contiguous &= *stride == dense;
            dense *= dim;
        }
        // The stride of an axis of length 1 is never used and may be any number.
        let strides = shape.iter().zip(strides).map(|(dim, s)| if *dim == 1 { 0 } else { *s });
        let strides = (!is_contiguous).then(|| to_usize(&strides.collect::<Dims>()));
        let fits =
            "below the storage's length in elements, which the caller checked against the blob";
        let offset = storage.offset + usize::try_from(first).expect(fits) * dtype.size();
        let n_bytes = usize::try_from(n_bytes).expect("byte_len bounds it by isize::MAX");
        Ok(Entry { dtype, shape: shape_usize, blob: storage.blob, offset, n_bytes, strides })
    }

    /// The same tensor in another numbering of blobs.
    pub(crate) fn rebased(mut self, first_blob: usize) -> Entry {
        self.blob += first_blob;
        self
    }

    /// The elements in row-major order, borrowed when the blob has them so.
    pub(crate) fn read<'a>(&self, blob: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(strides) = &self.strides else {
            return Cow::Borrowed(&blob[self.offset..self.offset + self.n_bytes]);
        };
        let size = self.dtype.size();
        let mut out = Vec::with_capacity(self.n_bytes);
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        while out.len() < self.n_bytes {
            out.extend_from_slice(&blob[at..at + size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += strides[axis] * size;
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= index[axis] * strides[axis] * size;
                index[axis] = 0;
            }
        }
        Cow::Owned(out)
    }
}
