//! States of a run on disk, from which it goes on as if it had never stopped.
//!
//! A snapshot is one safetensors file, `step-00000120.safetensors`: every tensor of the [`State`] by the name of its
//! graph input, and in its metadata the number of updates, a text of the run's own (where its data is, what it was
//! made of) and a hash of all of it. It is written beside, synced and renamed; only then does `latest` name it, and
//! only then are older ones removed. So whatever happens while one is written, the one before can be used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, DType, SafetensorsWriter, TensorSpec};
use tempfile::NamedTempFile;
use xxhash_rust::xxh3::Xxh3;

use crate::{Error, State, StateKind};

/// The file that names the newest snapshot.
const LATEST: &str = "latest";
/// Metadata: updates so far, the run's text, the hash.
const STEP: &str = "step";
const ABOUT: &str = "about";
const HASH: &str = "xxh3";

/// Which snapshots stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keep {
    /// The newest ones; at least 1.
    pub last: usize,
    /// Those whose number of updates is a multiple of this; 0 for none.
    pub every: u64,
}

/// The snapshots of one run.
#[derive(Debug)]
pub struct Snapshots {
    folder: PathBuf,
    keep: Keep,
}

impl Snapshots {
    /// The snapshots in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::Option`] if none would stay, [`Error::File`] for the system's.
    pub fn new(folder: impl Into<PathBuf>, keep: Keep) -> Result<Snapshots, Error> {
        let folder = folder.into();
        if keep.last == 0 {
            return Err(Error::option("keep", "0 snapshots, expected at least 1"));
        }
        fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
        Ok(Snapshots { folder, keep })
    }

    /// Writes `state` with `about`, and then lets go of what need not stay.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Snapshot`], as for a full disk; what was there before is still there then.
    pub fn save(&self, state: &State, about: &str) -> Result<PathBuf, Error> {
        let path = self.path(state.step());
        let of = |error: checkpoint::Error| Error::snapshot(&path, error.to_string());
        let metadata = BTreeMap::from([
            (STEP.to_owned(), state.step().to_string()),
            (ABOUT.to_owned(), about.to_owned()),
            (HASH.to_owned(), hash(state, about)),
        ]);
        let tensors: BTreeMap<String, &[f32]> =
            state.tensors().map(|(kind, param, values)| (kind.input(param), values)).collect();
        let specs = tensors.iter().map(|(name, values)| TensorSpec {
            name: name.clone(),
            dtype: DType::F32,
            shape: vec![values.len()],
        });
        let mut writer =
            SafetensorsWriter::create(&path, specs.collect(), &metadata).map_err(of)?;
        let order: Vec<String> = writer.tensors().iter().map(|spec| spec.name.clone()).collect();
        for name in order {
            writer.write(bytemuck::cast_slice(tensors[&name])).map_err(of)?;
        }
        writer.finish().map_err(of)?;
        self.point_at(&path).map_err(Error::file(&self.folder))?;
        self.prune(state.step())?;
        Ok(path)
    }

    /// The newest snapshot, if there is one: what `latest` names.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be read, [`Error::Snapshot`] if `latest` names none.
    pub fn latest(&self) -> Result<Option<PathBuf>, Error> {
        let link = self.folder.join(LATEST);
        let name = match fs::read_to_string(&link) {
            Ok(name) => name,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file(&link)(error)),
        };
        let path = self.folder.join(name.trim());
        if step_of(&path).is_none() || !path.is_file() {
            let reason = format!("it names `{}`, which is no snapshot there", name.trim());
            return Err(Error::snapshot(&link, reason));
        }
        Ok(Some(path))
    }

    /// Reads a snapshot into `state`, which is that of the same model and options, and returns what the run had
    /// to say.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if the file is damaged or of another model; `state` is as it was then.
    pub fn load(path: &Path, state: &mut State) -> Result<String, Error> {
        let fail = |reason: String| Error::snapshot(path, reason);
        let file = Checkpoint::open(path).map_err(|error| fail(error.to_string()))?;
        let entry = |key: &str| {
            let found = file.metadata().get(key).cloned();
            found.ok_or_else(|| fail(format!("its metadata has no `{key}`: it is no snapshot")))
        };
        let (step, about, expected) = (entry(STEP)?, entry(ABOUT)?, entry(HASH)?);
        let step = step.parse().map_err(|_| fail(format!("`{step}` is no number of updates")))?;
        // All of it is read and compared before any of it is taken, one tensor at a time.
        let values = |name: &str| {
            let values = file.info(name).map(|_| file.to_f32(name)).transpose();
            let values = values.map_err(|error| fail(error.to_string()))?;
            values.ok_or_else(|| {
                fail(format!("it has no `{name}`: the model or its options have changed"))
            })
        };
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut hash = Hash::new(step, &about);
        for (kind, param, old) in state.tensors() {
            let name = kind.input(param);
            let values = values(&name)?;
            if values.len() != old.len() {
                let (found, expected) = (values.len(), old.len());
                return Err(fail(format!(
                    "`{name}` has {found} elements, expected {expected}: the model has changed"
                )));
            }
            hash.add(name.as_bytes());
            hash.add(bytemuck::cast_slice(&values));
            known.insert(name);
        }
        if let Some(other) = file.tensors().find(|info| !known.contains(info.name)) {
            let name = other.name;
            return Err(fail(format!(
                "it has `{name}`, which is not trained: the model or its options have changed"
            )));
        }
        let found = hash.digest();
        if found != expected {
            return Err(fail(format!(
                "its hash is {found}, it states {expected}: the file is damaged, use an older one"
            )));
        }
        let tensors: Vec<(StateKind, String)> =
            state.tensors().map(|(kind, param, _)| (kind, param.to_owned())).collect();
        for (kind, param) in tensors {
            let to = state.get_mut(kind, &param).expect("it has just been named");
            to.copy_from_slice(&values(&kind.input(&param))?);
        }
        state.set_step(step);
        Ok(about)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}.safetensors"))
    }

    /// Lets `latest` name a snapshot: written beside, synced, renamed.
    fn point_at(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().expect("snapshots have names").to_string_lossy();
        let mut file = NamedTempFile::new_in(&self.folder)?;
        writeln!(file, "{name}")?;
        file.as_file().sync_all()?;
        file.persist(self.folder.join(LATEST))?;
        fs::File::open(&self.folder)?.sync_all()
    }

    /// Removes what need not stay of the snapshots up to `newest`. Those of later updates are of a run that was
    /// taken back, and are removed too.
    fn prune(&self, newest: u64) -> Result<(), Error> {
        let of_folder = Error::file(&self.folder);
        let mut steps: Vec<u64> = vec![];
        for entry in fs::read_dir(&self.folder).map_err(&of_folder)? {
            steps.extend(step_of(&entry.map_err(&of_folder)?.path()));
        }
        steps.sort_unstable();
        let up_to_newest = steps.partition_point(|&step| step <= newest);
        let n_old = up_to_newest.saturating_sub(self.keep.last);
        let is_kept = |step: u64| self.keep.every > 0 && step.is_multiple_of(self.keep.every);
        let old = steps[..n_old].iter().filter(|&&step| !is_kept(step));
        for &step in old.chain(&steps[up_to_newest..]) {
            let path = self.path(step);
            fs::remove_file(&path).map_err(Error::file(&path))?;
        }
        Ok(())
    }
}

/// The number of updates in a snapshot's name.
fn step_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// A hash of everything that a snapshot holds.
fn hash(state: &State, about: &str) -> String {
    let mut hash = Hash::new(state.step(), about);
    for (kind, param, values) in state.tensors() {
        hash.add(kind.input(param).as_bytes());
        hash.add(bytemuck::cast_slice(values));
    }
    hash.digest()
}

/// Parts of known length, hashed one after the other.
struct Hash(Xxh3);

impl Hash {
    fn new(step: u64, about: &str) -> Hash {
        let mut hash = Hash(Xxh3::new());
        hash.add(&step.to_le_bytes());
        hash.add(about.as_bytes());
        hash
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn digest(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}
