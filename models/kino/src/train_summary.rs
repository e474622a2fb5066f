//! A run of training in numbers: what its log adds up to, for people and for programs.

use std::collections::BTreeMap;

use training::run_log::{
    BucketPlan, Event, History, Replaced, Snapshot, Start, Step, Stop, StopReason, Validation,
};

use crate::units;

/// Of so many parts of the run each is as long as the mean that smooths a curve.
const SMOOTH_PARTS: usize = 25;

/// The log of a run by kind of event. There is at least one start.
#[derive(Debug)]
pub(crate) struct Summary<'a> {
    /// Starts, stops and when: the course of the run.
    pub course: Vec<(f64, Turn<'a>)>,
    /// The newest start, whose plans are those in force.
    pub start: &'a Start,
    /// Updates that were logged.
    pub steps: Vec<&'a Step>,
    /// Samples that could not be read.
    pub replaced: Vec<&'a Replaced>,
    /// Sampled videos, the newest of each step and prompt.
    pub validations: Vec<&'a Validation>,
    /// States on disk.
    pub snapshots: Vec<&'a Snapshot>,
    /// When the run was started and when the last event before the next start was logged, for each start.
    pub sessions: Vec<[f64; 2]>,
    /// When the newest event was logged, in seconds since 1970.
    pub time: f64,
    /// Updates so far.
    pub step: u64,
}

/// A start or a stop.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn<'a> {
    Start(&'a Start),
    Stop(&'a Stop),
}

/// What a bucket's batches took.
#[derive(Clone, Debug, Default)]
pub(crate) struct BucketUse {
    /// As its plan calls it.
    pub name: String,
    /// Batches of logged updates.
    pub n_batches: u64,
    /// Seconds of the steps. Where a step has batches of several buckets, by their planned FLOPs.
    pub seconds: f64,
    /// Its plan, if the newest start has it.
    pub plan: Option<BucketPlan>,
}

/// One cause of replacements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause<'a> {
    /// The first of them.
    pub first: &'a Replaced,
    /// How often.
    pub count: usize,
}

impl<'a> Summary<'a> {
    /// What `history` says; `None` if it says nothing yet.
    pub(crate) fn of(history: &'a History) -> Option<Summary<'a>> {
        let mut starts = history.records.iter().filter_map(|record| match &record.event {
            Event::Start(start) => Some(start),
            _ => None,
        });
        let mut summary = Summary {
            course: Vec::new(),
            start: starts.next_back()?,
            steps: Vec::new(),
            replaced: Vec::new(),
            validations: Vec::new(),
            snapshots: Vec::new(),
            sessions: Vec::new(),
            time: history.records.last()?.time,
            step: history.step(),
        };
        let mut validations = BTreeMap::new();
        // A validation samples its prompts in one order; they are told of in this one.
        let mut prompts: Vec<&str> = Vec::new();
        for record in &history.records {
            match summary.sessions.last_mut() {
                Some([_, last]) if !matches!(record.event, Event::Start(_)) => *last = record.time,
                _ => summary.sessions.push([record.time; 2]),
            }
            match &record.event {
                Event::Start(start) => summary.course.push((record.time, Turn::Start(start))),
                Event::Stop(stop) => summary.course.push((record.time, Turn::Stop(stop))),
                Event::Step(step) => summary.steps.push(step),
                Event::Replaced(replaced) => summary.replaced.push(replaced),
                Event::Snapshot(snapshot) => summary.snapshots.push(snapshot),
                Event::Validation(validation) => {
                    let prompt = validation.prompt.as_str();
                    let known = prompts.iter().position(|other| *other == prompt);
                    let place = known.unwrap_or_else(|| {
                        prompts.push(prompt);
                        prompts.len() - 1
                    });
                    validations.insert((validation.step, place), validation);
                }
            }
        }
        summary.validations = validations.into_values().collect();
        Some(summary)
    }

    /// Steps after which the run went on again.
    pub(crate) fn resumes(&self) -> Vec<u64> {
        let starts = self.course.iter().filter_map(|(_, turn)| match turn {
            Turn::Start(start) => Some(start.step),
            Turn::Stop(_) => None,
        });
        starts.skip(1).collect()
    }

    /// How the run stands, as a word or a sentence.
    pub(crate) fn state(&self) -> String {
        match self.course.last() {
            Some((_, Turn::Stop(stop))) if stop.step == self.step => match &stop.reason {
                StopReason::Finished => "finished".into(),
                StopReason::Interrupted => "interrupted".into(),
                StopReason::Failed { message } => format!("failed: {message}"),
            },
            _ => format!("under way, or killed; last event at {}", units::date(self.time)),
        }
    }

    /// Seconds from each start of the run to the last that was logged before the next.
    pub(crate) fn elapsed(&self) -> f64 {
        self.sessions.iter().map(|[start, last]| (last - start).max(0.0)).sum()
    }

    /// Seconds of the logged updates.
    pub(crate) fn seconds(&self) -> f64 {
        self.steps.iter().map(|step| step.seconds).sum()
    }

    /// Mean seconds of a logged update.
    pub(crate) fn seconds_of_update(&self) -> Option<f64> {
        (!self.steps.is_empty()).then(|| self.seconds() / self.steps.len() as f64)
    }

    /// A sum over all updates for people: where not all were logged, about.
    pub(crate) fn total_text(&self, of: impl Fn(&Step) -> u64) -> String {
        let (logged, n_logged) = (self.total(of), self.steps.len() as u64);
        if n_logged == 0 || n_logged >= self.step {
            return units::grouped(logged.into());
        }
        let all = u128::from(logged) * u128::from(self.step) / u128::from(n_logged);
        format!("about {}", units::grouped(all))
    }

    /// A sum over the logged updates.
    pub(crate) fn total(&self, of: impl Fn(&Step) -> u64) -> u64 {
        self.steps.iter().fold(0, |sum, step| sum.saturating_add(of(step)))
    }

    /// How many of what `of` counts there were a second of the updates.
    pub(crate) fn per_second(&self, of: impl Fn(&Step) -> u64) -> Option<f64> {
        let seconds = self.seconds();
        (seconds > 0.0).then(|| self.total(of) as f64 / seconds)
    }

    /// Share of the machine's limit over all updates, if it is known.
    pub(crate) fn share_of_limit(&self) -> Option<f64> {
        let limit = self.start.limit_gflops.filter(|limit| *limit > 0.0)?;
        Some(self.per_second(|step| step.flops)? / (limit * 1e9))
    }

    /// Share of the time in which there was no batch to work on.
    pub(crate) fn data_wait(&self) -> Option<f64> {
        let seconds = self.seconds();
        let waited: f64 = self.steps.iter().map(|step| step.data_wait_seconds).sum();
        (seconds > 0.0).then(|| waited / seconds)
    }

    /// Most resident bytes after any update.
    pub(crate) fn peak_rss(&self) -> Option<u64> {
        self.steps.iter().map(|step| step.rss_bytes).max()
    }

    /// Bytes of the largest plan.
    pub(crate) fn planned_bytes(&self) -> Option<u64> {
        self.start.buckets.iter().map(|bucket| bucket.peak_bytes).max()
    }

    /// Losses by update.
    pub(crate) fn losses(&self) -> Vec<(u64, f64)> {
        self.steps.iter().map(|step| (step.step, f64::from(step.loss))).collect()
    }

    /// Losses, smoothed as they are drawn.
    pub(crate) fn smoothed_losses(&self) -> Vec<(u64, f64)> {
        smoothed(&self.losses())
    }

    /// The update with the lowest loss.
    pub(crate) fn lowest_loss(&self) -> Option<&'a Step> {
        let finite = self.steps.iter().copied().filter(|step| step.loss.is_finite());
        finite.min_by(|a, b| a.loss.total_cmp(&b.loss))
    }

    /// Updates whose loss or gradient is no number.
    pub(crate) fn diverged(&self) -> Vec<u64> {
        let is_wild = |step: &&&Step| !(step.loss.is_finite() && step.grad_norm.is_finite());
        self.steps.iter().filter(is_wild).map(|step| step.step).collect()
    }

    /// What each bucket took: those that are planned, in the order of the plan, then others by name.
    pub(crate) fn buckets(&self) -> Vec<BucketUse> {
        let planned = self.start.buckets.iter().map(|plan| BucketUse {
            name: plan.name.clone(),
            plan: Some(plan.clone()),
            ..BucketUse::default()
        });
        let mut buckets: Vec<BucketUse> = planned.collect();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for (place, bucket) in buckets.iter().enumerate() {
            places.entry(bucket.name.clone()).or_insert(place);
        }
        let names: Vec<&String> = self.steps.iter().flat_map(|step| &step.buckets).collect();
        let mut others: Vec<&String> =
            names.into_iter().filter(|name| !places.contains_key(*name)).collect();
        others.sort();
        others.dedup();
        for name in others {
            places.insert(name.clone(), buckets.len());
            buckets.push(BucketUse { name: name.clone(), ..BucketUse::default() });
        }
        for step in &self.steps {
            let in_step: Vec<usize> = step.buckets.iter().map(|name| places[name]).collect();
            let flops =
                |place: &usize| buckets[*place].plan.as_ref().map_or(0.0, |plan| plan.flops as f64);
            let weights: Vec<f64> = in_step.iter().map(flops).collect();
            let all: f64 = weights.iter().sum();
            let even = 1.0 / in_step.len().max(1) as f64;
            // One batch is the whole step, whatever it was planned to take.
            let is_known = weights.iter().all(|weight| *weight > 0.0);
            for (place, weight) in in_step.into_iter().zip(weights) {
                let share = if is_known { weight / all } else { even };
                buckets[place].n_batches += 1;
                buckets[place].seconds += step.seconds * share;
            }
        }
        buckets
    }

    /// Replacements by sample and reason, in the order of the first of each.
    pub(crate) fn causes(&self) -> Vec<Cause<'a>> {
        let mut causes: Vec<Cause<'a>> = Vec::new();
        let mut places = BTreeMap::new();
        for &replaced in &self.replaced {
            let place = *places.entry((&replaced.path, &replaced.reason)).or_insert(causes.len());
            match causes.get_mut(place) {
                Some(cause) => cause.count += 1,
                None => causes.push(Cause { first: replaced, count: 1 }),
            }
        }
        causes
    }
}

/// An exponential mean of what is finite, over a twenty-fifth of the points. The first points weigh as much as others.
pub(crate) fn smoothed(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let span = (points.len() / SMOOTH_PARTS).max(1) as f64;
    let keep = 1.0 - 2.0 / (span + 1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let finite = points.iter().filter(|(_, value)| value.is_finite());
    finite
        .map(|&(step, value)| {
            sum = sum * keep + value * (1.0 - keep);
            weight = weight * keep + (1.0 - keep);
            (step, sum / weight)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use training::run_log::Record;

    use super::*;

    #[test]
    fn smoothing_keeps_a_constant_and_skips_what_is_no_number() {
        let mut points: Vec<(u64, f64)> = (1..=500).map(|step| (step, 3.0)).collect();
        points[250].1 = f64::NAN;
        let smooth = smoothed(&points);
        assert_eq!(smooth.len(), 499);
        assert!(smooth.iter().all(|(_, value)| (value - 3.0).abs() < 1e-12));
        // Few points are as they are.
        assert_eq!(smoothed(&[(1, 5.0), (2, 1.0)]), [(1, 5.0), (2, 1.0)]);
    }

    fn record(time: f64, event: Event) -> Record {
        Record { time, event }
    }

    fn start(step: u64) -> Event {
        Event::Start(Start {
            step,
            version: String::new(),
            recipe: String::new(),
            recipe_text: String::new(),
            model: String::new(),
            params: 1,
            trained_params: 1,
            buckets: ["a", "b"].map(plan).to_vec(),
            steps: 100,
            seed: 1,
            threads: 1,
            limit_gflops: None,
        })
    }

    /// A bucket whose steps are as much work as its name says: `a` 1, `b` 2 and so on.
    fn plan(name: &str) -> BucketPlan {
        let flops = u64::from(name.as_bytes()[0] - b'a' + 1);
        BucketPlan { name: name.into(), peak_bytes: 1, flops, recomputed_flops: 0 }
    }

    fn step(step: u64, buckets: &[&str]) -> Event {
        Event::Step(Step {
            step,
            epoch: 0,
            buckets: buckets.iter().map(|name| (*name).into()).collect(),
            loss: 1.0,
            lr: 1.0,
            grad_norm: 1.0,
            samples: 5,
            tokens: 7,
            seconds: 6.0,
            flops: 1,
            data_wait_seconds: 0.0,
            rss_bytes: 1,
        })
    }

    #[test]
    fn time_is_that_of_the_sessions_and_sums_are_of_all_updates() {
        let events = [start(0), step(10, &["a"]), start(10), step(20, &["a"]), step(30, &["a"])];
        let times = [100.0, 160.0, 1000.0, 1030.0, 1060.0];
        let records = times.into_iter().zip(events).map(|(time, event)| record(time, event));
        let history = History { records: records.collect() };
        let summary = Summary::of(&history).unwrap();
        assert_eq!(summary.elapsed(), 120.0);
        // Every tenth update is logged.
        assert_eq!(summary.total_text(|step| step.samples), "about 150");
        assert_eq!(summary.total(|step| step.samples), 15);
        assert_eq!(summary.resumes(), [10]);
        assert!(Summary::of(&History::default()).is_none());
    }

    #[test]
    fn prompts_keep_the_order_of_a_validation() {
        let video = |step, prompt: &str| {
            Event::Validation(Validation {
                step,
                prompt: prompt.into(),
                file: String::new(),
                frames_png: None,
            })
        };
        // The second of the two at 20 takes the place of the one before.
        let events = [start(0), video(10, "z"), video(10, "a"), video(20, "z"), video(20, "z")];
        let records = events.map(|event| record(0.0, event)).to_vec();
        let history = History { records };
        let summary = Summary::of(&history).unwrap();
        let told = summary.validations.iter().map(|video| (video.step, video.prompt.as_str()));
        assert!(told.eq([(10, "z"), (10, "a"), (20, "z")]));
    }

    #[test]
    fn a_step_of_several_buckets_is_divided_by_their_work() {
        let events = [start(0), step(1, &["a", "b"]), step(2, &["b"]), step(3, &["a", "new"])];
        let records = events.map(|event| record(0.0, event)).to_vec();
        let history = History { records };
        let buckets = Summary::of(&history).unwrap().buckets();
        let used: Vec<_> =
            buckets.iter().map(|b| (b.name.as_str(), b.n_batches, b.seconds)).collect();
        // What was not planned has a half.
        assert_eq!(used, [("a", 2, 2.0 + 3.0), ("b", 2, 4.0 + 6.0), ("new", 1, 3.0)]);
    }
}
