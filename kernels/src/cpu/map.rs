//! Elementwise groups and copies: the kernel of everything that computes each result element from
//! one element of each operand, and of views that must become real.
//!
//! The iteration space is collapsed to as few axes as the layouts allow; the innermost is a row
//! along which the result is contiguous, run by a [`Program`](crate::program::Program) in chunks
//! that stay in L1; short rows that only differ in operands which lie as the result does run several as
//! one, with what they share repeated in scratch. A group without arithmetic is a plain copy, tiled where it transposes. Integer
//! arithmetic takes [`Exact`], slow and exact. Roofline: memory bandwidth, each operand read once
//! and the result written once. Not used where a structured kernel takes the group as an epilogue.

use std::ops::Range;

use ops::Attr;

use crate::kernel::{KernelDef, Launch, Site};
use crate::program::{CHUNK, MAX_SLOTS, SlotPtr};
use crate::simd::{Simd, SimdJob, dispatch};
use crate::{Isa, Layout};

use super::copy::Copy;
use super::exact::Exact;
use super::joined_rows::JoinedRows;
use super::shared::{Shared, aligned};
use crate::body::{Elementwise, Leaf, compile_elementwise, operand_view};
use crate::nest::{Cursor, Nest};

/// Elements per item of the pool.
const ITEM: usize = 1 << 14;

/// An elementwise group or a copy.
#[derive(Clone, Debug)]
pub struct Map {
    isa: Isa,
    result: Layout,
    code: Code,
}

#[derive(Clone, Debug)]
enum Code {
    Copy { operand: usize, copy: Copy },
    Program { body: Elementwise, rows: Rows },
    Exact { body: Exact, rows: Rows },
}

/// Rows of the result and of every leaf.
#[derive(Clone, Debug)]
struct Rows {
    /// Layout 0 is the result, `1 + i` leaf `i`.
    nest: Nest,
    rows_per_item: usize,
    /// Bytes of a result element.
    result_size: usize,
    joined: JoinedRows,
}

impl Rows {
    fn new(result: &Layout, leaves: &[Leaf]) -> Option<Rows> {
        let layouts: Vec<&Layout> =
            std::iter::once(result).chain(leaves.iter().map(|leaf| &leaf.layout)).collect();
        let nest = Nest::new(&layouts)?;
        let rows_per_item = (ITEM / nest.row_len()).max(1);
        let joined = JoinedRows::new(&nest, CHUNK);
        let result_size = result.dtype.size();
        Some(Rows { nest, rows_per_item, result_size, joined })
    }

    /// Parts of one row; more than 1 only if an item is not more than one row.
    fn segments(&self) -> usize {
        self.nest.row_len().div_ceil(ITEM)
    }

    fn n_items(&self) -> usize {
        self.segments() * self.nest.n_rows().div_ceil(self.rows_per_item)
    }
}

impl Map {
    /// Takes elementwise bodies and views.
    pub fn select(site: &Site<'_>) -> Option<Map> {
        let &[root] = &site.body.outputs[..] else { return None };
        let isa = site.target.isa;
        let result = site.result.clone();
        if let Some((operand, from)) = operand_view(site.body, root, site.operands)
            && from.shape == result.shape
        {
            let copy = Copy::new(&result, &from);
            return Some(Map { isa, result, code: Code::Copy { operand, copy } });
        }
        let code = match compile_elementwise(site.body, root, &[], site.operands) {
            Some(body) => {
                let rows = Rows::new(&result, &body.leaves)?;
                Code::Program { body, rows }
            }
            None => {
                let body = Exact::compile(site.body, root, site.operands)?;
                let rows = Rows::new(&result, body.leaves())?;
                Code::Exact { body, rows }
            }
        };
        Some(Map { isa, result, code })
    }

    fn worker_bytes(&self) -> usize {
        match &self.code {
            Code::Copy { .. } => 0,
            // A chunk of the result for rows that are not contiguous, then the program's scratch, then
            // what is repeated.
            Code::Program { body, rows } => {
                let program = aligned(4 * body.program.scratch_len());
                aligned(CHUNK * 8) + program + rows.joined.bytes()
            }
            Code::Exact { body, rows: _ } => aligned(body.scratch_bytes()),
        }
    }
}

impl KernelDef for Map {
    fn name(&self) -> &'static str {
        "map"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        let code = match &self.code {
            Code::Copy { copy, .. } if copy.is_transposing() => "transpose",
            Code::Copy { .. } => "copy",
            Code::Program { .. } => "program",
            Code::Exact { .. } => "exact",
        };
        vec![("code", Attr::Str(code.to_owned()))]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        threads * self.worker_bytes()
    }

    fn may_alias(&self, operand: usize) -> bool {
        match &self.code {
            Code::Copy { .. } => false,
            Code::Program { body, rows: _ } => body.may_alias(operand, &self.result),
            Code::Exact { body, rows: _ } => body.may_alias(operand, &self.result),
        }
    }

    fn elements(&self) -> Option<usize> {
        match &self.code {
            Code::Program { rows, .. } if rows.nest.rank() == 1 && self.result.is_dense() => {
                Some(rows.nest.row_len())
            }
            Code::Copy { .. } | Code::Program { .. } | Code::Exact { .. } => None,
        }
    }

    unsafe fn run_elements(&self, launch: &Launch<'_>, elements: Range<usize>, worker: usize) {
        let Code::Program { body, rows } = &self.code else {
            unreachable!("only programs say that they have elements");
        };
        let shared = Shared::new(launch);
        dispatch(self.isa, ProgramPart { map: self, body, rows, shared, elements, worker });
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        match &self.code {
            Code::Copy { operand, copy } => {
                launch.pool.run(copy.n_items(), &|item, _| {
                    // SAFETY: the caller of `run` promises buffers that hold the layouts.
                    unsafe { copy.run(item, shared.result(), shared.operand(*operand)) };
                });
            }
            Code::Program { body, rows } => {
                launch.pool.run(rows.n_items(), &|item, worker| {
                    dispatch(self.isa, ProgramItem { map: self, body, rows, shared, item, worker });
                });
            }
            Code::Exact { body, rows } => {
                launch.pool.run(rows.n_items(), &|item, worker| {
                    // SAFETY: as above; scratch has one part per worker.
                    unsafe {
                        let scratch = shared.scratch().add(worker * self.worker_bytes());
                        for_each_row(rows, item, body.leaves(), shared, |dst, step, slots, n| {
                            body.run_row(n, slots, dst, step, scratch);
                        });
                    }
                });
            }
        }
    }
}

struct ProgramItem<'a> {
    map: &'a Map,
    body: &'a Elementwise,
    rows: &'a Rows,
    shared: Shared<'a>,
    item: usize,
    worker: usize,
}

impl SimdJob for ProgramItem<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ProgramItem { map, body, rows, shared, item, worker } = self;
        if rows.joined.any() {
            // SAFETY: as below.
            unsafe { self.run_joined(s) };
            return;
        }
        let program = &body.program;
        let size = map.result.dtype.size();
        // SAFETY: the caller of `KernelDef::run` promises buffers that hold the layouts and
        // scratch with one part per worker.
        unsafe {
            let staged = shared.scratch().add(worker * map.worker_bytes());
            let scratch = staged.add(aligned(CHUNK * 8)).cast::<f32>();
            for_each_row(rows, item, &body.leaves, shared, |dst, step, slots, n| {
                if step == 1 {
                    program.run_row_in(s, n, slots, dst, scratch);
                    return;
                }
                let mut start = 0;
                while start < n {
                    let len = CHUNK.min(n - start);
                    let mut moved = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
                    for ((to, from), dtype) in moved.iter_mut().zip(slots).zip(program.slots()) {
                        let offset = start as isize * from.stride * dtype.size() as isize;
                        *to = SlotPtr { ptr: from.ptr.offset(offset), stride: from.stride };
                    }
                    program.run_row_in(s, len, &moved[..slots.len()], staged, scratch);
                    for i in 0..len {
                        let to = dst.add((start + i) * step * size);
                        std::ptr::copy_nonoverlapping(staged.add(i * size), to, size);
                    }
                    start += len;
                }
            });
        }
    }
}

impl ProgramItem<'_> {
    /// Runs rows of a contiguous result, several as one.
    ///
    /// # Safety
    /// As [`KernelDef::run`].
    #[inline(always)]
    unsafe fn run_joined<S: Simd>(&self, s: S) {
        let ProgramItem { map, body, rows, shared, item, worker } = *self;
        let Rows { nest, joined, .. } = rows;
        let last = nest.n_rows().min((item + 1) * rows.rows_per_item);
        let first = item * rows.rows_per_item;
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        let slots = &mut slots[..body.leaves.len()];
        let mut known = [std::ptr::null(); MAX_SLOTS];
        joined.each(
            nest,
            (first, last),
            #[inline(always)]
            |cursor, _, count| {
                // SAFETY: positions of a nest lie within its layouts; scratch has one part per worker.
                unsafe {
                    let own = shared.scratch().add(worker * map.worker_bytes());
                    let copies = own.add(aligned(CHUNK * 8));
                    let scratch = copies.add(joined.bytes()).cast::<f32>();
                    for (i, (slot, leaf)) in slots.iter_mut().zip(&body.leaves).enumerate() {
                        let (at, stride) = (cursor.position(1 + i), nest.row_stride(1 + i));
                        *slot = shared.slot(leaf, at, stride, std::ptr::null());
                    }
                    let sizes = body.program.slots().iter().map(|dtype| dtype.size());
                    joined.repeat(0, sizes, slots, copies, &mut known);
                    let dst = shared.result().add(cursor.position(0) * rows.result_size);
                    body.program.run_row_in(s, count * nest.row_len(), slots, dst, scratch);
                }
            },
        );
    }
}

/// Some elements of the only row, which is dense in the result.
struct ProgramPart<'a> {
    map: &'a Map,
    body: &'a Elementwise,
    rows: &'a Rows,
    shared: Shared<'a>,
    elements: Range<usize>,
    worker: usize,
}

impl SimdJob for ProgramPart<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ProgramPart { map, body, rows, shared, elements, worker } = self;
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        // SAFETY: the caller of `KernelDef::run_elements` promises buffers that hold the layouts, elements of
        // the result, and scratch with one part per worker.
        unsafe {
            let scratch = shared.scratch().add(worker * map.worker_bytes() + aligned(CHUNK * 8));
            let cursor = rows.nest.at(0);
            let dst = row_at(rows, &cursor, elements.start, &body.leaves, shared, &mut slots);
            let slots = &slots[..body.leaves.len()];
            body.program.run_row_in(s, elements.len(), slots, dst, scratch.cast::<f32>());
        }
    }
}

/// Lets `slots` read the leaves from element `start` of the cursor's row on; the result's address there.
///
/// # Safety
/// The buffers of `shared` hold the layouts of `rows`, and the row has the element.
#[inline(always)]
unsafe fn row_at(
    rows: &Rows,
    cursor: &Cursor<'_>,
    start: usize,
    leaves: &[Leaf],
    shared: Shared<'_>,
    slots: &mut [SlotPtr; MAX_SLOTS],
) -> *mut u8 {
    let nest = &rows.nest;
    for (i, leaf) in leaves.iter().enumerate() {
        let stride = nest.row_stride(1 + i);
        let position = cursor.position(1 + i) + start * stride;
        // SAFETY: positions of a nest lie within its layouts.
        slots[i] = unsafe { shared.slot(leaf, position, stride, std::ptr::null()) };
    }
    let position = cursor.position(0) + start * nest.row_stride(0);
    // SAFETY: as above.
    unsafe { shared.result().add(position * rows.result_size) }
}

/// Calls `row(dst, step of dst, slots, length)` for each row, or part of one, of item `item`.
///
/// # Safety
/// The buffers of `shared` hold the layouts of `rows`.
#[inline(always)]
unsafe fn for_each_row(
    rows: &Rows,
    item: usize,
    leaves: &[Leaf],
    shared: Shared<'_>,
    mut row: impl FnMut(*mut u8, usize, &[SlotPtr], usize),
) {
    let nest = &rows.nest;
    let (block, segment) = (item / rows.segments(), item % rows.segments());
    let start = segment * ITEM;
    let len = nest.row_len().min(start + ITEM) - start;
    let first = block * rows.rows_per_item;
    let last = nest.n_rows().min(first + rows.rows_per_item);
    let mut cursor = nest.at(first);
    let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
    for _ in first..last {
        // SAFETY: the caller promises buffers that hold the layouts; the row has `start + len` elements.
        let dst = unsafe { row_at(rows, &cursor, start, leaves, shared, &mut slots) };
        row(dst, nest.row_stride(0), &slots[..leaves.len()], len);
        cursor.advance();
    }
}
