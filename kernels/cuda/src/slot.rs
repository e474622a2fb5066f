//! A pointer to elements of a type that only the function's data says.
//!
//! Elements move as unsigned words of their size, or as vectors of up to four 32-bit words, and are
//! converted in registers.

use cubecl::prelude::*;
use half::{bf16, f16};
use ops::DType;

/// Elements behind one pointer, as words of their size.
#[derive(CubeType)]
#[expect(dead_code, reason = "only the expanded form of it is ever made")]
pub(crate) enum Slot {
    /// Of one byte.
    Bytes(Box<[u8]>),
    /// Of two.
    Halves(Box<[u16]>),
    /// Of four.
    Words(Box<[u32]>),
    /// Of eight.
    Longs(Box<[u64]>),
}

impl SlotExpand {
    /// The next parameter of the function, whose elements have `bytes` bytes.
    pub(crate) fn declare(builder: &mut KernelBuilder, bytes: usize) -> SlotExpand {
        let arg = BufferCompilationArg { inplace: None };
        match bytes {
            1 => SlotExpand::Bytes(Box::<[u8]>::expand(&arg, builder)),
            2 => SlotExpand::Halves(Box::<[u16]>::expand(&arg, builder)),
            4 => SlotExpand::Words(Box::<[u32]>::expand(&arg, builder)),
            _ => SlotExpand::Longs(Box::<[u64]>::expand(&arg, builder)),
        }
    }
}

/// Element `index` of a slot, as f32. Integers are converted, bools are 0 or 1.
#[cube]
pub(crate) fn load(slot: &Slot, index: usize, #[comptime] dtype: DType) -> f32 {
    match slot {
        Slot::Bytes(x) => f32::cast_from(x[index]),
        Slot::Halves(x) => half_to_f32(x[index], dtype),
        Slot::Words(x) => {
            if comptime!(dtype == DType::F32) {
                f32::reinterpret(x[index])
            } else {
                f32::cast_from(i32::reinterpret(x[index]))
            }
        }
        Slot::Longs(x) => f32::cast_from(i64::reinterpret(x[index])),
    }
}

/// `n` elements from `index` on, a multiple of `n`, as f32.
#[cube]
pub(crate) fn load_run(
    slot: &Slot,
    index: usize,
    #[comptime] dtype: DType,
    #[comptime] n: usize,
) -> Array<f32> {
    let mut run = Array::<f32>::new(n);
    match slot {
        Slot::Halves(x) => {
            if comptime!(n == 8) {
                let words = Vector::<u32, Const<4>>::reinterpret(
                    x.as_vectorized().with_vector_size::<Const<8>>()[index / 8],
                );
                #[unroll]
                for i in 0..4usize {
                    let word = words.extract(i);
                    run[2 * i] = half_to_f32(u16::cast_from(word & 0xffff), dtype);
                    run[2 * i + 1] = half_to_f32(u16::cast_from(word >> 16), dtype);
                }
            } else {
                #[unroll]
                for i in 0..n {
                    run[i] = load(slot, index + i, dtype);
                }
            }
        }
        Slot::Words(x) => {
            if comptime!(n % 4 == 0 && dtype == DType::F32) {
                #[unroll]
                for j in 0..comptime!(n / 4) {
                    let words = x.as_vectorized().with_vector_size::<Const<4>>()[index / 4 + j];
                    #[unroll]
                    for i in 0..4usize {
                        run[4 * j + i] = f32::reinterpret(words.extract(i));
                    }
                }
            } else {
                #[unroll]
                for i in 0..n {
                    run[i] = load(slot, index + i, dtype);
                }
            }
        }
        _ =>
        {
            #[unroll]
            for i in 0..n {
                run[i] = load(slot, index + i, dtype);
            }
        }
    }
    run
}

#[cube]
fn half_to_f32(bits: u16, #[comptime] dtype: DType) -> f32 {
    if comptime!(dtype == DType::Bf16) {
        f32::reinterpret(u32::cast_from(bits) << 16)
    } else {
        f32::cast_from(f16::reinterpret(bits))
    }
}

#[cube]
fn f32_to_half(x: f32, #[comptime] dtype: DType) -> u16 {
    if comptime!(dtype == DType::Bf16) {
        u16::reinterpret(bf16::cast_from(x))
    } else {
        u16::reinterpret(f16::cast_from(x))
    }
}

/// Writes `x` as element `index`, rounded to the element type.
#[cube]
pub(crate) fn store(slot: &mut Slot, index: usize, x: f32, #[comptime] dtype: DType) {
    match slot {
        Slot::Bytes(to) => to[index] = u8::cast_from(x),
        Slot::Halves(to) => to[index] = f32_to_half(x, dtype),
        Slot::Words(to) => to[index] = u32::reinterpret(x),
        Slot::Longs(to) => to[index] = u64::cast_from(x),
    }
}

/// Writes `n` elements from `index` on, a multiple of `n`.
#[cube]
pub(crate) fn store_run(
    slot: &mut Slot,
    index: usize,
    run: &Array<f32>,
    #[comptime] dtype: DType,
    #[comptime] n: usize,
) {
    match slot {
        Slot::Halves(to) => {
            if comptime!(n == 8) {
                let mut words = Vector::<u32, Const<4>>::empty();
                #[unroll]
                for i in 0..4usize {
                    let low = u32::cast_from(f32_to_half(run[2 * i], dtype));
                    let high = u32::cast_from(f32_to_half(run[2 * i + 1], dtype));
                    words.insert(i, low | (high << 16));
                }
                to.as_vectorized_mut().with_vector_size_mut::<Const<8>>()[index / 8] =
                    Vector::<u16, Const<8>>::reinterpret(words);
            } else {
                #[unroll]
                for i in 0..n {
                    to[index + i] = f32_to_half(run[i], dtype);
                }
            }
        }
        Slot::Words(to) => {
            if comptime!(n % 4 == 0) {
                #[unroll]
                for j in 0..comptime!(n / 4) {
                    let mut words = Vector::<u32, Const<4>>::empty();
                    #[unroll]
                    for i in 0..4usize {
                        words.insert(i, u32::reinterpret(run[4 * j + i]));
                    }
                    to.as_vectorized_mut().with_vector_size_mut::<Const<4>>()[index / 4 + j] =
                        words;
                }
            } else {
                #[unroll]
                for i in 0..n {
                    to[index + i] = u32::reinterpret(run[i]);
                }
            }
        }
        _ =>
        {
            #[unroll]
            for i in 0..n {
                store(slot, index + i, run[i], dtype);
            }
        }
    }
}
