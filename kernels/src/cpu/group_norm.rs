//! `group_norm` of channels-last values, with elementwise code before and after.
//!
//! Statistics are taken per block of positions, a block at a time from L2: the mean of each group,
//! then the squares around it. Blocks have a fixed size and are combined in order (Chan, Golub and
//! `LeVeque`, Updating formulae and a pairwise algorithm for computing sample variances, equation
//! 2.1), so neither threads nor large means change the numbers. A second pass normalizes and runs
//! the epilogue. Roofline: memory bandwidth, the operand read twice and the result written once.

use ops::{Attr, DType, Op};

use crate::kernel::{KernelDef, Launch, Site};
use crate::program::{MAX_SLOTS, SlotPtr};
use crate::simd::{MAX_LANES, Simd, SimdJob, dispatch};
use crate::{Isa, Layout};

use super::body::{Elementwise, Source, compile_elementwise, leaf};
use super::nest::Nest;
use super::shared::{Shared, aligned};
use super::sum::Sum;

/// Elements per block.
const BLOCK: usize = 1 << 15;
/// Vectors of channels that are summed side by side, to hide the latency of an addition.
const WIDE: usize = 4;

/// A group norm.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    isa: Isa,
    eps: f64,
    groups: usize,
    n: usize,
    positions: usize,
    channels: usize,
    rows_per_block: usize,
    result: Layout,
    /// From operands to what is normalized, in f32.
    prologue: Elementwise,
    /// From the weighted norm (frontier 0) to the result.
    epilogue: Elementwise,
    /// Rows of channels: layout 0 is the result, then the prologue's leaves, then the epilogue's.
    nest: Nest,
    /// From weight and bias to f32.
    affine: [Elementwise; 2],
}

impl GroupNorm {
    /// Takes one `group_norm` with any elementwise code around it.
    pub fn select(site: &Site<'_>) -> Option<GroupNorm> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut found = site.body.values().filter_map(|value| match site.body.op(value)? {
            Op::GroupNorm(norm) => Some((value, norm)),
            _ => None,
        });
        let (value, norm) = found.next()?;
        let shape = site.body.ty(value).shape();
        if found.next().is_some() || shape != site.result.shape {
            return None;
        }
        let args = &site.body.node(value).args;
        let affine = |arg: usize| {
            leaf(site.body, args[arg], site.operands)?;
            Some(compile_elementwise(site.body, args[arg], &[], site.operands)?.widened())
        };
        let affine = [affine(1)?, affine(2)?];
        let prologue = compile_elementwise(site.body, args[0], &[], site.operands)?.widened();
        let epilogue = compile_elementwise(site.body, root, &[value], site.operands)?;
        let mut layouts = vec![site.result];
        for leaf in prologue.leaves.iter().chain(&epilogue.leaves) {
            let is_scratch = matches!(leaf.source, Source::Frontier(_));
            layouts.push(if is_scratch { site.result } else { &leaf.layout });
        }
        let nest = Nest::with_row(&layouts, shape.len() - 1)?;
        // Rows are counted in the result's order, and written as they are.
        if nest.row_stride(0) != 1 {
            return None;
        }
        let (n, channels) = (shape[0], shape[shape.len() - 1]);
        Some(GroupNorm {
            isa: site.target.isa,
            eps: norm.eps,
            groups: norm.groups,
            n,
            positions: site.result.count() / n / channels,
            channels,
            rows_per_block: (BLOCK / channels).max(1),
            result: site.result.clone(),
            prologue,
            epilogue,
            nest,
            affine,
        })
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

    /// Center, scale and shift of each channel of each sample.
    fn stats_bytes(&self) -> usize {
        self.n * 3 * self.row_bytes()
    }

    fn program_bytes(&self) -> usize {
        let programs = [&self.prologue, &self.epilogue, &self.affine[0], &self.affine[1]];
        let len = programs.iter().map(|code| code.program.scratch_len()).max().unwrap_or(0);
        aligned(4 * len)
    }

    /// A block of computed rows, a normalized row, sums of channels in f64, centers, programs.
    fn worker_bytes(&self) -> usize {
        let rows = self.rows_per_block.min(self.positions) + 2;
        rows * self.row_bytes() + aligned(8 * self.channels) + self.program_bytes()
    }
}

impl KernelDef for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![("block", Attr::Int(self.rows_per_block as i64))]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.partial_bytes() + self.stats_bytes() + threads * self.worker_bytes()
    }

    fn may_alias(&self, operand: usize) -> bool {
        let reads = |code: &Elementwise| {
            code.leaves.iter().any(|leaf| leaf.source == Source::Operand(operand))
        };
        let codes = [&self.prologue, &self.epilogue];
        codes.iter().all(|code| !reads(code) || code.may_alias(operand, &self.result))
            && codes.iter().any(|code| reads(code))
            && !self.affine.iter().any(reads)
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        for phase in [Phase::Measure, Phase::Combine, Phase::Normalize] {
            let n_items = match phase {
                Phase::Measure | Phase::Normalize => self.n * self.blocks(),
                Phase::Combine => self.n,
            };
            launch.pool.run(n_items, &|item, worker| {
                dispatch(self.isa, Item { norm: self, shared, phase, item, worker });
            });
        }
    }
}

#[derive(Clone, Copy)]
enum Phase {
    /// Partial statistics of one block.
    Measure,
    /// Center, scale and shift of one sample.
    Combine,
    /// One block of the result.
    Normalize,
}

struct Item<'a> {
    norm: &'a GroupNorm,
    shared: Shared<'a>,
    phase: Phase,
    item: usize,
    worker: usize,
}

impl SimdJob for Item<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the caller of `KernelDef::run` promises buffers that hold the layouts, and
        // scratch of `scratch_bytes`.
        unsafe {
            let area = Area::new(self.norm, self.shared, self.worker);
            match self.phase {
                Phase::Measure => self.measure(s, &area),
                Phase::Combine => self.combine(s, &area),
                Phase::Normalize => self.normalize(s, &area),
            }
        }
    }
}

/// The parts of the scratch.
struct Area {
    partials: *mut f64,
    stats: *mut f32,
    rows: *mut f32,
    row: *mut f32,
    centers: *mut f32,
    channels: *mut f64,
    program: *mut f32,
}

impl Area {
    /// # Safety
    /// The scratch has `scratch_bytes` for more than `worker` threads.
    unsafe fn new(norm: &GroupNorm, shared: Shared<'_>, worker: usize) -> Area {
        let rows = norm.rows_per_block.min(norm.positions) * norm.row_bytes();
        // SAFETY: the sizes add up to `scratch_bytes`.
        unsafe {
            let partials = shared.scratch();
            let stats = partials.add(norm.partial_bytes());
            let own = stats.add(norm.stats_bytes() + worker * norm.worker_bytes());
            let row = own.add(rows);
            let centers = row.add(norm.row_bytes());
            let channels = centers.add(norm.row_bytes());
            let program = channels.add(aligned(8 * norm.channels));
            Area {
                partials: partials.cast(),
                stats: stats.cast(),
                rows: own.cast(),
                row: row.cast(),
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
    fn block(&self) -> (usize, usize, usize) {
        let norm = self.norm;
        let (sample, block) = (self.item / norm.blocks(), self.item % norm.blocks());
        let start = block * norm.rows_per_block;
        let count = norm.rows_per_block.min(norm.positions - start);
        (sample, sample * norm.positions + start, count)
    }

    /// # Safety
    /// The buffers hold the layouts.
    #[inline(always)]
    unsafe fn fill(
        &self,
        slots: &mut [SlotPtr; MAX_SLOTS],
        code: &Elementwise,
        cursor: &super::nest::Cursor<'_>,
        base: usize,
        frontier: *const f32,
    ) {
        for (i, leaf) in code.leaves.iter().enumerate() {
            slots[i] = match leaf.source {
                Source::Frontier(_) => SlotPtr { ptr: frontier.cast(), stride: 1 },
                Source::Operand(_) | Source::Constant(_) => {
                    let stride = self.norm.nest.row_stride(base + i);
                    // SAFETY: positions of a nest lie within its layouts.
                    unsafe { self.shared.slot(leaf, cursor.position(base + i), stride, frontier) }
                }
            };
        }
    }

    /// Row at `cursor` of what is normalized: in place where it is f32, else computed into `to`.
    ///
    /// # Safety
    /// The buffers hold the layouts; `to` is writable for a row.
    #[inline(always)]
    unsafe fn input<S: Simd>(
        &self,
        s: S,
        cursor: &super::nest::Cursor<'_>,
        to: *mut f32,
        area: &Area,
    ) -> *const f32 {
        let norm = self.norm;
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        // SAFETY: passed on.
        unsafe {
            self.fill(&mut slots, &norm.prologue, cursor, 1, to);
            let program = &norm.prologue.program;
            if program.is_copy() && program.slots() == [DType::F32] && slots[0].stride == 1 {
                return slots[0].ptr.cast();
            }
            program.run_row_in(s, norm.channels, &slots, to.cast(), area.program);
        }
        to
    }

    /// # Safety
    /// The buffers hold the layouts, the scratch all of `area`.
    #[inline(always)]
    unsafe fn measure<S: Simd>(&self, s: S, area: &Area) {
        let norm = self.norm;
        let (_, first, count) = self.block();
        let row_len = norm.row_bytes() / 4;
        let mut cursor = norm.nest.at(first);
        // SAFETY: passed on.
        unsafe {
            let mut rows = Rows { ptr: std::ptr::null(), stride: 0, count };
            let mut in_place = true;
            for i in 0..count {
                let to = area.rows.add(i * row_len);
                let row = self.input(s, &cursor, to, area);
                if i == 0 {
                    rows.ptr = row;
                    in_place = row != to.cast_const();
                } else if i == 1 {
                    rows.stride = row.offset_from(rows.ptr) as usize;
                } else if in_place && row != rows.ptr.wrapping_add(i * rows.stride) {
                    // Rows in place that are not evenly spaced are brought together.
                    in_place = false;
                }
                cursor.advance();
            }
            if !in_place && rows.ptr != area.rows.cast_const() {
                let mut cursor = norm.nest.at(first);
                for i in 0..count {
                    let to = area.rows.add(i * row_len);
                    let row = self.input(s, &cursor, to, area);
                    std::ptr::copy_nonoverlapping(row, to, norm.channels);
                    cursor.advance();
                }
                rows = Rows { ptr: area.rows, stride: row_len, count };
            }
            let per_group = norm.channels / norm.groups;
            let n = (count * per_group) as f64;
            channel_sums(
                s,
                rows,
                norm.channels,
                area.channels,
                #[inline(always)]
                |x, _| x,
                area.centers,
            );
            let partial = area.partials.add(2 * self.item * norm.groups);
            for group in 0..norm.groups {
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
                norm.channels,
                area.channels,
                #[inline(always)]
                |x, center| {
                    let d = s.sub(x, center);
                    s.mul(d, d)
                },
                area.centers,
            );
            for group in 0..norm.groups {
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
        let norm = self.norm;
        let sample = self.item;
        let row_len = norm.row_bytes() / 4;
        let per_group = norm.channels / norm.groups;
        // SAFETY: passed on.
        unsafe {
            let [center, scale, shift] =
                [0, 1, 2].map(|i| area.stats.add((3 * sample + i) * row_len));
            for (code, to) in norm.affine.iter().zip([scale, shift]) {
                let leaf = &code.leaves[0];
                let (start, stride) = (leaf.layout.offset, leaf.layout.strides[0]);
                let slot = self.shared.slot(leaf, start, stride, std::ptr::null());
                code.program.run_row_in(s, norm.channels, &[slot], to.cast(), area.program);
            }
            for group in 0..norm.groups {
                let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
                for block in 0..norm.blocks() {
                    let start = block * norm.rows_per_block;
                    let rows = norm.rows_per_block.min(norm.positions - start);
                    let partial = area
                        .partials
                        .add(2 * ((sample * norm.blocks() + block) * norm.groups + group));
                    let block_n = (rows * per_group) as f64;
                    let delta = *partial - mean;
                    let total = n + block_n;
                    mean += delta * block_n / total;
                    squares += *partial.add(1) + delta * delta * n * block_n / total;
                    n = total;
                }
                let rsqrt = 1.0 / (squares.max(0.0) / n + norm.eps).sqrt();
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

    /// # Safety
    /// As `measure`.
    #[inline(always)]
    unsafe fn normalize<S: Simd>(&self, s: S, area: &Area) {
        let norm = self.norm;
        let (sample, first, count) = self.block();
        let row_len = norm.row_bytes() / 4;
        let n = norm.channels;
        let is_plain = norm.epilogue.is_frontier_copy() && norm.result.dtype == DType::F32;
        let mut cursor = norm.nest.at(first);
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        // SAFETY: passed on.
        unsafe {
            let [center, scale, shift] =
                [0, 1, 2].map(|i| area.stats.add((3 * sample + i) * row_len));
            for _ in 0..count {
                let x = self.input(s, &cursor, area.rows, area);
                let dst = self.shared.result().add(cursor.position(0) * norm.result.dtype.size());
                let y = if is_plain { dst.cast::<f32>() } else { area.row };
                let mut i = 0;
                while i + S::LANES <= n {
                    let d = s.sub(s.load(x.add(i)), s.load(center.add(i)));
                    s.store(y.add(i), s.mul_add(d, s.load(scale.add(i)), s.load(shift.add(i))));
                    i += S::LANES;
                }
                if i < n {
                    let rest = n - i;
                    let d = s.sub(s.load_n(x.add(i), rest), s.load_n(center.add(i), rest));
                    let y_rest =
                        s.mul_add(d, s.load_n(scale.add(i), rest), s.load_n(shift.add(i), rest));
                    s.store_n(y.add(i), y_rest, rest);
                }
                if !is_plain {
                    let base = 1 + norm.prologue.leaves.len();
                    self.fill(&mut slots, &norm.epilogue, &cursor, base, y);
                    norm.epilogue.program.run_row_in(s, n, &slots, dst, area.program);
                }
                cursor.advance();
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
