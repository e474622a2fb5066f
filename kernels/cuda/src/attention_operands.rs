//! What every form of attention reads: its pointers, rows by address, and which keys take part.

use cubecl::prelude::*;
use kernels::cuda::Access;
use kernels::cuda::attention::Problem;
use ops::DType;

use crate::emit::pointer;
use crate::operands;
use crate::position::position;
use crate::ptx::{ballot, global_address};
use crate::slot::{Slot, SlotExpand, load};

/// Pointers of attention.
#[derive(CubeType)]
pub(crate) struct Operands {
    pub(crate) result: Slot,
    pub(crate) q: Slot,
    pub(crate) k: Slot,
    pub(crate) v: Slot,
    /// The mask and the bias, if there are any.
    pub(crate) sides: Sequence<Slot>,
}

/// Declares the pointers.
pub(crate) fn declare(problem: &Problem, builder: &mut KernelBuilder) -> OperandsExpand {
    let mut rows = |access: &Access| pointer(builder, access.dtype.size());
    let (result, q) = (rows(&problem.result), rows(&problem.q));
    let (k, v) = (rows(&problem.k), rows(&problem.v));
    let sides = [&problem.mask, &problem.bias].into_iter().flatten();
    OperandsExpand { result, q, k, v, sides: operands::declare(sides, builder) }
}

/// How many pointers those are.
pub(crate) fn n_pointers(problem: &Problem) -> usize {
    4 + [&problem.mask, &problem.bias].into_iter().flatten().count()
}

/// What scores are multiplied with, in units of log 2, but for its sign, which queries get. Where the
/// scale is 0, queries are.
pub(crate) fn factor(problem: &Problem) -> f32 {
    let size = if problem.scale == 0.0 { 1.0 } else { problem.scale.abs() };
    size * std::f32::consts::LOG2_E
}

/// Two halves times the sign of the scale, whose size scores are multiplied with later.
#[cube]
pub(crate) fn sign(halves: u32, #[comptime] scale: f32) -> u32 {
    if comptime!(scale < 0.0) {
        halves ^ 0x8000_8000u32
    } else if comptime!(scale == 0.0) {
        0u32.runtime()
    } else {
        halves
    }
}

/// A half type, as instructions name it.
pub(crate) fn half_name(dtype: DType) -> &'static str {
    if dtype == DType::Bf16 { "bf16" } else { "f16" }
}

/// Elements from one row to the next.
pub(crate) fn row_stride(access: &Access) -> u32 {
    *access.strides.last().expect("rows have a stride")
}

/// Where the pair's first element lies; the last stride is not of pairs.
#[cube]
pub(crate) fn row_start(at: &Array<usize>, #[comptime] access: Access) -> usize {
    position(at, comptime!(access.strides[..access.strides.len() - 1].to_vec()))
}

/// The address of row `row` of pair `at`.
#[cube]
pub(crate) fn row_address(
    slot: &Slot,
    at: &Array<usize>,
    row: usize,
    #[comptime] access: Access,
) -> u64 {
    let start = row_start(at, comptime!(access.clone()));
    let element = start + row * comptime!(row_stride(&access) as usize);
    slot_address(slot) + (element as u32) as u64 * comptime!(access.dtype.size() as u64)
}

#[cube]
fn slot_address(slot: &Slot) -> u64 {
    match slot {
        Slot::Bytes(x) => global_address::<u8>(x),
        Slot::Halves(x) => global_address::<u16>(x),
        Slot::Words(x) => global_address::<u32>(x),
        Slot::Longs(x) => global_address::<u64>(x),
    }
}

/// Whether some key of a tile may take no part.
pub(crate) fn is_ragged_or_masked(problem: &Problem, keys: u32) -> bool {
    problem.mask.is_some() || !problem.sk.is_multiple_of(keys)
}

/// For each 32 of the `keys` from `first` on, which of them take part; bits beyond are not set. Without
/// `is_checked`, nothing is read and nothing is said.
#[cube]
pub(crate) fn key_flags(
    lane: usize,
    sides: &Sequence<Slot>,
    at: &Array<usize>,
    first: usize,
    #[comptime] problem: Problem,
    #[comptime] keys: u32,
    #[comptime] is_checked: bool,
) -> Array<u32> {
    let words = comptime!(keys.div_ceil(32) as usize);
    let mut flags = Array::<u32>::new(words);
    if is_checked {
        let sk = comptime!(problem.sk as usize);
        #[unroll]
        for word in 0..words {
            let in_tile = lane + comptime!(32 * word);
            let key = first + in_tile;
            let is_key = key < sk && in_tile < comptime!(keys as usize);
            let mut flag = u32::cast_from(is_key);
            if comptime!(problem.mask.is_some()) {
                let mask = comptime!(problem.mask.clone().expect("there is a mask"));
                let start = row_start(at, comptime!(mask.clone()));
                let near = select(is_key, key, comptime!(sk - 1));
                let from = start + near * comptime!(row_stride(&mask) as usize);
                let x = load(sides.index(0usize), from, comptime!(mask.dtype));
                flag = select(x != 0.0f32, flag, 0u32);
            }
            flags[word] = ballot(flag);
        }
    }
    flags
}

/// Whether one of them takes part.
#[cube]
pub(crate) fn has_key(
    flags: &Array<u32>,
    #[comptime] problem: Problem,
    #[comptime] n: usize,
) -> bool {
    if comptime!(problem.mask.is_some()) {
        let mut any = flags[0];
        #[unroll]
        for word in 1..n {
            any |= flags[word];
        }
        any != 0u32
    } else {
        true.runtime()
    }
}
