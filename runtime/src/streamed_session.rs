//! A session whose weights pass through a ring while it runs: for models that are larger than the
//! memory that they may take.

use std::sync::Arc;
use std::time::Instant;

use compiler::{Place, Plan};
use kernels::Pool;

use crate::arena::Arena;
use crate::stream::{Load, Progress, Schedule};
use crate::weights::Form;
use crate::{Control, Error, Session, WeightStore};

/// Weights that the source is told of before they are made: enough to keep a disk busy.
const PREFETCHED: usize = 3;

/// Seconds of all runs of a [`StreamedSession`].
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct StreamTimes {
    /// In which weights were made, beside the steps.
    pub making: f64,
    /// In which steps waited for weights.
    pub waiting: f64,
}

/// A [`Session`] that reads most weights from their source in every run, ahead of the steps that
/// need them. Its numbers are those of a session.
#[derive(Debug)]
pub struct StreamedSession<'w> {
    session: Session,
    weights: &'w WeightStore,
    schedule: Schedule,
    ring: Arena,
    /// For each step how many loads must have come.
    needed: Vec<usize>,
    /// Packs while the session's own pool runs steps.
    pool: Pool,
    times: StreamTimes,
}

/// The least bytes, arena included, in which `plan` can run with streamed weights: those of `weights`,
/// or such as are stored in the types that the plan reads.
pub fn least_streamed_bytes(plan: &Plan, weights: Option<&WeightStore>) -> usize {
    plan.arena_bytes + Schedule::least_bytes(plan, weights)
}

impl<'w> StreamedSession<'w> {
    /// Allocates arena and ring, together with the weights that stay and the one that is being made
    /// at most `memory` bytes.
    ///
    /// # Errors
    /// As [`Session::new`], and [`Error::TooLittleMemory`] with what is needed.
    pub fn new(
        plan: Arc<Plan>,
        weights: &'w WeightStore,
        pool: Arc<Pool>,
        memory: usize,
    ) -> Result<StreamedSession<'w>, Error> {
        let too_little = || Error::TooLittleMemory {
            memory,
            needed: least_streamed_bytes(&plan, Some(weights)),
        };
        let weight_bytes = memory.checked_sub(plan.arena_bytes).ok_or_else(too_little)?;
        let schedule = Schedule::new(&plan, weights, weight_bytes).ok_or_else(too_little)?;
        let ring = Arena::new(schedule.ring_bytes, "ring of weights")?;
        let mut needed = vec![0; plan.steps.len()];
        let mut given = Vec::new();
        for (number, load) in schedule.loads.iter().enumerate() {
            // Loads are in the order of their first readers.
            needed[load.readers[0].0] = number + 1;
            // SAFETY: the schedule has every load inside the ring.
            let ptr = unsafe { ring.ptr().add(load.offset) }.cast_const();
            given.extend(load.readers.iter().map(|&(step, position)| (step, position, ptr)));
        }
        let mut most = 0;
        for needed in &mut needed {
            most = most.max(*needed);
            *needed = most;
        }
        let session = Session::bind(plan, weights, pool, &given)?;
        let pool = Pool::new(1).map_err(|error| Error::Loader(error.to_string()))?;
        let times = StreamTimes::default();
        Ok(StreamedSession { session, weights, schedule, ring, needed, pool, times })
    }

    /// The session, for its plan, outputs and times.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Bytes held: arena, ring, the weights that stay, and the one that is being made.
    pub fn held_bytes(&self) -> usize {
        let Schedule { held_bytes, ring_bytes, passing_bytes, .. } = self.schedule;
        self.session.plan().arena_bytes + held_bytes + ring_bytes + passing_bytes
    }

    /// Bytes of weights that pass through the ring in every run.
    pub fn streamed_bytes(&self) -> usize {
        self.schedule.loads.iter().map(|load| load.bytes).sum()
    }

    /// Seconds of all runs so far.
    pub fn times(&self) -> StreamTimes {
        self.times
    }

    /// [`Session::run_with`].
    ///
    /// # Errors
    /// As there, and what the source of weights says.
    pub fn run_with(
        &mut self,
        inputs: &[(&str, &[u8])],
        control: Control<'_>,
    ) -> Result<(), Error> {
        let progress = Progress::default();
        let StreamedSession { session, weights, schedule, ring, needed, pool, times } = self;
        let (weights, schedule, ring, pool) = (&**weights, &*schedule, &*ring, &*pool);
        let plan = session.shared_plan();
        session.write_inputs(inputs)?;
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| {
                let mut making = 0.0;
                let result = schedule.loads.iter().enumerate().try_for_each(|(number, load)| {
                    // All that are ahead before the first, then one more with each.
                    let from = if number == 0 { 0 } else { number + PREFETCHED };
                    let ahead = (from..=number + PREFETCHED).filter_map(|n| schedule.loads.get(n));
                    ahead.for_each(|load| weights.prefetch(Schedule::param(&plan, load).0));
                    if !progress.wait_for_steps(load.after) {
                        return Ok(());
                    }
                    let start = Instant::now();
                    fill(weights, &plan, load, ring, pool)?;
                    making += start.elapsed().as_secs_f64();
                    progress.loaded();
                    Ok(())
                });
                progress.end(result.err());
                making
            });
            let mut waiting = 0.0;
            let before = |step: usize| {
                let start = Instant::now();
                let loaded = progress.wait_for_loads(needed[step]);
                waiting += start.elapsed().as_secs_f64();
                loaded
            };
            let result = session.run_steps(control, before, || progress.done());
            progress.end(None);
            times.waiting += waiting;
            times.making += loader.join().expect("the loader does not panic");
            result
        })
    }
}

/// Puts one weight into its place in the ring.
fn fill(
    weights: &WeightStore,
    plan: &Plan,
    load: &Load,
    ring: &Arena,
    pool: &Pool,
) -> Result<(), Error> {
    let (index, position) = load.readers[0];
    let step = &plan.steps[index];
    let Place::Param { name, ty, packing } = &step.operands[position].place else {
        unreachable!("only parameters are loaded");
    };
    let bytes = packing.as_ref().map_or(ty.bytes(), |packing| packing.bytes);
    // SAFETY: inside the ring. Nobody reads these bytes now: their former readers are done
    // (`Load::after`), and the next ones wait until this load is counted.
    let out = unsafe { std::slice::from_raw_parts_mut(ring.ptr().add(load.offset), bytes) };
    let kernel = step.kernel.def();
    weights.fill(&Form { name, ty, packing: packing.as_ref(), kernel, position }, out, pool)
}
