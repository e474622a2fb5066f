//! The tile registers of AMX: eight of 16 rows of 64 bytes, and products of a whole tile of bf16 pairs by
//! another, summed in f32.
//!
//! Stable Rust has no intrinsics for them, so the loops that use them are assembly; the compiler knows the
//! registers only as ones that are overwritten. A thread uses them between [`TileSession::begin`] and the session's
//! end, which gives them back: a thread that has left them in use takes the operating system longer to switch.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::isa::{Bf16Dot, Tiles};

use super::{TILE_ROWS as ROWS, TILE_WORDS as WORDS, TileProduct, amx_loops as loops};

/// Whether the CPU has tiles of bf16 and the operating system lets this process use them; asked once, before
/// any tile is touched.
pub(crate) fn is_usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| has_instructions() && is_permitted())
}

/// AMX-TILE, AMX-BF16 and AMX-INT8 of CPUID's leaf 7.
fn has_instructions() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    __cpuid(0).eax >= 7 && {
        let features = __cpuid_count(7, 0).edx;
        let all = AMX_BF16 | AMX_TILE | AMX_INT8;
        features & all == all
    }
}

/// Asks Linux for the tiles' state: a process that has not asked is killed when it touches one. Threads that
/// start later may use them, too.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const SYS_ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: this system call reads and writes no memory of ours; it overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// How other systems are asked is not known here.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What LDTILECFG reads: the shape of each register.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's use of the tile registers. Sums of a product are registers 0 to 3, two rows of two tiles; 4 and
/// 5 hold rows of A, 6 and 7 columns of B.
#[derive(Debug)]
pub struct TileSession {
    proof: Tiles,
    /// Rows of the two rows of tiles that the registers are shaped for.
    shape: [usize; 2],
    /// The registers are those of one thread.
    not_send: PhantomData<*mut ()>,
}

impl TileSession {
    /// Takes the registers.
    #[inline]
    pub fn begin(proof: Tiles) -> Self {
        let mut session = Self { proof, shape: [0; 2], not_send: PhantomData };
        session.set_shape([ROWS; 2]);
        session
    }

    /// What the session's proof proves besides.
    pub fn dot(&self) -> Bf16Dot {
        self.proof.dot()
    }

    /// Shapes the registers for rows of tiles of so many rows each, which empties them.
    #[inline]
    pub(super) fn set_shape(&mut self, shape: [usize; 2]) {
        if self.shape == shape {
            return;
        }
        self.shape = shape;
        let [upper, lower] = shape.map(|rows| rows as u8);
        let full = ROWS as u8;
        let mut rows = [0; 16];
        rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, full, full]);
        let mut row_bytes = [0; 16];
        row_bytes[..8].fill(4 * WORDS as u16);
        let shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
        // SAFETY: the session's proof says that the CPU has the instruction and that the registers may be used;
        // it reads the 64 bytes, whose shapes are within palette 1.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) &shapes, options(nostack, readonly)) }
    }

    /// Rounds of four products of full registers of zeros, which depend on none but the round before: no loop that
    /// loads anything is faster.
    pub fn spin(&mut self, rounds: usize) {
        if rounds == 0 {
            return;
        }
        self.set_shape([ROWS; 2]);
        // SAFETY: the session's proof says that the CPU has the instructions; no memory is touched.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem),
            );
        }
    }

    /// Computes the sums of `rows` rows by `columns` tiles of columns.
    ///
    /// # Safety
    /// `rows` is 1 to 32 and `columns` 1 or 2. A is readable for `rows` x `steps` tiles' rows, B for
    /// [`super::TILE_WORDS`] x `steps` words of the depth by the columns, the sums are writable for `rows` by the
    /// columns, and initialized if they are added to.
    #[inline(always)]
    pub unsafe fn multiply(&mut self, rows: usize, columns: usize, product: &TileProduct) {
        let multiply = match (self.shape_for(rows), columns) {
            (1, 1) => loops::one_by_one,
            (1, _) => loops::one_by_two,
            (_, 1) => loops::two_by_one,
            _ => loops::two_by_two,
        };
        // SAFETY: the registers are shaped for the rows; the rest is passed on.
        unsafe { multiply(product) }
    }

    /// Shapes the registers for so many rows, and returns how many rows of tiles they are.
    #[inline(always)]
    fn shape_for(&mut self, rows: usize) -> usize {
        let is_two = rows > ROWS;
        self.set_shape(if is_two { [ROWS, rows - ROWS] } else { [rows, ROWS] });
        1 + usize::from(is_two)
    }
}

impl Drop for TileSession {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the session's proof says that the CPU has the instruction.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::Isa;

    /// Pairs of small whole numbers, whose sums of products are exact.
    fn words(count: usize, seed: usize) -> Vec<[i32; 2]> {
        let number = |i: usize| (i * 7 + seed) as i32 % 9 - 4;
        (0..count).map(|i| [number(2 * i), number(5 * i + 1)]).collect()
    }

    fn packed(words: &[[i32; 2]]) -> Vec<f32> {
        let half = |x: i32| u32::from(bf16::from_f32(x as f32).to_bits());
        words.iter().map(|&[low, high]| f32::from_bits(half(low) | half(high) << 16)).collect()
    }

    /// The product of these words, A's and B's, to these sums.
    fn product(
        (a, b, sums): (&[f32], &[f32], &mut [f32]),
        [a_stride, b_stride, sums_stride]: [usize; 3],
        (rows, steps): (usize, usize),
        accumulate: bool,
    ) -> TileProduct {
        let (a, b, sums) = (a.as_ptr(), b.as_ptr(), sums.as_mut_ptr());
        let next = std::ptr::null();
        TileProduct { a, a_stride, b, b_stride, steps, sums, sums_stride, accumulate, rows, next }
    }

    #[test]
    fn products_of_every_shape_are_exact_and_nothing_else_is_written() {
        let Some(tiles) = Isa::available().into_iter().find_map(Isa::tiles) else { return };
        let mut session = TileSession::begin(tiles);
        let (a_stride, b_stride, sums_stride) = (67, 35, 39);
        for rows in 1..=2 * ROWS {
            for (columns, steps) in [(1, 1), (2, 1), (1, 3), (2, 4)] {
                let depth = steps * WORDS;
                let (a, b) = (words(rows * a_stride, 1), words(depth * b_stride, 2));
                let (packed_a, packed_b) = (packed(&a), packed(&b));
                for accumulate in [false, true] {
                    let mut sums = vec![1000.0; rows * sums_stride];
                    let strides = [a_stride, b_stride, sums_stride];
                    let operands = (&packed_a[..], &packed_b[..], &mut sums[..]);
                    let product = product(operands, strides, (rows, steps), accumulate);
                    // SAFETY: the operands have so many rows and words.
                    unsafe { session.multiply(rows, columns, &product) };
                    for (at, &sum) in sums.iter().enumerate() {
                        let (row, column) = (at / sums_stride, at % sums_stride);
                        let term = |k: usize| {
                            let (a, b) = (a[row * a_stride + k], b[k * b_stride + column]);
                            a[0] * b[0] + a[1] * b[1]
                        };
                        let expected = if column >= columns * WORDS {
                            1000
                        } else {
                            (0..depth).map(term).sum::<i32>() + 1000 * i32::from(accumulate)
                        };
                        assert_eq!(
                            sum, expected as f32,
                            "{rows} x {columns} x {steps}: {row} {column}"
                        );
                    }
                }
            }
        }
    }
}
