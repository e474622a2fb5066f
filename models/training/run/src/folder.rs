//! The folder of a run: the recipe as it runs, what it was started with, log, snapshots, samples, model. A lock
//! keeps two processes from one run.
//!
//! ```text
//! config.toml      the recipe
//! run.json         what the run was started with; it makes the folder one of a run
//! lock             held while a process trains
//! log.jsonl        what happened, see `training::run_log`
//! snapshots/       states to go on from, see `training::Snapshots`
//! cache/           features, unless they are elsewhere
//! samples/         videos of validations
//! tensorboard/     what happened, for TensorBoard
//! model/           a pipeline folder with the averaged weights
//! adaptation/      the averaged factors, as a folder of PEFT, if the recipe has `[lora]`
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use training::Keep;

use crate::{Error, Result};

/// Version of `run.json`.
const FORMAT: u32 = 1;
const CONFIG: &str = "config.toml";
const RECORD: &str = "run.json";
const LOCK: &str = "lock";

/// What a run is made of: hashes that are compared when it goes on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The recipe, but for how long it runs and what is looked at.
    pub recipe: String,
    /// The table, and the sizes of its files.
    pub table: String,
    /// The weights that it starts from.
    pub weights: String,
    /// Text encoder and autoencoder.
    pub encoders: String,
}

/// What a run was started with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    format: u32,
    /// Name of the recipe.
    pub recipe: String,
    /// The table.
    pub table: PathBuf,
    /// The folder that its paths are below.
    pub root: PathBuf,
    /// The pipeline folder of encoders and first weights; `None` for the program's own.
    pub model: Option<PathBuf>,
    /// Where the first weights come from, see [`crate::Start`].
    pub init: String,
    /// The folder of features.
    pub cache: PathBuf,
    /// Most bytes of training.
    pub memory: Option<usize>,
    /// Newest snapshots that stay.
    pub keep_last: usize,
    /// Snapshots stay whose number of updates is a multiple of this; 0 for none.
    pub keep_every: u64,
    /// What all of it was.
    pub identity: Identity,
}

/// A run's folder, held by this process.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Whether the run begins.
    is_new: bool,
    /// The system gives the lock back when the process ends, however it ends.
    _lock: File,
}

impl Identity {
    /// What of `self` is not as in `before`; `None` if all is.
    pub(crate) fn difference(&self, before: &Identity) -> Option<String> {
        let parts = [
            (&self.recipe, &before.recipe, "the recipe (config.toml)"),
            (&self.table, &before.table, "the table or its files"),
            (&self.weights, &before.weights, "the weights that it starts from"),
            (&self.encoders, &before.encoders, "text encoder or autoencoder"),
        ];
        let changed = parts.into_iter().filter(|(now, before, _)| now != before);
        let changed: Vec<&str> = changed.map(|(.., what)| what).collect();
        (!changed.is_empty()).then(|| changed.join(", "))
    }
}

impl Record {
    /// A record of this version. Paths are absolute: a run goes on from any folder.
    ///
    /// # Errors
    /// The system's, if there is no current folder.
    pub fn new(
        recipe: String,
        [table, root, cache]: [PathBuf; 3],
        model: Option<PathBuf>,
        init: String,
        (memory, keep): (Option<usize>, Keep),
        identity: Identity,
    ) -> Result<Record> {
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).map_err(Error::io(&path, "find the current folder"))
        };
        Ok(Record {
            format: FORMAT,
            recipe,
            table: absolute(table)?,
            root: absolute(root)?,
            model: model.map(absolute).transpose()?,
            init,
            cache: absolute(cache)?,
            memory,
            keep_last: keep.last,
            keep_every: keep.every,
            identity,
        })
    }

    /// Which snapshots stay.
    pub(crate) fn keep(&self) -> Keep {
        Keep { last: self.keep_last, every: self.keep_every }
    }
}

impl RunFolder {
    /// Fails for a folder that a new run cannot have: it is there, and has more than a start that came to nothing.
    ///
    /// # Errors
    /// [`Error::Folder`] if something is there.
    pub fn check(path: &Path) -> Result<()> {
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::io(path, "list the folder"))?,
        };
        // Entries come in any order: what the folder is, is said before what else it has.
        if path.join(RECORD).exists() {
            let reason =
                "it is the folder of a run already; go on with it (--resume), or choose another";
            return Err(Error::folder(path, reason));
        }
        for entry in entries {
            let name = entry.map_err(Error::io(path, "list the folder"))?.file_name();
            let name = name.to_string_lossy();
            if name != LOCK && name != CONFIG && !is_left_over(&name) {
                let reason = format!("it has `{name}`; expected an empty or new folder");
                return Err(Error::folder(path, reason));
            }
        }
        Ok(())
    }

    /// The folder of a new run, made if it is missing.
    ///
    /// # Errors
    /// As [`RunFolder::check`], and if another process starts a run in it.
    pub fn create(path: &Path) -> Result<RunFolder> {
        RunFolder::check(path)?;
        fs::create_dir_all(path).map_err(Error::io(path, "create the folder"))?;
        let lock = lock(path)?;
        // Another process may have been faster, and be done.
        if path.join(RECORD).exists() {
            return Err(Error::folder(path, "another process has just started a run in it"));
        }
        Ok(RunFolder { path: path.to_path_buf(), is_new: true, _lock: lock })
    }

    /// The folder of a run that goes on, its record and its recipe.
    ///
    /// # Errors
    /// [`Error::Folder`] if it is no run's, or another process trains in it.
    pub fn open(path: &Path) -> Result<(RunFolder, Record, String)> {
        let record_path = path.join(RECORD);
        if !record_path.is_file() {
            let reason = format!("it is not the folder of a run: it has no {RECORD}");
            return Err(Error::folder(path, reason));
        }
        let lock = lock(path)?;
        let read = |path: &Path| fs::read_to_string(path).map_err(Error::io(path, "read it"));
        let text = read(&record_path)?;
        let record: Record = serde_json::from_str(&text).map_err(|error| {
            Error::folder(&record_path, format!("{error}; expected the record of a run"))
        })?;
        if record.format != FORMAT {
            let reason = format!("it is of format {}, this program writes {FORMAT}", record.format);
            return Err(Error::folder(&record_path, reason));
        }
        let recipe = read(&path.join(CONFIG))?;
        let folder = RunFolder { path: path.to_path_buf(), is_new: false, _lock: lock };
        Ok((folder, record, recipe))
    }

    /// Makes the folder that of a run.
    ///
    /// # Errors
    /// The system's.
    pub fn begin(&self, record: &Record, recipe: &str) -> Result<()> {
        media::write_file(&self.path.join(CONFIG), recipe.as_bytes())?;
        self.write(record)
    }

    /// Writes the record.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let text =
            serde_json::to_string_pretty(record).expect("a record is texts and numbers") + "\n";
        Ok(media::write_file(&self.path.join(RECORD), text.as_bytes())?)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the run begins.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Where states are.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// Where videos of validations go.
    pub(crate) fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// Where the trained model goes.
    pub(crate) fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// Where the adaptation goes that was trained.
    pub(crate) fn adaptation(&self) -> PathBuf {
        self.path.join("adaptation")
    }

    /// Where features are, if they are nowhere else.
    pub fn cache(path: &Path) -> PathBuf {
        path.join("cache")
    }

    /// Removes what a process left half-written that was killed.
    pub(crate) fn sweep(&self) -> Result<()> {
        for folder in [self.path.clone(), self.snapshots(), self.samples()] {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries {
                let entry = entry.map_err(Error::io(&folder, "list the folder"))?;
                if is_left_over(&entry.file_name().to_string_lossy()) {
                    let path = entry.path();
                    let removed = if path.is_dir() {
                        fs::remove_dir_all(&path)
                    } else {
                        fs::remove_file(&path)
                    };
                    removed.map_err(Error::io(&path, "remove it"))?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a name is that of a file which is written beside another, or of a temporary file.
fn is_left_over(name: &str) -> bool {
    name.starts_with('.') && (name.ends_with(".part") || name.starts_with(".tmp"))
}

/// Takes the lock of a run's folder.
fn lock(path: &Path) -> Result<File> {
    let file = path.join(LOCK);
    let lock = File::options().create(true).truncate(false).write(true).open(&file);
    let lock = lock.map_err(Error::io(&file, "open it"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(Error::folder(path, "another process trains in it; wait for it, or stop it"))
        }
        Err(TryLockError::Error(error)) => Err(Error::io(&file, "lock it")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let identity = Identity {
            recipe: "a".into(),
            table: "b".into(),
            weights: "c".into(),
            encoders: "d".into(),
        };
        let paths = ["t.csv", "set", "cache"].map(PathBuf::from);
        let keep = Keep { last: 3, every: 0 };
        Record::new("tiny".into(), paths, None, "random".into(), (Some(9), keep), identity).unwrap()
    }

    #[test]
    fn a_run_is_found_again_and_is_held_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let message = |error: Error| error.to_string();
        assert!(message(RunFolder::open(&path).unwrap_err()).contains("it has no run.json"));
        assert!(!path.exists(), "nothing is made where there is no run");
        // A start that was killed before it made a run.
        let first = RunFolder::create(&path).unwrap();
        assert!(message(RunFolder::create(&path).unwrap_err()).contains("another process"));
        drop(first);
        let first = RunFolder::create(&path).unwrap();
        first.begin(&record(), "about = \"\"\n").unwrap();
        assert!(message(RunFolder::open(&path).unwrap_err()).contains("another process"));
        drop(first);
        assert!(message(RunFolder::create(&path).unwrap_err()).contains("--resume"));
        fs::write(path.join(".config.toml.1-0.part"), "half").unwrap();
        let (found, read, recipe) = RunFolder::open(&path).unwrap();
        assert_eq!((read, recipe.as_str()), (record(), "about = \"\"\n"));
        found.sweep().unwrap();
        assert!(!path.join(".config.toml.1-0.part").exists());
        drop(found);
        fs::write(path.join(RECORD), "{}").unwrap();
        assert!(message(RunFolder::open(&path).unwrap_err()).contains("run.json: missing field"));
    }

    #[test]
    fn folders_of_something_else_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "").unwrap();
        let error = RunFolder::create(folder.path()).unwrap_err().to_string();
        assert!(error.contains("it has `thesis.tex`"), "{error}");
        assert!(!folder.path().join(LOCK).exists());
    }

    #[test]
    fn differences_are_named() {
        let before = record().identity;
        assert_eq!(before.difference(&before), None);
        let now = Identity { table: "x".into(), encoders: "y".into(), ..before.clone() };
        let expected = "the table or its files, text encoder or autoencoder";
        assert_eq!(now.difference(&before).as_deref(), Some(expected));
    }
}
