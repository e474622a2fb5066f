//! A plan that runs on made-up numbers, step by step against the clock.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use compiler::Plan;
use kernels::Pool;
use runtime::{Control, LimitedSession, Session, StreamTimes, WeightStore};

use crate::Error;
use crate::made_up::MadeUp;

/// Seconds of one step over several runs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StepSeconds {
    /// The shortest: what the machine can do when nothing disturbs it.
    pub least: f64,
    /// The mean.
    pub mean: f64,
}

/// A plan with weights and inputs.
#[derive(Debug)]
pub struct Rehearsal<'w> {
    session: LimitedSession<'w>,
    inputs: Vec<(String, Vec<u8>)>,
    steps: Vec<StepSeconds>,
    stream: StreamTimes,
    runs: usize,
}

impl Rehearsal<'static> {
    /// Allocates the arena and makes up weights and inputs.
    ///
    /// # Errors
    /// [`Error::Run`] if there is not enough memory.
    pub fn new(plan: Arc<Plan>, pool: Arc<Pool>) -> Result<Rehearsal<'static>, Error> {
        let weights = WeightStore::new(MadeUp::of(&plan.graph));
        let session = Session::new(plan, &weights, pool)?;
        Ok(Rehearsal::of(LimitedSession::Held(session)))
    }
}

impl<'w> Rehearsal<'w> {
    /// The same with other weights, in at most `memory` bytes of arena and weights if that is given.
    ///
    /// # Errors
    /// [`Error::Run`] if a weight is missing or there is not enough memory.
    pub fn with_weights(
        plan: Arc<Plan>,
        pool: Arc<Pool>,
        weights: &'w WeightStore,
        memory: Option<usize>,
    ) -> Result<Rehearsal<'w>, Error> {
        Ok(Rehearsal::of(LimitedSession::new(plan, weights, pool, memory)?))
    }

    fn of(session: LimitedSession<'w>) -> Rehearsal<'w> {
        let plan = session.session().plan();
        let inputs = MadeUp::inputs(plan);
        let steps = vec![StepSeconds { least: f64::INFINITY, mean: 0.0 }; plan.steps.len()];
        Rehearsal { session, inputs, steps, stream: StreamTimes::default(), runs: 0 }
    }

    /// What runs the plan.
    pub fn session(&self) -> &LimitedSession<'w> {
        &self.session
    }

    /// Mean seconds of a run that counted in which weights were streamed; zero if they are held.
    pub fn stream(&self) -> StreamTimes {
        self.stream
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.session.session().plan()
    }

    /// Runs once without counting: pages are touched and caches filled.
    ///
    /// # Errors
    /// [`Error::Run`] when interrupted.
    pub fn warm_up(&mut self, interrupt: Option<&AtomicBool>) -> Result<(), Error> {
        self.time(interrupt, &mut |_| {}).map(drop)
    }

    /// Runs once and counts; `on_flops` is told after each step the FLOPs done so far. Gives the
    /// seconds of all steps.
    ///
    /// # Errors
    /// [`Error::Run`] when interrupted.
    pub fn run(
        &mut self,
        interrupt: Option<&AtomicBool>,
        on_flops: &mut dyn FnMut(u64),
    ) -> Result<f64, Error> {
        let before = self.stream_times();
        let seconds = self.time(interrupt, on_flops)?;
        let after = self.stream_times();
        self.runs += 1;
        let share = 1.0 / self.runs as f64;
        self.stream.making += (after.making - before.making - self.stream.making) * share;
        self.stream.waiting += (after.waiting - before.waiting - self.stream.waiting) * share;
        for (step, seconds) in self.steps.iter_mut().zip(&seconds) {
            step.least = step.least.min(*seconds);
            step.mean += (seconds - step.mean) / self.runs as f64;
        }
        Ok(seconds.iter().sum())
    }

    /// Seconds of each step over the runs that counted; at least one must have been.
    pub fn steps(&self) -> &[StepSeconds] {
        assert!(self.runs > 0, "no run was counted yet");
        &self.steps
    }

    /// How many runs counted.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Those of all runs.
    fn stream_times(&self) -> StreamTimes {
        match &self.session {
            LimitedSession::Held(_) => StreamTimes::default(),
            LimitedSession::Streamed(session) => session.times(),
        }
    }

    /// Seconds of each step of one run.
    fn time(
        &mut self,
        interrupt: Option<&AtomicBool>,
        on_flops: &mut dyn FnMut(u64),
    ) -> Result<Vec<f64>, Error> {
        let seconds = |session: &Session| -> Vec<f64> {
            session.times().iter().map(|time| time.seconds).collect()
        };
        let before = seconds(self.session.session());
        let inputs: Vec<(&str, &[u8])> =
            self.inputs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        self.session.run_with(&inputs, Control { interrupt, on_step: Some(on_flops) })?;
        Ok(seconds(self.session.session())
            .iter()
            .zip(before)
            .map(|(after, before)| after - before)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use kernels::{Isa, Target};
    use ops::{Builder, DType, TensorType};
    use std::sync::atomic::Ordering;

    use super::*;

    fn rehearsal() -> Rehearsal<'static> {
        let mut b = Builder::new("layer");
        let x = b.input("x", TensorType::new(DType::F32, [8, 16]).unwrap());
        let weight = b.param("weight", TensorType::new(DType::F32, [4, 16]).unwrap());
        let y = b.linear(x, weight, None).unwrap();
        let target = Target {
            isa: Isa::detect(),
            threads: 1,
            l1_bytes: 32 << 10,
            l2_bytes: 1 << 20,
            l3_bytes: 16 << 20,
            gpu: None,
            tiles: None,
        };
        let plan = compiler::compile(b.finish(&[y]), &target).unwrap();
        Rehearsal::new(Arc::new(plan), Arc::new(Pool::new(1).unwrap())).unwrap()
    }

    #[test]
    fn counts_runs_but_not_the_first() {
        let mut rehearsal = rehearsal();
        rehearsal.warm_up(None).unwrap();
        assert_eq!(rehearsal.runs(), 0);
        let mut flops = 0;
        let seconds: Vec<f64> =
            (0..3).map(|_| rehearsal.run(None, &mut |done| flops = done).unwrap()).collect();
        assert_eq!((rehearsal.runs(), flops), (3, rehearsal.plan().flops()));
        let [step] = rehearsal.steps() else { panic!("one step: {:?}", rehearsal.steps()) };
        let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(step.least, least);
        assert!((step.mean - seconds.iter().sum::<f64>() / 3.0).abs() < 1e-9);
    }

    #[test]
    fn stops_when_asked() {
        let interrupt = AtomicBool::new(false);
        interrupt.store(true, Ordering::Relaxed);
        let result = rehearsal().run(Some(&interrupt), &mut |_| {});
        assert!(matches!(result, Err(Error::Run(runtime::Error::Interrupted))), "{result:?}");
    }
}
