//! Bytes that are shared: held, or a part of a mapped file.
//!
//! The only unsafe code of the crate is here: a file is mapped.

use std::fmt;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use crate::Error;

/// Where shared bytes live.
enum Backing {
    Held(Vec<u8>),
    Mapped(memmap2::Mmap),
}

/// Read-only bytes that are cheap to clone. Two are equal when their bytes are.
#[derive(Clone)]
pub struct Blob {
    backing: Arc<Backing>,
    range: Range<usize>,
}

impl Blob {
    /// Maps a whole file read-only.
    pub(crate) fn map(path: &Path) -> Result<Blob, Error> {
        let io = |doing| move |reason| Error::Io { doing, reason };
        let file = File::open(path).map_err(io("open it"))?;
        let meta = file.metadata().map_err(io("read its size"))?;
        if !meta.is_file() {
            return Err(Error::NotAnEngine { found: "something that is not a plain file".into() });
        }
        if meta.len() == 0 {
            return Err(Error::NotAnEngine { found: "an empty file".into() });
        }
        // SAFETY: the map is private to this value and only ever read. Rust cannot see other processes: the one
        // condition left to the user, stated at `Engine::open`, is that nobody truncates or rewrites the file
        // in place while it is open; ours are replaced by renaming.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io("map it into memory"))?;
        let range = 0..map.len();
        Ok(Blob { backing: Arc::new(Backing::Mapped(map)), range })
    }

    /// The part at `range` of these bytes, which it must be inside of.
    pub(crate) fn part(&self, range: Range<usize>) -> Blob {
        assert!(range.start <= range.end && range.end <= self.len(), "the reader checks ranges");
        let start = self.range.start;
        Blob { backing: Arc::clone(&self.backing), range: start + range.start..start + range.end }
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.backing {
            Backing::Held(bytes) => bytes,
            Backing::Mapped(map) => map,
        };
        &all[self.range.clone()]
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Blob {
        let range = 0..bytes.len();
        Blob { backing: Arc::new(Backing::Held(bytes)), range }
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Blob) -> bool {
        **self == **other
    }
}

impl Eq for Blob {}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.len())
    }
}
