//! Torch's zip archives: `<prefix>/data.pkl` describes the object, `<prefix>/data/<key>` holds raw storages.
//!
//! Torch stores entries uncompressed, so tensors are borrowed from the file. Deflated entries, which other tools
//! make, are inflated when the file is opened, within [`inflation_budget`].

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use zip::{CompressionMethod, ZipArchive};

use crate::Error;
use crate::blob::Blob;
use crate::layout::StorageRegion;
use crate::pickle::Pickle;
use crate::shard::{Format, Shard};
use crate::state_dict::{StateDict, storage_bytes};

/// Bytes that may be inflated from an archive: real weights hardly compress, a bomb does so a thousandfold.
fn inflation_budget(file_bytes: usize) -> u64 {
    (file_bytes as u64).saturating_mul(50).saturating_add(16 << 20)
}

/// Where an archive entry's content is.
enum Content {
    /// Bytes of the archive itself.
    At(usize, usize),
    Inflated(Vec<u8>),
}

struct Archive<'a> {
    bytes: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    budget: u64,
}

fn damaged(problem: impl std::fmt::Display) -> Error {
    Error::Archive { problem: problem.to_string() }
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Archive<'a>, Error> {
        let zip = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
        if zip.has_duplicate_names() {
            return Err(damaged("two entries have one name"));
        }
        Ok(Archive { bytes, zip, budget: inflation_budget(bytes.len()) })
    }

    /// The folder that holds `data.pkl`, with its slash.
    fn prefix(&self) -> Result<String, Error> {
        let mut names = self.zip.file_names_raw();
        let name = names.find_map(|name| {
            let prefix = name.strip_suffix(b"data.pkl")?;
            (prefix.is_empty() || prefix.ends_with(b"/")).then(|| prefix.to_vec())
        });
        let name =
            name.ok_or_else(|| damaged("no data.pkl: a zip file, but not one of torch's"))?;
        String::from_utf8(name).map_err(|_| damaged("the name of data.pkl is not UTF-8"))
    }

    /// The content of an entry; `None` when there is none of this name.
    fn content(&mut self, name: &str) -> Result<Option<Content>, Error> {
        let Some(index) = self.zip.index_for_name(name) else { return Ok(None) };
        let entry =
            self.zip.by_index_raw(index).map_err(|error| damaged(format!("{name}: {error}")))?;
        if entry.encrypted() {
            return Err(damaged(format!("{name} is encrypted")));
        }
        let (size, compressed, method) =
            (entry.size(), entry.compressed_size(), entry.compression());
        let start = entry.data_start();
        drop(entry);
        match method {
            CompressionMethod::Stored => {
                let range = start.and_then(|start| {
                    let start = usize::try_from(start).ok()?;
                    let end = start.checked_add(usize::try_from(size).ok()?)?;
                    (size == compressed && end <= self.bytes.len()).then_some((start, end))
                });
                let available =
                    self.bytes.len() as u64 - start.unwrap_or(0).min(self.bytes.len() as u64);
                let (start, end) = range.ok_or_else(|| {
                    Error::truncated(format!("archive entry {name}"), size, available)
                })?;
                Ok(Some(Content::At(start, end)))
            }
            CompressionMethod::Deflated => {
                if size > self.budget {
                    let what = format!(
                        "inflated size of the archive up to {name}, in bytes over its limit,"
                    );
                    return Err(Error::TooLarge { what, found: size - self.budget, limit: 0 });
                }
                let entry = self
                    .zip
                    .by_index(index)
                    .map_err(|error| damaged(format!("{name}: {error}")))?;
                let mut bytes = Vec::new();
                entry
                    .take(size + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|error| damaged(format!("{name}: {error}")))?;
                if bytes.len() as u64 != size {
                    return Err(damaged(format!(
                        "{name} does not inflate to its size of {size} bytes"
                    )));
                }
                self.budget -= size;
                Ok(Some(Content::Inflated(bytes)))
            }
            other => {
                Err(damaged(format!("{name} is compressed by {other}, expected none or deflate")))
            }
        }
    }
}

/// Reads the archive's description and finds every storage.
pub(crate) fn read(blob: Blob) -> Result<Shard, Error> {
    let bytes = blob.bytes();
    let mut archive = Archive::open(bytes)?;
    let prefix = archive.prefix()?;
    check_byte_order(&mut archive, &prefix)?;
    let pickled = archive.content(&format!("{prefix}data.pkl"))?;
    let pickled = pickled.ok_or_else(|| damaged("data.pkl cannot be found by its own name"))?;
    let pickle = Pickle::load(match &pickled {
        Content::At(start, end) => &bytes[*start..*end],
        Content::Inflated(bytes) => bytes,
    })?;
    let state = StateDict::find(&pickle)?;

    // Blob 0 is the file; each inflated storage gets one of its own.
    let mut inflated = Vec::new();
    let mut known: BTreeMap<&str, (usize, usize, u64)> = BTreeMap::new();
    let entries = state.place(&pickle, |id| {
        let (blob, offset, n_bytes) = match known.get(id.key) {
            Some(place) => *place,
            None => {
                let place = match archive.content(&format!("{prefix}data/{}", id.key))? {
                    Some(Content::At(start, end)) => (0, start, (end - start) as u64),
                    Some(Content::Inflated(bytes)) => {
                        let n_bytes = bytes.len() as u64;
                        inflated.push(bytes);
                        (inflated.len(), 0, n_bytes)
                    }
                    None => return Err(damaged(format!("no entry for storage {}", id.key))),
                };
                known.insert(id.key, place);
                place
            }
        };
        let needed = storage_bytes(id)?;
        if needed > n_bytes {
            return Err(Error::truncated(format!("storage {}", id.key), needed, n_bytes));
        }
        Ok(StorageRegion { dtype: id.dtype, blob, offset, n_elements: id.n_elements })
    })?;
    let taken = state.taken;
    drop(archive);
    let mut blobs = vec![blob];
    blobs.extend(inflated.into_iter().map(|bytes| Blob::Held(bytes.into())));
    Ok(Shard { format: Format::TorchZip, blobs, entries, metadata: BTreeMap::new(), taken })
}

fn check_byte_order(archive: &mut Archive<'_>, prefix: &str) -> Result<(), Error> {
    let order = match archive.content(&format!("{prefix}byteorder"))? {
        Some(Content::At(start, end)) => archive.bytes[start..end].to_vec(),
        Some(Content::Inflated(bytes)) => bytes,
        // Archives from before the entry existed were written on little-endian machines.
        None => return Ok(()),
    };
    if order != b"little" {
        let found = order[..order.len().min(16)].escape_ascii();
        return Err(damaged(format!("byte order is {found}, expected little")));
    }
    Ok(())
}
