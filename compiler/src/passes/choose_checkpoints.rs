//! `choose-checkpoints`: which values of a training step are kept, and which are made again, so that it fits
//! a budget of bytes with the least added work.
//!
//! What is live at the fullest place of the program and is read only later is a candidate: its users after
//! that place may read a copy. It gains its bytes and costs the nodes that a copy takes. The candidate with
//! the most bytes for its cost goes first, in the place that is the fullest then, until all places fit;
//! afterwards each drop is taken back that turned out not to be needed, the most expensive first. For one
//! full place and candidates that do not depend on each other that is the greedy solution of the fractional
//! knapsack (Dantzig 1957), which is off by less than one candidate. Values are those of the fused graph,
//! that is, what kernels store: recomputing is a choice among buffers, not among blocks of a model.

use std::cmp::Reverse;

use ops::{Graph, ValueId};

use crate::recompute::{Drops, Facts, Program};

/// What moving a byte is worth in FLOPs: some such ratio holds of every machine, and it only ranks
/// candidates.
const FLOPS_PER_BYTE: u64 = 8;

/// Drops that are tried to be taken back.
const MAX_TAKEN_BACK: usize = 400;

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
            live_bytes: facts.live_bytes(program).into_iter().max().unwrap_or_default(),
        }
    }
}

/// Makes again what it takes for at most `budget` live bytes. Where that cannot be, the result is the
/// smallest that was found.
pub fn choose_checkpoints(graph: &Graph, budget: usize) -> Checkpoints {
    let facts = Facts::of(graph);
    let mut drops = Drops::new();
    let mut program = facts.program(&drops);
    let mut best: Option<(usize, Drops)> = None;
    loop {
        let live = facts.live_bytes(&program);
        let fullest = (0..live.len()).max_by_key(|&at| (live[at], Reverse(at)));
        let Some(fullest) = fullest else { break };
        let excess = live[fullest].saturating_sub(budget);
        if best.as_ref().is_none_or(|(least, _)| live[fullest] < *least) {
            best = Some((live[fullest], drops.clone()));
        }
        if excess == 0 {
            break;
        }
        let mut candidates = candidates(&facts, &mut drops, program.instances[fullest].at);
        candidates.sort_by(|a, b| b.rank(a));
        // The costs of the others change with each drop.
        let mut freed = 0;
        for candidate in &candidates {
            drops.insert(candidate.value, candidate.last);
            freed += candidate.bytes;
            if freed >= excess.div_ceil(2) {
                break;
            }
        }
        if candidates.is_empty() {
            break;
        }
        program = facts.program(&drops);
    }
    let drops = best.map(|(_, drops)| drops).unwrap_or_default();
    let drops = take_back(&facts, drops, budget);
    Checkpoints::of(&facts, &drops, &facts.program(&drops))
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

/// What a copy of `value` costs, in FLOPs.
fn cost(facts: &Facts<'_>, value: ValueId) -> u64 {
    if !facts.is_stored(value) {
        return 0;
    }
    let args = facts.graph.arg_types(value);
    let moved = args.iter().map(|ty| ty.bytes()).sum::<usize>() + facts.graph.ty(value).bytes();
    facts.flops[value.index()].saturating_add(FLOPS_PER_BYTE * moved as u64)
}

/// Keeps again what can be kept within `budget`.
fn take_back(facts: &Facts<'_>, mut drops: Drops, budget: usize) -> Drops {
    let peak = |program: &Program| facts.live_bytes(program).into_iter().max().unwrap_or_default();
    let mut program = facts.program(&drops);
    let limit = budget.max(peak(&program));
    let mut order: Vec<ValueId> = drops.keys().copied().collect();
    order.sort_by_key(|&value| (Reverse(facts.flops[value.index()]), value));
    for value in order.into_iter().take(MAX_TAKEN_BACK) {
        let Some(last) = drops.remove(&value) else { continue };
        let other = facts.program(&drops);
        let is_less = facts.added_flops(&other) < facts.added_flops(&program);
        if is_less && peak(&other) <= limit {
            program = other;
        } else {
            drops.insert(value, last);
        }
    }
    drops
}
