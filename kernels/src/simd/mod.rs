//! One source, several instruction sets: vector code is written once, generic over [`Simd`].
//!
//! A [`Simd`] value is a zero-sized token: it only exists inside [`dispatch`], on a CPU that has
//! the instructions, so its arithmetic methods are safe to call. Kernels implement [`SimdJob`] and
//! mark `run` and all they call with `#[inline(always)]`; the job's body is then compiled with
//! the instruction set enabled. Without the attribute the code is still right, but every
//! intrinsic becomes a call.
//!
//! Numbers: each operation rounds once, lane by lane, the same on every instruction set, but for
//! [`Simd::mul_add`] (fused except on the portable path) and the lane count's effect on the order
//! of sums in [`Simd::reduce_add`]. So results are identical from run to run on one [`Isa`], and
//! agree within rounding between two.

pub mod digits;
#[cfg(not(target_arch = "x86_64"))]
mod no_tiles;
mod portable;
mod square;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_loops;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
pub use amx::TileSession;
#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub use digits::Splitting;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
#[cfg(not(target_arch = "x86_64"))]
pub use no_tiles::{Splitting, TileSession};
pub use portable::Portable;
pub use square::transpose_4x4;

use crate::isa::{Bf16Dot, Isa, Kind};

/// Most lanes any [`Simd`] has; scratch that must hold one vector of any of them has this length.
pub const MAX_LANES: usize = 16;

/// Vector operations of one instruction set, on [`Simd::LANES`] f32 lanes.
///
/// Comparisons are false for NaN, except [`Simd::ne`].
pub trait Simd: Copy + Send + Sync + 'static {
    /// f32 lanes of [`Simd::F`]; divides [`MAX_LANES`].
    const LANES: usize;
    /// Whether [`Simd::mul_add`] rounds once.
    const FUSED: bool;
    /// Vector registers the compiler can keep values of [`Simd::F`] in.
    const REGISTERS: usize;
    /// A vector of f32.
    type F: Copy;
    /// A lane mask.
    type M: Copy;

    /// Runs `job` in a function of its own with the same instructions enabled, so that its
    /// registers are not allocated together with the caller's.
    fn outline<J: SimdJob>(self, job: J) -> J::Output;

    /// As [`Simd::outline`], with the instruction behind [`Simd::dot_bf16`] enabled too; without it
    /// each `dot_bf16` is a call.
    #[inline(always)]
    fn outline_bf16<J: SimdJob>(self, _: Bf16Dot, job: J) -> J::Output {
        self.outline(job)
    }

    /// Every lane `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Every lane the f32 with these bits.
    #[inline(always)]
    fn splat_bits(self, bits: u32) -> Self::F {
        self.splat(f32::from_bits(bits))
    }

    /// Reads [`Simd::LANES`] values, no alignment needed.
    ///
    /// # Safety
    /// `p` is readable for that many f32.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Reads `n <= LANES` values, zero elsewhere; touches no memory behind them.
    ///
    /// # Safety
    /// `p` is readable for `n` f32.
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::F;
    /// Reads every second value, the first at `p`; touches no memory behind the last.
    ///
    /// # Safety
    /// `p` is readable for `2 * LANES - 1` f32.
    #[inline(always)]
    unsafe fn load_alternate(self, p: *const f32) -> Self::F {
        let mut buffer = [0f32; MAX_LANES];
        for (lane, x) in buffer.iter_mut().enumerate().take(Self::LANES) {
            // SAFETY: the caller's promise.
            *x = unsafe { p.add(2 * lane).read_unaligned() };
        }
        // SAFETY: the buffer holds MAX_LANES >= LANES values.
        unsafe { self.load(buffer.as_ptr()) }
    }
    /// Writes [`Simd::LANES`] values.
    ///
    /// # Safety
    /// `p` is writable for that many f32.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// Writes the first `n <= LANES` values; touches no memory behind them.
    ///
    /// # Safety
    /// `p` is writable for `n` f32.
    unsafe fn store_n(self, p: *mut f32, v: Self::F, n: usize);
    /// Reads [`Simd::LANES`] bf16 values.
    ///
    /// # Safety
    /// `p` is readable for that many u16.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F;
    /// Writes [`Simd::LANES`] values as bf16, rounded to nearest even; NaN stays NaN.
    ///
    /// # Safety
    /// `p` is writable for that many u16.
    unsafe fn store_bf16(self, p: *mut u16, v: Self::F);
    /// Reads [`Simd::LANES`] f16 values.
    ///
    /// # Safety
    /// `p` is readable for that many u16.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Writes [`Simd::LANES`] values as f16, rounded to nearest even.
    ///
    /// # Safety
    /// `p` is writable for that many u16.
    unsafe fn store_f16(self, p: *mut u16, v: Self::F);

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where [`Simd::FUSED`].
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once where [`Simd::FUSED`].
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Lanes as pairs of bf16, the lower half first: `c + a.0 * b.0 + a.1 * b.1`. What is rounded
    /// in between, and whether denormals count as zero, is the instruction's.
    #[inline(always)]
    fn dot_bf16(self, _: Bf16Dot, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let low = |x| self.shl::<16>(x);
        let high = |x| self.and(x, self.splat_bits(0xffff_0000));
        self.mul_add(high(a), high(b), self.mul_add(low(a), low(b), c))
    }
    /// Rounds to bf16 (nearest even, NaN stays NaN) and joins lane by lane, `low` in the lower half.
    #[inline(always)]
    fn pair_bf16(self, low: Self::F, high: Self::F) -> Self::F {
        self.or(self.shr::<16>(self.round_bf16(low)), self.round_bf16(high))
    }

    /// As [`Simd::pair_bf16`], by the instruction that comes with [`Simd::dot_bf16`]; like there,
    /// denormals may count as zero.
    #[inline(always)]
    fn narrow_pair(self, _: Bf16Dot, low: Self::F, high: Self::F) -> Self::F {
        self.pair_bf16(low, high)
    }

    /// Lanes as pairs of i16, the lower half first, those of `c` as i32:
    /// `c + a.0 * b.0 + a.1 * b.1`, wrapping.
    #[inline(always)]
    fn dot_i16(self, _: Bf16Dot, _a: Self::F, _b: Self::F, _c: Self::F) -> Self::F {
        unreachable!("an instruction set with the proof has the instruction")
    }

    /// Rounds to i16 (nearest even) and joins lane by lane, `low` in the lower half; what i16 cannot
    /// hold is unspecified.
    #[inline(always)]
    fn pair_i16(self, _: Bf16Dot, _low: Self::F, _high: Self::F) -> Self::F {
        unreachable!("an instruction set with the proof has the instruction")
    }

    /// Writes [`Simd::LANES`] values as i16, rounded to nearest even; what i16 cannot hold is
    /// unspecified.
    ///
    /// # Safety
    /// `p` is writable for that many i16.
    #[inline(always)]
    unsafe fn store_i16(self, _: Bf16Dot, _p: *mut i16, _v: Self::F) {
        unreachable!("an instruction set with the proof has the instruction")
    }

    /// Writes the first `n <= LANES` values as bf16, rounded as by [`Simd::narrow_pair`]; touches no
    /// memory behind them.
    ///
    /// # Safety
    /// `p` is writable for `n` u16.
    #[inline(always)]
    unsafe fn store_narrow_n(self, _: Bf16Dot, p: *mut u16, v: Self::F, n: usize) {
        // SAFETY: passed on.
        unsafe { self.store_bf16_n(p, v, n) }
    }

    /// Lanes `2 i` and `2 i + 1` in each other's place.
    fn swap_neighbors(self, a: Self::F) -> Self::F;
    /// `to[j * to_row + i] = from[i * from_row + j]` for `i` and `j` below [`Simd::LANES`].
    ///
    /// # Safety
    /// Both are valid for the elements that the steps reach, and do not overlap.
    #[inline(always)]
    unsafe fn transpose_square(
        self,
        from: *const f32,
        from_row: usize,
        to: *mut f32,
        to_row: usize,
    ) {
        for i in (0..Self::LANES).step_by(4) {
            for j in (0..Self::LANES).step_by(4) {
                // SAFETY: blocks of 4 x 4 lie within the square.
                unsafe {
                    let (from, to) = (from.add(i * from_row + j), to.add(j * to_row + i));
                    transpose_4x4(from, from_row, to, to_row);
                }
            }
        }
    }

    /// `a < b ? a : b`: `b` if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`: `b` if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::F) -> Self::F;

    /// `a < b`.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a <= b`.
    fn le(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a == b`.
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a != b`, true for NaN.
    fn ne(self, a: Self::F, b: Self::F) -> Self::M;
    /// Lane by lane `m ? a : b`.
    fn select(self, m: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Whether any lane is set.
    fn any(self, m: Self::M) -> bool;

    /// Bitwise and.
    fn and(self, a: Self::F, b: Self::F) -> Self::F;
    /// Bitwise or.
    fn or(self, a: Self::F, b: Self::F) -> Self::F;
    /// Bitwise exclusive or.
    fn xor(self, a: Self::F, b: Self::F) -> Self::F;
    /// The bits moved to the left by `N`.
    fn shl<const N: u32>(self, a: Self::F) -> Self::F;
    /// The bits moved to the right by `N`, zeros from the left.
    fn shr<const N: u32>(self, a: Self::F) -> Self::F;
    /// Adds the bits as 32-bit integers, wrapping.
    fn add_bits(self, a: Self::F, b: Self::F) -> Self::F;
    /// The bits as i32, converted to f32.
    fn bits_to_f32(self, a: Self::F) -> Self::F;

    /// The first lane.
    fn first(self, a: Self::F) -> f32;
    /// Sum of the lanes, halves added pairwise.
    fn reduce_add(self, a: Self::F) -> f32;
    /// Largest lane; unspecified if one is NaN.
    fn reduce_max(self, a: Self::F) -> f32;

    /// `-a`.
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        self.xor(a, self.splat_bits(0x8000_0000))
    }
    /// `|a|`.
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        self.and(a, self.splat_bits(0x7fff_ffff))
    }
    /// Rounds to bf16 and back.
    #[inline(always)]
    fn round_bf16(self, a: Self::F) -> Self::F {
        let bits = self.and(self.shr::<16>(a), self.splat_bits(1));
        let rounded = self.add_bits(self.add_bits(a, self.splat_bits(0x7fff)), bits);
        let quiet = self.or(a, self.splat_bits(0x0040_0000));
        let v = self.select(self.ne(a, a), quiet, rounded);
        self.and(v, self.splat_bits(0xffff_0000))
    }
    /// Rounds to f16 and back.
    #[inline(always)]
    fn round_f16(self, a: Self::F) -> Self::F {
        let mut buffer = [0u16; MAX_LANES];
        // SAFETY: the buffer holds MAX_LANES >= LANES values.
        unsafe {
            self.store_f16(buffer.as_mut_ptr(), a);
            self.load_f16(buffer.as_ptr())
        }
    }
    /// Reads `n <= LANES` bf16 values, zero elsewhere.
    ///
    /// # Safety
    /// `p` is readable for `n` u16.
    #[inline(always)]
    unsafe fn load_bf16_n(self, p: *const u16, n: usize) -> Self::F {
        let mut buffer = [0u16; MAX_LANES];
        // SAFETY: `p` is readable for n, the buffer holds MAX_LANES >= LANES >= n values.
        unsafe {
            std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
            self.load_bf16(buffer.as_ptr())
        }
    }
    /// Reads `n <= LANES` f16 values, zero elsewhere.
    ///
    /// # Safety
    /// `p` is readable for `n` u16.
    #[inline(always)]
    unsafe fn load_f16_n(self, p: *const u16, n: usize) -> Self::F {
        let mut buffer = [0u16; MAX_LANES];
        // SAFETY: as in `load_bf16_n`.
        unsafe {
            std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
            self.load_f16(buffer.as_ptr())
        }
    }
    /// Writes the first `n <= LANES` values as bf16.
    ///
    /// # Safety
    /// `p` is writable for `n` u16.
    #[inline(always)]
    unsafe fn store_bf16_n(self, p: *mut u16, v: Self::F, n: usize) {
        let mut buffer = [0u16; MAX_LANES];
        // SAFETY: the buffer holds MAX_LANES >= LANES >= n values, `p` is writable for n.
        unsafe {
            self.store_bf16(buffer.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
        }
    }
    /// Writes the first `n <= LANES` values as f16.
    ///
    /// # Safety
    /// `p` is writable for `n` u16.
    #[inline(always)]
    unsafe fn store_f16_n(self, p: *mut u16, v: Self::F, n: usize) {
        let mut buffer = [0u16; MAX_LANES];
        // SAFETY: as in `store_bf16_n`.
        unsafe {
            self.store_f16(buffer.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
        }
    }
}

/// Rows of a tile register.
pub const TILE_ROWS: usize = 16;
/// 32-bit words of a row of a tile register.
pub const TILE_WORDS: usize = 16;

/// Operands of a product of at most 32 rows by one or two tiles of columns; strides count 32-bit words.
#[derive(Clone, Copy, Debug)]
pub struct TileProduct {
    /// First word of the rows of A.
    pub a: *const f32,
    /// From one row of A to the next.
    pub a_stride: usize,
    /// The columns of B: for each word of the depth, a word of each.
    pub b: *const f32,
    /// From one word of the depth to the next; of at least as many words as there are columns.
    pub b_stride: usize,
    /// Tiles of the depth, [`TILE_WORDS`] words each; at least one.
    pub steps: usize,
    /// First sum.
    pub sums: *mut f32,
    /// From one row of sums to the next.
    pub sums_stride: usize,
    /// Whether to add to what is there.
    pub accumulate: bool,
    /// Rows before those of the next product, whose sums are asked for meanwhile.
    pub rows: usize,
    /// Memory to bring into the second-level cache, four lines a step; any address is allowed.
    pub next: *const f32,
}

/// Asks for the cache line at `p` in all cache levels; any address is allowed.
#[inline(always)]
pub fn prefetch<T>(p: *const T) {
    // SAFETY: a prefetch is a hint and never faults; SSE is part of x86_64.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for the cache line at `p` in the second level; any address is allowed.
#[inline(always)]
pub fn prefetch_l2<T>(p: *const T) {
    // SAFETY: as in `prefetch`.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for the cache line at `p` as one that is going to be written; any address is allowed.
#[inline(always)]
pub fn prefetch_write<T>(p: *const T) {
    // SAFETY: as in `prefetch`; a CPU that lacks this hint does nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Work that is compiled once per instruction set.
pub trait SimdJob {
    /// What it returns.
    type Output;
    /// Does the work. Mark the implementation `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `job` in a function that has `isa`'s instructions enabled.
#[inline]
pub fn dispatch<J: SimdJob>(isa: Isa, job: J) -> J::Output {
    match isa.kind() {
        // SAFETY: an `Isa` of this kind only exists if the CPU has the features.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx => unsafe { avx512::run(job) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { avx2::run(job) },
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => neon::run(job),
        _ => portable::run(job),
    }
}
