//! The weight of a filtered convolution: stored as it is, transformed to points at each run.
//!
//! Packed: for each panel `[channels, taps, columns of the panel]` in the stored type, then, where
//! factors are scaled, `[points, columns]` of reciprocal scales and as many scales, in f32.
//! Transformed: at each point panels of `[words of channels, columns of the panel]`.

use ops::DType;

use crate::simd::{Simd, SimdJob, dispatch};

use super::conv::Spec;
use super::conv_factors::{CHUNK, Factor, weight_scale};
use super::conv_transform::{Quad, Transform, weight_columns, weight_row};
use super::conv_winograd::Winograd;
use super::shared::aligned;

/// Taps of the kernel.
const TAPS: usize = 9;
/// Most points.
const MAX_POINTS: usize = 36;

/// A panel of the packed weight and what it is transformed to.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    dtype: DType,
    channels: usize,
    /// Columns of the panel.
    width: usize,
    /// Its first tap.
    taps: *const u8,
    /// The reciprocal scale of its first column at the first point.
    reciprocals: *mut f32,
    /// From one point to the next.
    scales_row: usize,
}

impl Panel {
    /// Panel number `panel` of the packed weight at `packed`.
    ///
    /// # Safety
    /// The packed weight is there.
    #[inline(always)]
    pub(super) unsafe fn of(
        winograd: &Winograd,
        spec: &Spec,
        panel: usize,
        packed: *const u8,
    ) -> Panel {
        let channels = spec.input.channels;
        let first = panel * winograd.panel.columns();
        let dtype = spec.weight.layout.dtype;
        // SAFETY: the panel lies within the packed weight.
        unsafe {
            Panel {
                dtype,
                channels,
                width: winograd.panel.vectors_of(panel, spec.columns) * winograd.panel.lanes,
                taps: packed.add(first * channels * TAPS * dtype.size()),
                reciprocals: packed
                    .add(plain_bytes(winograd, spec))
                    .cast::<f32>()
                    .cast_mut()
                    .add(first),
                scales_row: padded_columns(winograd, spec),
            }
        }
    }

    /// The taps of a channel for the columns from `column` on, zero where there is no such channel.
    ///
    /// # Safety
    /// As [`Panel::of`].
    #[inline(always)]
    unsafe fn taps<S: Simd>(&self, s: S, channel: usize, column: usize) -> [S::F; TAPS] {
        let mut taps = [s.splat(0.0); TAPS];
        if channel < self.channels {
            let at = channel * TAPS * self.width + column;
            for (i, tap) in taps.iter_mut().enumerate() {
                let at = at + i * self.width;
                // SAFETY: the element lies within the panel.
                *tap = unsafe {
                    match self.dtype {
                        DType::Bf16 => s.load_bf16(self.taps.cast::<u16>().add(at)),
                        DType::F16 => s.load_f16(self.taps.cast::<u16>().add(at)),
                        _ => s.load(self.taps.cast::<f32>().add(at)),
                    }
                };
            }
        }
        taps
    }
}

/// Columns as they are packed.
fn padded_columns(winograd: &Winograd, spec: &Spec) -> usize {
    spec.columns.next_multiple_of(winograd.panel.lanes)
}

/// Bytes of the taps of all panels.
fn plain_bytes(winograd: &Winograd, spec: &Spec) -> usize {
    let elements = padded_columns(winograd, spec) * spec.input.channels * TAPS;
    aligned(elements * spec.weight.layout.dtype.size())
}

/// Values of the scales of all points, or of their reciprocals.
fn scales_len(winograd: &Winograd, spec: &Spec) -> usize {
    if winograd.factors.is_scaled() {
        winograd.points() * padded_columns(winograd, spec)
    } else {
        0
    }
}

pub(super) fn packed_bytes(winograd: &Winograd, spec: &Spec) -> usize {
    plain_bytes(winograd, spec) + 2 * 4 * scales_len(winograd, spec)
}

/// Offset of the scales of point `point` in the packed weight, in bytes.
#[inline(always)]
pub(super) fn scales_at(winograd: &Winograd, spec: &Spec, point: usize) -> usize {
    let before = scales_len(winograd, spec) + point * padded_columns(winograd, spec);
    plain_bytes(winograd, spec) + 4 * before
}

/// Packs panel number `panel` of the weight.
///
/// # Safety
/// `dense` is the base of a buffer that holds the weight's layout; `packed` is writable for the packed
/// weight.
pub(super) unsafe fn pack_panel(
    winograd: &Winograd,
    spec: &Spec,
    panel: usize,
    dense: *const u8,
    packed: *mut u8,
) {
    let first = panel * winograd.panel.columns();
    // SAFETY: the caller's promise.
    unsafe {
        let to = Panel::of(winograd, spec, panel, packed);
        if to.dtype.size() == size_of::<u32>() {
            copy_taps::<u32>(spec, first, &to, dense.cast());
        } else {
            copy_taps::<u16>(spec, first, &to, dense.cast());
        }
        if winograd.factors.is_scaled() {
            let scales = scales_len(winograd, spec);
            dispatch(spec.isa, Measure { panel: to, scales, algorithm: Quad });
        }
    }
}

/// Copies the taps of all channels for a panel whose first column is `first`, as bits of `T`.
///
/// # Safety
/// As [`pack_panel`].
unsafe fn copy_taps<T: Copy + Default>(spec: &Spec, first: usize, to: &Panel, dense: *const T) {
    let weight = &spec.weight;
    let taps: [usize; TAPS] = std::array::from_fn(|tap| weight.position(first, 0, tap));
    let valid = to.width.min(spec.columns - first);
    let packed = to.taps.cast_mut().cast::<T>();
    for channel in 0..to.channels {
        // SAFETY: elements lie within the weight and the panel; those at load need not be aligned.
        unsafe {
            let packed = packed.add(channel * TAPS * to.width);
            for n in 0..valid {
                let at = channel * weight.channel_stride() + n * weight.column_stride();
                for (tap, start) in taps.iter().enumerate() {
                    let value = dense.add(start + at).read_unaligned();
                    packed.add(tap * to.width + n).write_unaligned(value);
                }
            }
            for tap in 0..TAPS {
                for n in valid..to.width {
                    packed.add(tap * to.width + n).write_unaligned(T::default());
                }
            }
        }
    }
}

/// Finds the scales of a panel.
struct Measure<T, const P: usize, const O: usize> {
    panel: Panel,
    /// From reciprocals to scales.
    scales: usize,
    algorithm: T,
}

impl<T: Transform<P, O>, const P: usize, const O: usize> SimdJob for Measure<T, P, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Measure { panel, scales, algorithm } = self;
        let gain = algorithm.gain();
        for column in (0..panel.width).step_by(S::LANES) {
            let zero = s.splat(0.0);
            let [mut norms, mut largest] = [[zero; MAX_POINTS]; 2];
            for start in (0..panel.channels).step_by(CHUNK) {
                let mut squares = [zero; MAX_POINTS];
                for channel in start..(start + CHUNK).min(panel.channels) {
                    // SAFETY: the creator promises the packed panel.
                    let columns =
                        weight_columns(s, algorithm, unsafe { panel.taps(s, channel, column) });
                    for y in 0..P {
                        let points = weight_row(s, algorithm, &columns, y);
                        for (x, value) in points.into_iter().enumerate() {
                            let point = y * P + x;
                            squares[point] = s.mul_add(value, value, squares[point]);
                            largest[point] = s.max(s.abs(value), largest[point]);
                        }
                    }
                }
                for (norm, squares) in norms.iter_mut().zip(squares) {
                    *norm = s.max(s.sqrt(squares), *norm);
                }
            }
            for point in 0..P * P {
                let scale = weight_scale(s, norms[point], largest[point]);
                let gain = gain[point / P] * gain[point % P];
                // SAFETY: the panel's columns have a scale and a reciprocal at each point.
                unsafe {
                    let to = panel.reciprocals.add(point * panel.scales_row + column);
                    s.store(to, s.div(s.splat(1.0), scale));
                    // With it the gain of the point's inputs, which their scales leave out.
                    s.store(to.add(scales), s.mul(scale, s.splat(gain)));
                }
            }
        }
    }
}

/// Transforms some words of a panel.
pub(super) struct TransformWeight<T, W, const P: usize, const O: usize> {
    pub(super) panel: Panel,
    /// First word and the one after the last.
    pub(super) words: (usize, usize),
    /// The row of points that is made, or all rows.
    pub(super) row: Option<usize>,
    /// The panel at the first point that is made.
    pub(super) to: *mut f32,
    /// From one point to the next.
    pub(super) point: usize,
    pub(super) algorithm: T,
    pub(super) factor: W,
}

impl<T: Transform<P, O>, W: Factor, const P: usize, const O: usize> SimdJob
    for TransformWeight<T, W, P, O>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the creator promises the packed panel, and its words at each point that is made.
        unsafe {
            match self.row {
                None => self.rows::<S, 0, P>(s),
                Some(0) => self.rows::<S, 0, 1>(s),
                Some(1) => self.rows::<S, 1, 2>(s),
                Some(2) => self.rows::<S, 2, 3>(s),
                Some(3) => self.rows::<S, 3, 4>(s),
                Some(4) => self.rows::<S, 4, 5>(s),
                Some(5) => self.rows::<S, 5, 6>(s),
                Some(_) => unreachable!("there are at most 6 rows of points"),
            }
        }
    }
}

impl<T: Transform<P, O>, W: Factor, const P: usize, const O: usize> TransformWeight<T, W, P, O> {
    /// Makes rows `FIRST..END` of the points, of which there are `P`. They are constants so that
    /// nothing is computed for the others.
    ///
    /// # Safety
    /// The packed panel is readable; its words are writable at each point that is made.
    #[inline(always)]
    unsafe fn rows<S: Simd, const FIRST: usize, const END: usize>(&self, s: S) {
        if END > P {
            unreachable!("row {FIRST} of {P} rows of points");
        }
        let TransformWeight { panel, words, to, point, algorithm, factor, .. } = *self;
        for word in words.0..words.1 {
            for column in (0..panel.width).step_by(S::LANES) {
                let channel = word * W::CHANNELS;
                // SAFETY: the caller's promise.
                let low = weight_columns(s, algorithm, unsafe { panel.taps(s, channel, column) });
                let high = if W::CHANNELS == 2 {
                    // SAFETY: as above.
                    weight_columns(s, algorithm, unsafe { panel.taps(s, channel + 1, column) })
                } else {
                    low
                };
                for y in FIRST..END {
                    let low = weight_row(s, algorithm, &low, y);
                    let high =
                        if W::CHANNELS == 2 { weight_row(s, algorithm, &high, y) } else { low };
                    for x in 0..P {
                        let (mut low, mut high) = (low[x], high[x]);
                        // SAFETY: as above.
                        unsafe {
                            if W::IS_SCALED {
                                let at = (y * P + x) * panel.scales_row + column;
                                let scale = s.load(panel.reciprocals.add(at));
                                (low, high) = (s.mul(low, scale), s.mul(high, scale));
                            }
                            let index = (y - FIRST) * P + x;
                            let to = to.add(index * point + word * panel.width + column);
                            s.store(to, factor.word(s, low, high));
                        }
                    }
                }
            }
        }
    }
}

/// Tells packings apart.
pub(super) fn packing_name(winograd: &Winograd, spec: &Spec) -> String {
    let scales = if winograd.factors.is_scaled() { ".scaled" } else { "" };
    let (channels, width) = (spec.input.channels, winograd.panel.columns());
    format!("taps_first.{}{scales}.c{channels}.n{width}", spec.weight.layout.dtype.name())
}
