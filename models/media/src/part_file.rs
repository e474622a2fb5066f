//! Files that appear whole or not at all.
//!
//! Everything is written to `.NAME.PID-N.part` beside its target, flushed to the disk and then renamed.
//! Invariant: dropping a part before [`PartFile::commit`] or [`PartFolder::commit`] removes it, so an
//! error or an interrupt that unwinds the stack leaves nothing behind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Format, Result};

/// A file under construction.
#[derive(Debug)]
pub(crate) struct PartFile {
    // An Option only so that `drop` can close the file before it is removed.
    file: Option<File>,
    part: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl PartFile {
    /// Opens an empty part beside `target`, for reading and writing.
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        let open =
            |part: &Path| OpenOptions::new().read(true).write(true).create_new(true).open(part);
        let (file, part) = create_beside(target, open)?;
        Ok(Self { file: Some(file), part, target: target.to_owned(), committed: false })
    }

    fn file(&mut self) -> &mut File {
        self.file.as_mut().expect("the file is closed in drop only")
    }

    /// Makes the bytes durable and gives the file its name, replacing an older file.
    pub(crate) fn commit(mut self) -> io::Result<u64> {
        let bytes = self.file().seek(SeekFrom::End(0))?;
        self.file().sync_all()?;
        fs::rename(&self.part, &self.target)?;
        self.committed = true;
        sync_folder_of(&self.target)?;
        Ok(bytes)
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        self.file = None;
        if !self.committed {
            // Nothing more can be done when even removing fails.
            let _ = fs::remove_file(&self.part);
        }
    }
}

impl Read for PartFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file().read(buf)
    }
}

impl Write for PartFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

impl Seek for PartFile {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.file().seek(pos)
    }
}

/// Writes `bytes` as the file `target`, whole or not at all.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn write_file(target: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<u64> {
        let mut part = PartFile::create(target)?;
        part.write_all(bytes)?;
        part.commit()
    };
    write().map(drop).map_err(|source| Error::Io {
        path: target.to_owned(),
        action: "write it",
        source,
    })
}

/// A folder under construction.
#[derive(Debug)]
pub struct PartFolder {
    part: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl PartFolder {
    /// Makes an empty part beside `target`.
    ///
    /// # Errors
    /// The system's.
    pub fn create(target: &Path) -> io::Result<Self> {
        let ((), part) = create_beside(target, |part| fs::create_dir(part))?;
        Ok(Self { part, target: target.to_owned(), committed: false })
    }

    /// Where to put the folder's files until it is committed.
    pub fn path(&self) -> &Path {
        &self.part
    }

    /// Gives the folder its name; an empty folder of that name is replaced.
    ///
    /// # Errors
    /// The system's, among them that a folder of that name is not empty.
    pub fn commit(mut self) -> io::Result<()> {
        sync_folder(&self.part)?;
        if self.target.is_dir() {
            // Fails when it is not empty, which is wanted.
            fs::remove_dir(&self.target)?;
        }
        fs::rename(&self.part, &self.target)?;
        self.committed = true;
        sync_folder_of(&self.target)
    }
}

impl Drop for PartFolder {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done when even removing fails.
            let _ = fs::remove_dir_all(&self.part);
        }
    }
}

/// Says before a long computation whether `path` can be written as `format`, without changing anything.
///
/// It checks that nothing unreplaceable is at `path`, and that its folder exists and takes a new file (one
/// is created and removed at once). Space on the disk is not checked.
///
/// # Errors
/// [`Error::Occupied`] or [`Error::Io`], both naming the path and what to do.
pub fn check_writable(path: &Path, format: Format) -> Result<()> {
    check_free(path, format)?;
    PartFile::create(path).map(drop).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "create a file beside it",
        source,
    })
}

/// The part of [`check_writable`] that looks at what is at `path` already.
pub(crate) fn check_free(path: &Path, format: Format) -> Result<()> {
    let occupied = |found, advice| Err(Error::Occupied { path: path.to_owned(), found, advice });
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(Error::Io { path: path.to_owned(), action: "look at it", source });
        }
    };
    match (format, metadata.is_dir()) {
        (Format::Folder, true) => {
            let mut entries = fs::read_dir(path).map_err(|source| Error::Io {
                path: path.to_owned(),
                action: "list it",
                source,
            })?;
            match entries.next() {
                None => Ok(()),
                Some(_) => occupied("a folder that is not empty", "empty it or name a new folder"),
            }
        }
        (Format::Folder, false) => occupied("a file", "name a new folder"),
        (_, true) => occupied("a folder", "name a file in it, or end the path in / for PNGs"),
        (_, false) if metadata.is_file() => Ok(()),
        (_, false) => occupied("a device or a pipe", "name a regular file"),
    }
}

/// Creates something beside `target` under a name that nothing else has.
fn create_beside<T>(
    target: &Path,
    mut create: impl FnMut(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
    // Long names leave room for the suffix; what is cut does not matter in a temporary name.
    let name: String = name.chars().take(48).collect();
    let mut n = 0;
    loop {
        let part = target.with_file_name(format!(".{name}.{}-{n}.part", std::process::id()));
        match create(&part) {
            Ok(made) => return Ok((made, part)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && n < 10_000 => n += 1,
            Err(error) => return Err(error),
        }
    }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => sync_folder(folder),
        _ => sync_folder(Path::new(".")),
    }
}

/// Makes names in `folder` durable. Only Unix can open a folder; elsewhere the rename alone must do.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot sync a folder; the file itself is durable already.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Moves `len` bytes at the start of `file` towards the end by `distance`, in bounded memory.
pub(crate) fn shift_right(
    file: &mut (impl Read + Write + Seek),
    len: u64,
    distance: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut end = len;
    // From the back, so that no byte is overwritten before it is read.
    while end > 0 {
        let count = end.min(buffer.len() as u64) as usize;
        end -= count as u64;
        file.seek(SeekFrom::Start(end))?;
        file.read_exact(&mut buffer[..count])?;
        file.seek(SeekFrom::Start(end + distance))?;
        file.write_all(&buffer[..count])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shift_keeps_bytes_across_block_borders() {
        let len = (1 << 20) * 2 + 17;
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
        let mut file = io::Cursor::new(bytes.clone());
        shift_right(&mut file, len as u64, 1000).unwrap();
        assert_eq!(file.get_ref().len(), len + 1000);
        assert_eq!(file.get_ref()[1000..], bytes);
    }

    #[test]
    fn two_parts_of_one_target_do_not_collide() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.gif");
        let (mut a, mut b) =
            (PartFile::create(&target).unwrap(), PartFile::create(&target).unwrap());
        a.write_all(b"a").unwrap();
        b.write_all(b"bb").unwrap();
        assert_eq!(b.commit().unwrap(), 2);
        drop(a);
        assert_eq!(fs::read(&target).unwrap(), b"bb");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
