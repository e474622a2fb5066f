//! `group_norm` of channels-last values, with elementwise code before and after.
//!
//! Two passes: statistics ([`GroupStats`]), then every row is normalized and runs through the
//! epilogue. Roofline: memory bandwidth, the operand read twice and the result written once.

use ops::{Attr, DType, Op};

use crate::kernel::{KernelDef, Launch, Site};
use crate::program::{CHUNK, MAX_SLOTS, SlotPtr};
use crate::simd::{Simd, SimdJob, dispatch};
use crate::{Isa, Layout};

use super::group_stats::GroupStats;
use super::joined_rows::JoinedRows;
use super::shared::{Shared, aligned};
use crate::body::{Elementwise, Source, compile_elementwise};
use crate::nest::Nest;

/// A group norm.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    isa: Isa,
    channels: usize,
    result: Layout,
    stats: GroupStats,
    /// From the weighted norm (frontier 0) to the result.
    epilogue: Elementwise,
    /// Rows of channels: layout 0 is the result, then the epilogue's leaves.
    nest: Nest,
    /// How rows of few channels run through the epilogue as one.
    joined: JoinedRows,
}

impl GroupNorm {
    /// Takes one `group_norm` with any elementwise code around it.
    pub fn select(site: &Site<'_>) -> Option<GroupNorm> {
        let &[root] = &site.body.outputs[..] else { return None };
        let is_norm = |&value: &ops::ValueId| matches!(site.body.op(value), Some(Op::GroupNorm(_)));
        let mut found = site.body.values().filter(is_norm);
        let value = found.next()?;
        let shape = site.body.ty(value).shape();
        if found.next().is_some() || shape != site.result.shape {
            return None;
        }
        let stats = GroupStats::of(site, value)?;
        let epilogue = compile_elementwise(site.body, root, &[value], site.operands)?;
        let mut layouts = vec![site.result];
        for leaf in &epilogue.leaves {
            let is_scratch = matches!(leaf.source, Source::Frontier(_));
            layouts.push(if is_scratch { site.result } else { &leaf.layout });
        }
        let nest = Nest::with_row(&layouts, shape.len() - 1)?;
        // Rows are counted in the result's order, and written as they are.
        if nest.row_stride(0) != 1 {
            return None;
        }
        Some(GroupNorm {
            isa: site.target.isa,
            channels: shape[shape.len() - 1],
            result: site.result.clone(),
            stats,
            epilogue,
            joined: JoinedRows::new(&nest, CHUNK),
            nest,
        })
    }

    /// Bytes of the rows that run as one, in f32.
    fn rows_bytes(&self) -> usize {
        aligned(4 * self.joined.elements())
    }

    /// Bytes of the worker's scratch while rows are normalized: rows of the operand, normalized rows, the statistics
    /// for each, what rows share, programs. They lie behind the statistics' results, in place of their scratch.
    fn worker_bytes(&self) -> usize {
        let len = self.stats.input_scratch_len().max(self.epilogue.program.scratch_len());
        5 * self.rows_bytes() + self.joined.bytes() + aligned(4 * len)
    }

    fn blocks(&self) -> usize {
        self.stats.positions().div_ceil(self.stats.rows_per_block())
    }
}

impl KernelDef for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![("block", Attr::Int(self.stats.rows_per_block() as i64))]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let normalizing = self.stats.result_bytes() + threads * self.worker_bytes();
        self.stats.scratch_bytes(threads).max(normalizing)
    }

    fn may_alias(&self, operand: usize) -> bool {
        let reads = |code: &Elementwise| {
            code.leaves.iter().any(|leaf| leaf.source == Source::Operand(operand))
        };
        let codes = [self.stats.input(), &self.epilogue];
        codes.iter().all(|code| !reads(code) || code.may_alias(operand, &self.result))
            && codes.iter().any(|code| reads(code))
            && !self.stats.affine_reads(operand)
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        // SAFETY: passed on.
        unsafe { self.stats.run(launch.pool, shared, 0) };
        let n_items = self.stats.samples() * self.blocks();
        launch.pool.run(n_items, &|item, worker| {
            dispatch(self.isa, Normalize { norm: self, shared, item, worker });
        });
    }
}

/// One block of the result.
struct Normalize<'a> {
    norm: &'a GroupNorm,
    shared: Shared<'a>,
    item: usize,
    worker: usize,
}

impl SimdJob for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (norm, stats) = (self.norm, &self.norm.stats);
        let (sample, block) = (self.item / norm.blocks(), self.item % norm.blocks());
        let start = block * stats.rows_per_block();
        let count = stats.rows_per_block().min(stats.positions() - start);
        let first = sample * stats.positions() + start;
        let n = norm.channels;
        let is_plain = norm.epilogue.is_frontier_copy() && norm.result.dtype == DType::F32;
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        // SAFETY: the caller of `KernelDef::run` promises buffers that hold the layouts, and
        // scratch of `scratch_bytes`.
        unsafe {
            let own = stats.result_bytes() + self.worker * norm.worker_bytes();
            let input = self.shared.scratch().add(own);
            let row = input.add(norm.rows_bytes()).cast::<f32>();
            let repeated = input.add(2 * norm.rows_bytes());
            let copies = input.add(5 * norm.rows_bytes());
            let program = copies.add(norm.joined.bytes()).cast::<f32>();
            let mut affine = stats.affine(self.shared, 0, sample);
            if norm.joined.any() {
                affine = affine.repeated(n, norm.joined.elements(), repeated.cast());
            }
            let mut known = [std::ptr::null(); MAX_SLOTS];
            let (mut from, mut cursor) = (stats.at(first), norm.nest.at(first));
            let mut at = first;
            while at < first + count {
                let joined = norm.joined.count(at, first + count);
                let rows = joined.min(stats.joined(at, first + count));
                let x = stats.input_rows(s, self.shared, &from, rows, input.cast(), program);
                let dst = self.shared.result().add(cursor.position(0) * norm.result.dtype.size());
                let y = if is_plain { dst.cast::<f32>() } else { row };
                affine.apply(s, x, rows * n, y);
                if !is_plain {
                    for (i, leaf) in norm.epilogue.leaves.iter().enumerate() {
                        let stride = match leaf.source {
                            Source::Frontier(_) => 1,
                            Source::Operand(_) | Source::Constant(_) => norm.nest.row_stride(1 + i),
                        };
                        slots[i] = self.shared.slot(leaf, cursor.position(1 + i), stride, y);
                    }
                    if rows > 1 {
                        let sizes = norm.epilogue.program.slots().iter().map(|dtype| dtype.size());
                        norm.joined.repeat(0, sizes, &mut slots, copies, &mut known);
                    }
                    norm.epilogue.program.run_row_in(s, rows * n, &slots, dst, program);
                }
                from.advance_by(rows);
                cursor.advance_by(rows);
                at += rows;
            }
        }
    }
}
