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

    /// Lets the system take back the memory of `part` of a mapped file. Its bytes are read again
    /// from the file when they are next looked at.
    pub(crate) fn release(&self, part: &[u8]) {
        let Some((map, start)) = self.mapped(part) else { return };
        #[cfg(unix)]
        {
            use memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is of a file, shared and read-only: dropped pages come back with the
            // same bytes, so nobody who borrows them sees a difference.
            #[expect(unsafe_code, reason = "for private maps this advice would lose writes")]
            let advised = unsafe { map.unchecked_advise_range(DontNeed, start, part.len()) };
            // It is advice: where the system refuses it, the pages stay, and nothing else changes.
            let _ = advised;
        }
        #[cfg(not(unix))]
        let _ = (map, start);
    }

    /// Lets the system read `part` of a mapped file in the background.
    pub(crate) fn prefetch(&self, part: &[u8]) {
        let Some((map, start)) = self.mapped(part) else { return };
        // Where the system refuses, the bytes are read when they are looked at.
        #[cfg(unix)]
        let _ = map.advise_range(memmap2::Advice::WillNeed, start, part.len());
        #[cfg(not(unix))]
        let _ = (map, start);
    }

    /// The map that `part` lies in, and where.
    fn mapped(&self, part: &[u8]) -> Option<(&memmap2::Mmap, usize)> {
        let Blob::Mapped(map) = self else { return None };
        let start = part.as_ptr().addr().checked_sub(map.as_ptr().addr())?;
        (start + part.len() <= map.len()).then_some((map, start))
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
