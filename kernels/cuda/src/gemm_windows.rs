//! What a window sees: from a row and a depth of the product to an element of the input.
//!
//! Positions are counted from the end of the padding backwards, in words that wrap: what is before
//! the input is a large number, and one comparison tells both ends.

use cubecl::prelude::*;
use kernels::cuda::gemm::Windows;

use crate::position::coordinates;
use crate::slot::{Slot, load};

/// Where the window of a row stands.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Stand {
    /// Position of the element at its first tap; of a doubled input, of the sample's first.
    pub(crate) start: u32,
    /// Coordinates of the first tap, counted from the padding, in bits of one word.
    pub(crate) place: u32,
}

/// A tap and a channel.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Tap {
    z: u32,
    y: u32,
    x: u32,
    channel: u32,
    /// Distance of its element from the one of the first tap and channel, of an input that is not
    /// doubled.
    distance: u32,
}

/// An element of the input, if there is one.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) is_inside: bool,
    pub(crate) position: u32,
}

/// Where the window of row `row` stands.
#[cube]
pub(crate) fn stand(row: u32, #[comptime] windows: Windows) -> Stand {
    let [depth, height, width] = comptime!(windows.output);
    let at = coordinates(row as usize, comptime!(vec![u32::MAX, depth, height, width]));
    let z = at[1] as u32 * comptime!(windows.stride[0]);
    let y = at[2] as u32 * comptime!(windows.stride[1]);
    let x = at[3] as u32 * comptime!(windows.stride[2]);
    let mut start = at[0] as u32 * comptime!(windows.access.strides[0]);
    if comptime!(!windows.is_doubled) {
        start += (z - comptime!(windows.pad_low[0])) * comptime!(windows.access.strides[1])
            + (y - comptime!(windows.pad_low[1])) * comptime!(windows.access.strides[2])
            + (x - comptime!(windows.pad_low[2])) * comptime!(windows.access.strides[3]);
    }
    let [y_bits, x_bits] = comptime!(windows.position_bits());
    let above = comptime!(y_bits + x_bits);
    let high = if comptime!(above == 32) { 0u32.runtime() } else { z << above };
    let middle = if comptime!(x_bits == 32) { 0u32.runtime() } else { y << x_bits };
    Stand { start, place: high | middle | x }
}

/// The tap and the channel at depth `k`.
#[cube]
pub(crate) fn tap(k: u32, #[comptime] windows: Windows) -> Tap {
    let at = coordinates(
        k as usize,
        comptime!(vec![windows.kernel[0], windows.kernel[1], windows.kernel[2], windows.channels]),
    );
    let (z, y, x) = (at[0] as u32, at[1] as u32, at[2] as u32);
    let channel = at[3] as u32;
    let distance = z * comptime!(windows.access.strides[1])
        + y * comptime!(windows.access.strides[2])
        + x * comptime!(windows.access.strides[3])
        + channel * comptime!(windows.access.strides[4]);
    Tap { z, y, x, channel, distance }
}

/// The same `channels` behind.
#[cube]
pub(crate) fn channels_behind(tap: Tap, channels: u32, #[comptime] windows: Windows) -> Tap {
    Tap {
        z: tap.z,
        y: tap.y,
        x: tap.x,
        channel: tap.channel + channels,
        distance: tap.distance + channels * comptime!(windows.access.strides[4]),
    }
}

/// What a window sees at a tap.
#[cube]
pub(crate) fn seen(stand: &Stand, tap: Tap, #[comptime] windows: Windows) -> Seen {
    let [y_bits, x_bits] = comptime!(windows.position_bits());
    let above = comptime!(y_bits + x_bits);
    let mut is_inside = true.runtime();
    let mut z = 0u32;
    // An axis of one position and one tap is never left.
    if comptime!(can_leave(&windows, 0)) {
        let first = if comptime!(above == 32) { 0u32.runtime() } else { stand.place >> above };
        z = first + tap.z - comptime!(windows.pad_low[0]);
        is_inside = z < comptime!(windows.dims[0]);
    }
    let y_mask = comptime!(((1u64 << y_bits) - 1) as u32);
    let first = if comptime!(x_bits == 32) { 0u32.runtime() } else { stand.place >> x_bits };
    let y = (first & y_mask) + tap.y - comptime!(windows.pad_low[1]);
    let x_mask = comptime!(((1u64 << x_bits) - 1) as u32);
    let x = (stand.place & x_mask) + tap.x - comptime!(windows.pad_low[2]);
    if comptime!(can_leave(&windows, 1)) {
        is_inside = is_inside && y < comptime!(windows.dims[1]);
    }
    if comptime!(can_leave(&windows, 2)) {
        is_inside = is_inside && x < comptime!(windows.dims[2]);
    }
    let position = if comptime!(windows.is_doubled) {
        stand.start
            + z * comptime!(windows.access.strides[1])
            + y / 2 * comptime!(windows.access.strides[2])
            + x / 2 * comptime!(windows.access.strides[3])
            + tap.channel * comptime!(windows.access.strides[4])
    } else {
        stand.start + tap.distance
    };
    Seen { is_inside, position }
}

/// Whether some tap is outside somewhere along an axis.
fn can_leave(windows: &Windows, axis: usize) -> bool {
    let last = (windows.output[axis] - 1) * windows.stride[axis] + windows.kernel[axis] - 1;
    windows.pad_low[axis] > 0 || last >= windows.dims[axis]
}

/// The element that the window of row `row` sees at depth `k`; zero outside.
#[cube]
pub(crate) fn seen_element(
    slot: &Slot,
    stand: &Stand,
    k: u32,
    #[comptime] windows: Windows,
) -> f32 {
    let seen = seen(stand, tap(k, comptime!(windows.clone())), comptime!(windows.clone()));
    let mut element = 0.0f32;
    if seen.is_inside {
        element = load(slot, seen.position as usize, comptime!(windows.access.dtype));
    }
    element
}
