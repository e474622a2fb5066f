//! Short rows that programs run through several at a time, as one: the way into a program is then paid once for
//! all of them.
//!
//! Rows join along the axis before the innermost, where every layout goes on from the end of a row as it does
//! within. Leaves that the rows of that axis share are repeated in scratch, and read there.

use crate::nest::{Cursor, Nest};
use crate::program::{CHUNK, MAX_SLOTS, SlotPtr};

use super::lanes::prefetch_row;
use super::shared::aligned;

/// Longest rows that are joined: for longer ones the way into a program does not count.
pub(super) const MAX_JOINED: usize = CHUNK / 4;
/// Elements of rows at a time where what is made of them stays in L1.
pub(super) const JOINED: usize = 1 << 11;
/// Largest element of a leaf in bytes.
const MAX_SIZE: usize = 8;

/// How rows of a nest join; its layout 0 is the result, `1 + i` leaf `i`.
#[derive(Clone, Debug)]
pub(super) struct JoinedRows {
    /// Most rows at a time; 1 where rows do not join.
    most: usize,
    /// Rows along the axis that they join along.
    period: usize,
    /// Elements of a row.
    row_len: usize,
    /// Leaves that joined rows share.
    repeated: Vec<usize>,
}

/// What copies of shared leaves were made of last, leaf by leaf.
pub(super) type Known = [*const u8; MAX_SLOTS];

impl JoinedRows {
    /// As many rows at a time as have `elements` elements, if the result's lie side by side.
    pub(super) fn new(nest: &Nest, elements: usize) -> JoinedRows {
        let row_len = nest.row_len();
        let single = JoinedRows { most: 1, period: 1, row_len, repeated: vec![] };
        let Some(axis) = nest.rank().checked_sub(2) else { return single };
        let strides = |layout: usize| (nest.stride(axis, layout), nest.row_stride(layout));
        if row_len > MAX_JOINED || strides(0) != (row_len, 1) || nest.n_layouts() > MAX_SLOTS {
            return single;
        }
        let mut repeated = vec![];
        for leaf in 0..nest.n_layouts() - 1 {
            match strides(1 + leaf) {
                (outer, inner) if outer == row_len * inner => {}
                (0, 1) => repeated.push(leaf),
                _ => return single,
            }
        }
        let period = nest.dim(axis);
        JoinedRows { most: (elements / row_len).clamp(1, period), period, row_len, repeated }
    }

    /// These, but one by one where any leaf would have to be repeated.
    pub(super) fn unless_repeated(self) -> JoinedRows {
        if self.repeated.is_empty() {
            self
        } else {
            JoinedRows { most: 1, repeated: vec![], ..self }
        }
    }

    /// Whether any rows join.
    pub(super) fn any(&self) -> bool {
        self.most > 1
    }

    /// Most elements of rows that run as one.
    pub(super) fn elements(&self) -> usize {
        self.most * self.row_len
    }

    /// How many rows from `row` on, and before `last`, run as one.
    pub(super) fn count(&self, row: usize, last: usize) -> usize {
        self.most.min(last - row).min(self.period - row % self.period)
    }

    /// Calls `f` with the place of the first, of what comes after, and the number of those of the rows from `first` on
    /// and before `last` that run as one.
    #[inline(always)]
    pub(super) fn each<'a>(
        &self,
        nest: &'a Nest,
        (first, last): (usize, usize),
        mut f: impl FnMut(&Cursor<'a>, &Cursor<'a>, usize),
    ) {
        let mut cursor = nest.at(first);
        let mut at = first;
        while at < last {
            let count = self.count(at, last);
            let mut next = cursor.clone();
            next.advance_by(count);
            f(&cursor, &next, count);
            cursor = next;
            at += count;
        }
    }

    /// Bytes of the copies of one leaf.
    fn copy_bytes(&self) -> usize {
        aligned(MAX_SIZE * self.elements())
    }

    /// Bytes of all copies.
    pub(super) fn bytes(&self) -> usize {
        self.repeated.len() * self.copy_bytes()
    }

    /// Lets those of `slots` that read shared leaves read copies instead; `slots` are of leaves from `base` on,
    /// of elements of `sizes` bytes.
    ///
    /// # Safety
    /// Shared leaves are readable for a row, `copies` is writable for [`JoinedRows::bytes`] bytes, and nothing
    /// else was written there since `known` was empty.
    pub(super) unsafe fn repeat(
        &self,
        base: usize,
        sizes: impl ExactSizeIterator<Item = usize>,
        slots: &mut [SlotPtr],
        copies: *mut u8,
        known: &mut Known,
    ) {
        let leaves = base..base + sizes.len();
        if self.repeated.is_empty() {
            return;
        }
        for (leaf, size) in leaves.zip(sizes) {
            let Some(i) = self.repeated.iter().position(|&repeated| repeated == leaf) else {
                continue;
            };
            // SAFETY: the caller's promise; elements have at most MAX_SIZE bytes.
            unsafe {
                let to = copies.add(i * self.copy_bytes());
                let slot = &mut slots[leaf - base];
                if known[leaf] != slot.ptr {
                    let bytes = self.row_len * size;
                    for row in 0..self.most {
                        std::ptr::copy_nonoverlapping(slot.ptr, to.add(row * bytes), bytes);
                    }
                    known[leaf] = slot.ptr;
                }
                slot.ptr = to.cast_const();
            }
        }
    }
}

/// What the rows after those at a time are read from. It is asked for row by row while these are worked on:
/// all at once would keep them waiting, and nothing asks for it by itself, as rows are read in bursts of a page.
pub(super) struct Coming {
    /// Where the first of the rows is, and the bytes of each.
    leaves: [(*const u8, usize); MAX_COMING],
    n_leaves: usize,
}

/// Most leaves that are asked for ahead.
const MAX_COMING: usize = 4;

impl Coming {
    pub(super) fn nothing() -> Coming {
        Coming { leaves: [(std::ptr::null(), 0); MAX_COMING], n_leaves: 0 }
    }

    /// Adds a leaf whose rows of `bytes` bytes come from `next` on.
    pub(super) fn add(&mut self, next: SlotPtr, bytes: usize) {
        if next.stride == 1 && self.n_leaves < MAX_COMING {
            self.leaves[self.n_leaves] = (next.ptr, bytes);
            self.n_leaves += 1;
        }
    }

    /// Asks for row `row` of those that come.
    #[inline(always)]
    pub(super) fn ask(&self, row: usize) {
        for &(first, bytes) in &self.leaves[..self.n_leaves] {
            prefetch_row(first.wrapping_add(row * bytes), bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use ops::{DType, TensorType};

    use crate::Layout;

    use super::*;

    fn dense(shape: &[usize]) -> Layout {
        Layout::dense(&TensorType::new(DType::F32, shape).expect("the shape is valid"))
    }

    #[test]
    fn rows_join_up_to_the_end_of_their_axis() {
        let (result, apart) =
            (dense(&[2, 5, 6]), dense(&[2, 9, 6]).sliced(&[0, 0, 0], &[2, 5, 6], &[1, 1, 1]));
        let nest = Nest::with_row(&[&result, &apart], 2).expect("there are few layouts");
        let rows = JoinedRows::new(&nest, 18);
        assert_eq!(rows.elements(), 18);
        let counts: Vec<usize> = [0, 3, 5, 8].iter().map(|&row| rows.count(row, 9)).collect();
        assert_eq!(counts, [3, 2, 3, 1]);
    }

    #[test]
    fn shared_leaves_are_repeated_and_others_keep_rows_apart() {
        let result = dense(&[2, 5, 6]);
        let shared = dense(&[2, 1, 6]).broadcast(&[2, 5, 6]);
        let of_rows = dense(&[2, 5, 1]).broadcast(&[2, 5, 6]);
        let nest = |leaf| Nest::with_row(&[&result, leaf], 2).expect("there are few layouts");
        assert_eq!(JoinedRows::new(&nest(&shared), 30).repeated, [0]);
        assert_eq!(JoinedRows::new(&nest(&of_rows), 30).elements(), 6);
    }

    #[test]
    fn copies_follow_what_they_are_made_of() {
        let result = dense(&[2, 3, 2]);
        let shared = dense(&[2, 1, 2]).broadcast(&[2, 3, 2]);
        let nest = Nest::with_row(&[&result, &shared], 2).expect("there are few layouts");
        let rows = JoinedRows::new(&nest, 6);
        let source = [[1f32, 2.0], [3.0, 4.0]];
        let mut copies = vec![0u8; rows.bytes()];
        let mut known = [std::ptr::null(); MAX_SLOTS];
        for row in [0, 0, 1] {
            let mut slots = [SlotPtr { ptr: source[row].as_ptr().cast(), stride: 1 }];
            // SAFETY: the source has a row, the copies what they ask for.
            let made = unsafe {
                rows.repeat(0, [4].into_iter(), &mut slots, copies.as_mut_ptr(), &mut known);
                std::slice::from_raw_parts(slots[0].ptr.cast::<[f32; 2]>(), 3)
            };
            assert_eq!(made, [source[row]; 3]);
        }
    }
}
