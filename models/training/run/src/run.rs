//! A run: what it is made of, checked and planned before it begins, and where it goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::{MaskRatios, SamplerState};
use ops::DType;
use pipeline::Transformer;
use runtime::{Cpu, WeightStore};
use serde::{Deserialize, Serialize};
use training::recipe::DTypeName;
use training::run_log::RunLog;
use training::{
    LrSchedule, Machine, Model, ModelPart, Options, Recipe, Snapshots, State, Subject, Text,
    TimestepSampler,
};
use xxhash_rust::xxh3::xxh3_128;

use crate::batches::Conditions;
use crate::export::Trained;
use crate::features::Features;
use crate::folder::{Identity, Record, RunFolder};
use crate::latents::Encoders;
use crate::plan::{Planning, RunPlan};
use crate::progress::Progress;
use crate::request::{Ended, Made, Pipeline, Place, Request, Watch};
use crate::samples::Samples;
use crate::start::{self, StartWeights};
use crate::subject::{self, AnyTrainer};
use crate::validate::Validator;
use crate::{Error, Result};

/// A run that can begin or go on.
#[derive(Debug)]
pub struct Run {
    pub(crate) name: String,
    /// The recipe's text.
    pub(crate) text: String,
    pub(crate) recipe: Recipe,
    subject: Subject,
    pub(crate) options: Options,
    pub(crate) schedule: LrSchedule,
    pub(crate) dtype: DType,
    pub(crate) memory: Option<usize>,
    pub(crate) samples: Arc<Samples>,
    pub(crate) conditions: Arc<Conditions>,
    pub(crate) pipeline: Pipeline,
    pub(crate) weights: StartWeights,
    pub(crate) identity: Identity,
    /// What tells encoders from others.
    encoders: String,
    /// The folders of a pipeline that are trained.
    pub(crate) parts: Vec<ModelPart>,
    pub(crate) validator: Option<Validator>,
    pub(crate) place: Place,
    pub(crate) plan: RunPlan,
}

/// What a snapshot says of its run.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    pub(crate) sampler: SamplerState,
    pub(crate) identity: Identity,
}

impl Run {
    /// Reads the table and plans every step; nothing is written and no weight is computed with.
    ///
    /// # Errors
    /// Whatever of the request cannot be, each with what to do.
    pub fn new(request: Request, mut pipeline: Pipeline, place: Place) -> Result<Run> {
        let Request { name, text, recipe, table, root, start, memory } = request;
        let (subject, options) = (recipe.subject()?, recipe.options()?);
        fits(&recipe, &subject, &options, &pipeline.model)?;
        let samples = Arc::new(Samples::read(&recipe, &text, &table, &root)?);
        let masks = if recipe.masks.is_empty() {
            None
        } else {
            let shares = recipe.masks.iter().map(|mask| (mask.name.as_str(), mask.share));
            Some(MaskRatios::new(shares)?)
        };
        let dtype = match recipe.model.dtype {
            DTypeName::F32 => DType::F32,
            DTypeName::Bf16 => DType::Bf16,
        };
        let planning = Planning {
            samples: &samples,
            subject: &subject,
            options: &options,
            downscale: subject::autoencoder(&subject, &pipeline.model).downscale(),
            has_masks: masks.is_some(),
            dtype,
            target: &place.target,
            memory,
        };
        let plan = planning.plan(recipe.run.epochs, recipe.run.steps)?;
        let seed = recipe.run.seed;
        let asked = (&subject, &options, seed);
        let (weights, of_start) = StartWeights::new(&start, &pipeline.model, asked)?;
        let encoders = match &subject {
            Subject::Transformer(_) => encoders(&pipeline.model, dtype)?,
            Subject::Autoencoder(_) => "none".into(),
        };
        let identity = Identity {
            recipe: recipe_hash(&recipe),
            table: samples.hash(),
            weights: of_start,
            encoders: encoders.clone(),
        };
        // From now on the pipeline is that of the model in training.
        match &subject {
            Subject::Transformer(Model::Stdit1(config)) => {
                pipeline.model.transformer = Transformer::Stdit1(config.clone());
            }
            Subject::Transformer(Model::Stdit2(config)) => {
                pipeline.model.transformer = Transformer::Stdit2(config.clone());
            }
            Subject::Autoencoder(_) => {}
        }
        if let Text::Encoder { config, .. } = &options.text {
            pipeline.model.t5 = config.clone();
        }
        let section = recipe.validation.as_ref();
        let validator = section
            .map(|section| Validator::new(section, &pipeline.model, &place.target, seed))
            .transpose()?;
        let timesteps = TimestepSampler::new(options.precision, options.weighting)?;
        let conditions = Conditions {
            subject: subject.clone(),
            seed,
            timesteps,
            masks,
            caption_dropout: recipe.loss.caption_dropout,
        };
        Ok(Run {
            schedule: recipe.lr_schedule()?,
            parts: recipe.parts()?,
            name,
            text,
            recipe,
            subject,
            options,
            dtype,
            memory,
            samples,
            conditions: Arc::new(conditions),
            pipeline,
            weights,
            identity,
            encoders,
            validator,
            place,
            plan,
        })
    }

    /// What it takes.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// What it is made of.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What buckets get of the table in the first epoch.
    pub fn survey(&self) -> data::Survey {
        self.samples.survey(0)
    }

    /// Trains in `folder`: from the beginning, or from the newest snapshot that there is.
    ///
    /// # Errors
    /// [`Error::Changed`] if a run would go on with something else and `allow_changes` is false, and all that can
    /// fail on the way; the newest snapshot can be gone on from then.
    pub fn train(
        &mut self,
        (folder, mut record): (&RunFolder, Record),
        allow_changes: bool,
        watch: &mut Watch<'_>,
    ) -> Result<Ended> {
        folder.sweep()?;
        let snapshots = Snapshots::new(folder.snapshots(), record.keep())?;
        let (state, sampler) = self.restored(folder, &snapshots, &record, allow_changes)?;
        if record.identity != self.identity {
            record.identity = self.identity.clone();
            folder.write(&record)?;
        }
        let step = state.step();
        let log = RunLog::open(folder.path(), (!folder.is_new()).then_some(step))?;
        let machine = Machine {
            target: self.place.target.clone(),
            pool: Arc::clone(&self.place.pool),
            memory: None,
        };
        let features = match &self.subject {
            Subject::Transformer(model) => {
                let tokens = model.common().model_max_length;
                let as_tokens = self.options.text != Text::Features;
                Some(Features::new(&record.cache, &self.encoders, tokens, as_tokens))
            }
            Subject::Autoencoder(_) => None,
        };
        let store = WeightStore::new(self.weights.clone());
        let options = self.options.clone();
        let trainer = AnyTrainer::new(&self.subject, options, state, store, machine)?;
        let saved = (step > 0).then_some(step);
        let mut progress = Progress {
            run: self,
            folder,
            snapshots,
            log,
            features,
            trainer,
            ids: BTreeMap::new(),
            held_bytes: 0,
            sampler,
            saved,
            watch,
        };
        progress.train()
    }

    /// Writes what the newest snapshot of the run in `folder` has made.
    ///
    /// # Errors
    /// [`Error::Folder`] if there is no snapshot yet, and as [`Run::train`].
    pub fn export(
        &mut self,
        (folder, record): (&RunFolder, &Record),
        allow_changes: bool,
        interrupt: &AtomicBool,
    ) -> Result<Made> {
        folder.sweep()?;
        let snapshots = Snapshots::new(folder.snapshots(), record.keep())?;
        if snapshots.latest()?.is_none() {
            return Err(Error::folder(folder.path(), "the run has no snapshot yet"));
        }
        let (state, _) = self.restored(folder, &snapshots, record, allow_changes)?;
        self.write_made(folder, &state, interrupt)
    }

    /// The state of the newest snapshot with its place in the data, or those of the beginning.
    fn restored(
        &self,
        folder: &RunFolder,
        snapshots: &Snapshots,
        record: &Record,
        allow_changes: bool,
    ) -> Result<(State, SamplerState)> {
        let mut state = subject::first_state(&self.subject, &self.options, &self.weights)?;
        let mut sampler = SamplerState::start(self.recipe.run.seed);
        let mut before = record.identity.clone();
        let changed = |before: &Identity| match self.identity.difference(before) {
            Some(what) if !allow_changes => {
                Err(Error::Changed { path: folder.path().to_path_buf(), what })
            }
            _ => Ok(()),
        };
        if let Some(path) = snapshots.latest()? {
            // What differs is told before what does not fit.
            changed(&before)?;
            let about = Snapshots::load(&path, &mut state)?;
            let about: About = serde_json::from_str(&about).map_err(|error| {
                Error::folder(&path, format!("{error}; expected a snapshot of kino train"))
            })?;
            sampler = SamplerState { seed: sampler.seed, ..about.sampler };
            before = about.identity;
        }
        changed(&before)?;
        Ok((state, sampler))
    }

    /// Writes the model of `state` as a pipeline folder, and the adaptation beside it if the run trains one.
    pub(crate) fn write_made(
        &mut self,
        folder: &RunFolder,
        state: &State,
        interrupt: &AtomicBool,
    ) -> Result<Made> {
        let (model, adaptation) = (folder.model(), folder.adaptation());
        let weights = self.weights.clone();
        let mut trained = Trained::new(state, &weights, &self.options)?;
        // A recipe that adapts trains one part.
        let has_adaptation = match &self.parts[..] {
            [part] => trained.write_adaptation(&adaptation, &part.params)?,
            _ => false,
        };
        if let (Subject::Autoencoder(model), [part]) = (&self.subject, &self.parts[..]) {
            let backend = Cpu::new(Arc::clone(&self.place.pool));
            let mut encoders = Encoders {
                pipeline: &mut self.pipeline.model,
                backend: &backend,
                target: &self.place.target,
                samples: &self.samples,
                interrupt,
            };
            trained.replaced = encoders.folded(model, &trained, part, folder.path())?;
        }
        let Pipeline { model: pipeline, files } = &self.pipeline;
        trained.write_pipeline(&model, &self.parts, &pipeline.defaults, files)?;
        Ok(Made { model, adaptation: has_adaptation.then_some(adaptation) })
    }

    /// What plans a bucket.
    pub(crate) fn planning(&self) -> Planning<'_> {
        Planning {
            samples: &self.samples,
            subject: &self.subject,
            options: &self.options,
            downscale: subject::autoencoder(&self.subject, &self.pipeline.model).downscale(),
            has_masks: self.conditions.masks.is_some(),
            dtype: self.dtype,
            target: &self.place.target,
            memory: self.memory,
        }
    }
}

/// Fails unless what is trained takes what the pipeline's encoders make, and the recipe asks for nothing else.
fn fits(
    recipe: &Recipe,
    subject: &Subject,
    options: &Options,
    pipeline: &pipeline::Model,
) -> Result<()> {
    let fail = |reason: String| Err(Error::Request(reason));
    let common = match subject {
        Subject::Transformer(model) => model.common(),
        Subject::Autoencoder(model) => {
            if recipe.validation.is_some() {
                return fail(
                    "recipe: `validation` samples a transformer, this trains an autoencoder".into(),
                );
            }
            return match model.config.in_channels {
                3 => Ok(()),
                found => fail(format!("recipe: model.config.in_channels {found}, frames have 3")),
            };
        }
    };
    let mut pairs = vec![("in_channels", common.in_channels, pipeline.vae.latent_channels)];
    match &options.text {
        Text::Features => {
            pairs.push(("caption_channels", common.caption_channels, pipeline.t5.d_model));
        }
        Text::Encoder { config, .. } => {
            let (words, rows) = (pipeline.tokenizer.vocab_size(), config.vocab_size);
            if words > rows {
                return fail(format!(
                    "the tokenizer of {} has {words} tokens, text.config.vocab_size is {rows}; expected as many, or more",
                    pipeline.name
                ));
            }
        }
    }
    match pairs.into_iter().find(|(_, wanted, found)| wanted != found) {
        None => Ok(()),
        Some((what, wanted, found)) => fail(format!(
            "the recipe's model has {what} {wanted}, the encoders of {} give {found}: choose another pipeline \
             (--model), or change model.config.{what}",
            pipeline.name
        )),
    }
}

/// What tells the encoders and how they compute from others.
fn encoders(model: &pipeline::Model, dtype: DType) -> Result<String> {
    let text = start::identity(model.text_encoder.checkpoint())?;
    let vae = start::identity(model.autoencoder.checkpoint())?;
    Ok(format!("text encoder {text} and autoencoder {vae} in {dtype}"))
}

/// A hash of what of a recipe decides an update: not how many there are, nor what is written when.
fn recipe_hash(recipe: &Recipe) -> String {
    let mut recipe = recipe.clone();
    recipe.about.clear();
    recipe.model.start = None;
    recipe.data.workers = 1;
    recipe.validation = None;
    let run = &mut recipe.run;
    (run.epochs, run.steps, run.log_every, run.checkpoint_every) = (1, None, 1, 1);
    run.gradient_checkpointing = false;
    let json = serde_json::to_vec(&recipe).expect("a recipe is texts and numbers");
    format!("{:032x}", xxh3_128(&json))
}
