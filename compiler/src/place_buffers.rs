//! An offset for every buffer of one arena.
//!
//! Buffers are rectangles of bytes x steps whose steps are given: finding the least arena is
//! NP-hard. Greedy orders solve most plans of real models exactly, because a proven bound tells
//! when to stop; the others are repaired, again in a fixed number of tries, so that the same
//! buffers always get the same offsets.
//!
//! The bound: two buffers that are live at one step hold bytes that are still needed, so their
//! ranges are disjoint, and the arena holds at least the sum of what is live at that step. The
//! largest such sum over all steps is [`lower_bound`].

use crate::plan::{Buffer, Memory};

/// Repaired placements of each order, at most.
const MAX_REPAIRS: usize = 32;

/// Pairs of buffers that all repairs of an order may look at, so that very long plans are not
/// repaired for seconds.
const MAX_PAIRS: usize = 4 << 20;

/// The same for placement from both ends, which is what places steps of training: there each repair counts.
const MAX_PAIRS_ENDS: usize = 64 << 20;

/// The largest sum of bytes of the arena that are live at one step.
pub(crate) fn lower_bound(buffers: &[Buffer]) -> usize {
    live_bytes(buffers).into_iter().max().unwrap_or(0)
}

/// The bytes of the arena that are live at each step, from the writing of the inputs to the reading of the
/// outputs.
pub(crate) fn live_bytes(buffers: &[Buffer]) -> Vec<usize> {
    let n_steps = buffers.iter().map(|buffer| buffer.last_step + 1).max().unwrap_or(0);
    // Sums of changes: what begins at a step is added there, what ends is taken off one later.
    let mut begins = vec![0; n_steps];
    let mut ends = vec![0; n_steps + 1];
    for buffer in buffers.iter().filter(|buffer| buffer.memory == Memory::Arena) {
        begins[buffer.first_step] += buffer.bytes;
        ends[buffer.last_step + 1] += buffer.bytes;
    }
    let mut live = 0;
    (0..n_steps)
        .map(|step| {
            live = live + begins[step] - ends[step];
            live
        })
        .collect()
}

/// Sets every offset; returns the arena's bytes. Buffers in memory of their own stay at its start.
pub(crate) fn place_buffers(buffers: &mut [Buffer]) -> usize {
    let in_arena: Vec<&mut Buffer> =
        buffers.iter_mut().filter(|buffer| buffer.memory == Memory::Arena).collect();
    let mut placed: Vec<Buffer> = in_arena.iter().map(|buffer| (**buffer).clone()).collect();
    let arena = place_in_arena(&mut placed);
    for (buffer, placed) in in_arena.into_iter().zip(&placed) {
        buffer.offset = placed.offset;
    }
    arena
}

fn place_in_arena(buffers: &mut [Buffer]) -> usize {
    let bound = lower_bound(buffers);
    let mut best: Option<Placement> = None;
    let mut keep = |placement: Placement| {
        if best.as_ref().is_none_or(|best| placement.arena < best.arena) {
            best = Some(placement);
        }
        best.as_ref().is_some_and(|best| best.arena == bound)
    };
    type Key = fn(&Buffer) -> (usize, usize);
    // Largest first packs big activations tightly; longest-lived first keeps them at the bottom;
    // area balances both; arrival order suits chains.
    let keys: [Key; 4] = [
        |b| (usize::MAX - b.bytes, b.first_step),
        |b| (usize::MAX - (b.last_step - b.first_step), usize::MAX - b.bytes),
        |b| (usize::MAX - b.bytes.saturating_mul(b.last_step - b.first_step + 1), b.first_step),
        |b| (b.first_step, usize::MAX - b.bytes),
    ];
    let ordered = |key: Key| {
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_key(|&i| (key(&buffers[i]), i));
        order
    };
    let arena = Arena { buffers, pairs: count_pairs(buffers), bound };
    let mut is_done = false;
    for order in keys.map(ordered) {
        is_done = is_done || keep(arena.place(&order, Fit::Best));
        is_done = is_done || arena.repair(Fit::Lowest, MAX_PAIRS, order, &mut keep);
    }
    // Gradients are there from some step to the end, checkpoints from the start to some step: from opposite
    // ends, longest-lived first, either makes one staircase, and what is left between them is one range.
    let _ = is_done || arena.repair(Fit::Ends, MAX_PAIRS_ENDS, ordered(keys[1]), &mut keep);
    let Some(best) = best else { return 0 };
    for (buffer, offset) in buffers.iter_mut().zip(best.offsets) {
        buffer.offset = offset;
    }
    best.arena
}

/// Pairs of buffers that are live at one step, each counted for both.
fn count_pairs(buffers: &[Buffer]) -> usize {
    let n_steps = buffers.iter().map(|buffer| buffer.last_step + 1).max().unwrap_or(0);
    let (mut begin, mut end) = (vec![0; n_steps], vec![0; n_steps + 1]);
    for buffer in buffers {
        begin[buffer.first_step] += 1;
        end[buffer.last_step + 1] += 1;
    }
    let (mut live, mut pairs) = (0, 0);
    for step in 0..n_steps {
        live -= end[step];
        // Those that begin here meet what is live, and each other.
        let n: usize = begin[step];
        pairs += 2 * n * live + n * n.saturating_sub(1);
        live += n;
    }
    pairs
}

/// Offsets, and the arena that they need.
struct Placement {
    offsets: Vec<usize>,
    arena: usize,
}

/// Which of the gaps that hold a buffer it goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// The smallest.
    Best,
    /// The one of the lowest offset.
    Lowest,
    /// The lowest for what is live at the last step, the highest below the bound for all else.
    Ends,
}

/// What is to be placed.
struct Arena<'a> {
    buffers: &'a [Buffer],
    pairs: usize,
    bound: usize,
}

/// A buffer that has its place, as those that come later look at it.
#[derive(Clone, Copy)]
struct Placed {
    low: usize,
    high: usize,
    first_step: u32,
    last_step: u32,
}

impl Arena<'_> {
    /// Places buffers in `order`, each into a gap between those that are live at one of its steps, else on top of
    /// them.
    fn place(&self, order: &[usize], fit: Fit) -> Placement {
        let last_step = self.buffers.iter().map(|buffer| buffer.last_step).max();
        let mut offsets = vec![0; self.buffers.len()];
        let mut arena = 0;
        // By offset: looking through all of them is faster than sorting those that are live.
        let mut placed: Vec<Placed> = Vec::with_capacity(order.len());
        for &i in order {
            let Buffer { bytes, .. } = self.buffers[i];
            let steps = [self.buffers[i].first_step, self.buffers[i].last_step];
            let [first_step, last] = steps.map(|step| step as u32);
            let is_high = fit == Fit::Ends && Some(self.buffers[i].last_step) != last_step;
            let mut end = 0;
            let mut gap: Option<(usize, usize)> = None;
            for &Placed { low, high, .. } in placed
                .iter()
                .filter(|other| other.first_step <= last && other.last_step >= first_step)
            {
                if low >= end + bytes {
                    let size = low - end;
                    if is_high {
                        gap = Some((size, low - bytes));
                    } else if gap.is_none_or(|(least, _)| size < least) {
                        gap = Some((size, end));
                        if fit != Fit::Best {
                            break;
                        }
                    }
                }
                end = end.max(high);
            }
            offsets[i] = if is_high && end + bytes <= self.bound {
                self.bound - bytes
            } else {
                gap.map_or(end, |(_, offset)| offset)
            };
            let (low, high) = (offsets[i], offsets[i] + bytes);
            arena = arena.max(high);
            let at = placed.partition_point(|other| other.low < low);
            placed.insert(at, Placed { low, high, first_step, last_step: last });
        }
        Placement { offsets, arena }
    }

    /// Places again and again, each time with the largest of what had ended above the bound placed
    /// first: what finds no room was placed after rivals that had more choice. Returns what `keep`
    /// says last: whether a placement needs no more than the bound.
    fn repair(
        &self,
        fit: Fit,
        max_pairs: usize,
        mut order: Vec<usize>,
        keep: &mut impl FnMut(Placement) -> bool,
    ) -> bool {
        for _ in 0..MAX_REPAIRS.min(max_pairs / self.pairs.max(1)).max(1) {
            let placement = self.place(&order, fit);
            let is_above = |&i: &usize| placement.offsets[i] + self.buffers[i].bytes > self.bound;
            let culprit = (0..order.len())
                .filter(|&at| is_above(&order[at]))
                .max_by_key(|&at| (self.buffers[order[at]].bytes, at));
            let is_done = keep(placement);
            let Some(at) = culprit.filter(|_| !is_done) else { return is_done };
            order[..=at].rotate_right(1);
        }
        false
    }
}
