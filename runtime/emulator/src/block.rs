//! A block that executes: its warps in turns, its barriers, its memory.

use std::collections::BTreeMap;

use crate::ast::Space;
use crate::error::FaultKind;
use crate::exec::{Bulk, Group, Mbarrier, Pause, Warp};
use crate::launch::{Options, Order};
use crate::memory::clocks::{Known, MAX_WARPS, merge};
use crate::memory::{InLane, Memory, Wrong, resolve};
use crate::ops::{BarrierKind, Inst, Logic};
use crate::registers::{LANES, Reg, Word, lanes};
use crate::stats::Stats;

/// Barriers of a block.
const BARRIERS: usize = 16;
/// Instructions of a turn in a fixed order of warps.
const TURN: u64 = 1 << 14;

/// A barrier that some warps have reached.
#[derive(Debug)]
struct Barrier {
    /// Warps that wait.
    waiting: Vec<usize>,
    /// Warps that arrived, waiting or not.
    n_arrived: usize,
    /// Warps that must arrive, if the instruction says how many.
    n_expected: Option<usize>,
    published: Known,
    /// Lanes whose predicate held, and lanes.
    votes: (u32, u32),
    /// Where waiting warps want the result.
    results: Vec<(usize, BarrierKind)>,
}

/// What warps of a block share.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    pub(crate) memory: Memory<'a>,
    pub(crate) options: &'a Options,
    pub(crate) stats: Stats,
    /// Which instructions some lane executed.
    pub(crate) is_reached: &'a mut [bool],
    pub(crate) mbarriers: BTreeMap<u64, Mbarrier>,
    pub(crate) bulk_copies: Vec<Bulk>,
    /// Each four warps that are whole.
    pub(crate) groups: Vec<Group>,
    barriers: [Option<Barrier>; BARRIERS],
}

/// An error and the warp that made it.
pub(crate) struct BlockError {
    pub(crate) warp: usize,
    /// Index of the instruction.
    pub(crate) at: usize,
    pub(crate) wrong: Box<Wrong>,
}

impl<'a> Block<'a> {
    pub(crate) fn new(
        memory: Memory<'a>,
        options: &'a Options,
        n_warps: usize,
        is_reached: &'a mut [bool],
    ) -> Self {
        Self {
            memory,
            options,
            stats: Stats::default(),
            is_reached,
            mbarriers: BTreeMap::new(),
            bulk_copies: vec![],
            groups: vec![Group::default(); n_warps / Group::WARPS],
            barriers: [const { None }; BARRIERS],
        }
    }

    /// Counts the bytes that the lanes of `mask` access; `first` decides the space of a generic address.
    #[inline]
    pub(crate) fn count_access(
        &mut self,
        space: Option<Space>,
        first: u64,
        mask: u32,
        bytes: usize,
        is_write: bool,
    ) {
        let n = u64::from(mask.count_ones()) * bytes as u64;
        let counter = match (space.unwrap_or_else(|| resolve(first).0), is_write) {
            (Space::Global, false) => &mut self.stats.global_loaded,
            (Space::Global, true) => &mut self.stats.global_stored,
            (Space::Shared, false) => &mut self.stats.shared_loaded,
            (Space::Shared, true) => &mut self.stats.shared_stored,
            (Space::Local, _) => &mut self.stats.local,
            (Space::Const | Space::Param | Space::Register, _) => return,
        };
        *counter += n;
    }

    /// Runs all warps to their ends.
    pub(crate) fn run(
        &mut self,
        warps: &mut [Warp],
        code: &[Inst],
        seed: u64,
    ) -> Result<(), BlockError> {
        let mut turns = Turns { order: self.options.order, state: seed | 1, last: None };
        let mut states = vec![Pause::Turn; warps.len()];
        let mut steps_left = self.options.max_steps;
        loop {
            let Some(chosen) = turns.next(&states) else {
                if states.iter().all(|&state| state == Pause::Done) {
                    return Ok(());
                }
                return Err(self.deadlock(warps, &states));
            };
            let warp = &mut warps[chosen];
            let before = warp.n_steps;
            let ran = warp.run(self, code, turns.length().min(steps_left));
            steps_left -= warp.n_steps - before;
            states[chosen] =
                ran.map_err(|wrong| BlockError { warp: chosen, at: warp.at(), wrong })?;
            self.release(warps, &mut states);
            if steps_left == 0 && states[chosen] == Pause::Turn {
                let what =
                    format!("the block took {} steps and is not done", self.options.max_steps);
                let mut wrong = Wrong::boxed(FaultKind::StepLimit, what);
                let warp = &warps[chosen];
                wrong.lane = warp.first_lane();
                return Err(BlockError { warp: chosen, at: warp.at(), wrong });
            }
        }
    }

    /// Lets warps go whose barrier everyone has reached.
    fn release(&mut self, warps: &mut [Warp], states: &mut [Pause]) {
        let n_running = states.iter().filter(|&&state| state != Pause::Done).count();
        for slot in &mut self.barriers {
            // Without a count, a barrier waits for every warp that has not exited.
            let Some(mut barrier) =
                slot.take_if(|b| b.n_arrived >= b.n_expected.unwrap_or(n_running))
            else {
                continue;
            };
            self.stats.barriers += 1;
            // Whatever the warps that wait have done happens before what they do next.
            let time = self.memory.shared.clocks.tick();
            for &index in &barrier.waiting {
                barrier.published[index] = time;
            }
            for &index in &barrier.waiting {
                states[index] = Pause::Turn;
                self.memory.shared.clocks.acquire(index, &barrier.published);
            }
            let (held, n_lanes) = barrier.votes;
            for (index, kind) in barrier.results {
                let warp = &mut warps[index];
                let (mask, registers) = (warp.live, &mut warp.registers);
                let all = |holds: bool| if holds { u32::MAX } else { 0 };
                match kind {
                    BarrierKind::Sync | BarrierKind::Arrive => {}
                    BarrierKind::Popc { to, .. } => registers.set(mask, to, &[held; LANES]),
                    BarrierKind::Logic { logic: Logic::And, to, .. } => {
                        registers.set_pred(mask, to, all(held == n_lanes));
                    }
                    BarrierKind::Logic { to, .. } => registers.set_pred(mask, to, all(held != 0)),
                }
            }
        }
    }

    fn deadlock(&self, warps: &[Warp], states: &[Pause]) -> BlockError {
        let waiting = |state: Pause| {
            let list = states.iter().enumerate().filter(|(_, s)| **s == state);
            list.map(|(i, _)| i.to_string()).collect::<Vec<_>>().join(", ")
        };
        let (id, barrier) = self
            .barriers
            .iter()
            .enumerate()
            .filter_map(|(id, barrier)| Some((id, barrier.as_ref()?)))
            .find(|(_, barrier)| !barrier.waiting.is_empty())
            .expect("a warp that does not run waits at a barrier");
        let expected = barrier.n_expected.map_or("all".to_string(), |n| n.to_string());
        let what = format!(
            "deadlock: barrier {id} has {} of {expected} warps; waiting at barriers: {}; exited: {}",
            barrier.n_arrived,
            waiting(Pause::Barrier),
            waiting(Pause::Done),
        );
        let warp = barrier.waiting.first().copied().unwrap_or(0);
        let mut wrong = Wrong::boxed(FaultKind::Deadlock, what);
        wrong.lane = warps[warp].first_lane();
        // The warp stands behind its barrier.
        BlockError { warp, at: warps[warp].at().saturating_sub(1), wrong }
    }
}

impl Warp {
    /// Arrives at a barrier; whether it waits there.
    pub(crate) fn barrier(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        kind: BarrierKind,
        is_aligned: bool,
        id: Reg,
        threads: Option<Reg>,
    ) -> Result<bool, Box<Wrong>> {
        let lane = mask.trailing_zeros() as usize & 31;
        if mask != self.live {
            let (what, missing) = (
                if is_aligned { "by" } else { "(unaligned, which is emulated for whole warps) by" },
                self.live & !mask,
            );
            let what = format!(
                "barrier reached {what} lanes {mask:#010x} of warp {}, not by {missing:#010x}",
                self.index
            );
            return Err(Wrong::boxed(FaultKind::DivergentBarrier, what)).in_lane(lane);
        }
        let id = u32::row(&self.registers, id)[lane] as usize;
        let n_expected = threads.map(|reg| u32::row(&self.registers, reg)[lane]);
        let is_whole = n_expected.is_none_or(|n| n > 0 && n % LANES as u32 == 0);
        if id >= BARRIERS || !is_whole || kind_needs_count(kind) && n_expected.is_none() {
            let what = format!(
                "barrier {id} of {n_expected:?} threads: expected one of 16 and a multiple of 32"
            );
            return Err(Wrong::boxed(FaultKind::BadOperand, what)).in_lane(lane);
        }
        let n_expected = n_expected.map(|n| n as usize / LANES);
        let clocks = &mut block.memory.shared.clocks;
        let published = match kind {
            BarrierKind::Arrive => clocks.release(self.index),
            _ => *clocks.known(self.index),
        };
        let barrier = block.barriers[id].get_or_insert_with(|| Barrier {
            waiting: vec![],
            n_arrived: 0,
            n_expected,
            published: [0; MAX_WARPS],
            votes: (0, 0),
            results: vec![],
        });
        if barrier.n_expected != n_expected {
            let what = format!(
                "barrier {id} is waited for with {n_expected:?} warps here and {:?} elsewhere",
                barrier.n_expected
            );
            return Err(Wrong::boxed(FaultKind::DivergentBarrier, what)).in_lane(lane);
        }
        barrier.n_arrived += 1;
        merge(&mut barrier.published, &published);
        if let BarrierKind::Popc { pred, .. } | BarrierKind::Logic { pred, .. } = kind {
            let held = self.registers.pred(pred) & mask;
            barrier.votes.0 += held.count_ones();
            barrier.votes.1 += lanes(mask).count() as u32;
            barrier.results.push((self.index, kind));
        }
        if matches!(kind, BarrierKind::Arrive) {
            // Those that wait are released when the turn of this warp ends.
            return Ok(false);
        }
        barrier.waiting.push(self.index);
        Ok(true)
    }
}

fn kind_needs_count(kind: BarrierKind) -> bool {
    matches!(kind, BarrierKind::Arrive)
}

/// Which warp runs next, and for how long.
struct Turns {
    order: Order,
    state: u64,
    last: Option<usize>,
}

impl Turns {
    fn random(&mut self) -> u64 {
        // The xorshift generator of 64 bits.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn length(&mut self) -> u64 {
        match self.order {
            Order::Forward | Order::Reverse => TURN,
            Order::Random(_) => self.random() % 64 + 1,
        }
    }

    /// The next warp that can run; in a fixed order, the one after the last.
    fn next(&mut self, states: &[Pause]) -> Option<usize> {
        let n = states.len();
        let is_ready = |&i: &usize| states[i] == Pause::Turn;
        let chosen = match self.order {
            Order::Forward => {
                let first = self.last.map_or(0, |last| last + 1);
                (first..first + n).map(|i| i % n).find(is_ready)
            }
            Order::Reverse => {
                let first = self.last.unwrap_or(n) + n - 1;
                (0..n).map(|i| (first - i) % n).find(is_ready)
            }
            Order::Random(_) => {
                let ready: Vec<usize> = (0..n).filter(is_ready).collect();
                if ready.is_empty() {
                    return None;
                }
                Some(ready[(self.random() % ready.len() as u64) as usize])
            }
        };
        self.last = chosen;
        chosen
    }
}
