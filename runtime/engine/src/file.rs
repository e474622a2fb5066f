//! The file: header, sections, hash; written beside its name and renamed, read through a map.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::codec::{BlobCursor, In, Out, Record, aligned};
use crate::model::{Kernel, Program, Weight};
use crate::{Blob, Engine, Error};

/// Version of the format that is written and read. Any change of a record or of the header is a new one.
pub const FORMAT_VERSION: u32 = 3;

/// Not text, and changed by whatever rewrites line ends.
const MAGIC: [u8; 8] = *b"\x89KINO\r\n\x1a";
/// Sections with records, in order.
const RECORDS: [&str; 5] = ["about", "kernels", "weights", "constant", "programs"];
/// The last section.
const BLOBS: &str = "blobs";

const LENGTH_AT: usize = 16;
const HASH_AT: usize = 24;
const TABLE_AT: usize = 40;
const TABLE_ROW: usize = 24;
const HEADER: usize = TABLE_AT + TABLE_ROW * (RECORDS.len() + 1);

/// XXH3-128 of all bytes of a file but the hash in its header.
fn hash(bytes: &[u8]) -> u128 {
    let mut state = Xxh3::new();
    state.update(&bytes[..HASH_AT]);
    state.update(&bytes[TABLE_AT..]);
    state.digest128()
}

fn section_name(name: &str) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the range has 4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the range has 8 bytes"))
}

impl Engine {
    /// Whether a file begins as engine files do; it may be damaged further on. What cannot be read is none.
    pub fn is_engine(path: &Path) -> bool {
        let mut start = [0; MAGIC.len()];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
        read.is_ok() && start == MAGIC
    }

    /// The bytes of the engine's file.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the engine contradicts itself: such a file would not be read again.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.validate()?;
        let mut out = Out::default();
        self.created_by.write(&mut out);
        self.model.write(&mut out);
        self.dtype.write(&mut out);
        let about = out.take_records();
        self.kernels.write(&mut out);
        let kernels = out.take_records();
        self.weights.write(&mut out);
        let weights = out.take_records();
        self.constants.write(&mut out);
        let constants = out.take_records();
        self.programs.write(&mut out);
        let programs = out.take_records();
        let sections = [about, kernels, weights, constants, programs, out.blobs];

        let names = RECORDS.iter().chain([&BLOBS]);
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend((sections.len() as u32).to_le_bytes());
        bytes.resize(TABLE_AT, 0);
        let mut end = HEADER;
        for (name, section) in names.zip(&sections) {
            let start = aligned(end);
            bytes.extend(section_name(name));
            bytes.extend((start as u64).to_le_bytes());
            bytes.extend((section.len() as u64).to_le_bytes());
            end = start + section.len();
        }
        bytes.reserve_exact(end - bytes.len());
        for section in &sections {
            bytes.resize(aligned(bytes.len()), 0);
            bytes.extend(section);
        }
        bytes[LENGTH_AT..HASH_AT].copy_from_slice(&(end as u64).to_le_bytes());
        let hash = hash(&bytes);
        bytes[HASH_AT..TABLE_AT].copy_from_slice(&hash.to_le_bytes());
        Ok(bytes)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// Every variant of [`Error`] but those of the system.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Engine, Error> {
        Engine::read(&Blob::from(bytes))
    }

    /// Maps and reads a file. Its images and constants stay in the file, which nobody may change in place as
    /// long as the engine exists; replacing it by renaming is fine.
    ///
    /// # Errors
    /// [`Error::File`] with the path and what is wrong.
    pub fn open(path: &Path) -> Result<Engine, Error> {
        Blob::map(path).and_then(|file| Engine::read(&file)).map_err(|error| error.within(path))
    }

    /// Writes the file beside `path`, makes it durable and gives it its name, replacing an older one.
    ///
    /// # Errors
    /// [`Error::File`] with [`Error::Invalid`] or what the system says; nothing is left behind then.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let write = || {
            let bytes = self.to_bytes()?;
            replace(path, &bytes).map_err(|reason| Error::Io { doing: "write it", reason })
        };
        write().map_err(|error| error.within(path))
    }

    fn read(file: &Blob) -> Result<Engine, Error> {
        let sections = sections(file)?;
        let [.., (_, ref blobs)] = sections;
        let mut cursor = BlobCursor { blobs: blobs.clone(), end: 0 };
        let mut about = section(&sections, 0, &mut cursor);
        let (created_by, model) = (String::read(&mut about)?, String::read(&mut about)?);
        let dtype = Record::read(&mut about)?;
        about.finish()?;
        let kernels: Vec<Kernel> = list(section(&sections, 1, &mut cursor))?;
        let weights: Vec<Weight> = list(section(&sections, 2, &mut cursor))?;
        let constants: Vec<Blob> = list(section(&sections, 3, &mut cursor))?;
        let programs: Vec<Program> = list(section(&sections, 4, &mut cursor))?;
        if cursor.end != blobs.len() {
            let what = format!("{} bytes after the last blob", blobs.len() - cursor.end);
            return Err(Error::Malformed { section: BLOBS, at: cursor.end, what });
        }
        let engine = Engine { created_by, model, dtype, kernels, weights, constants, programs };
        engine.validate()?;
        Ok(engine)
    }
}

fn section<'a>(
    sections: &'a [(&'static str, Blob); RECORDS.len() + 1],
    index: usize,
    cursor: &'a mut BlobCursor,
) -> In<'a> {
    let (section, bytes) = &sections[index];
    In { section, bytes, at: 0, cursor }
}

fn list<T: Record>(mut input: In<'_>) -> Result<Vec<T>, Error> {
    let items = Record::read(&mut input)?;
    input.finish()?;
    Ok(items)
}

/// Checks everything about the file that is no record, and cuts it into its sections.
fn sections(file: &Blob) -> Result<[(&'static str, Blob); RECORDS.len() + 1], Error> {
    let start = &file[..file.len().min(MAGIC.len())];
    if start != &MAGIC[..start.len()] {
        let found = if start.starts_with(b"\x7fELF") {
            "a program".to_string()
        } else {
            format!("a file that begins with `{}`", start.escape_ascii())
        };
        return Err(Error::NotAnEngine { found });
    }
    let too_short = |expected: u64| Error::Length { found: file.len() as u64, expected };
    if file.len() < LENGTH_AT {
        return Err(too_short(HEADER as u64));
    }
    // A file of another version may have any other layout from here on.
    let version = u32_at(file, MAGIC.len());
    if version != FORMAT_VERSION {
        return Err(Error::Version { found: version, expected: FORMAT_VERSION });
    }
    if file.len() < HEADER {
        return Err(too_short(HEADER as u64));
    }
    let length = u64_at(file, LENGTH_AT);
    if length != file.len() as u64 {
        return Err(too_short(length));
    }
    let expected = file[HASH_AT..TABLE_AT].try_into().expect("the range has 16 bytes");
    let (found, expected) = (hash(file), u128::from_le_bytes(expected));
    if found != expected {
        return Err(Error::Hash { found, expected });
    }
    let wrong = |at: usize, what: String| Error::Malformed { section: "header", at, what };
    let n_sections = u32_at(file, 12) as usize;
    if n_sections != RECORDS.len() + 1 {
        return Err(wrong(12, format!("{n_sections} sections, expected {}", RECORDS.len() + 1)));
    }
    let mut end = HEADER;
    let mut cut = |index: usize| {
        let name = RECORDS.get(index).copied().unwrap_or(BLOBS);
        let at = TABLE_AT + TABLE_ROW * index;
        let row = &file[at..at + TABLE_ROW];
        if row[..8] != section_name(name) {
            return Err(wrong(at, format!("`{}`, expected `{name}`", row[..8].escape_ascii())));
        }
        let (offset, n_bytes) = (u64_at(row, 8), u64_at(row, 16));
        let start = aligned(end);
        let rest = file.len().saturating_sub(start);
        if offset != start as u64 {
            let what = format!("section `{name}` at byte {offset}, expected {start}");
            return Err(wrong(at, what));
        }
        let Some(n_bytes) = usize::try_from(n_bytes).ok().filter(|&n| n <= rest) else {
            let what = format!("section `{name}` of {n_bytes} bytes, {rest} are left");
            return Err(wrong(at, what));
        };
        // The last section may be empty and end before its aligned start.
        let start = start.min(file.len());
        if file[end..start].iter().any(|&byte| byte != 0) {
            return Err(wrong(end, format!("bytes before section `{name}`, expected zeros")));
        }
        end = start + n_bytes;
        Ok((name, file.part(start..end)))
    };
    let sections = [cut(0)?, cut(1)?, cut(2)?, cut(3)?, cut(4)?, cut(5)?];
    if end != file.len() {
        return Err(wrong(end, format!("{} bytes after the last section", file.len() - end)));
    }
    Ok(sections)
}

/// Writes `bytes` beside `path`, makes them durable, and gives them its name.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    };
    let mut part_name = name.to_os_string();
    part_name.push(format!(".part{}", std::process::id()));
    let part: PathBuf = path.with_file_name(part_name);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    if let Err(error) = write() {
        // Nothing more can be done when removing fails, too.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    // The rename itself is only durable once the folder is.
    File::open(folder)?.sync_all()
}
