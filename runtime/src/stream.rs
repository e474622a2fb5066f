//! Weights that do not fit in memory: made in the order of the steps that read them, in a ring of
//! fixed size, the next ones while a step runs.
//!
//! Where each weight lies in the ring, and which step must be done before it may be written there,
//! is known before the first run. A run then needs two counters: how many weights are in place, and
//! how many steps are done. Weights that most of the plan reads, and small ones, are held as usual.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};

use compiler::{ALIGN_BYTES, Place, Plan};
use ops::TensorType;

use crate::weights::least_passing_bytes;
use crate::{Error, WeightStore};

/// A weight up to this size is held: loading it again costs more than it frees.
const SMALL_BYTES: usize = 64 << 10;
/// A weight whose first and last reader are further apart is held: it would block the ring.
const MAX_SPAN: usize = 64;

/// One weight on its way into the ring.
#[derive(Debug)]
pub(crate) struct Load {
    /// The operands that read it: step and position, ascending.
    pub(crate) readers: Vec<(usize, usize)>,
    /// Bytes in the form that the kernel wants.
    pub(crate) bytes: usize,
    /// First byte in the ring.
    pub(crate) offset: usize,
    /// Steps that must be done before its place is free.
    pub(crate) after: usize,
}

impl Load {
    fn first_step(&self) -> usize {
        self.readers[0].0
    }

    fn end_step(&self) -> usize {
        self.readers[self.readers.len() - 1].0 + 1
    }
}

/// What is loaded when.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// Operands whose weights are held throughout.
    pub(crate) held: Vec<(usize, usize)>,
    /// Bytes of the weights that are held, constants included.
    pub(crate) held_bytes: usize,
    /// In the order of loading.
    pub(crate) loads: Vec<Load>,
    /// Bytes of the ring.
    pub(crate) ring_bytes: usize,
    /// The most bytes beside the ring while a weight is made.
    pub(crate) passing_bytes: usize,
}

impl Schedule {
    /// The schedule of a plan that takes at most `weight_bytes` for weights at once, with those on
    /// their way into the ring; `None` if that is too little for some step.
    pub(crate) fn new(plan: &Plan, weights: &WeightStore, weight_bytes: usize) -> Option<Schedule> {
        let mut schedule = Schedule::without_places(plan);
        schedule.passing_bytes = schedule.most_passing(plan, Some(weights));
        let ring_bytes =
            weight_bytes.checked_sub(schedule.held_bytes)?.checked_sub(schedule.passing_bytes)?;
        schedule.ring_bytes = ring_bytes / ALIGN_BYTES * ALIGN_BYTES;
        schedule.assign().then_some(schedule)
    }

    /// The least weight bytes for which there is a schedule.
    pub(crate) fn least_bytes(plan: &Plan, weights: Option<&WeightStore>) -> usize {
        let mut schedule = Schedule::without_places(plan);
        let all: usize = schedule.loads.iter().map(|load| load.bytes).sum();
        let (mut too_small, mut enough) = (0, all);
        // Whether a ring works does not quite grow with its size, but what is found does work.
        while enough - too_small > ALIGN_BYTES {
            schedule.ring_bytes = (too_small + enough) / 2 / ALIGN_BYTES * ALIGN_BYTES;
            if schedule.ring_bytes == too_small {
                break;
            }
            if schedule.assign() {
                enough = schedule.ring_bytes;
            } else {
                too_small = schedule.ring_bytes;
            }
        }
        schedule.held_bytes + schedule.most_passing(plan, weights) + enough
    }

    /// What a load reads: name, type, and whether a kernel packs it.
    pub(crate) fn param<'p>(plan: &'p Plan, load: &Load) -> (&'p str, &'p TensorType, bool) {
        let (step, position) = load.readers[0];
        let place = &plan.steps[step].operands[position].place;
        let Place::Param { name, ty, packing } = place else {
            unreachable!("only parameters are loaded");
        };
        (name, ty, packing.is_some())
    }

    /// The most bytes that are in memory beside the ring while one weight is made.
    fn most_passing(&self, plan: &Plan, weights: Option<&WeightStore>) -> usize {
        let passing = self.loads.iter().map(|load| {
            let (name, ty, is_packed) = Schedule::param(plan, load);
            match weights {
                Some(weights) => weights.passing_bytes(name, ty, is_packed),
                None => least_passing_bytes(ty, is_packed),
            }
        });
        passing.max().unwrap_or(0)
    }

    /// Which weights are held and which are loaded, and when.
    fn without_places(plan: &Plan) -> Schedule {
        type Form = (String, String);
        let mut forms: BTreeMap<Form, (usize, Vec<(usize, usize)>)> = BTreeMap::new();
        let mut constants: BTreeMap<_, usize> = BTreeMap::new();
        for (index, step) in plan.steps.iter().enumerate() {
            for (position, operand) in step.operands.iter().enumerate() {
                match &operand.place {
                    Place::Param { name, ty, packing } => {
                        let form = packing.as_ref().map_or("", |packing| &packing.name);
                        let bytes = packing.as_ref().map_or(ty.bytes(), |packing| packing.bytes);
                        let key = (name.to_string(), form.to_string());
                        forms.entry(key).or_insert((bytes, vec![])).1.push((index, position));
                    }
                    Place::Constant(value) => {
                        constants.insert(*value, plan.graph.ty(*value).bytes());
                    }
                    Place::Buffer(_) => {}
                }
            }
        }
        let mut schedule = Schedule { held_bytes: constants.values().sum(), ..Schedule::default() };
        for (bytes, readers) in forms.into_values() {
            let load =
                Load { readers, bytes: bytes.next_multiple_of(ALIGN_BYTES), offset: 0, after: 0 };
            if bytes <= SMALL_BYTES || load.end_step() - load.first_step() > MAX_SPAN {
                schedule.held_bytes += bytes;
                schedule.held.extend(load.readers);
            } else {
                schedule.loads.push(load);
            }
        }
        schedule.held.sort_unstable();
        schedule.loads.sort_by_key(|load| load.readers[0]);
        schedule
    }

    /// Gives every load its place, one behind the other, from the start again at the end. `false`
    /// if one would have to wait for a step that waits for it.
    fn assign(&mut self) -> bool {
        let mut head = 0;
        for at in 0..self.loads.len() {
            let bytes = self.loads[at].bytes;
            if bytes > self.ring_bytes {
                return false;
            }
            if head + bytes > self.ring_bytes {
                head = 0;
            }
            let (low, high) = (head, head + bytes);
            let overlaps = |load: &&Load| load.offset < high && low < load.offset + load.bytes;
            let over = self.loads[..at].iter().filter(overlaps);
            let after = over.map(Load::end_step).max().unwrap_or(0);
            let load = &mut self.loads[at];
            (load.offset, load.after) = (low, after);
            if after > load.first_step() {
                return false;
            }
            head = high;
        }
        true
    }
}

/// How far a run and its loader are.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    n_loaded: usize,
    n_done: usize,
    /// Set by whoever gives up, so that the other does not wait forever.
    is_over: bool,
    error: Option<Error>,
}

impl Progress {
    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until `reached` holds; `false` if the other side has given up before.
    fn wait(&self, reached: impl Fn(&State) -> bool) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |state: &mut State| !reached(state) && !state.is_over;
        let state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        reached(&state)
    }

    /// One more weight is in place.
    pub(crate) fn loaded(&self) {
        self.update(|state| state.n_loaded += 1);
    }

    /// One more step is done.
    pub(crate) fn done(&self) {
        self.update(|state| state.n_done += 1);
    }

    /// Nothing more will come.
    pub(crate) fn end(&self, error: Option<Error>) {
        self.update(|state| {
            state.is_over = true;
            state.error = state.error.take().or(error);
        });
    }

    /// Waits for steps; `false` if the run has ended.
    pub(crate) fn wait_for_steps(&self, n: usize) -> bool {
        self.wait(|state| state.n_done >= n)
    }

    /// Waits for weights.
    pub(crate) fn wait_for_loads(&self, n: usize) -> Result<(), Error> {
        if self.wait(|state| state.n_loaded >= n) {
            return Ok(());
        }
        let error = self.state.lock().unwrap_or_else(PoisonError::into_inner).error.take();
        Err(error.unwrap_or(Error::Interrupted))
    }
}
