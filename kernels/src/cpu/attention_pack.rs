//! How the rows of a (batch, head) pair become words on their way into attention: keys `[Sk, D]`
//! with pairs along D, values `[Sk, D]` with pairs along the keys, queries `[D, block]`, so that both
//! products run over their words alike. What is missing to a whole word is zero.

use std::f32::consts::LOG2_E;

use crate::program::{SlotPtr, load_f32};
use crate::simd::{Simd, SimdJob, TILE_WORDS};

use super::attention::{Ahead, Attention, KEY_BLOCK};
use super::attention_rows::padded;
use super::attention_softmax::Packed;
use super::attention_task::{Area, Pair};
use super::lanes::{copy, prefetch_row, scale_to, store_to};
use super::transpose::transpose_in;
use crate::attention_site::{BIAS, K, MASK, OUT, Q, Side, V};
use crate::head_rows::HeadRows;

/// How many rows ahead packing asks for.
const ROWS_BEYOND: usize = 8;

/// The rows of one operand of a pair.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    rows: &'a HeadRows,
    /// Element that the first row starts with.
    start: usize,
    /// Where it lies.
    base: *const u8,
    /// Bytes from row to row.
    step: usize,
    /// Bytes of a row, if it is contiguous.
    len: usize,
}

impl Source<'_> {
    /// Where a row is stored.
    #[inline(always)]
    pub(super) fn stored(self, position: usize) -> *const u8 {
        self.base.wrapping_add(position * self.step)
    }

    /// Asks for the row some positions behind `position`: packing reads faster than out-of-order
    /// execution looks ahead.
    #[inline(always)]
    fn prefetch_beyond(self, position: usize) {
        prefetch_row(self.stored(position + ROWS_BEYOND), self.len);
    }
}

/// Packs rows in words along D, in a function of its own.
struct PackRows<'a, A> {
    pair: &'a Pair<'a, A>,
    source: Source<'a>,
    /// Whether rows lie in memory as they are packed.
    is_stored: bool,
    /// Position of the first row, and which positions follow; null for all.
    first: usize,
    kept: *const u32,
    count: usize,
    to: *mut f32,
}

impl<A: Packed> SimdJob for PackRows<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackRows { pair, source, is_stored, first, kept, count, mut to } = self;
        let d = pair.attention.d;
        let (depth, padded) = (d.div_ceil(A::ELEMENTS), pair.attention.depth());
        // SAFETY: the caller of `Pair` promises the rows, and room for their words.
        unsafe {
            for i in 0..count {
                let position = if kept.is_null() { first + i } else { *kept.add(i) as usize };
                source.prefetch_beyond(position);
                if is_stored {
                    copy(s, source.stored(position).cast(), depth, to);
                } else {
                    pair.make(
                        s,
                        source,
                        position,
                        #[inline(always)]
                        |i, x, n| pair.arithmetic.put(s, to, i, x, n),
                    );
                    if !d.is_multiple_of(A::ELEMENTS) {
                        to.cast::<u16>().add(d).write(0);
                    }
                }
                std::ptr::write_bytes(to.add(depth), 0, padded - depth);
                to = to.add(padded);
            }
        }
    }
}

/// `n` elements of a row from element `i` on, stored as bf16 or f32; zero where there is no row.
///
/// # Safety
/// The row is null or readable for the elements.
#[inline(always)]
unsafe fn load_part<S: Simd>(s: S, row: *const u8, is_bf16: bool, i: usize, n: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        if row.is_null() {
            s.splat(0.0)
        } else if is_bf16 {
            s.load_bf16_n(row.cast::<u16>().add(i), n)
        } else {
            s.load_n(row.cast::<f32>().add(i), n)
        }
    }
}

/// Turns up to a tile's words of pairs of rows, `[count, d]`, into columns of `d` rows that are `stride` words apart;
/// the tile's other words become zeros.
///
/// # Safety
/// `rows` is readable for the words, `to` writable for a tile's words of each row.
#[inline(always)]
pub(super) unsafe fn turn_across<S: Simd>(
    s: S,
    (count, d): (usize, usize),
    rows: *const f32,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: passed on.
    unsafe {
        transpose_in(s, (count, d), rows, d, to, stride);
        for dim in 0..d {
            std::ptr::write_bytes(to.add(dim * stride + count), 0, TILE_WORDS - count);
        }
    }
}

impl<A: Packed> Pair<'_, A> {
    /// Lists the keys that take part.
    ///
    /// # Safety
    /// As [`crate::KernelDef::run`], like all that follow.
    pub(super) unsafe fn keep_keys(&mut self) {
        let kept = self.area.kept;
        // SAFETY: `kept` has room for every key.
        unsafe {
            let Some(mask) = &self.attention.mask else {
                for key in 0..self.attention.sk {
                    *kept.add(key) = key as u32;
                }
                self.n_kept = self.attention.sk;
                return;
            };
            let flags = self.shared.operand(mask.operand).add(self.starts[MASK]);
            let stride = mask.layout.strides[mask.layout.rank() - 1];
            self.n_kept = 0;
            for key in 0..self.attention.sk {
                if *flags.add(key * stride) != 0 {
                    *kept.add(self.n_kept) = key as u32;
                    self.n_kept += 1;
                }
            }
        }
    }

    /// Asks for a share of the rows that are needed next in one layout, in pieces of memory that the
    /// hardware would not foresee: of the next batch entry's, whole with all heads, if all heads of
    /// two entries fit the second-level cache; else of the next pair's, if two pairs do.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    pub(super) unsafe fn prefetch_next(&self, part: usize, block: usize) {
        let Attention { q, k, v, sq, sk, result, .. } = self.attention;
        let Ahead { pairs, shares } = self.ahead;
        if pairs == 0 {
            return;
        }
        let (base, layout, count) = match part {
            OUT => (self.shared.result().cast_const(), result, *sq),
            Q => (self.shared.operand(q.operand), &q.layout, *sq),
            K => (self.shared.operand(k.operand), &k.layout, *sk),
            _ => (self.shared.operand(v.operand), &v.layout, *sk),
        };
        let [.., seq_stride, head_stride, _] = layout.strides[..] else { return };
        let [.., heads, d] = layout.shape[..] else { return };
        let has_all_heads = pairs > 1;
        let share = if has_all_heads { self.head } else { block };
        // Heads that follow each other are one piece.
        let (pieces, len) = match (has_all_heads, head_stride == d) {
            (false, _) => (1, d),
            (true, true) => (1, heads * d),
            (true, false) => (heads, d),
        };
        let first = if has_all_heads { self.head * head_stride } else { 0 };
        let size = layout.dtype.size();
        for i in count * share / shares..count * (share + 1) / shares {
            for piece in 0..pieces {
                let at = self.next[part].wrapping_sub(first);
                let at = at.wrapping_add(i * seq_stride + piece * head_stride);
                prefetch_row(base.wrapping_add(at.wrapping_mul(size)), len * size);
            }
        }
    }

    /// The rows of one operand.
    pub(super) fn source<'a>(&self, rows: &'a HeadRows, part: usize) -> Source<'a> {
        let size = rows.layout.dtype.size();
        Source {
            rows,
            start: self.starts[part],
            base: rows.operand_element(self.shared, self.starts[part]),
            step: rows.seq_stride() * size,
            len: self.attention.d * size,
        }
    }

    /// Makes a row, vector by vector as [`HeadRows::row`] does.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn make<S: Simd>(
        &self,
        s: S,
        source: Source<'_>,
        position: usize,
        put: impl Fn(usize, S::F, usize),
    ) {
        let at = source.start + position * source.rows.seq_stride();
        let made = self.area.made;
        // SAFETY: passed on; `made` has room for a row.
        unsafe { source.rows.row(s, self.shared, (at, position), self.tables, made, put) }
    }

    /// Packs keys and values `first..last` of the kept ones.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    pub(super) unsafe fn pack_keys<S: Simd>(&self, s: S, first: usize, last: usize) {
        let Area { keys, values, .. } = self.area;
        // SAFETY: the packed rows have room for these keys.
        unsafe {
            let Attention { k, v, stored, .. } = self.attention;
            let count = last - first;
            let kept = self.area.kept.cast_const().add(first);
            let rows = |source, is_stored, to| PackRows {
                pair: self,
                source,
                is_stored,
                first: 0,
                kept,
                count,
                to,
            };
            if !self.attention.has_keys_in_place() {
                self.arithmetic.outline(s, rows(self.source(k, K), stored.k, keys));
            }
            let source = self.source(v, V);
            if A::ELEMENTS == 2 {
                self.pack_pairs(s, source, first, last, values);
            } else if !self.attention.has_values_in_place() {
                self.arithmetic.outline(s, rows(source, stored.v, values));
            }
        }
    }

    /// Packs rows in words of two rows each, for tile registers across; a second row that is not there is zero.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn pack_pairs<S: Simd>(
        &self,
        s: S,
        source: Source<'_>,
        first: usize,
        last: usize,
        mut to: *mut f32,
    ) {
        let Area { kept, pair: made, rows, .. } = self.area;
        let d = self.attention.d;
        let across = self.attention.words.are_tiles();
        let (start, stride) = (to, self.attention.value_stride());
        let n_words = (last - first).div_ceil(2);
        let row_len = padded(d);
        let is_stored = self.attention.stored.v;
        // SAFETY: see the caller.
        unsafe {
            for i in (first..last).step_by(2) {
                let word = (i - first) / 2;
                if across {
                    to = rows.add(word % TILE_WORDS * d);
                }
                let mut pair = [std::ptr::null::<u8>(); 2];
                for (j, row) in pair.iter_mut().enumerate().take(last - i) {
                    let key = *kept.add(i + j) as usize;
                    source.prefetch_beyond(key);
                    *row = if is_stored {
                        source.stored(key)
                    } else {
                        let to = made.add(j * row_len);
                        self.make(s, source, key, store_to(s, to));
                        to.cast_const().cast()
                    };
                }
                for i in (0..d).step_by(S::LANES) {
                    let n = S::LANES.min(d - i);
                    let low = load_part(s, pair[0], is_stored, i, n);
                    let high = load_part(s, pair[1], is_stored, i, n);
                    s.store_n(to.add(i), self.arithmetic.join(s, low, high), n);
                }
                to = to.add(d);
                let is_last = word + 1 == n_words;
                if across && (is_last || word % TILE_WORDS == TILE_WORDS - 1) {
                    let first = word / TILE_WORDS * TILE_WORDS;
                    let count = word + 1 - first;
                    turn_across(s, (count, d), rows, start.add(first), stride);
                }
            }
        }
    }

    /// Writes queries as `[D, lanes]` in words, with the sign of the scale; lanes without a query
    /// are zero.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    pub(super) unsafe fn pack_queries<S: Simd>(
        &self,
        s: S,
        start: usize,
        count: usize,
        lanes: usize,
    ) {
        let Area { queries, rows, .. } = self.area;
        let Attention { q, d, scale, stored, .. } = self.attention;
        let source = self.source(q, Q);
        let (words, depth) = (d.div_ceil(A::ELEMENTS), self.attention.depth());
        // SAFETY: see the caller.
        unsafe {
            if count < lanes {
                for i in (0..depth * lanes).step_by(S::LANES) {
                    s.store(queries.add(i), s.splat(0.0));
                }
            }
            if stored.q {
                let stride = q.seq_stride() / A::ELEMENTS;
                let from = source.stored(start).cast();
                transpose_in(s, (count, words), from, stride, queries, lanes);
                for i in (words * lanes..depth * lanes).step_by(S::LANES) {
                    s.store(queries.add(i), s.splat(0.0));
                }
            } else {
                let (pair, kept) = (self, std::ptr::null());
                let (is_stored, first, to) = (false, start, rows);
                self.arithmetic
                    .outline(s, PackRows { pair, source, is_stored, first, kept, count, to });
                transpose_in(s, (count, depth), rows, depth, queries, lanes);
            }
            if *scale < 0.0 {
                for i in (0..depth * lanes).step_by(S::LANES) {
                    let x = s.load(queries.add(i));
                    s.store(queries.add(i), s.xor(x, s.splat_bits(A::SIGNS)));
                }
            }
        }
    }

    /// Writes the bias of `n` kept keys from `first` on as `[keys, lanes]`, times log2 e.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    pub(super) unsafe fn pack_bias<S: Simd>(
        &self,
        s: S,
        start: usize,
        count: usize,
        first: usize,
        n: usize,
        lanes: usize,
    ) {
        let Some(Side { operand, layout }) = &self.attention.bias else { return };
        let Area { rows, bias, kept, .. } = self.area;
        let rank = layout.rank();
        let (row_stride, key_stride) = (layout.strides[rank - 2], layout.strides[rank - 1]);
        let size = layout.dtype.size();
        // SAFETY: see the caller.
        unsafe {
            let base = self.shared.operand(*operand);
            let mut j = 0;
            while j < n {
                // A run of keys without a gap.
                let key = *kept.add(first + j) as usize;
                let mut len = 1;
                while j + len < n && *kept.add(first + j + len) as usize == key + len {
                    len += 1;
                }
                for i in 0..count {
                    let at = self.starts[BIAS] + (start + i) * row_stride + key * key_stride;
                    let slot = SlotPtr { ptr: base.add(at * size), stride: key_stride as isize };
                    let to = rows.add(i * KEY_BLOCK + j);
                    let run = load_f32(s, layout.dtype, slot, len, to);
                    scale_to(s, run, len, LOG2_E, to);
                }
                j += len;
            }
            if count < lanes {
                for i in (0..n * lanes).step_by(S::LANES) {
                    s.store(bias.add(i), s.splat(0.0));
                }
            }
            transpose_in(s, (count, n), rows, KEY_BLOCK, bias, lanes);
        }
    }
}
