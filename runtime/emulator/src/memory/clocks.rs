//! Which accesses of which warps of a block happen before which.
//!
//! Time is one counter of the block that moves at every synchronization. `known[w][v]` is the time before which
//! every access of warp v happens before whatever warp w does next; a barrier merges what its warps know.

/// Most warps of a block.
pub(crate) const MAX_WARPS: usize = 32;

/// What one warp knows of each other.
pub(crate) type Known = [u32; MAX_WARPS];

#[derive(Clone, Debug)]
pub(crate) struct Clocks {
    now: u32,
    known: Vec<Known>,
    /// Times of each warp's fences of the asynchronous proxy, rising. A write of the warp at an earlier time is
    /// made visible to that proxy by the fence.
    fences: Vec<Vec<u32>>,
}

/// Fences of a warp after which those that no longer decide anything are dropped.
const MANY_FENCES: usize = 1 << 10;

impl Clocks {
    pub(crate) fn new(n_warps: usize) -> Self {
        // Time 0 is that of bytes that no access of this block wrote.
        // Warps that do not exist have done whatever they do.
        let known = std::array::from_fn(|v| if v < n_warps { 1 } else { u32::MAX });
        Self { now: 1, known: vec![known; n_warps], fences: vec![vec![]; n_warps] }
    }

    pub(crate) fn now(&self) -> u32 {
        self.now
    }

    /// Whether an access of warp `by` at `time` happens before what `warp` does now.
    #[inline]
    pub(crate) fn is_before(&self, by: usize, time: u32, warp: usize) -> bool {
        by == warp || time < self.known[warp][by]
    }

    /// What `warp` knows; what it has done itself is added by [`Clocks::tick`] when others may learn it.
    pub(crate) fn known(&self, warp: usize) -> &Known {
        &self.known[warp]
    }

    /// A time later than every access so far.
    pub(crate) fn tick(&mut self) -> u32 {
        self.now = self.now.saturating_add(1);
        self.now
    }

    /// `warp` makes its writes so far visible to the asynchronous proxy.
    pub(crate) fn fence(&mut self, warp: usize) {
        let time = self.tick();
        let fences = &mut self.fences[warp];
        if fences.len() >= MANY_FENCES {
            // Of the fences that every warp knows of, the last one has made visible all that the others did.
            let others = self.known.iter().enumerate().filter(|(v, _)| *v != warp);
            let known = others.map(|(_, known)| known[warp]).min().unwrap_or(time);
            let n_known = fences.partition_point(|&fence| fence < known);
            fences.drain(..n_known.saturating_sub(1));
        }
        fences.push(time);
    }

    /// Whether `by` fenced its write at `time`, and `warp` knows of that fence.
    #[inline]
    pub(crate) fn is_fenced(&self, by: usize, time: u32, warp: usize) -> bool {
        let known = if by == warp { u32::MAX } else { self.known[warp][by] };
        let fences = &self.fences[by];
        let n_known = fences.partition_point(|&fence| fence < known);
        fences[..n_known].last().is_some_and(|&fence| time < fence)
    }

    /// What `warp` publishes when it arrives somewhere and goes on; its later accesses are not part of it.
    pub(crate) fn release(&mut self, warp: usize) -> Known {
        let mut known = self.known[warp];
        known[warp] = self.tick();
        known
    }

    /// `warp` has seen what was published.
    pub(crate) fn acquire(&mut self, warp: usize, published: &Known) {
        merge(&mut self.known[warp], published);
    }
}

/// What is known by either.
pub(crate) fn merge(known: &mut Known, other: &Known) {
    for (known, other) in known.iter_mut().zip(other) {
        *known = (*known).max(*other);
    }
}
