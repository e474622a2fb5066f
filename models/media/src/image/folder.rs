//! A folder of PNGs: `frame_0000.png`, ... and `metadata.json`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::png;
use crate::Metadata;
use crate::error::Fault;
use crate::metadata::MAX_JSON_BYTES;
use crate::part_file::PartFolder;
use crate::source::Source;

/// Name of the metadata file.
pub(crate) const METADATA_FILE: &str = "metadata.json";

/// Writes frames into a folder that has its name only once it is complete.
#[derive(Debug)]
pub(crate) struct FolderWriter {
    part: PartFolder,
    size: [u32; 2],
    metadata: Metadata,
    bytes: u64,
    frames: u64,
}

impl FolderWriter {
    pub(crate) fn new(part: PartFolder, size: [u32; 2], metadata: &Metadata) -> Self {
        Self { part, size, metadata: metadata.clone(), bytes: 0, frames: 0 }
    }

    pub(crate) fn push(&mut self, rgb: &[u8]) -> Result<(), Fault> {
        let path = self.part.path().join(format!("frame_{:04}.png", self.frames));
        let mut file = BufWriter::new(File::create_new(path)?);
        png::write(&mut file, self.size, rgb, &Metadata::new())?;
        self.bytes += sync(file)?;
        self.frames += 1;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<u64, Fault> {
        let mut file = BufWriter::new(File::create_new(self.part.path().join(METADATA_FILE))?);
        file.write_all(self.metadata.to_pretty_json().as_bytes())?;
        self.bytes += sync(file)?;
        self.part.commit()?;
        Ok(self.bytes)
    }
}

/// Makes a file durable; its length in bytes.
fn sync(file: BufWriter<File>) -> Result<u64, Fault> {
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

pub(crate) fn read_metadata(folder: &Path) -> Result<Metadata, Fault> {
    let mut source = Source::new(File::open(folder.join(METADATA_FILE))?)?;
    let json = source.bytes(source.end(), MAX_JSON_BYTES, METADATA_FILE)?;
    Metadata::from_json(&json)
}
