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
    let run = load_run(slot, index, dtype, 1usize);
    run[0]
}

/// `n` elements from `index` on, a multiple of `n`, as f32.
#[cube]
pub(crate) fn load_run(
    slot: &Slot,
    index: usize,
    #[comptime] dtype: DType,
    #[comptime] n: usize,
) -> Array<f32> {
    let words = load_words(slot, index, n);
    let mut run = Array::<f32>::new(n);
    #[unroll]
    for i in 0..n {
        run[i] = if comptime!(dtype.size() == 8) {
            let high = u64::cast_from(words[2 * i + 1]) << 32;
            f32::cast_from(i64::reinterpret(u64::cast_from(words[2 * i]) | high))
        } else if comptime!(dtype.size() == 4) {
            word_to_f32(words[i], dtype)
        } else if comptime!(dtype.size() == 2) {
            half_to_f32(words[i / 2], comptime!(i % 2 == 1), dtype)
        } else {
            f32::cast_from((words[i / 4] >> comptime!(8 * (i as u32 % 4))) & 0xff)
        };
    }
    run
}

#[cube]
fn word_to_f32(word: u32, #[comptime] dtype: DType) -> f32 {
    if comptime!(dtype == DType::F32) {
        f32::reinterpret(word)
    } else {
        f32::cast_from(i32::reinterpret(word))
    }
}

/// Half of a word, as f32.
#[cube]
fn half_to_f32(word: u32, #[comptime] is_high: bool, #[comptime] dtype: DType) -> f32 {
    if comptime!(dtype == DType::Bf16 && is_high) {
        f32::reinterpret(word & 0xffff_0000u32)
    } else if comptime!(dtype == DType::Bf16) {
        f32::reinterpret(word << 16)
    } else if is_high {
        f32::cast_from(f16::reinterpret(u16::cast_from(word >> 16)))
    } else {
        f32::cast_from(f16::reinterpret(u16::cast_from(word & 0xffff)))
    }
}

#[cube]
fn f32_to_half(x: f32, #[comptime] dtype: DType) -> u32 {
    if comptime!(dtype == DType::Bf16) {
        u32::cast_from(u16::reinterpret(bf16::cast_from(x)))
    } else {
        u32::cast_from(u16::reinterpret(f16::cast_from(x)))
    }
}

/// Writes `x` as element `index`, rounded to the element type.
#[cube]
pub(crate) fn store(slot: &mut Slot, index: usize, x: f32, #[comptime] dtype: DType) {
    let mut run = Array::<f32>::new(1usize);
    run[0] = x;
    store_run(slot, index, &run, dtype, 1usize);
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
    let size = comptime!(dtype.size());
    let mut words = Array::<u32>::new(comptime!((n * size).div_ceil(4)));
    #[unroll]
    for i in 0..n {
        if comptime!(size == 8) {
            let x = u64::reinterpret(i64::cast_from(run[i]));
            words[2 * i] = u32::cast_from(x & 0xffff_ffffu64);
            words[2 * i + 1] = u32::cast_from(x >> 32);
        } else if comptime!(dtype == DType::F32) {
            words[i] = u32::reinterpret(run[i]);
        } else if comptime!(size == 4) {
            words[i] = u32::reinterpret(i32::cast_from(run[i]));
        } else if comptime!(size == 2) {
            let half = f32_to_half(run[i], dtype);
            words[i / 2] = if comptime!(i % 2 == 0) { half } else { words[i / 2] | (half << 16) };
        } else {
            let whole = u32::cast_from(run[i]);
            let byte = select(whole > 255, 255u32, whole);
            let shift = comptime!(8 * (i as u32 % 4));
            words[i / 4] =
                if comptime!(shift == 0) { byte } else { words[i / 4] | (byte << shift) };
        }
    }
    store_words(slot, index, &words, n);
}

/// Copies `n` elements, bit by bit.
#[cube]
pub(crate) fn copy_run(
    to: &mut Slot,
    to_index: usize,
    from: &Slot,
    from_index: usize,
    #[comptime] n: usize,
) {
    let words = load_words(from, from_index, n);
    store_words(to, to_index, &words, n);
}

/// The bits of an element of at most four bytes.
#[cube]
pub(crate) fn load_bits(slot: &Slot, index: usize) -> u32 {
    let words = load_words(slot, index, 1usize);
    words[0]
}

/// Writes what [`load_bits`] reads.
#[cube]
pub(crate) fn store_bits(to: &mut Slot, index: usize, bits: u32) {
    let mut words = Array::<u32>::new(2usize);
    words[0] = bits;
    store_words(to, index, &words, 1usize);
}

/// Writes `n` elements that are 0.
#[cube]
pub(crate) fn store_zeros(to: &mut Slot, index: usize, #[comptime] n: usize) {
    // Enough for eight of the largest elements.
    let zeros = Array::<u32>::new(16usize);
    store_words(to, index, &zeros, n);
}

/// The bits of an element of at most eight bytes.
#[cube]
pub(crate) fn load_long(slot: &Slot, index: usize) -> u64 {
    match slot {
        Slot::Longs(x) => x[index],
        Slot::Words(x) => u64::cast_from(x[index]),
        Slot::Halves(x) => u64::cast_from(x[index]),
        Slot::Bytes(x) => u64::cast_from(x[index]),
    }
}

/// An integer of a slot as a row's number; the largest one if it is none.
#[cube]
pub(crate) fn load_row_id(slot: &Slot, index: usize) -> u32 {
    match slot {
        Slot::Longs(x) => {
            let id = x[index];
            select(id >> 32 == 0, u32::cast_from(id & 0xffff_ffffu64), 0xffff_ffffu32)
        }
        Slot::Words(x) => x[index],
        Slot::Halves(x) => u32::cast_from(x[index]),
        Slot::Bytes(x) => u32::cast_from(x[index]),
    }
}

/// The bits of `n` elements from `index` on, the first one lowest; of less than a word, the rest is 0.
#[cube]
fn load_words(slot: &Slot, index: usize, #[comptime] n: usize) -> Array<u32> {
    match slot {
        Slot::Bytes(x) => {
            let mut words = Array::<u32>::new(comptime!(n.div_ceil(4)));
            if comptime!(n == 8) {
                let both = Vector::<u32, Const<2>>::reinterpret(
                    x.as_vectorized().with_vector_size::<Const<8>>()[index / 8],
                );
                words[0] = both.extract(0usize);
                words[1] = both.extract(1usize);
            } else if comptime!(n == 4) {
                words[0] =
                    u32::reinterpret(x.as_vectorized().with_vector_size::<Const<4>>()[index / 4]);
            } else {
                #[unroll]
                for i in 0..n {
                    let byte = u32::cast_from(x[index + i]);
                    words[0] |= byte << comptime!(8 * i as u32);
                }
            }
            words
        }
        Slot::Halves(x) => {
            let mut words = Array::<u32>::new(comptime!(n.div_ceil(2)));
            if comptime!(n == 8) {
                let all = Vector::<u32, Const<4>>::reinterpret(
                    x.as_vectorized().with_vector_size::<Const<8>>()[index / 8],
                );
                #[unroll]
                for i in 0..4usize {
                    words[i] = all.extract(i);
                }
            } else if comptime!(n == 4) {
                let both = Vector::<u32, Const<2>>::reinterpret(
                    x.as_vectorized().with_vector_size::<Const<4>>()[index / 4],
                );
                words[0] = both.extract(0usize);
                words[1] = both.extract(1usize);
            } else if comptime!(n == 2) {
                words[0] =
                    u32::reinterpret(x.as_vectorized().with_vector_size::<Const<2>>()[index / 2]);
            } else {
                words[0] = u32::cast_from(x[index]);
            }
            words
        }
        Slot::Words(x) => {
            let mut words = Array::<u32>::new(n);
            if comptime!(n % 4 == 0) {
                #[unroll]
                for j in 0..comptime!(n / 4) {
                    let all = x.as_vectorized().with_vector_size::<Const<4>>()[index / 4 + j];
                    #[unroll]
                    for i in 0..4usize {
                        words[4 * j + i] = all.extract(i);
                    }
                }
            } else if comptime!(n == 2) {
                let both = x.as_vectorized().with_vector_size::<Const<2>>()[index / 2];
                words[0] = both.extract(0usize);
                words[1] = both.extract(1usize);
            } else {
                words[0] = x[index];
            }
            words
        }
        Slot::Longs(x) => {
            let mut words = Array::<u32>::new(comptime!(2 * n));
            if comptime!(n % 2 == 0) {
                #[unroll]
                for j in 0..comptime!(n / 2) {
                    let all = Vector::<u32, Const<4>>::reinterpret(
                        x.as_vectorized().with_vector_size::<Const<2>>()[index / 2 + j],
                    );
                    #[unroll]
                    for i in 0..4usize {
                        words[4 * j + i] = all.extract(i);
                    }
                }
            } else {
                words[0] = u32::cast_from(x[index] & 0xffff_ffffu64);
                words[1] = u32::cast_from(x[index] >> 32);
            }
            words
        }
    }
}

/// Writes what [`load_words`] reads.
#[cube]
fn store_words(slot: &mut Slot, index: usize, words: &Array<u32>, #[comptime] n: usize) {
    match slot {
        Slot::Bytes(to) => {
            if comptime!(n == 8) {
                let mut both = Vector::<u32, Const<2>>::empty();
                both.insert(0usize, words[0]);
                both.insert(1usize, words[1]);
                to.as_vectorized_mut().with_vector_size_mut::<Const<8>>()[index / 8] =
                    Vector::<u8, Const<8>>::reinterpret(both);
            } else if comptime!(n == 4) {
                to.as_vectorized_mut().with_vector_size_mut::<Const<4>>()[index / 4] =
                    Vector::<u8, Const<4>>::reinterpret(words[0]);
            } else {
                #[unroll]
                for i in 0..n {
                    to[index + i] = u8::cast_from((words[0] >> comptime!(8 * i as u32)) & 0xff);
                }
            }
        }
        Slot::Halves(to) => {
            if comptime!(n == 8) {
                let mut all = Vector::<u32, Const<4>>::empty();
                #[unroll]
                for i in 0..4usize {
                    all.insert(i, words[i]);
                }
                to.as_vectorized_mut().with_vector_size_mut::<Const<8>>()[index / 8] =
                    Vector::<u16, Const<8>>::reinterpret(all);
            } else if comptime!(n == 4) {
                let mut both = Vector::<u32, Const<2>>::empty();
                both.insert(0usize, words[0]);
                both.insert(1usize, words[1]);
                to.as_vectorized_mut().with_vector_size_mut::<Const<4>>()[index / 4] =
                    Vector::<u16, Const<4>>::reinterpret(both);
            } else if comptime!(n == 2) {
                to.as_vectorized_mut().with_vector_size_mut::<Const<2>>()[index / 2] =
                    Vector::<u16, Const<2>>::reinterpret(words[0]);
            } else {
                to[index] = u16::cast_from(words[0] & 0xffff);
            }
        }
        Slot::Words(to) => {
            if comptime!(n % 4 == 0) {
                #[unroll]
                for j in 0..comptime!(n / 4) {
                    let mut all = Vector::<u32, Const<4>>::empty();
                    #[unroll]
                    for i in 0..4usize {
                        all.insert(i, words[4 * j + i]);
                    }
                    to.as_vectorized_mut().with_vector_size_mut::<Const<4>>()[index / 4 + j] = all;
                }
            } else if comptime!(n == 2) {
                let mut both = Vector::<u32, Const<2>>::empty();
                both.insert(0usize, words[0]);
                both.insert(1usize, words[1]);
                to.as_vectorized_mut().with_vector_size_mut::<Const<2>>()[index / 2] = both;
            } else {
                to[index] = words[0];
            }
        }
        Slot::Longs(to) => {
            if comptime!(n % 2 == 0) {
                #[unroll]
                for j in 0..comptime!(n / 2) {
                    let mut all = Vector::<u32, Const<4>>::empty();
                    #[unroll]
                    for i in 0..4usize {
                        all.insert(i, words[4 * j + i]);
                    }
                    to.as_vectorized_mut().with_vector_size_mut::<Const<2>>()[index / 2 + j] =
                        Vector::<u64, Const<2>>::reinterpret(all);
                }
            } else {
                to[index] = u64::cast_from(words[0]) | (u64::cast_from(words[1]) << 32);
            }
        }
    }
}
