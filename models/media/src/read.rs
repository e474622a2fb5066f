//! Reading the metadata back from anything that [`crate::write`] writes.
//!
//! The kind is told by the first bytes, not by the name. Invariant: no allocation follows a length in the
//! file before it is checked against a limit, and time is bounded by the number of parts visited.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use crate::error::Fault;
use crate::{Error, Metadata, Result, image, mp4};

/// The metadata of a file or folder that Kinograph wrote.
///
/// # Errors
/// [`Error::Io`], [`Error::Malformed`] for damaged files and unknown kinds, [`Error::NoMetadata`] for sound
/// files without entries of ours.
pub fn read_metadata(path: &Path) -> Result<Metadata> {
    let metadata = if path.is_dir() {
        image::folder::read_metadata(path)
    } else {
        File::open(path).map_err(Fault::Io).and_then(|file| from_bytes(BufReader::new(file)))
    };
    let metadata = metadata.map_err(|fault| fault.reading(path))?;
    if metadata.is_empty() {
        return Err(Error::NoMetadata { path: path.to_owned() });
    }
    Ok(metadata)
}

/// Reads from any source; the entry for fuzzing.
fn from_bytes(mut input: impl std::io::BufRead + Seek) -> std::result::Result<Metadata, Fault> {
    let mut start = Vec::new();
    input.by_ref().take(12).read_to_end(&mut start)?;
    input.rewind()?;
    if start.starts_with(image::png::SIGNATURE) {
        image::png::read_metadata(input)
    } else if start.starts_with(b"GIF8") {
        image::gif::read_metadata(input)
    } else if start.starts_with(b"RIFF") {
        image::webp::read_metadata(input)
    } else if start.get(4..8) == Some(b"ftyp") {
        mp4::tags::read_metadata(input)
    } else {
        Err(Fault::Malformed("is of no kind known here: expected MP4, PNG, GIF or WebP".into()))
    }
}

/// Reads metadata from bytes in memory: [`read_metadata`] without the file, for tests and fuzzing.
///
/// # Errors
/// As for [`read_metadata`], under the path `(memory)`; no entries are not an error.
pub fn read_metadata_from_bytes(bytes: &[u8]) -> Result<Metadata> {
    from_bytes(std::io::Cursor::new(bytes)).map_err(|fault| fault.reading(Path::new("(memory)")))
}
