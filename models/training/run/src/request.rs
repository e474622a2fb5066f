//! What a run is asked for, where it trains, who watches it, and how it ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kernels::{Pool, Target};
use training::Recipe;
use training::run_log::Event;

use crate::export::PipelineFiles;
use crate::start::Start;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name of the recipe.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The recipe.
    pub recipe: Recipe,
    /// The table.
    pub table: PathBuf,
    /// The folder that its paths are below.
    pub root: PathBuf,
    /// Where the first weights come from.
    pub start: Start,
    /// Most bytes of training: state, arenas, frozen weights.
    pub memory: Option<usize>,
}

/// A pipeline whose encoders make features, and whose transformer is a start.
#[derive(Debug)]
pub struct Pipeline {
    /// The pipeline.
    pub model: pipeline::Model,
    /// Its files.
    pub files: PipelineFiles,
}

/// Where a run trains.
#[derive(Clone, Debug)]
pub struct Place {
    /// What steps are compiled for: this CPU.
    pub target: Target,
    /// The threads of `target`.
    pub pool: Arc<Pool>,
    /// Version of the program, for the log.
    pub version: String,
    /// FLOPs a second that the machine's multiply-adds can reach in this type, if it was measured.
    pub limit_flops: Option<f64>,
}

/// Something that a run tells while it goes on.
#[derive(Debug)]
pub enum Notice<'a> {
    /// Clips and captions that are encoded, and how many are to be.
    Encoding {
        /// Encoded ones.
        done: usize,
        /// All.
        total: usize,
    },
    /// What was written to the log.
    Event(&'a Event),
}

/// Who watches a run.
pub struct Watch<'a> {
    /// `true` ends the run after the update that is under way.
    pub interrupt: &'a AtomicBool,
    /// Is told what happens.
    pub tell: &'a mut dyn FnMut(&Notice<'_>),
    /// Memory that the process has now, in bytes.
    pub resident_bytes: &'a dyn Fn() -> u64,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("interrupt", &self.interrupt).finish_non_exhaustive()
    }
}

/// What a run has made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// The trained model, a pipeline folder.
    pub model: PathBuf,
    /// What the run trained, if that is a low-rank adaptation: a folder as PEFT has them.
    pub adaptation: Option<PathBuf>,
}

/// How a run ended that did not fail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// All updates are made.
    Finished {
        /// How many.
        step: u64,
        /// What comes of them.
        made: Made,
    },
    /// The user stopped it.
    Interrupted {
        /// Updates so far.
        step: u64,
        /// From where it goes on; `None` before the first update.
        snapshot: Option<PathBuf>,
    },
}
