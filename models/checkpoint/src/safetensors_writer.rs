//! Writing the safetensors format, from memory or tensor by tensor.
//!
//! Invariant: a path holds either its old content or all of the new one. The bytes go to a new file beside it, are
//! flushed to the disk, and replace it by a rename, so a file that is mapped under that name stays intact. Equal input
//! gives equal bytes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::layout::{Dims, Entry, byte_len};
use crate::safetensors::MAX_HEADER_BYTES;
use crate::{DType, Error, TensorView};

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of all elements.
    ///
    /// # Errors
    /// More than the address space holds.
    pub fn bytes(&self) -> Result<u64, Error> {
        byte_len(&self.name, self.dtype, &self.dims())
    }

    fn dims(&self) -> Dims {
        self.shape.iter().map(|dim| *dim as u64).collect()
    }
}

/// A safetensors file of which the tensors' bytes come one after the other, so that none has to be held whole.
#[derive(Debug)]
pub struct SafetensorsWriter {
    // An Option only so that `drop` can close the file before it is removed.
    file: Option<BufWriter<File>>,
    part: PathBuf,
    target: PathBuf,
    tensors: Vec<TensorSpec>,
    /// Bytes of the tensors that are still to come.
    missing: u64,
}

impl SafetensorsWriter {
    /// Begins a file with these tensors.
    ///
    /// # Errors
    /// Two tensors of one name, a header above 100 MB, or the system's.
    pub fn create(
        path: &Path,
        tensors: Vec<TensorSpec>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<SafetensorsWriter, Error> {
        let tensors = in_order(tensors);
        let (header, missing) = header(&tensors, metadata).map_err(|error| error.within(path))?;
        let write_error = |error| Error::io("write")(error).within(path);
        let part = part_path(path).map_err(write_error)?;
        let file = File::create(&part).map_err(write_error)?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let target = path.to_path_buf();
        let mut writer = SafetensorsWriter { file: Some(file), part, target, tensors, missing };
        writer.put(&header)?;
        Ok(writer)
    }

    /// The tensors in the order in which their bytes are expected.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Appends the next bytes of the tensors: row-major elements, little endian, without gaps.
    ///
    /// # Errors
    /// The system's (disk full), or more bytes than the tensors have.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.missing = self.missing.checked_sub(bytes.len() as u64).ok_or_else(|| {
            let (what, found) = ("the bytes written at once".into(), bytes.len() as u64);
            Error::TooLarge { what, found, limit: self.missing }.within(&self.target)
        })?;
        self.put(bytes)
    }

    /// Makes the file durable and gives it its name, replacing an older file.
    ///
    /// # Errors
    /// The system's, or fewer bytes than the tensors have; nothing is left behind then.
    pub fn finish(mut self) -> Result<(), Error> {
        if self.missing > 0 {
            return Err(Error::truncated("a tensor", self.missing, 0).within(&self.target));
        }
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let file = self.file.take().expect("only `finish` and `drop` take the file");
        let done = file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.part, &self.target))
            // The rename itself is only durable once the folder is.
            .and_then(|()| File::open(folder)?.sync_all());
        done.map_err(|error| Error::io("write")(error).within(&self.target))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let file = self.file.as_mut().expect("only `finish` and `drop` take the file");
        file.write_all(bytes).map_err(|error| Error::io("write")(error).within(&self.target))
    }
}

impl Drop for SafetensorsWriter {
    fn drop(&mut self) {
        self.file = None;
        // After a rename it is not there any more; else nothing more can be done when removing fails.
        let _ = fs::remove_file(&self.part);
    }
}

/// Wide types first keeps every tensor aligned to its element size; names break ties.
fn in_order(mut tensors: Vec<TensorSpec>) -> Vec<TensorSpec> {
    tensors.sort_by(|a, b| {
        (Reverse(a.dtype.size()), &a.name).cmp(&(Reverse(b.dtype.size()), &b.name))
    });
    tensors
}

/// Where the bytes go before they are complete.
fn part_path(path: &Path) -> io::Result<PathBuf> {
    let Some(file_name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    };
    let mut beside = std::ffi::OsString::from(".");
    beside.push(file_name);
    beside.push(format!(".{}.part", std::process::id()));
    Ok(path.with_file_name(beside))
}

/// The header of a file with these tensors in this order, and the bytes that follow it.
fn header(
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, u64), Error> {
    let mut json = serde_json::Map::new();
    if !metadata.is_empty() {
        json.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut offset = 0u64;
    for tensor in tensors {
        let end = offset.saturating_add(tensor.bytes()?);
        let described = serde_json::json!({
            "dtype": tensor.dtype.safetensors_name(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        if tensor.name == "__metadata__" || json.insert(tensor.name.clone(), described).is_some() {
            return Err(Error::DuplicateName { name: tensor.name.clone() });
        }
        offset = end;
    }
    let mut text = serde_json::to_vec(&json)
        .map_err(|error| Error::Json { what: "safetensors header", error })?;
    // Spaces up to a multiple of 8, as the reference writer does, so that the data is aligned in a mapped file.
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER_BYTES {
        let (what, found) = ("the safetensors header's length".into(), text.len() as u64);
        return Err(Error::TooLarge { what, found, limit: MAX_HEADER_BYTES });
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    Ok((header, offset))
}

/// What `tensors` are, checked against their bytes.
fn specs(tensors: &BTreeMap<String, TensorView<'_>>) -> Result<Vec<TensorSpec>, Error> {
    let mut specs = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let spec =
            TensorSpec { name: name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone() };
        Entry::contiguous(name, tensor.dtype, &spec.dims(), 0, 0, tensor.bytes.len() as u64)?;
        specs.push(spec);
    }
    Ok(in_order(specs))
}

/// A safetensors file in memory: equal input gives equal bytes.
///
/// # Errors
/// A tensor whose bytes do not match its shape, or a header above 100 MB.
pub fn safetensors_bytes(
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, Error> {
    let specs = specs(tensors)?;
    let (mut out, _) = header(&specs, metadata)?;
    for spec in specs {
        out.extend_from_slice(&tensors[&spec.name].bytes);
    }
    Ok(out)
}

/// Writes a safetensors file so that `path` holds either its old content or all of the new one.
///
/// # Errors
/// As [`safetensors_bytes`], or the system's (disk full, folder not writable); nothing is left behind then.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let specs = specs(tensors).map_err(|error| error.within(path))?;
    let mut writer = SafetensorsWriter::create(path, specs, metadata)?;
    for name in writer.tensors().iter().map(|spec| spec.name.clone()).collect::<Vec<_>>() {
        writer.write(&tensors[&name].bytes)?;
    }
    writer.finish()
}
