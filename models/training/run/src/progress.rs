//! A run that is under way: the loop of updates, and what is kept and told of it.
//!
//! What an update does is a function of the state before it, the seed, and its place in the data: where the run
//! was stopped in between does not matter. So a run keeps its place ([`SamplerState`]) with each snapshot, and
//! whatever else it has is made again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use data::{BucketId, CacheReader, Epoch, SamplerState};
use runtime::Cpu;
use training::run_log::{self, Event, RunLog, StopReason};
use training::{Outcome, Snapshots};

use crate::batches::{self, Batches, Prepared, Source};
use crate::encode::Encoding;
use crate::export::Trained;
use crate::features::Features;
use crate::folder::RunFolder;
use crate::request::{Ended, Notice, Watch};
use crate::run::{About, Run};
use crate::samples::BadRows;
use crate::subject::AnyTrainer;
use crate::{Error, Result};

/// Rows that a message names.
const MAX_NAMED: usize = 8;

/// A bucket that is bound.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    id: training::BucketId,
    name: String,
    flops: u64,
    tokens: u64,
}

/// A run that is under way.
pub(crate) struct Progress<'a, 'w> {
    pub(crate) run: &'a mut Run,
    pub(crate) folder: &'a RunFolder,
    pub(crate) snapshots: Snapshots,
    pub(crate) log: RunLog,
    /// None for an autoencoder, which is trained on frames.
    pub(crate) features: Option<Features>,
    pub(crate) trainer: AnyTrainer,
    /// Buckets by those of the data.
    pub(crate) ids: BTreeMap<BucketId, Bound>,
    /// Arenas and frozen weights of all of them.
    pub(crate) held_bytes: usize,
    /// The place in the data after the updates so far.
    pub(crate) sampler: SamplerState,
    /// Updates of the newest snapshot.
    pub(crate) saved: Option<u64>,
    pub(crate) watch: &'a mut Watch<'w>,
}

impl Progress<'_, '_> {
    /// Makes all updates that are left, and tells how it ended.
    pub(crate) fn train(&mut self) -> Result<Ended> {
        let start = self.start();
        self.tell(&Event::Start(start))?;
        let trained = self.validate().and_then(|()| self.updates());
        let ended = trained.and_then(|is_finished| self.end(is_finished));
        // An interrupt may come anywhere: while features are made, or a video.
        let ended = match ended {
            Err(error) if error.is_interrupt() => self.end(false),
            other => other,
        };
        if let Err(error) = &ended {
            let message = error.to_string();
            let step = self.step();
            // What is wrong is the error; that it cannot be logged either is not.
            let _ = self.tell(&stop(step, StopReason::Failed { message }));
            let _ = self.log.flush();
        }
        ended
    }

    fn end(&mut self, is_finished: bool) -> Result<Ended> {
        self.save()?;
        let step = self.step();
        if !is_finished {
            self.tell(&stop(step, StopReason::Interrupted))?;
            self.log.flush()?;
            return Ok(Ended::Interrupted { step, snapshot: self.snapshots.latest()? });
        }
        let (folder, interrupt) = (self.folder, self.watch.interrupt);
        let made = self.run.write_made(folder, self.trainer.state(), interrupt)?;
        self.tell(&stop(step, StopReason::Finished))?;
        self.log.flush()?;
        Ok(Ended::Finished { step, made })
    }

    /// Makes updates until the run is over, or is to stop: then `false`.
    fn updates(&mut self) -> Result<bool> {
        let micro_batches = self.run.options.micro_batches;
        let mut bad = BadRows::new();
        let mut reader: Option<Arc<CacheReader>> = None;
        while let Some(left) = self.updates_left() {
            let samples = Arc::clone(&self.run.samples);
            let epoch = samples.epoch(self.sampler.epoch)?;
            let first = self.sampler.step(samples.sampler(), 1)?;
            let n_updates = (epoch.n_steps(1).saturating_sub(first) / micro_batches)
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let batches = first..first + n_updates * micro_batches;
            let has_new = self.encode(&epoch, batches.clone(), &mut bad)?;
            if let Some(features) = &self.features
                && (has_new || reader.is_none())
            {
                reader = Some(Arc::new(features.reader()?));
            }
            for id in batches::buckets_of(&epoch, batches.clone()) {
                self.bind(id)?;
            }
            let source = Source {
                samples,
                features: self.features.clone().zip(reader.clone()),
                conditions: Arc::clone(&self.run.conditions),
                epoch: epoch.clone(),
                bad: bad.clone(),
            };
            let mut queue = Batches::start(source, batches.clone());
            for update in 1..=n_updates {
                self.update(&mut queue, epoch.index())?;
                let last = first + update * micro_batches - 1;
                self.sampler = self.sampler.after(&epoch, last, 1);
                let is_stopped = self.watch.interrupt.load(Ordering::Relaxed);
                let step = self.step();
                if step.is_multiple_of(self.run.recipe.run.checkpoint_every) || is_stopped {
                    self.save()?;
                }
                if is_stopped {
                    return Ok(false);
                }
                self.validate()?;
            }
            if self.sampler.epoch == epoch.index() && self.updates_left().is_some() {
                // What is left of the epoch does not make an update.
                self.sampler = SamplerState {
                    epoch: epoch.index() + 1,
                    last_micro_batch_access_index: 0,
                    ..self.sampler
                };
            }
        }
        Ok(true)
    }

    /// Updates that are still to be made at most; `None` if the run is over.
    fn updates_left(&self) -> Option<u64> {
        let run = &self.run.recipe.run;
        let left = run.steps.unwrap_or(u64::MAX).saturating_sub(self.step());
        (self.sampler.epoch < run.epochs && left > 0).then_some(left)
    }

    fn step(&self) -> u64 {
        self.trainer.state().step()
    }

    /// One update by the next batches.
    fn update(&mut self, queue: &mut Batches, epoch: u64) -> Result<()> {
        let start = Instant::now();
        let mut prepared = Vec::with_capacity(self.run.options.micro_batches);
        for _ in 0..self.run.options.micro_batches {
            // The thread that makes them ends early only by an error, which it sends.
            prepared.push(queue.next().unwrap_or(Err(Error::Interrupted))?);
        }
        let data_wait_seconds = start.elapsed().as_secs_f64();
        let number = self.step();
        let lr = self.run.schedule.rate(self.run.recipe.optimizer.lr, number);
        let inputs: Vec<Vec<(&str, &[u8])>> = prepared
            .iter()
            .map(|batch| batch.inputs.iter().map(|(name, bytes)| (*name, &bytes[..])).collect())
            .collect();
        let bound: Vec<Bound> =
            prepared.iter().map(|batch| self.ids[&batch.bucket].clone()).collect();
        let batches: Vec<_> =
            bound.iter().zip(&inputs).map(|(bound, inputs)| (bound.id, &inputs[..])).collect();
        let outcome = self.trainer.update(&batches, lr)?;
        let step = self.step();
        let of_update = self.run.plan.update().map_or(0, |step| step.plan().flops());
        let event = run_log::Step {
            step,
            epoch,
            buckets: bound.iter().map(|bound| bound.name.clone()).collect(),
            loss: outcome.loss,
            lr,
            grad_norm: outcome.grad_norm,
            samples: prepared.iter().map(|batch| batch.rows.len() as u64).sum(),
            tokens: bound.iter().map(|bound| bound.tokens).sum(),
            seconds: start.elapsed().as_secs_f64(),
            flops: of_update + bound.iter().map(|bound| bound.flops).sum::<u64>(),
            data_wait_seconds,
            rss_bytes: (self.watch.resident_bytes)(),
        };
        let is_finite = outcome.loss.is_finite() && outcome.grad_norm.is_finite();
        if !is_finite || step.is_multiple_of(self.run.recipe.run.log_every) {
            self.tell(&Event::Step(event))?;
        }
        for replaced in prepared.iter().flat_map(|batch| &batch.replaced) {
            let path = |row| self.run.samples.path(row).display().to_string();
            let event = run_log::Replaced {
                step,
                path: path(replaced.row),
                by: path(replaced.by),
                reason: replaced.reason.clone(),
            };
            self.tell(&Event::Replaced(event))?;
        }
        if is_finite { Ok(()) } else { Err(self.not_finite(&outcome, &prepared)) }
    }

    /// What is told of an update that is of no use: its rows, those first whose own loss is no number.
    fn not_finite(&self, outcome: &Outcome, batches: &[Prepared]) -> Error {
        let rows = batches.iter().flat_map(|batch| &batch.rows).zip(&outcome.row_losses);
        let (bad, good): (Vec<_>, Vec<_>) = rows.partition(|(_, loss)| !loss.is_finite());
        let all = if bad.is_empty() { good } else { bad };
        let name = |(row, loss): &(&usize, &f32)| {
            let line = self.run.samples.table.rows()[**row].line;
            format!("line {line} ({}, loss {loss})", self.run.samples.path(**row).display())
        };
        let mut rows: Vec<String> = all.iter().take(MAX_NAMED).map(name).collect();
        if all.len() > MAX_NAMED {
            rows.push(format!("{} more", all.len() - MAX_NAMED));
        }
        let (what, value) = match outcome.loss.is_finite() {
            true => ("norm of the gradients", outcome.grad_norm),
            false => ("loss", outcome.loss),
        };
        let kept = match self.saved {
            Some(step) => format!("the snapshot of update {step} is kept"),
            None => "there is no snapshot yet".into(),
        };
        Error::NotFinite { step: self.step(), what, value, rows: rows.join(", "), kept }
    }

    /// Makes the features that `batches` need; whether some were made.
    fn encode(&mut self, epoch: &Epoch, batches: Range<usize>, bad: &mut BadRows) -> Result<bool> {
        let Some(features) = &self.features else { return Ok(false) };
        let backend = Cpu::new(Arc::clone(&self.run.place.pool));
        let encoding = Encoding {
            model: &self.run.pipeline.model,
            backend: &backend,
            target: &self.run.place.target,
            dtype: self.run.dtype,
            memory: self.run.memory,
            n_workers: self.run.recipe.data.workers,
            interrupt: self.watch.interrupt,
        };
        let mut has_made = false;
        let tell = &mut self.watch.tell;
        encoding.fill(&self.run.samples, features, (epoch, batches), bad, &mut |done, total| {
            has_made = true;
            tell(&Notice::Encoding { done, total });
        })?;
        Ok(has_made)
    }

    /// Binds the step of a bucket, which is planned now if the plan of the run has it not.
    fn bind(&mut self, id: BucketId) -> Result<()> {
        if self.ids.contains_key(&id) {
            return Ok(());
        }
        let planned = match self.run.plan.buckets.remove(&id) {
            Some(planned) => planned,
            None => {
                let held = self.run.plan.peak_bytes() + self.held_bytes;
                self.run.planning().further(id, held)?
            }
        };
        let plan = planned.step.plan();
        let (flops, held) = (plan.flops(), planned.step.own_bytes());
        let (name, tokens) = (planned.name, planned.tokens);
        let bound = Bound { id: self.trainer.add(planned.step)?, name, flops, tokens };
        self.ids.insert(id, bound);
        self.held_bytes += held;
        Ok(())
    }

    /// Writes a snapshot, unless the newest is of this update, or there was none.
    fn save(&mut self) -> Result<()> {
        let step = self.step();
        if self.saved == Some(step) || step == 0 {
            return Ok(());
        }
        // What a snapshot is of is in the log before the snapshot is there.
        self.log.flush()?;
        let about = About { sampler: self.sampler, identity: self.run.identity.clone() };
        let about = serde_json::to_string(&about).expect("texts and numbers are JSON");
        let start = Instant::now();
        let path = self.snapshots.save(self.trainer.state(), &about)?;
        let bytes = std::fs::metadata(&path).map_err(Error::io(&path, "look at it"))?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.saved = Some(step);
        let seconds = start.elapsed().as_secs_f64();
        self.tell(&Event::Snapshot(run_log::Snapshot {
            step,
            file: format!("snapshots/{name}"),
            bytes,
            seconds,
        }))
    }

    /// Samples what is due after the updates so far, and is not there.
    fn validate(&mut self) -> Result<()> {
        let step = self.step();
        let Run { validator, pipeline, parts, weights, place, options, .. } = &mut *self.run;
        let Some(validator) = validator.as_mut().filter(|validator| validator.is_due(step)) else {
            return Ok(());
        };
        let trained = Trained::new(self.trainer.state(), weights, options)?;
        let backend = Cpu::new(Arc::clone(&place.pool));
        let (log, tell) = (&mut self.log, &mut self.watch.tell);
        let folder = self.folder.samples();
        let (at, interrupt) = ((folder.as_path(), step), self.watch.interrupt);
        let model = &mut pipeline.model;
        let trained = (&trained, &parts[..]);
        validator.sample(model, &backend, trained, at, interrupt, &mut |video| {
            let event = Event::Validation(video);
            log.write(&event)?;
            tell(&Notice::Event(&event));
            Ok(())
        })
    }

    /// Logs an event, and tells of it.
    fn tell(&mut self, event: &Event) -> Result<()> {
        self.log.write(event)?;
        (self.watch.tell)(&Notice::Event(event));
        Ok(())
    }

    /// What the log begins with.
    fn start(&self) -> run_log::Start {
        let Run { plan, place, recipe, .. } = &*self.run;
        run_log::Start {
            step: self.step(),
            version: place.version.clone(),
            recipe: self.run.name.clone(),
            recipe_text: self.run.text.clone(),
            model: recipe.model.architecture.clone(),
            params: plan.n_params,
            trained_params: plan.n_trained,
            buckets: plan.records(),
            steps: plan.n_updates,
            seed: recipe.run.seed,
            threads: place.target.threads,
            limit_gflops: place.limit_flops.map(|flops| flops / 1e9),
        }
    }
}

fn stop(step: u64, reason: StopReason) -> Event {
    Event::Stop(run_log::Stop { step, reason })
}
