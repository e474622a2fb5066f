//! The loops of [`super::product`] over units of the depth, in assembly: stable Rust has no intrinsics for tile registers.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::simd::{TILE_ROWS as ROWS, TILE_WORDS as WORDS};

use super::{NEXT_BYTES, VECTORS, WORDS_OF_UNIT};

/// Sums of products of digits: of 16 rows, for each number that positions sum to, each vector of columns by itself. And a
/// line that registers are stored to only for the sake of storing: see `simd/amx_loops.rs`.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) MaybeUninit<[[[[i32; WORDS]; ROWS]; VECTORS]; 3]>, [i32; WORDS]);

impl Sums {
    pub(super) fn new() -> Self {
        Self(MaybeUninit::uninit(), [0; WORDS])
    }
}

/// What a loop over units reads.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    pub(super) b: *const f32,
    pub(super) next: *const f32,
}

/// Sums of 16 rows and two vectors of columns that are added to those of f32 while others are made.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    pub(super) sums: *const Sums,
    /// Exponents of the rows, and of the columns.
    pub(super) rows: *const f32,
    pub(super) columns: [__m512; VECTORS],
    pub(super) to: *mut f32,
    pub(super) to_stride: usize,
    pub(super) accumulate: bool,
}

/// Rows of [`Waiting`] sums that are added with each unit: one behind each part of a step.
pub(super) const ROWS_A_UNIT: usize = 3;

/// A loop over units of a panel of some vectors of columns. Registers 0 and 1 are the sums of positions that sum to 0, of
/// the first vector and of the second, 2 and 3 to 1, 4 and 5 to 2. Register 6 holds A, 7 B.
macro_rules! digit_loop {
    (
        $name:ident($vectors:literal $(, $waiting:ident: $type:ty)?),
        step: [$($first:literal),* $(,)?] [$($second:literal),* $(,)?] [$($third:literal),* $(,)?],
        add: [$($add:literal),* $(,)?], $($more:tt)*
    ) => {
        /// Adds the products of `units` units to what the registers hold, and returns the operands behind them.
        ///
        /// # Safety
        /// A is readable from `a` on for a tile's rows, B from `b` on, each for `units`; the registers are of full
        /// shape.
        #[target_feature(enable = "avx512f")]
        pub(super) unsafe fn $name(
            operands: Operands,
            units: usize,
            sums: &mut Sums,
            $($waiting: $type)?
        ) -> Operands {
            if units == 0 {
                return operands;
            }
            let Operands { mut a, a_stride, mut b, mut next } = operands;
            // SAFETY: the caller promises the memory. The registers are named as overwritten, and nothing but the
            // spare line and the waiting sums' rows is written.
            unsafe {
                asm!(
                    "2:",
                    $($first,)* $($add,)*
                    $($second,)* $($add,)*
                    $($third,)* $($add,)*
                    "prefetcht1 [{next}]", "prefetcht1 [{next} + 64]", "prefetcht1 [{next} + 128]",
                    "prefetcht1 [{next} + 192]", "prefetcht1 [{next} + 256]",
                    "prefetcht1 [{next} + 320]", "prefetcht1 [{next} + 384]",
                    "prefetcht1 [{next} + 448]",
                    "add {next}, {next_bytes}",
                    "tilestored [{sums} + {spare}], tmm7",
                    "add {a}, {a_unit}", "add {b}, {b_unit}",
                    "dec {units}",
                    "jnz 2b",
                    a = inout(reg) a,
                    a_row = in(reg) 4 * a_stride,
                    b = inout(reg) b,
                    line = in(reg) 4 * WORDS,
                    units = inout(reg) units => _,
                    next = inout(reg) next,
                    next_bytes = const NEXT_BYTES,
                    a_unit = const 4 * WORDS_OF_UNIT,
                    b_unit = const $vectors * 4 * WORDS_OF_UNIT * WORDS,
                    sums = in(reg) sums,
                    spare = const std::mem::offset_of!(Sums, 1),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    $($more)*
                    options(nostack),
                );
            }
            Operands { a, b, next, ..operands }
        }
    };
}

macro_rules! loops_of_two {
    (step: $first:tt $second:tt $third:tt) => {
        digit_loop!(two(2), step: $first $second $third, add: [],);
        // The same, and some rows of sums that wait are added with each unit.
        digit_loop!(
            two_and_add(2, waiting: &mut Waiting),
            step: $first $second $third,
            add: [
                "vcvtdq2ps zmm16, [{waiting}]", "vcvtdq2ps zmm17, [{waiting} + 1024]",
                "vcvtdq2ps zmm18, [{waiting} + 2048]", "vcvtdq2ps zmm19, [{waiting} + 3072]",
                "vcvtdq2ps zmm20, [{waiting} + 4096]", "vcvtdq2ps zmm21, [{waiting} + 5120]",
                "vaddps zmm22, zmm27, [{rows}]{{1to16}}", "vaddps zmm23, zmm28, [{rows}]{{1to16}}",
                "vfmadd231ps zmm20, zmm18, zmm30", "vfmadd231ps zmm21, zmm19, zmm30",
                "vfmadd231ps zmm20, zmm16, zmm29", "vfmadd231ps zmm21, zmm17, zmm29",
                "vscalefps zmm20, zmm20, zmm22", "vscalefps zmm21, zmm21, zmm23",
                "vmovups zmm16{{k1}}{{z}}, [{to}]", "vmovups zmm17{{k1}}{{z}}, [{to} + 64]",
                "vaddps zmm20, zmm16, zmm20", "vaddps zmm21, zmm17, zmm21",
                "vmovups [{to}], zmm20", "vmovups [{to} + 64], zmm21",
                "add {waiting}, 64", "add {rows}, 4", "add {to}, {to_row}",
            ],
            waiting = inout(reg) waiting.sums,
            rows = inout(reg) waiting.rows,
            to = inout(reg) waiting.to,
            to_row = in(reg) 4 * waiting.to_stride,
            in("zmm27") waiting.columns[0],
            in("zmm28") waiting.columns[1],
            in("zmm29") _mm512_set1_ps(65536.0),
            in("zmm30") _mm512_set1_ps(256.0),
            in("k1") if waiting.accumulate { u16::MAX } else { 0 },
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
        );
    };
}

// Each tile of A is loaded once, with a hint not to put it in B's place in the nearest cache.
loops_of_two!(
    step: [
        "tileloaddt1 tmm6, [{a} + {a_row}]",
        "tileloadd tmm7, [{b} + {line} + 4096]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 5120]", "tdpbssd tmm5, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 3072]", "tdpbssd tmm3, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 2048]", "tdpbssd tmm2, tmm6, tmm7",
    ] [
        "tileloadd tmm7, [{b} + {line}]", "tdpbssd tmm0, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 1024]", "tdpbssd tmm1, tmm6, tmm7",
        "tileloaddt1 tmm6, [{a} + {a_row} + 64]", "tdpbssd tmm3, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 3072]", "tdpbssd tmm5, tmm6, tmm7",
    ] [
        "tileloadd tmm7, [{b} + {line} + 2048]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line}]", "tdpbssd tmm2, tmm6, tmm7",
        "tileloaddt1 tmm6, [{a} + {a_row} + 128]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 1024]", "tdpbssd tmm5, tmm6, tmm7",
    ]
);
digit_loop!(
    one(1),
    step: [
        "tileloaddt1 tmm6, [{a} + {a_row}]",
        "tileloadd tmm7, [{b} + {line} + 2048]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 1024]", "tdpbssd tmm2, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line}]", "tdpbssd tmm0, tmm6, tmm7",
    ] [
        "tileloaddt1 tmm6, [{a} + {a_row} + 64]", "tdpbssd tmm2, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 1024]", "tdpbssd tmm4, tmm6, tmm7",
    ] [
        "tileloaddt1 tmm6, [{a} + {a_row} + 128]",
        "tileloadd tmm7, [{b} + {line}]", "tdpbssd tmm4, tmm6, tmm7",
    ],
    add: [],
);
// The products of positions that sum to 3 and to 4, in the registers of 1 and 2.
digit_loop!(
    two_more(2),
    step: [
        "tileloaddt1 tmm6, [{a} + {a_row} + 64]",
        "tileloadd tmm7, [{b} + {line} + 5120]", "tdpbssd tmm3, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 4096]", "tdpbssd tmm2, tmm6, tmm7",
    ] [
        "tileloaddt1 tmm6, [{a} + {a_row} + 128]", "tdpbssd tmm4, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 5120]", "tdpbssd tmm5, tmm6, tmm7",
    ] [
        "tileloadd tmm7, [{b} + {line} + 2048]", "tdpbssd tmm2, tmm6, tmm7",
        "tileloadd tmm7, [{b} + {line} + 3072]", "tdpbssd tmm3, tmm6, tmm7",
    ],
    add: [],
);
digit_loop!(
    one_more(1),
    step: [
        "tileloadd tmm7, [{b} + {line} + 2048]",
        "tileloaddt1 tmm6, [{a} + {a_row} + 64]", "tdpbssd tmm2, tmm6, tmm7",
    ] [
        "tileloaddt1 tmm6, [{a} + {a_row} + 128]", "tdpbssd tmm4, tmm6, tmm7",
    ] [
        "tileloadd tmm7, [{b} + {line} + 1024]", "tdpbssd tmm2, tmm6, tmm7",
    ],
    add: [],
);

/// Clears the registers that hold sums.
///
/// # Safety
/// A session has the registers.
#[inline]
pub(super) unsafe fn zero() {
    // SAFETY: the caller's promise; no memory is touched.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", "tilezero tmm4",
            "tilezero tmm5",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            out("tmm5") _,
            options(nostack, nomem),
        );
    }
}

/// Stores the registers that hold sums.
///
/// # Safety
/// As [`zero`].
#[inline]
pub(super) unsafe fn store(sums: &mut Sums) {
    // SAFETY: the caller's promise; the registers' six tiles are what the sums are.
    unsafe {
        asm!(
            "tilestored [{sums} + {line}], tmm0", "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2", "tilestored [{sums} + {line} + 3072], tmm3",
            "tilestored [{sums} + {line} + 4096], tmm4", "tilestored [{sums} + {line} + 5120], tmm5",
            sums = in(reg) sums,
            line = in(reg) 4 * WORDS,
            options(nostack),
        );
    }
}
