//! Statistics of `group_norm` over channels-last values: what turns an element into its normalized,
//! weighted and shifted form, `(x - center) * scale + shift`, for each channel of each sample.
//!
//! They are taken per block of positions, a block at a time from L2: the mean of each group, then
//! the squares around it. Blocks have a fixed size and are combined in order (Chan, Golub and
//! `LeVeque`, Updating formulae and a pairwise algorithm for computing sample variances, equation
//! 2.1), so neither threads nor large means change the numbers. Whoever applies them reads the
//! operand a second time: `group_norm` itself, or the convolution behind it. Roofline: memory
//! bandwidth, the operand read once.

use ops::{DType, Op, ValueId};

use crate::kernel::Site;
use crate::program::{CHUNK, MAX_SLOTS, SlotPtr};
use crate::simd::{MAX_LANES, Simd, SimdJob, dispatch};
use crate::{Isa, Layout, Pool};

use super::affine::Affine;
use super::joined_rows::JoinedRows;
use super::shared::{Shared, aligned};
use super::sum::Sum;
use crate::body::{Elementwise, Source, compile_elementwise, leaf};
use crate::nest::{Cursor, Nest};

/// Elements per block.
const BLOCK: usize = 1 << 15;
/// Vectors of channels that are summed side by side, to hide the latency of an addition.
const WIDE: usize = 4;

/// What a group norm measures, and of what.
#[derive(Clone, Debug)]
pub(super) struct GroupStats {
    isa: Isa,
    eps: f64,
    groups: usize,
    n: usize,
    positions: usize,
    channels: usize,
    rows_per_block: usize,
    /// From operands to what is normalized, in f32.
    input: Elementwise,
    /// Rows of channels of the input's leaves.
    nest: Nest,
    /// How many of them are read as one.
    joined: JoinedRows,
    /// From weight and bias to f32.
    affine: [Elementwise; 2],
}

impl GroupStats {
    /// Of the `group_norm` that is `value` of the site's body.
    pub(super) fn of(site: &Site<'_>, value: ValueId) -> Option<GroupStats> {
        let Some(Op::GroupNorm(norm)) = site.body.op(value) else { return None };
        let shape = site.body.ty(value).shape();
        let args = &site.body.node(value).args;
        let affine = |arg: usize| {
            leaf(site.body, args[arg], site.operands)?;
            Some(compile_elementwise(site.body, args[arg], &[], site.operands)?.widened())
        };
        let affine = [affine(1)?, affine(2)?];
        let input = compile_elementwise(site.body, args[0], &[], site.operands)?.widened();
        let layouts: Vec<&Layout> = input.leaves.iter().map(|leaf| &leaf.layout).collect();
        let (n, channels) = (shape[0], shape[shape.len() - 1]);
        let nest = Nest::with_row(&layouts, shape.len() - 1)?;
        // Rows of the first leaf are where those of a result would be.
        let with_result: Vec<&Layout> = layouts.iter().take(1).chain(&layouts).copied().collect();
        let joined = JoinedRows::new(&Nest::with_row(&with_result, shape.len() - 1)?, CHUNK);
        Some(GroupStats {
            isa: site.target.isa,
            eps: norm.eps,
            groups: norm.groups,
            n,
            positions: shape.iter().product::<usize>() / n / channels,
            channels,
            rows_per_block: (BLOCK / channels).max(1),
            nest,
            joined: joined.unless_repeated(),
            input,
            affine,
        })
    }

    pub(super) fn samples(&self) -> usize {
        self.n
    }

    pub(super) fn positions(&self) -> usize {
        self.positions
    }

    pub(super) fn rows_per_block(&self) -> usize {
        self.rows_per_block
    }

    /// From operands to what is normalized.
    pub(super) fn input(&self) -> &Elementwise {
        &self.input
    }

    /// Whether operand `operand` is weight or bias.
    pub(super) fn affine_reads(&self, operand: usize) -> bool {
        let reads = |leaf: &crate::body::Leaf| leaf.source == Source::Operand(operand);
        self.affine.iter().any(|code| code.leaves.iter().any(reads))
    }

    /// A cursor over the rows of the input, for [`GroupStats::input_row`].
    pub(super) fn at(&self, row: usize) -> Cursor<'_> {
        self.nest.at(row)
    }

    /// Values that the input's code needs as scratch.
    pub(super) fn input_scratch_len(&self) -> usize {
        self.input.program.scratch_len()
    }

    fn blocks(&self) -> usize {
        self.positions.div_ceil(self.rows_per_block)
    }

    fn row_bytes(&self) -> usize {
        aligned(4 * self.channels)
    }

    /// Mean and sum of squares of each group of each block, in f64.
    fn partial_bytes(&self) -> usize {
        aligned(self.n * self.blocks() * self.groups * 16)
    }

    fn program_bytes(&self) -> usize {
        let programs = [&self.input, &self.affine[0], &self.affine[1]];
        let len = programs.iter().map(|code| code.program.scratch_len()).max().unwrap_or(0);
        aligned(4 * len)
    }

    /// A block of computed rows, centers, sums of channels in f64, programs.
    fn worker_bytes(&self) -> usize {
        let rows = self.rows_per_block.min(self.positions) + 1;
        rows * self.row_bytes() + aligned(8 * self.channels) + self.program_bytes()
    }

    /// Bytes of the results, which come first in the scratch: they stay there to be applied.
    pub(super) fn result_bytes(&self) -> usize {
        self.n * 3 * self.row_bytes()
    }

    /// Bytes of the scratch that [`GroupStats::run`] needs, results included.
    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        self.result_bytes() + self.partial_bytes() + threads * self.worker_bytes()
    }

    /// Measures. The results are at the start of `scratch_bytes` from byte `at` of the scratch on.
    ///
    /// # Safety
    /// As [`crate::kernel::KernelDef::run`].
    pub(super) unsafe fn run(&self, pool: &Pool, shared: Shared<'_>, at: usize) {
        for phase in [Phase::Measure, Phase::Combine] {
            let n_items = match phase {
                Phase::Measure => self.n * self.blocks(),
                Phase::Combine => self.n,
            };
            pool.run(n_items, &|item, worker| {
                dispatch(self.isa, Item { stats: self, shared, at, phase, item, worker });
            });
        }
    }

    /// The results of sample `sample`.
    ///
    /// # Safety
    /// [`GroupStats::run`] has been called with `shared` and `at`.
    #[inline(always)]
    pub(super) unsafe fn affine(&self, shared: Shared<'_>, at: usize, sample: usize) -> Affine {
        let row = |i: usize| {
            // SAFETY: results are within the scratch.
            unsafe { shared.scratch().add(at + (3 * sample + i) * self.row_bytes()).cast::<f32>() }
        };
        Affine { center: row(0), scale: row(1), shift: row(2) }
    }

    /// How many rows from `row` on, and before `last`, [`GroupStats::input_rows`] reads as one.
    pub(super) fn joined(&self, row: usize, last: usize) -> usize {
        self.joined.count(row, last)
    }

    /// `count` rows from `cursor` on of what is normalized, one after the other: in place where it is f32, else
    /// computed into `to`.
    ///
    /// # Safety
    /// The buffers hold the layouts; the rows are joined, `to` is writable for them, `scratch` for the input's code.
    #[inline(always)]
    pub(super) unsafe fn input_rows<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        cursor: &Cursor<'_>,
        count: usize,
        to: *mut f32,
        scratch: *mut f32,
    ) -> *const f32 {
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        // SAFETY: positions of a nest lie within its layouts.
        unsafe {
            for (i, leaf) in self.input.leaves.iter().enumerate() {
                let stride = self.nest.row_stride(i);
                slots[i] = shared.slot(leaf, cursor.position(i), stride, to);
            }
            let program = &self.input.program;
            if program.is_copy() && program.slots() == [DType::F32] && slots[0].stride == 1 {
                return slots[0].ptr.cast();
            }
            program.run_row_in(s, count * self.channels, &slots, to.cast(), scratch);
        }
        to
    }
}

#[derive(Clone, Copy)]
enum Phase {
    /// Partial statistics of one block.
    Measure,
    /// Center, scale and shift of one sample.
    Combine,
}

struct Item<'a> {
    stats: &'a GroupStats,
    shared: Shared<'a>,
    at: usize,
    phase: Phase,
    item: usize,
    worker: usize,
}

impl SimdJob for Item<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the caller of `GroupStats::run` promises buffers that hold the layouts, and
        // scratch of `scratch_bytes`.
        unsafe {
            let area = Area::new(&self);
            match self.phase {
                Phase::Measure => self.measure(s, &area),
                Phase::Combine => self.combine(s, &area),
            }
        }
    }
}

/// The parts of the scratch.
struct Area {
    partials: *mut f64,
    rows: *mut f32,
    centers: *mut f32,
    channels: *mut f64,
    program: *mut f32,
}

impl Area {
    /// # Safety
    /// The scratch has `scratch_bytes` for more than the item's worker.
    unsafe fn new(item: &Item<'_>) -> Area {
        let stats = item.stats;
        let rows = stats.rows_per_block.min(stats.positions) * stats.row_bytes();
        // SAFETY: the sizes add up to `scratch_bytes`.
        unsafe {
            let partials = item.shared.scratch().add(item.at + stats.result_bytes());
            let own = partials.add(stats.partial_bytes() + item.worker * stats.worker_bytes());
            let centers = own.add(rows);
            let channels = centers.add(stats.row_bytes());
            let program = channels.add(aligned(8 * stats.channels));
            Area {
                partials: partials.cast(),
                rows: own.cast(),
                centers: centers.cast(),
                channels: channels.cast(),
                program: program.cast(),
            }
        }
    }
}

/// Rows of f32 `stride` values apart.
#[derive(Clone, Copy)]
struct Rows {
    ptr: *const f32,
    stride: usize,
    count: usize,
}

impl Item<'_> {
    /// First row and number of rows of this item's block.
    fn block(&self) -> (usize, usize) {
        let stats = self.stats;
        let (sample, block) = (self.item / stats.blocks(), self.item % stats.blocks());
        let start = block * stats.rows_per_block;
        let count = stats.rows_per_block.min(stats.positions - start);
        (sample * stats.positions + start, count)
    }

    /// # Safety
    /// The buffers hold the layouts, the scratch all of `area`.
    #[inline(always)]
    unsafe fn measure<S: Simd>(&self, s: S, area: &Area) {
        let stats = self.stats;
        let (first, count) = self.block();
        let row_len = stats.row_bytes() / 4;
        let mut cursor = stats.nest.at(first);
        // SAFETY: passed on.
        unsafe {
            let mut rows = Rows { ptr: std::ptr::null(), stride: 0, count };
            let mut in_place = true;
            let mut i = 0;
            while i < count {
                // Rows that are computed as one lie as they would one by one.
                let joins = row_len == stats.channels;
                let n = if joins { stats.joined(first + i, first + count) } else { 1 };
                let to = area.rows.add(i * row_len);
                let row = stats.input_rows(s, self.shared, &cursor, n, to, area.program);
                if i == 0 {
                    rows.ptr = row;
                    rows.stride = if n > 1 { row_len } else { 0 };
                    in_place = row != to.cast_const();
                } else if rows.stride == 0 {
                    rows.stride = row.offset_from(rows.ptr) as usize;
                } else if in_place && row != rows.ptr.wrapping_add(i * rows.stride) {
                    // Rows in place that are not evenly spaced are brought together.
                    in_place = false;
                }
                cursor.advance_by(n);
                i += n;
            }
            if !in_place && rows.ptr != area.rows.cast_const() {
                let mut cursor = stats.nest.at(first);
                for i in 0..count {
                    let to = area.rows.add(i * row_len);
                    let row = stats.input_rows(s, self.shared, &cursor, 1, to, area.program);
                    std::ptr::copy_nonoverlapping(row, to, stats.channels);
                    cursor.advance();
                }
                rows = Rows { ptr: area.rows, stride: row_len, count };
            }
            let per_group = stats.channels / stats.groups;
            let n = (count * per_group) as f64;
            channel_sums(
                s,
                rows,
                stats.channels,
                area.channels,
                #[inline(always)]
                |x, _| x,
                area.centers,
            );
            let partial = area.partials.add(2 * self.item * stats.groups);
            for group in 0..stats.groups {
                let sums = area.channels.add(group * per_group);
                let mean = (0..per_group).map(|i| *sums.add(i)).sum::<f64>() / n;
                // The squares are taken around a number that f32 has, and corrected for the rest.
                *partial.add(2 * group) = mean;
                for i in 0..per_group {
                    *area.centers.add(group * per_group + i) = mean as f32;
                }
            }
            channel_sums(
                s,
                rows,
                stats.channels,
                area.channels,
                #[inline(always)]
                |x, center| {
                    let d = s.sub(x, center);
                    s.mul(d, d)
                },
                area.centers,
            );
            for group in 0..stats.groups {
                let sums = area.channels.add(group * per_group);
                let squares = (0..per_group).map(|i| *sums.add(i)).sum::<f64>();
                let mean = *partial.add(2 * group);
                let off = mean - f64::from(mean as f32);
                *partial.add(2 * group + 1) = squares - n * off * off;
            }
        }
    }

    /// # Safety
    /// As `measure`.
    #[inline(always)]
    unsafe fn combine<S: Simd>(&self, s: S, area: &Area) {
        let stats = self.stats;
        let sample = self.item;
        let per_group = stats.channels / stats.groups;
        // SAFETY: passed on.
        unsafe {
            let Affine { center, scale, shift } = stats.affine(self.shared, self.at, sample);
            let [center, scale, shift] = [center, scale, shift].map(<*const f32>::cast_mut);
            for (code, to) in stats.affine.iter().zip([scale, shift]) {
                let leaf = &code.leaves[0];
                let (start, stride) = (leaf.layout.offset, leaf.layout.strides[0]);
                let slot = self.shared.slot(leaf, start, stride, std::ptr::null());
                code.program.run_row_in(s, stats.channels, &[slot], to.cast(), area.program);
            }
            for group in 0..stats.groups {
                let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
                for block in 0..stats.blocks() {
                    let start = block * stats.rows_per_block;
                    let rows = stats.rows_per_block.min(stats.positions - start);
                    let partial = area
                        .partials
                        .add(2 * ((sample * stats.blocks() + block) * stats.groups + group));
                    let block_n = (rows * per_group) as f64;
                    let delta = *partial - mean;
                    let total = n + block_n;
                    mean += delta * block_n / total;
                    squares += *partial.add(1) + delta * delta * n * block_n / total;
                    n = total;
                }
                let rsqrt = 1.0 / (squares.max(0.0) / n + stats.eps).sqrt();
                let low = mean - f64::from(mean as f32);
                for channel in group * per_group..(group + 1) * per_group {
                    let factor = f64::from(*scale.add(channel)) * rsqrt;
                    let rest = f64::from(*shift.add(channel)) - low * factor;
                    *center.add(channel) = mean as f32;
                    *scale.add(channel) = factor as f32;
                    *shift.add(channel) = rest as f32;
                }
            }
        }
    }
}

/// For each channel the sum over rows of `f(x, center of the channel)`, in f64.
///
/// # Safety
/// Rows and `centers` are readable for `n` channels, `sums` writable.
#[inline(always)]
unsafe fn channel_sums<S: Simd>(
    s: S,
    rows: Rows,
    n: usize,
    sums: *mut f64,
    f: impl Fn(S::F, S::F) -> S::F,
    centers: *const f32,
) {
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + WIDE * S::LANES <= n {
            let centers: [S::F; WIDE] =
                std::array::from_fn(|w| s.load(centers.add(i + w * S::LANES)));
            let mut acc = [Sum::zero(s); WIDE];
            for row in 0..rows.count {
                let x = rows.ptr.add(row * rows.stride + i);
                for w in 0..WIDE {
                    acc[w].add(s, f(s.load(x.add(w * S::LANES)), centers[w]));
                }
            }
            for (w, acc) in acc.into_iter().enumerate() {
                let lanes = acc.lanes(s);
                for (lane, &sum) in lanes[..S::LANES].iter().enumerate() {
                    *sums.add(i + w * S::LANES + lane) = sum;
                }
            }
            i += WIDE * S::LANES;
        }
        while i < n {
            let count = S::LANES.min(n - i);
            let center = s.load_n(centers.add(i), count);
            let mut acc = Sum::zero(s);
            for row in 0..rows.count {
                let x = s.load_n(rows.ptr.add(row * rows.stride + i), count);
                acc.add(s, f(x, center));
            }
            let lanes: [f64; MAX_LANES] = acc.lanes(s);
            for (lane, &sum) in lanes[..count].iter().enumerate() {
                *sums.add(i + lane) = sum;
            }
            i += count;
        }
    }
}
