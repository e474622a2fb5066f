//! Products of f32 as digits (see [`super::digits`]) in tile registers.
//!
//! A row's digits by a column's are whole numbers, summed exactly in 32 bits over a block of the depth: one sum for each
//! number that two digits' positions sum to, 0 to 2. Those become one f32, which the lines' exponents scale. The
//! products of the positions left out are at most `2^-22` of the largest element of the row times the largest of the
//! column, and of either sign. For two lines of which elements are much smaller than the largest, that of positions
//! 1 and 2 is added, and those of what the digits leave of each.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::amx::TileSession;
use super::digits::{DigitProduct, LOW_SPREAD, MOST_SPREAD, NEXT_BYTES, Scales, WORDS_OF_UNIT};
use super::{TILE_ROWS as ROWS, TILE_WORDS as WORDS};

/// Sums of products of digits, two rows of tiles of three positions.
#[repr(C, align(64))]
struct Sums(MaybeUninit<[[[[i32; WORDS]; ROWS]; 3]; 2]>);

/// What registers are stored to only for the sake of storing: see [`super::amx_loops`].
#[repr(C, align(64))]
struct Line([f32; WORDS]);

/// A loop over units, whose registers 0 and 1 are the sums of positions that sum to 0, upper and lower rows, 2 and 3 to
/// 1, 4 and 5 to 2. Register 6 holds A, 7 B.
macro_rules! digit_loop {
    ($name:ident, step: [$($step:literal),*], store: [$($store:literal),*]) => {
        /// # Safety
        /// A is readable from `a` on for the rows of tiles, B from `b` on, each for `units`; the registers are of full
        /// shape.
        unsafe fn $name(
            a: *const f32,
            a_stride: usize,
            b: *const f32,
            units: usize,
            next: *const f32,
            sums: &mut Sums,
        ) {
            let mut spare = Line([0.0; WORDS]);
            // SAFETY: the caller promises the memory. The registers are named as overwritten, and nothing but the
            // sums and the spare line is written.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "tilezero tmm4", "tilezero tmm5",
                    "2:",
                    $($step,)*
                    "prefetcht1 [{next}]", "prefetcht1 [{next} + 64]", "prefetcht1 [{next} + 128]",
                    "prefetcht1 [{next} + 192]", "prefetcht1 [{next} + 256]",
                    "prefetcht1 [{next} + 320]", "prefetcht1 [{next} + 384]",
                    "prefetcht1 [{next} + 448]",
                    "add {next}, {next_bytes}",
                    "tilestored [{awake}], tmm7",
                    "add {a}, {a_unit}", "add {a1}, {a_unit}", "add {b}, {b_unit}",
                    "dec {units}",
                    "jnz 2b",
                    $($store,)*
                    a = inout(reg) a => _,
                    a1 = inout(reg) a.wrapping_add(ROWS * a_stride) => _,
                    a_row = in(reg) 4 * a_stride,
                    b = inout(reg) b => _,
                    line = in(reg) 4 * WORDS,
                    units = inout(reg) units => _,
                    next = inout(reg) next => _,
                    next_bytes = const NEXT_BYTES,
                    a_unit = const 4 * WORDS_OF_UNIT,
                    b_unit = const 4 * WORDS_OF_UNIT * WORDS,
                    awake = in(reg) &mut spare,
                    sums = in(reg) sums,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

digit_loop!(
    two,
    step: [
        "tileloadd tmm7, [{b} + {line} + 2048]",
        "tileloadd tmm6, [{a} + {a_row}]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm6, [{a1} + {a_row}]", "tdpbssd tmm5, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 1024]",
        "tileloadd tmm6, [{a} + {a_row}]", "tdpbssd tmm2, tmm6, tmm7",
        "tileloadd tmm6, [{a1} + {a_row}]", "tdpbssd tmm3, tmm6, tmm7",
        "tileloadd tmm6, [{a} + {a_row} + 64]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm6, [{a1} + {a_row} + 64]", "tdpbssd tmm5, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line}]",
        "tileloadd tmm6, [{a} + {a_row} + 64]", "tdpbssd tmm2, tmm6, tmm7",
        "tileloadd tmm6, [{a1} + {a_row} + 64]", "tdpbssd tmm3, tmm6, tmm7",
        "tileloadd tmm6, [{a} + {a_row} + 128]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm6, [{a1} + {a_row} + 128]", "tdpbssd tmm5, tmm6, tmm7",
        "tileloadd tmm6, [{a} + {a_row}]", "tdpbssd tmm0, tmm6, tmm7",
        "tileloadd tmm6, [{a1} + {a_row}]", "tdpbssd tmm1, tmm6, tmm7"
    ],
    store: [
        "tilestored [{sums} + {line}], tmm0", "tilestored [{sums} + {line} + 1024], tmm2",
        "tilestored [{sums} + {line} + 2048], tmm4", "tilestored [{sums} + {line} + 3072], tmm1",
        "tilestored [{sums} + {line} + 4096], tmm3", "tilestored [{sums} + {line} + 5120], tmm5"
    ]
);
digit_loop!(
    one,
    step: [
        "tileloadd tmm7, [{b} + {line} + 2048]",
        "tileloadd tmm6, [{a} + {a_row}]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 1024]", "tdpbssd tmm2, tmm6, tmm7",
        "tileloadd tmm6, [{a} + {a_row} + 64]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line}]", "tdpbssd tmm2, tmm6, tmm7",
        "tileloadd tmm6, [{a} + {a_row} + 128]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm6, [{a} + {a_row}]", "tdpbssd tmm0, tmm6, tmm7"
    ],
    store: [
        "tilestored [{sums} + {line}], tmm0", "tilestored [{sums} + {line} + 1024], tmm2",
        "tilestored [{sums} + {line} + 2048], tmm4"
    ]
);
// The products of positions that sum to 3, in the sums' places of 2.
digit_loop!(
    two_more,
    step: [
        "tileloadd tmm7, [{b} + {line} + 2048]",
        "tileloadd tmm6, [{a} + {a_row} + 64]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm6, [{a1} + {a_row} + 64]", "tdpbssd tmm5, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 1024]",
        "tileloadd tmm6, [{a} + {a_row} + 128]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm6, [{a1} + {a_row} + 128]", "tdpbssd tmm5, tmm6, tmm7"
    ],
    store: [
        "tilestored [{sums} + {line} + 2048], tmm4", "tilestored [{sums} + {line} + 5120], tmm5"
    ]
);
digit_loop!(
    one_more,
    step: [
        "tileloadd tmm7, [{b} + {line} + 2048]",
        "tileloadd tmm6, [{a} + {a_row} + 64]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 1024]",
        "tileloadd tmm6, [{a} + {a_row} + 128]", "tdpbssd tmm4, tmm6, tmm7"
    ],
    store: ["tilestored [{sums} + {line} + 2048], tmm4"]
);

/// Which of the lines' exponents scale the sums.
#[derive(Clone, Copy)]
struct Exponents {
    /// Whether A's are of low digits, and B's.
    are_low: [usize; 2],
    /// What is added to them.
    more: f32,
    /// Whether the sums of all positions are there, or only the last's place.
    is_whole: bool,
}

impl TileSession {
    /// Computes the sums of at most 32 rows by sixteen columns.
    ///
    /// # Safety
    /// The operands are as [`DigitProduct`] says; the sums are writable for `rows` by sixteen columns, and initialized
    /// if they are added to.
    pub unsafe fn multiply_digits(&mut self, product: &DigitProduct) {
        self.set_shape([ROWS; 2]);
        // SAFETY: the session's proof says that the CPU has AVX-512; the rest is passed on.
        unsafe { multiply(product) }
    }
}

/// # Safety
/// As [`TileSession::multiply_digits`], in a session whose registers are of full shape.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn multiply(product: &DigitProduct) {
    let p = product;
    let is_two = p.rows > ROWS;
    let [multiply, multiply_more] = if is_two { [two, two_more] } else { [one, one_more] };
    let mut sums = Sums(MaybeUninit::uninit());
    // SAFETY: the operands have their digits and scales where the caller says.
    unsafe {
        // The sums are added to last.
        for row in 0..p.rows {
            _mm_prefetch::<_MM_HINT_ET0>(p.sums.add(row * p.sums_stride).cast());
        }
        let mut part = |[a, b]: [usize; 2], next: *const f32, accumulate: bool| {
            let (from_a, from_b) = (p.a.add(a * p.a_low), p.b.add(b * p.b_low));
            multiply(from_a, p.a_stride, from_b, p.units, next, &mut sums);
            let exponents = Exponents { are_low: [a, b], more: 0.0, is_whole: true };
            add(p, &sums, exponents, accumulate);
        };
        part([0, 0], p.next, p.accumulate);
        let spreads = |scales: *const Scales| (*scales)[2].as_ptr();
        let valid = |rows: usize| ((1u32 << rows.min(ROWS)) - 1) as u16;
        let mut a_spreads = _mm512_maskz_loadu_ps(valid(p.rows), spreads(p.a_scales));
        if is_two {
            let lower = spreads(p.a_scales.add(1));
            let lower = _mm512_maskz_loadu_ps(valid(p.rows - ROWS), lower);
            a_spreads = _mm512_max_ps(a_spreads, lower);
        }
        let a_spread = _mm512_reduce_max_ps(a_spreads);
        let b_spread = _mm512_reduce_max_ps(_mm512_loadu_ps(spreads(p.b_scales)));
        if a_spread + b_spread <= MOST_SPREAD {
            return;
        }
        if a_spread > LOW_SPREAD {
            part([1, 0], p.a, true);
        }
        if b_spread > LOW_SPREAD {
            part([0, 1], p.a, true);
        }
        multiply_more(p.a, p.a_stride, p.b, p.units, p.a, &mut sums);
        let exponents = Exponents { are_low: [0, 0], more: -8.0, is_whole: false };
        add(p, &sums, exponents, true);
    }
}

/// Adds what sums of digits' products stand for.
///
/// # Safety
/// As [`multiply`]; the digits' sums that `exponents` says are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn add(p: &DigitProduct, sums: &Sums, exponents: Exponents, accumulate: bool) {
    let Exponents { are_low: [a_low, b_low], more, is_whole } = exponents;
    let sums = sums.0.as_ptr().cast::<i32>();
    // SAFETY: the caller promises the sums of the rows, and the exponents.
    unsafe {
        let b_exponents = _mm512_loadu_ps((&raw const (*p.b_scales)[b_low]).cast());
        let b_exponents = _mm512_add_ps(b_exponents, _mm512_set1_ps(more));
        let (first, second) = (_mm512_set1_ps(65536.0), _mm512_set1_ps(256.0));
        for row in 0..p.rows {
            let digits = sums.add((row / ROWS * 3 * ROWS + row % ROWS) * WORDS);
            let load = |position: usize| {
                let at = digits.add(position * ROWS * WORDS);
                _mm512_cvtepi32_ps(_mm512_load_si512(at.cast()))
            };
            let mut sum = load(2);
            if is_whole {
                sum = _mm512_fmadd_ps(load(1), second, sum);
                sum = _mm512_fmadd_ps(load(0), first, sum);
            }
            let a_exponent = (*p.a_scales.add(row / ROWS))[a_low][row % ROWS];
            let a_exponent = _mm512_set1_ps(a_exponent);
            let sum = _mm512_scalef_ps(sum, _mm512_add_ps(a_exponent, b_exponents));
            let to = p.sums.add(row * p.sums_stride);
            let sum = if accumulate { _mm512_add_ps(_mm512_loadu_ps(to), sum) } else { sum };
            _mm512_storeu_ps(to, sum);
        }
    }
}
