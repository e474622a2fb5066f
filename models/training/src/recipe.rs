//! A run of training as a TOML file: every number that decides it, and nothing else.
//!
//! A file is outside data: whatever it holds gives a recipe or a message that names the place. Lists whose
//! order matters (buckets break ties, masks are drawn from a running sum) are lists here too. What is
//! unknown is refused with the nearest key.

use diffusion::{RESOLUTION_NAMES, Release, resolution};
use models::nearest::nearest;
use serde::{Deserialize, Serialize};

use crate::recipe_keys::check_keys;
pub use crate::recipe_loss::{LossKind, LossSection, TablePrecision};
pub use crate::recipe_subject::{ModelPart, Subject, TextSection};
use crate::{AdamW, Error, Freeze, Lora, LrSchedule, Options, Text, ValidationSection};

/// Strategies by which training keeps frames clean, under upstream's names of 1.2.
pub const MASK_NAMES: [&str; 11] = [
    "identity",
    "quarter_random",
    "quarter_head",
    "quarter_tail",
    "quarter_head_tail",
    "image_random",
    "image_head",
    "image_tail",
    "image_head_tail",
    "random",
    "intepolate",
];

/// How far the shares of masks may be from 1 together.
const SHARE_ERROR: f64 = 1e-6;

/// A run of training.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Recipe {
    /// What it makes, in a line.
    pub about: String,
    /// Sizes that videos are brought to, and how many of each make a batch. Either these, or `fixed`.
    #[serde(default)]
    pub buckets: Vec<BucketShare>,
    /// Shares of the strategies by which frames are kept clean; none keeps none.
    #[serde(default)]
    pub masks: Vec<MaskShare>,
    /// One size for all videos.
    #[serde(default)]
    pub fixed: Option<FixedSize>,
    /// The model.
    pub model: ModelSection,
    /// How videos become batches.
    pub data: DataSection,
    /// The text encoder, if it is trained along; without, a frozen one makes features of captions.
    #[serde(default)]
    pub text: Option<TextSection>,
    /// The loss.
    pub loss: LossSection,
    /// The optimizer.
    pub optimizer: OptimizerSection,
    /// Learning rates by step.
    pub schedule: ScheduleSection,
    /// Adapts weights instead of training them.
    #[serde(default)]
    pub lora: Option<LoraSection>,
    /// Videos that are sampled now and then.
    #[serde(default)]
    pub validation: Option<ValidationSection>,
    /// The run.
    pub run: RunSection,
}

/// One row of a bucket table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BucketShare {
    /// A name of `diffusion`'s tables.
    pub resolution: String,
    /// Frames; 1 is an image.
    pub frames: usize,
    /// Share of the videos that are large enough that stays here; the rest goes to smaller buckets.
    pub keep: f64,
    /// Videos in a batch; absent where none stay.
    #[serde(default)]
    pub batch: Option<usize>,
}

/// One row of a table of masks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MaskShare {
    /// One of [`MASK_NAMES`].
    pub name: String,
    /// Share of the videos.
    pub share: f64,
}

/// One size for all videos.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FixedSize {
    /// Frames.
    pub frames: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Videos in a batch.
    pub batch: usize,
}

/// What is trained, and from where.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ModelSection {
    /// A published architecture.
    pub architecture: String,
    /// Keys of its `config.json` that differ.
    #[serde(default)]
    pub config: toml::Table,
    /// The checkpoint that training starts from, as upstream calls it; absent for none.
    #[serde(default)]
    pub start: Option<String>,
    /// Storage type of weights and activations in a step; masters are f32.
    pub dtype: DTypeName,
}

/// A storage type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DTypeName {
    /// 32 bits.
    F32,
    /// The upper half of 32 bits.
    Bf16,
}

/// How videos become batches.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DataSection {
    /// Distance of the frames that are taken.
    pub frame_interval: usize,
    /// How frames are brought to a size.
    pub transform: Transform,
    /// Whether half of the videos are mirrored.
    #[serde(default)]
    pub horizontal_flip: bool,
    /// Threads that decode.
    pub workers: usize,
    /// Frames that the autoencoder takes at once; absent for all.
    #[serde(default)]
    pub vae_micro_batch: Option<usize>,
}

/// How frames are brought to a size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transform {
    /// The short side to the size, the middle square of it.
    Center,
    /// Scaled to cover the size, the middle of it.
    ResizeCrop,
}

/// The optimizer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OptimizerSection {
    /// Base learning rate.
    pub lr: f64,
    /// Decay rates of the moments.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Global norm that gradients are clipped to.
    #[serde(default)]
    pub max_norm: Option<f64>,
    /// Decay of the average of the weights.
    #[serde(default)]
    pub ema_decay: Option<f64>,
    /// Batches for one update.
    #[serde(default = "one")]
    pub micro_batches: usize,
    /// What is not trained, see [`Freeze`].
    #[serde(default = "nothing")]
    pub freeze: String,
}

pub(crate) fn default_betas() -> [f64; 2] {
    AdamW::default().betas
}

pub(crate) fn default_eps() -> f64 {
    AdamW::default().eps
}

pub(crate) fn one() -> usize {
    1
}

pub(crate) fn nothing() -> String {
    "none".into()
}

/// See [`Lora`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LoraSection {
    /// Columns of the thin matrices.
    pub rank: usize,
    /// The product counts `alpha / rank` times.
    pub alpha: f64,
    /// Parts of the names of adapted weights.
    pub targets: Vec<String>,
}

/// Learning rates by step: the kind of [`LrSchedule`] and its numbers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ScheduleSection {
    /// The schedule.
    pub kind: ScheduleKind,
    /// Steps of the warm-up, annealing or cycle.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Rate that a cosine warm-up starts from.
    #[serde(default)]
    pub start: Option<f64>,
    /// Rate that annealing ends with.
    #[serde(default)]
    pub end: Option<f64>,
}

/// The name of a schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// [`LrSchedule::Constant`].
    Constant,
    /// [`LrSchedule::LinearWarmup`].
    LinearWarmup,
    /// [`LrSchedule::CosineWarmup`].
    CosineWarmup,
    /// [`LrSchedule::CosineAnnealing`].
    CosineAnnealing,
    /// [`LrSchedule::OneCycle`] with `PyTorch`'s shares.
    OneCycle,
}

/// The run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RunSection {
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Times that the data is gone through.
    pub epochs: u64,
    /// Updates after which the run ends; absent to end with the last epoch.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Updates between two lines of the log.
    pub log_every: u64,
    /// Updates between two checkpoints.
    pub checkpoint_every: u64,
    /// Whether upstream computes blocks again in the backward pass. Here a limit of memory decides what
    /// is made again, see [`crate::Machine`].
    pub gradient_checkpointing: bool,
}

impl Recipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// [`Error::Recipe`] with the place and what is wrong there.
    pub fn parse(text: &str) -> Result<Recipe, Error> {
        let table: toml::Table = text.parse().map_err(|error| at_line(text, &error))?;
        check_keys(&toml::Value::Table(table))?;
        let recipe: Recipe = toml::from_str(text).map_err(|error| at_line(text, &error))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// What is compiled into a step.
    ///
    /// # Errors
    /// Refuses a `freeze` that is none, and a text encoder that is none.
    pub fn options(&self) -> Result<Options, Error> {
        let optimizer = &self.optimizer;
        Ok(Options {
            precision: self.loss.precision(),
            weighting: self.loss.weighting(),
            optimizer: AdamW {
                betas: optimizer.betas,
                eps: optimizer.eps,
                weight_decay: optimizer.weight_decay,
            },
            max_norm: optimizer.max_norm,
            ema_decay: optimizer.ema_decay,
            freeze: optimizer.freeze.parse::<Freeze>()?,
            lora: self.lora.as_ref().map(|section| Lora {
                rank: section.rank,
                alpha: section.alpha,
                targets: section.targets.clone(),
                seed: self.run.seed,
            }),
            text: self.text.as_ref().map_or(Ok(Text::Features), TextSection::text)?,
            caption_dropout: self.loss.caption_dropout > 0.0,
            micro_batches: optimizer.micro_batches,
        })
    }

    /// Learning rates by step.
    ///
    /// # Errors
    /// Refuses numbers that the schedule needs and lacks, or has and does not read.
    pub fn lr_schedule(&self) -> Result<LrSchedule, Error> {
        let section = &self.schedule;
        let given = [section.steps.is_some(), section.start.is_some(), section.end.is_some()];
        let needed = match section.kind {
            ScheduleKind::Constant => [false, false, false],
            ScheduleKind::LinearWarmup | ScheduleKind::OneCycle => [true, false, false],
            ScheduleKind::CosineWarmup => [true, true, false],
            ScheduleKind::CosineAnnealing => [true, false, true],
        };
        for ((key, given), needed) in ["steps", "start", "end"].into_iter().zip(given).zip(needed) {
            if given != needed {
                let what = if needed { "is missing" } else { "has no effect" };
                return fail(format!("schedule.{key} {what} with kind {:?}", section.kind));
            }
        }
        let steps = section.steps.unwrap_or_default();
        let schedule = match section.kind {
            ScheduleKind::Constant => LrSchedule::Constant,
            ScheduleKind::LinearWarmup => LrSchedule::LinearWarmup { steps },
            ScheduleKind::OneCycle => LrSchedule::one_cycle(steps),
            ScheduleKind::CosineWarmup => {
                LrSchedule::CosineWarmup { start: section.start.unwrap_or_default(), steps }
            }
            ScheduleKind::CosineAnnealing => {
                LrSchedule::CosineAnnealing { end: section.end.unwrap_or_default(), steps }
            }
        };
        schedule.check()?;
        Ok(schedule)
    }

    fn check(&self) -> Result<(), Error> {
        self.loss.check()?;
        self.options()?.check()?;
        self.check_subject()?;
        self.lr_schedule()?;
        if self.fixed.is_some() != self.buckets.is_empty() {
            return fail("expected either `buckets` or `fixed`".into());
        }
        for (i, bucket) in self.buckets.iter().enumerate() {
            bucket.check(i, &self.buckets[..i])?;
        }
        let mut sum = 0.0;
        for MaskShare { name, share } in &self.masks {
            if !MASK_NAMES.contains(&name.as_str()) {
                let meant = nearest(name, MASK_NAMES);
                return fail(format!("mask `{name}` is unknown; did you mean `{meant}`?"));
            }
            if !(0.0..=1.0).contains(share) {
                return fail(format!("mask `{name}`: share {share}, expected 0 to 1"));
            }
            sum += share;
        }
        if !self.masks.is_empty() && (sum - 1.0).abs() > SHARE_ERROR {
            return fail(format!("shares of masks are {sum} together, expected 1"));
        }
        if !(self.optimizer.lr > 0.0 && self.optimizer.lr.is_finite()) {
            return fail(format!("optimizer.lr {}, expected above 0", self.optimizer.lr));
        }
        if let Some(validation) = &self.validation {
            validation.check()?;
        }
        let mut counts = vec![
            ("data.frame_interval", self.data.frame_interval as u64),
            ("data.workers", self.data.workers as u64),
            ("data.vae_micro_batch", self.data.vae_micro_batch.unwrap_or(1) as u64),
            ("run.epochs", self.run.epochs),
            ("run.steps", self.run.steps.unwrap_or(1)),
            ("run.log_every", self.run.log_every),
            ("run.checkpoint_every", self.run.checkpoint_every),
        ];
        if let Some(fixed) = &self.fixed {
            let sizes = [fixed.frames, fixed.height, fixed.width, fixed.batch].map(|n| n as u64);
            let names = ["fixed.frames", "fixed.height", "fixed.width", "fixed.batch"];
            counts.extend(names.into_iter().zip(sizes));
        }
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((key, _)) => fail(format!("{key} is 0, expected 1 or more")),
            None => Ok(()),
        }
    }
}

impl BucketShare {
    /// Fails for a row that is wrong by itself, or the same as one of those `above`.
    fn check(&self, index: usize, above: &[BucketShare]) -> Result<(), Error> {
        let BucketShare { resolution: name, frames, keep, batch } = self;
        let fail =
            |reason: String| fail(format!("bucket {} ({name}, {frames}): {reason}", index + 1));
        if resolution(name, Release::V1_2).is_err() {
            let meant = nearest(name, RESOLUTION_NAMES);
            return fail(format!("the resolution is unknown; did you mean `{meant}`?"));
        }
        if *frames == 0 {
            return fail("0 frames, expected 1 or more".into());
        }
        if !(0.0..=1.0).contains(keep) {
            return fail(format!("keep {keep}, expected 0 to 1"));
        }
        match batch {
            Some(0) => return fail("batch 0, expected 1 or more".into()),
            None if *keep > 0.0 => {
                return fail("batch is missing; only `keep = 0` needs none".into());
            }
            Some(_) | None => {}
        }
        if above.iter().any(|other| other.resolution == *name && other.frames == *frames) {
            return fail("is there twice".into());
        }
        Ok(())
    }
}

pub(crate) fn fail<T>(reason: String) -> Result<T, Error> {
    Err(Error::Recipe(reason))
}

/// What TOML's reader says, with the line.
fn at_line(text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
    Error::Recipe(format!("line {line}: {}", error.message()))
}
