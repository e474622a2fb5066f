//! `choose-checkpoints`: which values of a training step are kept, and which are made again, so that it fits
//! a budget of bytes with the least added work.
//!
//! What is live at the fullest place of the program and is read only later is a candidate: its users after
//! that place may read a copy. It gains its bytes and costs the nodes that a copy takes. The candidate with
//! the most bytes for its cost goes first, in the place that is the fullest then, until all places fit;
//! afterwards each drop is taken back that turned out not to be needed, or is worth less than another, the
//! most expensive first. For one
//! full place and candidates that do not depend on each other that is the greedy solution of the fractional
//! knapsack (Dantzig 1957), which is off by less than one candidate. Values are those of the fused graph,
//! that is, what kernels store: recomputing is a choice among buffers, not among blocks of a model.

use std::cmp::Reverse;

use ops::{Graph, ValueId};

use crate::plan::Carry;
use crate::recompute::{Drops, Facts, Program};

/// How many bytes that are moved weigh as much as a FLOP: they tell apart what computes nothing.
const BYTES_PER_FLOP: u64 = 64;

/// How often drops are tried to be taken back, times the number of values.
const MAX_TRIED_VALUES: usize = 4_000_000;

/// What part of the bytes that were reached is aimed to be saved next.
const NEAR_AIM: usize = 8;

/// Candidates that are tried one by one before a place is given up.
const MAX_TRIED: usize = 24;

/// What is tried in place of a drop.
const MAX_EXCHANGES: usize = 3;

/// A graph that makes some values again.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    /// The graph.
    pub graph: Graph,
    /// The values of the given graph that are not kept, ascending.
    pub recomputed: Vec<ValueId>,
    /// Their bytes.
    pub recomputed_bytes: usize,
    /// FLOPs of what is made again.
    pub added_flops: u64,
    /// Estimate of the most bytes that are live at once.
    pub live_bytes: usize,
}

impl Checkpoints {
    fn of(facts: &Facts<'_>, drops: &Drops, program: &Program) -> Checkpoints {
        let bytes = drops.keys().map(|&value| facts.graph.ty(value).bytes());
        Checkpoints {
            graph: facts.build(program),
            recomputed: drops.keys().copied().collect(),
            recomputed_bytes: bytes.sum(),
            added_flops: facts.added_flops(program),
            live_bytes: fullest(&facts.live_bytes(program)).1,
        }
    }
}

/// Makes again what it takes for at most `budget` live bytes. Where that cannot be, the result is the
/// smallest that was found.
pub fn choose_checkpoints(graph: &Graph, budget: usize) -> Checkpoints {
    choose_checkpoints_beside(graph, budget, &[])
}

/// [`choose_checkpoints`] where carried inputs, and the outputs that are written over them, are not in the arena.
pub fn choose_checkpoints_beside(graph: &Graph, budget: usize, carries: &[Carry]) -> Checkpoints {
    let facts = Facts::beside(graph, carries);
    let mut best = drop_towards(&facts, budget);
    if best.0 > budget {
        // What frees enough at once is not always what leads further: other aims take other ways. Far ones drop much
        // at once, near ones little.
        let lower = drop_towards(&facts, 0);
        if lower.0 < best.0 {
            best = lower;
        }
        while best.0 > budget {
            let nearer = drop_towards(&facts, (best.0 - best.0 / NEAR_AIM).max(budget));
            if nearer.0 >= best.0 {
                break;
            }
            best = nearer;
        }
    }
    let drops = take_back(&facts, best.1, budget);
    Checkpoints::of(&facts, &drops, &facts.program(&drops))
}

/// Drops value after value where memory is fullest, until it is at most `budget` bytes or nothing helps: the fewest
/// bytes on the way, and what is dropped for them.
fn drop_towards(facts: &Facts<'_>, budget: usize) -> (usize, Drops) {
    let mut drops = Drops::new();
    let mut program = facts.program(&drops);
    let mut best = (usize::MAX, Drops::new());
    loop {
        let live = facts.live_bytes(&program);
        let (at, bytes) = fullest(&live);
        if bytes < best.0 {
            best = (bytes, drops.clone());
        }
        if bytes <= budget {
            break;
        }
        let mut candidates = candidates(facts, &mut drops, program.instances[at].at);
        candidates.sort_by(|a, b| b.rank(a));
        // Many at once, because the costs of the others change with each and each takes a walk over the
        // program; where that does not help, one of them.
        let mut freed = 0;
        let many = candidates.iter().take_while(|candidate| {
            let is_enough = freed >= (bytes - budget).div_ceil(2);
            freed += candidate.bytes;
            !is_enough
        });
        let many = many.count();
        let excess = excess(&live, budget);
        let tries =
            std::iter::once(&candidates[..many]).chain(candidates.chunks(1).take(MAX_TRIED));
        let accepted = tries.filter(|tried| !tried.is_empty()).find_map(|tried| {
            drops.extend(tried.iter().map(|candidate| (candidate.value, candidate.last)));
            let next = facts.program(&drops);
            if self::excess(&facts.live_bytes(&next), budget) < excess {
                return Some(next);
            }
            drops.retain(|&value, _| tried.iter().all(|candidate| candidate.value != value));
            None
        });
        match accepted {
            Some(next) => program = next,
            None => break,
        }
    }
    best
}

/// Makes every stored value again for which `is_dropped` says so and that is read both before and after
/// position `last`: the rule of a whole block, or of every so many blocks.
pub fn recompute_where(
    graph: &Graph,
    last: usize,
    is_dropped: impl Fn(ValueId) -> bool,
) -> Checkpoints {
    let facts = Facts::of(graph);
    let crosses = |&value: &ValueId| {
        facts.is_stored(value)
            && value.index() <= last
            && facts.reads[value.index()]
                .last()
                .is_some_and(|&read| read > last && read < graph.nodes.len())
    };
    let values = graph.values().filter(crosses).filter(|&value| is_dropped(value));
    let drops: Drops = values.map(|value| (value, last)).collect();
    Checkpoints::of(&facts, &drops, &facts.program(&drops))
}

/// A value that could be made again.
#[derive(Debug)]
struct Candidate {
    value: ValueId,
    /// The last position that reads the original.
    last: usize,
    bytes: usize,
    cost: u64,
}

impl Candidate {
    /// By bytes for the cost; ties go to the earlier value.
    fn rank(&self, other: &Candidate) -> std::cmp::Ordering {
        let own = self.bytes as u128 * u128::from(other.cost);
        let others = other.bytes as u128 * u128::from(self.cost);
        own.cmp(&others).then(other.value.cmp(&self.value))
    }
}

/// What is kept over position `at` without being read there.
fn candidates(facts: &Facts<'_>, drops: &mut Drops, at: usize) -> Vec<Candidate> {
    let end = facts.graph.nodes.len();
    let mut found = vec![];
    for value in facts.graph.values().take(at) {
        let reads = &facts.reads[value.index()];
        if !facts.is_stored(value) || drops.contains_key(&value) || reads.last() == Some(&end) {
            continue;
        }
        let next = reads.partition_point(|&read| read < at);
        let Some(&next_read) = reads.get(next) else { continue };
        if next_read == at {
            continue;
        }
        let last = if next > 0 { reads[next - 1] } else { value.index() };
        drops.insert(value, last);
        let again = facts.to_make(drops, value, next_read, |_| false);
        drops.remove(&value);
        let cost = again.iter().map(|&value| cost(facts, value)).sum::<u64>().max(1);
        let bytes = facts.graph.ty(value).bytes();
        found.push(Candidate { value, last, bytes, cost });
    }
    found
}

/// What a copy of `value` costs, in FLOPs times [`BYTES_PER_FLOP`].
fn cost(facts: &Facts<'_>, value: ValueId) -> u64 {
    if !facts.is_stored(value) {
        return 0;
    }
    let args = facts.graph.arg_types(value);
    let moved = args.iter().map(|ty| ty.bytes()).sum::<usize>() + facts.graph.ty(value).bytes();
    facts.flops[value.index()].saturating_mul(BYTES_PER_FLOP).saturating_add(moved as u64)
}

/// Keeps again what can be kept within `budget`, at the price of something cheaper if need be.
fn take_back(facts: &Facts<'_>, mut drops: Drops, budget: usize) -> Drops {
    let mut program = facts.program(&drops);
    let limit = budget.max(fullest(&facts.live_bytes(&program)).1);
    let mut trials = MAX_TRIED_VALUES / facts.graph.nodes.len().max(1);
    let mut order: Vec<ValueId> = drops.keys().copied().collect();
    order.sort_by_key(|&value| (Reverse(facts.flops[value.index()]), value));
    for value in order {
        let Some(last) = drops.remove(&value) else { continue };
        let other = facts.program(&drops);
        let (at, bytes) = fullest(&facts.live_bytes(&other));
        let mut found = None;
        if facts.added_flops(&other) < facts.added_flops(&program) {
            if bytes <= limit {
                found = Some(other);
            } else {
                let mut cheaper = candidates(facts, &mut drops, other.instances[at].at);
                cheaper.retain(|one| one.value != value && one.bytes >= bytes - limit);
                cheaper.sort_by_key(|one| (one.cost, one.value));
                found = cheaper.iter().take(MAX_EXCHANGES).find_map(|one| {
                    drops.insert(one.value, one.last);
                    let with = facts.program(&drops);
                    let is_less = facts.added_flops(&with) < facts.added_flops(&program);
                    if is_less && fullest(&facts.live_bytes(&with)).1 <= limit {
                        return Some(with);
                    }
                    drops.remove(&one.value);
                    None
                });
            }
        }
        match found {
            Some(other) => program = other,
            None => {
                drops.insert(value, last);
            }
        }
        trials = trials.saturating_sub(1);
        if trials == 0 {
            break;
        }
    }
    drops
}

/// The place with the most live bytes, and those.
fn fullest(live: &[usize]) -> (usize, usize) {
    let places = live.iter().copied().enumerate();
    places.max_by_key(|&(at, bytes)| (bytes, Reverse(at))).unwrap_or_default()
}

/// What all places together have above `budget`.
fn excess(live: &[usize], budget: usize) -> u128 {
    live.iter().map(|bytes| bytes.saturating_sub(budget) as u128).sum()
}
