//! The loops of [`super::amx`] over the depth, one for each number of rows and columns of tiles.

use std::arch::asm;

use super::{TILE_ROWS as ROWS, TILE_WORDS as WORDS, TileProduct};

/// The first word of A's second row of tiles.
fn lower_a(product: &TileProduct) -> *const f32 {
    product.a.wrapping_add(ROWS * product.a_stride)
}

/// The first of the sums' second row of tiles.
fn lower_sums(product: &TileProduct) -> *mut f32 {
    product.sums.wrapping_add(ROWS * product.sums_stride)
}

/// The first of the sums of the next rows, if those are as many.
fn next_sums(product: &TileProduct) -> *mut f32 {
    product.sums.wrapping_add(product.rows * product.sums_stride)
}

/// What registers are stored to only for the sake of storing.
///
/// Where some 2000 cycles pass between two stores of a tile, the second takes 1000 cycles, as measured on a Xeon:
/// whatever stores tiles seems to fall asleep. One more store in each step keeps it awake, which costs next to nothing
/// as all rows go to one line.
#[repr(C, align(64))]
struct Line([f32; WORDS]);

/// The loop over the depth for one shape. Each step multiplies tiles of every row with tiles of every column; the
/// products are up to four chains, so that they need not wait for each other. B is read again by the next rows, all
/// else once: it is loaded with a hint not to put it in B's place.
macro_rules! tile_loop {
    (
        $name:ident,
        zero: [$($zero:literal),*], load: [$($load:literal),*],
        step: [$($step:literal),*], store: [$($store:literal),*],
        $($operand:ident = $address:expr),*
    ) => {
        /// # Safety
        /// As [`TileSession::multiply`], which has shaped the registers.
        #[inline(never)]
        pub(super) unsafe fn $name(product: &TileProduct) {
            let p = *product;
            let mut spare = Line([0.0; WORDS]);
            // SAFETY: the caller promises the memory. The registers are named as overwritten, and nothing but
            // the sums and the spare line is written.
            unsafe {
                asm!(
                    "test {accumulate}, {accumulate}",
                    "jnz 2f",
                    $($zero,)*
                    "jmp 3f",
                    "2:",
                    $($load,)*
                    "3:",
                    $($step,)*
                    "add {b}, {b_step}",
                    "dec {steps}",
                    "jnz 3b",
                    $($store,)*
                    a = inout(reg) p.a => _,
                    a_row = in(reg) 4 * p.a_stride,
                    b = inout(reg) p.b => _,
                    b_row = in(reg) 4 * p.b_stride,
                    b_step = in(reg) 4 * WORDS * p.b_stride,
                    c = in(reg) p.sums,
                    c_row = in(reg) 4 * p.sums_stride,
                    steps = inout(reg) p.steps => _,
                    next = inout(reg) p.next => _,
                    awake = in(reg) &mut spare,
                    accumulate = in(reg) u64::from(p.accumulate),
                    $($operand = inout(reg) $address(&p) => _,)*
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

tile_loop!(
    two_by_two,
    zero: ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
    load: [
        "tileloaddt1 tmm0, [{c} + {c_row}]", "tileloaddt1 tmm1, [{c} + {c_row} + 64]",
        "tileloaddt1 tmm2, [{c1} + {c_row}]", "tileloaddt1 tmm3, [{c1} + {c_row} + 64]"
    ],
    step: [
        "tileloaddt1 tmm4, [{a} + {a_row}]", "tileloadd tmm6, [{b} + {b_row}]",
        "tileloadd tmm7, [{b} + {b_row} + 64]", "tileloaddt1 tmm5, [{a1} + {a_row}]",
        "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "prefetcht1 [{next}]", "prefetcht1 [{next} + 64]", "prefetcht1 [{next} + 128]",
        "prefetcht1 [{next} + 192]", "add {next}, 256",
        "prefetchw [{ahead}]", "prefetchw [{ahead} + 64]", "add {ahead}, {c_row}",
        "prefetchw [{ahead}]", "prefetchw [{ahead} + 64]", "add {ahead}, {c_row}",
        "tilestored [{awake}], tmm6",
        "add {a}, 64", "add {a1}, 64"
    ],
    store: [
        "tilestored [{c} + {c_row}], tmm0", "tilestored [{c} + {c_row} + 64], tmm1",
        "tilestored [{c1} + {c_row}], tmm2", "tilestored [{c1} + {c_row} + 64], tmm3"
    ],
    a1 = lower_a,
    c1 = lower_sums,
    ahead = next_sums
);
tile_loop!(
    two_by_one,
    zero: ["tilezero tmm0", "tilezero tmm2"],
    load: [
        "tileloaddt1 tmm0, [{c} + {c_row}]", "tileloaddt1 tmm2, [{c1} + {c_row}]"
    ],
    step: [
        "tileloaddt1 tmm4, [{a} + {a_row}]", "tileloadd tmm6, [{b} + {b_row}]",
        "tileloaddt1 tmm5, [{a1} + {a_row}]",
        "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
        "prefetcht1 [{next}]", "prefetcht1 [{next} + 64]", "prefetcht1 [{next} + 128]",
        "prefetcht1 [{next} + 192]", "add {next}, 256",
        "prefetchw [{ahead}]", "add {ahead}, {c_row}", "prefetchw [{ahead}]",
        "add {ahead}, {c_row}",
        "tilestored [{awake}], tmm6",
        "add {a}, 64", "add {a1}, 64"
    ],
    store: [
        "tilestored [{c} + {c_row}], tmm0", "tilestored [{c1} + {c_row}], tmm2"
    ],
    a1 = lower_a,
    c1 = lower_sums,
    ahead = next_sums
);
tile_loop!(
    one_by_two,
    zero: ["tilezero tmm0", "tilezero tmm1"],
    load: [
        "tileloaddt1 tmm0, [{c} + {c_row}]", "tileloaddt1 tmm1, [{c} + {c_row} + 64]"
    ],
    step: [
        "tileloaddt1 tmm4, [{a} + {a_row}]", "tileloadd tmm6, [{b} + {b_row}]",
        "tileloadd tmm7, [{b} + {b_row} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
        "prefetcht1 [{next}]", "prefetcht1 [{next} + 64]", "prefetcht1 [{next} + 128]",
        "prefetcht1 [{next} + 192]", "add {next}, 256",
        "prefetchw [{ahead}]", "prefetchw [{ahead} + 64]", "add {ahead}, {c_row}",
        "prefetchw [{ahead}]", "prefetchw [{ahead} + 64]", "add {ahead}, {c_row}",
        "tilestored [{awake}], tmm6",
        "add {a}, 64"
    ],
    store: [
        "tilestored [{c} + {c_row}], tmm0", "tilestored [{c} + {c_row} + 64], tmm1"
    ],
    ahead = next_sums
);
tile_loop!(
    one_by_one,
    zero: ["tilezero tmm0"],
    load: [
        "tileloaddt1 tmm0, [{c} + {c_row}]"
    ],
    step: [
        "tileloaddt1 tmm4, [{a} + {a_row}]", "tileloadd tmm6, [{b} + {b_row}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "prefetcht1 [{next}]", "prefetcht1 [{next} + 64]", "prefetcht1 [{next} + 128]",
        "prefetcht1 [{next} + 192]", "add {next}, 256",
        "prefetchw [{ahead}]", "add {ahead}, {c_row}", "prefetchw [{ahead}]",
        "add {ahead}, {c_row}",
        "tilestored [{awake}], tmm6",
        "add {a}, 64"
    ],
    store: [
        "tilestored [{c} + {c_row}], tmm0"
    ],
    ahead = next_sums
);
