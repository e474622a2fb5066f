//! Records as bytes: how numbers, texts, lists and blobs are written, and how they are read back without trust.

use ops::{DType, TensorType};
use xxhash_rust::xxh3::xxh3_128;

use crate::{Arch, Blob, Error};

/// Blobs and sections begin at multiples of this many bytes: a cache line, and more than any vector needs.
const ALIGN: usize = 64;
/// Longest text in bytes.
const MAX_TEXT: usize = 4096;

/// Records and the blobs that they refer to.
#[derive(Debug, Default)]
pub(crate) struct Out {
    records: Vec<u8>,
    pub(crate) blobs: Vec<u8>,
}

impl Out {
    /// The records since the last call: a section.
    pub(crate) fn take_records(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.records)
    }
}

/// The next aligned position at or after `at`.
pub(crate) fn aligned(at: usize) -> usize {
    at.next_multiple_of(ALIGN)
}

/// Where the next blob is.
#[derive(Debug)]
pub(crate) struct BlobCursor {
    /// The section of blobs.
    pub(crate) blobs: Blob,
    /// End of the last blob that was read.
    pub(crate) end: usize,
}

/// Bytes of one section that are still to be read.
#[derive(Debug)]
pub(crate) struct In<'a> {
    pub(crate) section: &'static str,
    pub(crate) bytes: &'a [u8],
    pub(crate) at: usize,
    pub(crate) cursor: &'a mut BlobCursor,
}

impl<'a> In<'a> {
    pub(crate) fn wrong(&self, what: impl Into<String>) -> Error {
        Error::Malformed { section: self.section, at: self.at, what: what.into() }
    }

    fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], Error> {
        if n_bytes > self.rest() {
            return Err(self.wrong(format!("{n_bytes} bytes expected, {} are left", self.rest())));
        }
        let start = self.at;
        self.at += n_bytes;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("as many bytes were taken"))
    }

    /// Reads the tag of an enum with `n` variants.
    pub(crate) fn tag(&mut self, what: &str, n: u32) -> Result<u32, Error> {
        let tag = u32::read(self)?;
        if tag >= n {
            return Err(self.wrong(format!("tag {tag} of {what}, expected less than {n}")));
        }
        Ok(tag)
    }

    /// Every byte of the section was read.
    pub(crate) fn finish(self) -> Result<(), Error> {
        if self.rest() > 0 {
            return Err(self.wrong(format!("{} bytes after the last record", self.rest())));
        }
        Ok(())
    }
}

/// Something that has one form as bytes.
pub(crate) trait Record: Sized {
    /// No record of the type is shorter; at least 1.
    const MIN_BYTES: usize;

    fn write(&self, out: &mut Out);

    fn read(input: &mut In<'_>) -> Result<Self, Error>;
}

impl Record for u32 {
    const MIN_BYTES: usize = 4;

    fn write(&self, out: &mut Out) {
        out.records.extend(self.to_le_bytes());
    }

    fn read(input: &mut In<'_>) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(input.array()?))
    }
}

impl Record for u64 {
    const MIN_BYTES: usize = 8;

    fn write(&self, out: &mut Out) {
        out.records.extend(self.to_le_bytes());
    }

    fn read(input: &mut In<'_>) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(input.array()?))
    }
}

impl Record for u128 {
    const MIN_BYTES: usize = 16;

    fn write(&self, out: &mut Out) {
        out.records.extend(self.to_le_bytes());
    }

    fn read(input: &mut In<'_>) -> Result<u128, Error> {
        Ok(u128::from_le_bytes(input.array()?))
    }
}

impl Record for bool {
    const MIN_BYTES: usize = 4;

    fn write(&self, out: &mut Out) {
        u32::from(*self).write(out);
    }

    fn read(input: &mut In<'_>) -> Result<bool, Error> {
        Ok(input.tag("a claim", 2)? == 1)
    }
}

impl<T: Record> Record for Option<T> {
    const MIN_BYTES: usize = 4;

    fn write(&self, out: &mut Out) {
        self.is_some().write(out);
        if let Some(value) = self {
            value.write(out);
        }
    }

    fn read(input: &mut In<'_>) -> Result<Option<T>, Error> {
        bool::read(input)?.then(|| T::read(input)).transpose()
    }
}

impl Record for [u32; 3] {
    const MIN_BYTES: usize = 12;

    fn write(&self, out: &mut Out) {
        self.iter().for_each(|dim| dim.write(out));
    }

    fn read(input: &mut In<'_>) -> Result<[u32; 3], Error> {
        Ok([u32::read(input)?, u32::read(input)?, u32::read(input)?])
    }
}

impl Record for String {
    const MIN_BYTES: usize = 4;

    fn write(&self, out: &mut Out) {
        (self.len() as u32).write(out);
        out.records.extend(self.as_bytes());
    }

    fn read(input: &mut In<'_>) -> Result<String, Error> {
        let n_bytes = u32::read(input)? as usize;
        if n_bytes > MAX_TEXT {
            return Err(input.wrong(format!("a text of {n_bytes} bytes, at most {MAX_TEXT}")));
        }
        let bytes = input.take(n_bytes)?.to_vec();
        String::from_utf8(bytes).map_err(|e| input.wrong(format!("a text is not UTF-8: {e}")))
    }
}

/// What [`String::write`] would write and [`String::read`] would refuse.
pub(crate) fn is_too_long(text: &str) -> bool {
    text.len() > MAX_TEXT
}

impl<T: Record> Record for Vec<T> {
    const MIN_BYTES: usize = 4;

    fn write(&self, out: &mut Out) {
        (self.len() as u32).write(out);
        self.iter().for_each(|item| item.write(out));
    }

    fn read(input: &mut In<'_>) -> Result<Vec<T>, Error> {
        let n = u32::read(input)? as usize;
        if n > input.rest() / T::MIN_BYTES {
            let what = format!("a list of {n}, but only {} bytes are left", input.rest());
            return Err(input.wrong(what));
        }
        // Grows with what is read: an item may be larger in memory than in the file.
        let mut items = Vec::new();
        for _ in 0..n {
            items.push(T::read(input)?);
        }
        Ok(items)
    }
}

impl Record for DType {
    const MIN_BYTES: usize = 4;

    fn write(&self, out: &mut Out) {
        self.name().to_string().write(out);
    }

    fn read(input: &mut In<'_>) -> Result<DType, Error> {
        let name = String::read(input)?;
        DType::from_name(&name).ok_or_else(|| input.wrong(format!("no element type `{name}`")))
    }
}

impl Record for TensorType {
    const MIN_BYTES: usize = 8;

    fn write(&self, out: &mut Out) {
        self.dtype().write(out);
        self.shape().iter().map(|&dim| dim as u64).collect::<Vec<u64>>().write(out);
    }

    fn read(input: &mut In<'_>) -> Result<TensorType, Error> {
        let dtype = DType::read(input)?;
        let dims: Vec<u64> = Record::read(input)?;
        let shape: Result<Vec<usize>, _> = dims.into_iter().map(usize::try_from).collect();
        let shape = shape.map_err(|e| input.wrong(format!("a dim is too large: {e}")))?;
        TensorType::new(dtype, shape).map_err(|e| input.wrong(e.to_string()))
    }
}

impl Record for Arch {
    const MIN_BYTES: usize = 4;

    fn write(&self, out: &mut Out) {
        self.to_string().write(out);
    }

    fn read(input: &mut In<'_>) -> Result<Arch, Error> {
        String::read(input)?.parse().map_err(|what: String| input.wrong(what))
    }
}

/// Offset in the section of blobs, length and hash. Blobs lie in the order of their records.
impl Record for Blob {
    const MIN_BYTES: usize = 32;

    fn write(&self, out: &mut Out) {
        out.blobs.resize(aligned(out.blobs.len()), 0);
        (out.blobs.len() as u64).write(out);
        (self.len() as u64).write(out);
        xxh3_128(self).write(out);
        out.blobs.extend_from_slice(self);
    }

    fn read(input: &mut In<'_>) -> Result<Blob, Error> {
        let (offset, n_bytes) = (u64::read(input)?, u64::read(input)?);
        let hash = u128::read(input)?;
        let (end, blobs) = (input.cursor.end, input.cursor.blobs.clone());
        let start = aligned(end);
        if offset != start as u64 {
            return Err(input.wrong(format!("a blob at byte {offset}, expected {start}")));
        }
        let rest = blobs.len().saturating_sub(start);
        let Some(n_bytes) = usize::try_from(n_bytes).ok().filter(|&n| n <= rest && n > 0) else {
            let what = format!("a blob of {n_bytes} bytes, expected 1 to {rest}");
            return Err(input.wrong(what));
        };
        if blobs[end..start].iter().any(|&byte| byte != 0) {
            return Err(input.wrong("bytes between two blobs, expected zeros"));
        }
        let blob = blobs.part(start..start + n_bytes);
        if xxh3_128(&blob) != hash {
            return Err(input.wrong(format!("the blob at byte {offset} is not what was written")));
        }
        input.cursor.end = start + n_bytes;
        Ok(blob)
    }
}

/// Makes a struct a record: its fields in the order given.
macro_rules! record {
    ($name:ident { $($field:ident: $ty:ty),+ $(,)? }) => {
        impl Record for $name {
            const MIN_BYTES: usize = 0 $(+ <$ty as Record>::MIN_BYTES)+;

            fn write(&self, out: &mut Out) {
                $(Record::write(&self.$field, out);)+
            }

            fn read(input: &mut In<'_>) -> Result<$name, Error> {
                $(let $field = <$ty as Record>::read(input)?;)+
                Ok($name { $($field),+ })
            }
        }
    };
}
pub(crate) use record;
