//! The bytes of one file: mapped, embedded in the program, or inflated from an archive.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::Error;

/// Read-only bytes that tensors borrow from.
pub(crate) enum Blob {
    Mapped(memmap2::Mmap),
    Held(Cow<'static, [u8]>),
}

impl Blob {
    /// Maps a file read-only.
    pub(crate) fn map(path: &Path) -> Result<Blob, Error> {
        let file = File::open(path).map_err(Error::io("open"))?;
        let meta = file.metadata().map_err(Error::io("read the size"))?;
        if !meta.is_file() {
            return Err(Error::UnknownFormat {
                found: "something that is not a plain file".into(),
            });
        }
        if meta.len() == 0 {
            return Err(Error::UnknownFormat { found: "an empty file".into() });
        }
        // SAFETY: the map is private to this value and only ever read. Rust cannot see other processes: the
        // one condition left to the user, stated in the crate's documentation, is that nobody truncates or
        // rewrites the file in place while it is open. Every reader checks offsets against the mapped length.
        #[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("map into memory"))?;
        Ok(Blob::Mapped(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Blob::Mapped(map) => map,
            Blob::Held(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.bytes().len())
    }
}

/// A whole small file, refused above `limit` bytes.
pub(crate) fn read_small(path: &Path, what: &str, limit: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(Error::io("open"))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read"))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { what: what.into(), found: bytes.len() as u64, limit });
    }
    Ok(bytes)
}
