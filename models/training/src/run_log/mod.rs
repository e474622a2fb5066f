//! What a run writes for people and tools: `log.jsonl`, every [`Event`] as one JSON object a line, and event files of
//! the same for `TensorBoard`.
//!
//! [`RunLog`] appends to them, each event with one write, so that a run that is killed leaves at most its last line
//! unfinished. A run that goes on from a snapshot takes back what was logged after it, and the log reads as that of
//! a run that never stopped, but for its starts. [`read`] gives it back as a [`History`].

mod event;
mod history;
mod protobuf;
mod tensorboard;
mod tf_record;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::NamedTempFile;

pub use event::{
    BucketPlan, Event, Record, Replaced, Snapshot, Start, Step, Stop, StopReason, Validation,
};
pub use history::{BrokenLine, History};

use self::history::Place;
use self::tensorboard::EventFile;
use crate::Error;

/// The log in a run's folder.
pub const LOG: &str = "log.jsonl";

/// The folder in a run's folder that `TensorBoard` is given.
pub const TENSORBOARD: &str = "tensorboard";

/// The log of a run that is under way.
#[derive(Debug)]
pub struct RunLog {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    tensorboard: EventFile,
    place: Place,
}

impl RunLog {
    /// The log in `folder`, which is made if it is missing. A run that goes on after `resume_after` updates takes
    /// back every event of a later step; a new run (`None`) has no log yet.
    ///
    /// # Errors
    /// [`Error::RunLog`] if a new run finds a log, or one that goes on finds a broken one; [`Error::File`] for the
    /// system's. The log is as it was then.
    pub fn open(folder: &Path, resume_after: Option<u64>) -> Result<RunLog, Error> {
        fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let path = folder.join(LOG);
        let mut place = Place::default();
        if let Some(bytes) = read_if_there(&path)? {
            let history = parse(&path, &bytes)?;
            if resume_after.is_none() && !history.records.is_empty() {
                return Err(Error::run_log(
                    &path,
                    "it is the log of a run already: resume that, or choose another folder",
                ));
            }
            let step = resume_after.unwrap_or(0);
            let n_bytes = history.n_bytes_up_to(step, &bytes);
            if n_bytes < bytes.len() {
                replace(&path, &bytes[..n_bytes]).map_err(Error::file(&path))?;
            }
            let kept = history.records.iter().take_while(|record| record.event.step() <= step);
            for record in kept {
                place.advance(&record.event).expect("the history is in order");
            }
        }
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(Error::file(&path))?;
        sync_folder(&path).map_err(Error::file(&path))?;
        let tensorboard = EventFile::create(&folder.join(TENSORBOARD), resume_after, now())?;
        Ok(RunLog { folder: folder.to_path_buf(), path, file, tensorboard, place })
    }

    /// Appends `event`. It is with the operating system then, and survives the process.
    ///
    /// # Errors
    /// [`Error::RunLog`] if the first event is no start, a step goes back, or frames are no PNG; [`Error::File`] for
    /// the system's.
    pub fn write(&mut self, event: &Event) -> Result<(), Error> {
        let mut place = self.place;
        place.advance(event).map_err(|reason| Error::run_log(&self.path, reason))?;
        let record = Record { time: now(), event: event.clone() };
        let mut line = serde_json::to_string(&record)
            .map_err(|error| Error::run_log(&self.path, error.to_string()))?;
        line.push('\n');
        // First what may be refused.
        self.tensorboard.write(&record, &self.folder)?;
        self.file.write_all(line.as_bytes()).map_err(Error::file(&self.path))?;
        self.place = place;
        Ok(())
    }

    /// Waits until everything is on the disk, so that it survives the machine too. What a snapshot is of should be
    /// there before the snapshot is.
    ///
    /// # Errors
    /// [`Error::File`] for the system's.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::file(&self.path))?;
        self.tensorboard.flush()
    }
}

/// The log of the run in `folder`, which may be under way.
///
/// # Errors
/// [`Error::RunLog`] if there is none, or a broken one; [`Error::File`] for the system's.
pub fn read(folder: &Path) -> Result<History, Error> {
    let path = folder.join(LOG);
    let Some(bytes) = read_if_there(&path)? else {
        return Err(Error::run_log(
            &path,
            "there is no such file: the folder is not that of a run",
        ));
    };
    parse(&path, &bytes)
}

/// Width and height of a PNG, by its header; `None` for anything else.
pub fn png_size(bytes: &[u8]) -> Option<[u32; 2]> {
    let header = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")?;
    let number = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    Some([number(0)?, number(4)?])
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file(path)(error)),
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<History, Error> {
    History::parse(bytes).map_err(|broken| Error::run_log(path, broken.to_string()))
}

/// Writes a file anew: beside, synced, renamed.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    // A temporary file is its owner's alone.
    file.as_file().set_permissions(fs::metadata(path)?.permissions())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Makes the name of `path` durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
