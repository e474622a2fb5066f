//! Measures a piece of work: our process and one peer's at a time, in turns, beside the machine's limit.
//!
//! A shared machine's clock changes from second to second. So a peer's time is only compared with ours of the same
//! turns, a share of the limit is of the limit measured in the same turn, and who goes first alternates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use checkpoint::Checkpoint;
use kernels::{Isa, Pool};
use ops::DType;
use serde_json::{Value as Json, json};

use crate::report::{KernelTime, Measured, SideResult};
use crate::side::Side;
use crate::synth::Watch;
use crate::work::{Peer, TORCH, Work};
use crate::{Error, inputs, peak};

/// Our side's name in the table.
pub const OURS: &str = "Kinograph";

/// Largest relative L2 distance from `PyTorch`'s f32 result at which a result is right.
pub fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-4 } else { 2e-2 }
}

/// Threads of a library may spin for a while after a run; they must not disturb what is measured next.
const PAUSE: Duration = Duration::from_millis(200);

/// Turns that are taken however long they take.
const LEAST_TURNS: usize = 3;

/// As [`LEAST_TURNS`], where one run takes longer than this.
const LONG_RUN: Duration = Duration::from_secs(15);

/// What a peer's process has in memory before it reads a weight: libraries, mostly.
const LIBRARY_BYTES: u64 = 600 << 20;

/// A run that is shorter is repeated within its turn for so long: the first one finds sleeping threads,
/// cold caches and a slow clock, which would be most of what is measured.
const SHORT_RUN: Duration = Duration::from_millis(60);

/// Most repetitions within a turn.
const MAX_REPEATS: usize = 15;

/// Where the peers are.
#[derive(Clone, Debug)]
pub struct Peers {
    /// The interpreter that has them.
    pub python: PathBuf,
    /// `serve.py`.
    pub script: PathBuf,
}

/// How to measure.
pub struct Lab<'a> {
    /// Instruction set of our kernels, whose limit is measured.
    pub isa: Isa,
    /// Threads of every side.
    pub threads: usize,
    /// Most turns with one peer.
    pub turns: usize,
    /// Turns with one peer end after this, but for the least number.
    pub budget: Duration,
    /// Holds weights and exported graphs, which a later measurement can use again.
    pub weights: PathBuf,
    /// Holds inputs, results and what the peers print.
    pub scratch: PathBuf,
    /// Starts our side: a process that runs [`crate::ours::serve`].
    pub ours: &'a dyn Fn() -> Command,
    /// The peers, if there are to be any.
    pub peers: Option<Peers>,
    /// Bytes of memory that are free, where the system tells.
    pub free_bytes: fn() -> Option<u64>,
    /// Called with what happens.
    pub note: &'a dyn Fn(&str),
    /// `true` ends the measurement with [`Error::Interrupted`].
    pub interrupt: &'a AtomicBool,
}

impl std::fmt::Debug for Lab<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lab").field("scratch", &self.scratch).finish_non_exhaustive()
    }
}

/// A process that is ready, and what it has shown.
struct Contestant {
    side: Side,
    result: SideResult,
}

impl Contestant {
    /// Seconds of a run; of a short one, the median of those that follow the first.
    fn run(&mut self) -> Result<f64, Error> {
        let start = Instant::now();
        let first = self.side.run()?;
        if start.elapsed() >= SHORT_RUN {
            return Ok(first);
        }
        let mut seconds = vec![];
        while seconds.is_empty() || seconds.len() < MAX_REPEATS && start.elapsed() < SHORT_RUN {
            seconds.push(self.side.run()?);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
}

impl Lab<'_> {
    /// Measures `work` in each of `dtypes`.
    ///
    /// # Errors
    /// Those of our side and of the system. A peer's failure is part of its result.
    pub fn measure(&self, work: &Work, dtypes: &[DType]) -> Result<Vec<Measured>, Error> {
        inputs::write(work, &work.graph(DType::F32)?, &self.inputs(work))?;
        let mut results = vec![];
        for &dtype in dtypes {
            if let Some(reason) = self.lacks(weight_bytes(work, dtype)?) {
                results.push(self.refused(work, dtype, &reason)?);
                continue;
            }
            self.make_weights(work, dtype)?;
            let mut measured = self.measure_in(work, dtype)?;
            if self.peers.is_some() {
                let reference = self.reference(work)?;
                for side in &mut measured.sides {
                    side.error = match (&reference, &side.failure) {
                        (Some(reference), None) => {
                            Some(distance(&self.result(work, dtype, &side.name), reference)?)
                        }
                        _ => None,
                    };
                }
            }
            results.push(measured);
        }
        Ok(results)
    }

    fn measure_in(&self, work: &Work, dtype: DType) -> Result<Measured, Error> {
        let flops = work.graph(dtype)?.flops();
        let pool = Pool::new(self.threads).map_err(Error::Threads)?;
        self.tell(work, dtype, OURS, "starts");
        let start = Instant::now();
        let mut side = Side::start(OURS, (self.ours)(), self.threads, &self.log(work, OURS))?;
        let answer = side.ask(&self.request(work, dtype, None)?)?;
        let result = SideResult::new(OURS, start.elapsed().as_secs_f64(), &answer["version"]);
        self.save(&mut side, work, dtype)?;
        let mut ours = Contestant { side, result };
        let mut sides = vec![];
        for peer in self.peers.iter().flat_map(|_| work.peers(dtype)) {
            sides.push(match self.duel(work, dtype, peer, &mut ours, &pool) {
                Ok(result) => result,
                // A peer ends by itself when it is interrupted; that is no failure of the peer.
                Err(_) if self.interrupt.load(Ordering::Relaxed) => return Err(Error::Interrupted),
                Err(Error::Side { side, reason }) if side != OURS => SideResult {
                    failure: Some(reason),
                    ..SideResult::new(peer.name, 0.0, &Json::Null)
                },
                Err(error) => return Err(error),
            });
        }
        if self.peers.is_none() {
            self.turns(dtype, &pool, &mut [&mut ours])?;
        }
        ours.result.peak_bytes = ours.side.peak_bytes();
        let kernels = ours.side.ask(&json!({ "request": "profile" }))?["kernels"].take();
        sides.insert(0, ours.result);
        Ok(Measured {
            work: work.clone(),
            dtype,
            flops,
            arena_bytes: answer["arena_bytes"].as_u64().unwrap_or_default(),
            compile_seconds: answer["compile_seconds"].as_f64().unwrap_or_default(),
            kernels: serde_json::from_value::<Vec<KernelTime>>(kernels).unwrap_or_default(),
            sides,
        })
    }

    /// One peer against us.
    fn duel(
        &self,
        work: &Work,
        dtype: DType,
        peer: Peer,
        ours: &mut Contestant,
        pool: &Pool,
    ) -> Result<SideResult, Error> {
        self.check_memory(work, dtype, peer)?;
        if peer.needs_onnx {
            self.export(work)?;
        }
        self.tell(work, dtype, peer.name, "starts");
        let start = Instant::now();
        let mut side = self.start_peer(work, peer)?;
        let answer = side.ask(&self.request(work, dtype, Some(peer))?)?;
        let result = SideResult::new(peer.name, start.elapsed().as_secs_f64(), &answer["version"]);
        self.save(&mut side, work, dtype)?;
        self.tell(work, dtype, peer.name, "takes turns");
        let mut theirs = Contestant { side, result };
        self.turns(dtype, pool, &mut [ours, &mut theirs])?;
        Ok(SideResult { peak_bytes: theirs.side.peak_bytes(), ..theirs.result })
    }

    /// Runs all of `contestants`, of which we are the first, once per turn.
    fn turns(
        &self,
        dtype: DType,
        pool: &Pool,
        contestants: &mut [&mut Contestant],
    ) -> Result<(), Error> {
        let n = contestants.len();
        let start = Instant::now();
        for turn in 0..self.turns.max(1) {
            let run = start.elapsed() / (turn.max(1) * n) as u32;
            let least = if run > LONG_RUN { 1 } else { LEAST_TURNS };
            if turn >= least && start.elapsed() > self.budget {
                break;
            }
            thread::sleep(PAUSE);
            let limit = peak::peak(self.isa, dtype, pool);
            let mut seconds = vec![0.0; n];
            for i in (0..n).map(|i| (turn + i) % n) {
                if self.interrupt.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                thread::sleep(PAUSE);
                seconds[i] = contestants[i].run()?;
            }
            for (contestant, time) in contestants.iter_mut().zip(&seconds) {
                contestant.result.seconds.push(*time);
                contestant.result.limits.push(limit);
                contestant.result.ours.push(seconds[0]);
            }
        }
        Ok(())
    }

    /// Makes the weights of `work`, unless an earlier row did.
    fn make_weights(&self, work: &Work, dtype: DType) -> Result<(), Error> {
        let Some(synthetic) = work.synthetic(stored(dtype))? else { return Ok(()) };
        let folder = self.weights(work, dtype);
        if folder.is_dir() {
            // It was made whole or not at all.
            return Ok(());
        }
        self.tell(work, dtype, OURS, "makes weights");
        synthetic.write(
            &folder,
            Watch { threads: self.threads, on_bytes: &mut |_| {}, interrupt: self.interrupt },
        )
    }

    /// `PyTorch`'s f32 result; `None` if the machine has not the memory for it.
    fn reference(&self, work: &Work) -> Result<Option<Vec<f32>>, Error> {
        let path = self.result(work, DType::F32, TORCH.name);
        if !path.exists() {
            if self.check_memory(work, DType::F32, TORCH).is_err() {
                return Ok(None);
            }
            self.make_weights(work, DType::F32)?;
            self.tell(work, DType::F32, TORCH.name, "makes the result to compare with");
            let mut side = self.start_peer(work, TORCH)?;
            side.ask(&self.request(work, DType::F32, Some(TORCH))?)?;
            self.save(&mut side, work, DType::F32)?;
        }
        Ok(Some(read(&path)?))
    }

    /// Writes the graph that exchange formats need, unless an earlier type did.
    fn export(&self, work: &Work) -> Result<(), Error> {
        let path = self.onnx(work);
        if path.exists() {
            return Ok(());
        }
        self.make_weights(work, DType::F32)?;
        self.tell(work, DType::F32, TORCH.name, "exports the graph");
        let mut side = self.start_peer(work, TORCH)?;
        let work = self.request(work, DType::F32, Some(TORCH))?["work"].take();
        // A name that only a whole export has.
        let part = path.with_extension("part.onnx");
        side.ask(&json!({ "request": "export", "path": part, "work": work }))?;
        let io = |error| Error::Io { path: path.clone(), error };
        fs::rename(&part, &path).map_err(io)
    }

    fn start_peer(&self, work: &Work, peer: Peer) -> Result<Side, Error> {
        let peers = self.peers.as_ref().expect("only asked for where there are peers");
        let mut command = Command::new(&peers.python);
        command.arg(&peers.script);
        Side::start(peer.name, command, self.threads, &self.log(work, peer.engine))
    }

    /// Refuses a peer that needs more memory than there is, before the system ends somebody else's work for it.
    fn check_memory(&self, work: &Work, dtype: DType, peer: Peer) -> Result<(), Error> {
        // Exported graphs have f32 weights, whatever they are run in.
        let read = if peer.needs_onnx { DType::F32 } else { dtype };
        let needed = LIBRARY_BYTES + peer.copies * weight_bytes(work, read)?;
        self.lacks(needed)
            .map_or(Ok(()), |reason| Err(Error::Side { side: peer.name.into(), reason }))
    }

    /// What to say where `needed` bytes of memory are not free.
    fn lacks(&self, needed: u64) -> Option<String> {
        let free = (self.free_bytes)().filter(|&free| needed > free)?;
        Some(format!("not run: needs {} MiB of memory, {} MiB are free", needed >> 20, free >> 20))
    }

    /// The row of work that does not fit in memory, which no side is asked to do.
    fn refused(&self, work: &Work, dtype: DType, reason: &str) -> Result<Measured, Error> {
        let failed = |name: &str, reason: &str| SideResult {
            failure: Some(reason.into()),
            ..SideResult::new(name, 0.0, &Json::Null)
        };
        let mut sides = vec![failed(OURS, reason)];
        for peer in self.peers.iter().flat_map(|_| work.peers(dtype)) {
            let reason = match self.check_memory(work, dtype, peer) {
                Err(Error::Side { reason, .. }) => reason,
                Err(error) => return Err(error),
                Ok(()) => "not run: there is nothing to compare with".into(),
            };
            sides.push(failed(peer.name, &reason));
        }
        Ok(Measured {
            work: work.clone(),
            dtype,
            flops: work.graph(dtype)?.flops(),
            arena_bytes: 0,
            compile_seconds: 0.0,
            kernels: vec![],
            sides,
        })
    }

    fn request(&self, work: &Work, dtype: DType, peer: Option<Peer>) -> Result<Json, Error> {
        let mut what = work.request()?;
        what["inputs"] = json!(self.inputs(work));
        what["onnx"] = json!(self.onnx(work));
        let folder = self.weights(work, dtype);
        what["weights"] = if folder.is_dir() { json!(folder) } else { Json::Null };
        Ok(json!({
            "request": "prepare", "engine": peer.map(|peer| peer.engine), "name": work.name,
            "dtype": dtype.to_string(), "threads": self.threads, "work": what,
        }))
    }

    fn save(&self, side: &mut Side, work: &Work, dtype: DType) -> Result<(), Error> {
        let path = self.result(work, dtype, side.name());
        // Writing a result is not part of the work, and takes memory of which each side has its own idea.
        side.without_peak(|side| side.ask(&json!({ "request": "save", "path": path })).map(drop))
    }

    fn tell(&self, work: &Work, dtype: DType, side: &str, what: &str) {
        (self.note)(&format!("{} {dtype}: {side} {what}", work.name));
    }

    fn weights(&self, work: &Work, dtype: DType) -> PathBuf {
        self.weights.join(format!("{}-{dtype}", work.weights_name()))
    }

    fn inputs(&self, work: &Work) -> PathBuf {
        self.scratch.join(format!("{}-inputs.safetensors", work.name))
    }

    fn onnx(&self, work: &Work) -> PathBuf {
        self.weights.join(format!("{}.onnx", work.name))
    }

    fn result(&self, work: &Work, dtype: DType, side: &str) -> PathBuf {
        self.scratch.join(format!("{}-{dtype}-{side}.safetensors", work.name))
    }

    fn log(&self, work: &Work, side: &str) -> PathBuf {
        self.scratch.join(format!("{}-{side}.log", work.name))
    }
}

/// The element type of made-up weights.
fn stored(dtype: DType) -> checkpoint::DType {
    if dtype == DType::Bf16 { checkpoint::DType::BF16 } else { checkpoint::DType::F32 }
}

/// Bytes of the weights of `work`.
fn weight_bytes(work: &Work, dtype: DType) -> Result<u64, Error> {
    work.synthetic(stored(dtype))?.map_or(Ok(0), |made| made.bytes())
}

/// Relative L2 distance of the result at `path` from `reference`; infinite where it is of another size.
fn distance(path: &Path, reference: &[f32]) -> Result<f64, Error> {
    Ok(relative_l2(&read(path)?, reference))
}

/// The result at `path`: the elements of all its tensors, in the order of their names.
fn read(path: &Path) -> Result<Vec<f32>, Error> {
    let file = Checkpoint::open(path)?;
    let mut names: Vec<&str> = file.tensors().map(|info| info.name).collect();
    names.sort_unstable();
    let mut elements = vec![];
    for name in names {
        elements.extend(file.to_f32(name)?);
    }
    Ok(elements)
}

fn relative_l2(found: &[f32], reference: &[f32]) -> f64 {
    if found.len() != reference.len() {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let pairs = found.iter().zip(reference);
    let wrong: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let all: f64 = reference.iter().map(|b| square(f64::from(*b))).sum();
    let distance = (wrong / all).sqrt();
    if distance.is_finite() { distance } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_does_not_fit_is_refused_on_every_side_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let lab = Lab {
            isa: Isa::detect(),
            threads: 1,
            turns: 1,
            budget: Duration::ZERO,
            weights: folder.path().join("weights"),
            scratch: folder.path().to_path_buf(),
            ours: &|| panic!("our side is started"),
            peers: Some(Peers { python: "none".into(), script: "none".into() }),
            free_bytes: || Some(1 << 20),
            note: &|_| {},
            interrupt: &AtomicBool::new(false),
        };
        let work = crate::work::find("t5-xxl").unwrap();
        let [row] = &lab.measure(&work, &[DType::F32]).unwrap()[..] else { panic!("one row") };
        assert_eq!(row.sides.len(), 1 + work.peers(DType::F32).len());
        for side in &row.sides {
            let reason = side.failure.as_deref().unwrap_or_default();
            assert!(reason.contains("MiB of memory, 1 MiB are free"), "{}: {reason}", side.name);
        }
        // 4.76 G parameters, and our side holds nothing but them.
        assert!(row.sides[0].failure.as_deref().unwrap().contains("needs 18166 MiB"));
        assert!(!lab.weights.exists(), "no weight is made");
    }

    #[test]
    fn a_distance_is_relative_and_refuses_what_is_no_number() {
        assert_eq!(relative_l2(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((relative_l2(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-12);
        for found in [&[1.0][..], &[f32::NAN, 1.0], &[f32::INFINITY, 1.0]] {
            assert_eq!(relative_l2(found, &[1.0, 1.0]), f64::INFINITY, "{found:?}");
        }
    }
}
