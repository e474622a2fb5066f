//! Convolution with what is fused into it: on the way in a group norm, elementwise code and a
//! doubling of height and width ([`Input`]), on the way out elementwise code (bias, residual).
//!
//! Three ways to compute it, chosen by shape: [`Direct`], an implicit product, takes every window;
//! [`Winograd`] takes 3x3 windows that move by 1, on enough channels and positions, with a quarter of
//! the multiplications; [`Doubled`] is four of the first, for 3x3 windows over a doubled input. All end in
//! [`Spec::epilogue`].
//!
//! Invariant: sums are taken in an order that depends on shapes alone, so bytes depend neither on
//! threads nor on how positions are split.

use ops::Attr;

use crate::kernel::{KernelDef, Launch, Packing, Site};
use crate::program::{MAX_SLOTS, SlotPtr};
use crate::simd::{Simd, SimdJob};
use crate::{Isa, Layout, Pool, Target};

use super::conv_direct::Direct;
use super::conv_doubled::Doubled;
use super::conv_input::Input;
use super::conv_winograd::Winograd;
use super::joined_rows::{JOINED, JoinedRows};
use super::lanes::copy;
use super::shared::Shared;
use crate::body::{Elementwise, Source};
use crate::conv_site::ConvSite;
pub(super) use crate::conv_site::SPATIAL;
use crate::nest::Nest;

/// A convolution with everything that is fused into it.
#[derive(Clone, Debug)]
pub struct Conv {
    spec: Box<Spec>,
    method: Method,
}

/// How it is computed.
#[derive(Clone, Debug)]
pub(super) enum Method {
    Direct(Direct),
    Winograd(Box<Winograd>),
    Doubled(Box<Doubled>),
}

/// What is to be computed.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) isa: Isa,
    pub(super) input: Input,
    pub(super) weight: Weight,
    pub(super) output: [usize; SPATIAL],
    pub(super) kernel: [usize; SPATIAL],
    pub(super) stride: [usize; SPATIAL],
    /// Zeros before the first element; where negative, elements that are left out.
    pub(super) pad_low: [isize; SPATIAL],
    pub(super) columns: usize,
    pub(super) result: Layout,
    pub(super) epilogue: Elementwise,
    /// Rows of output channels: layout 0 is the result, `1 + i` the epilogue's leaf `i`.
    nest: Nest,
    /// How rows of few channels run through the epilogue as one.
    joined: JoinedRows,
}

/// `[O, C, kernel..]`, an operand or a part of it.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    pub(super) operand: usize,
    pub(super) layout: Layout,
    /// The operand.
    whole: Layout,
    /// Whether it is packed at load; else every run packs it.
    pub(super) is_packed: bool,
    /// Where in the packed operand it begins, in bytes.
    pub(super) packed_at: usize,
    /// Whether taps count from the last one.
    is_flipped: bool,
}

/// Where the window goes, by spatial axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) output: [usize; SPATIAL],
    pub(super) kernel: [usize; SPATIAL],
    pub(super) stride: [usize; SPATIAL],
    pub(super) pad_low: [isize; SPATIAL],
}

impl Conv {
    /// Takes one `conv` with elementwise code before and after; before it also a `group_norm`, and
    /// last the reshapes and the broadcast that double height and width.
    pub fn select(site: &Site<'_>) -> Option<Conv> {
        let spec = Spec::of(site)?;
        let method = Method::of(&spec, site.target);
        Some(Conv { spec: Box::new(spec), method })
    }

    fn packed_bytes(&self) -> usize {
        match &self.method {
            Method::Direct(direct) => direct.packed_bytes(&self.spec),
            Method::Winograd(winograd) => winograd.packed_bytes(&self.spec),
            Method::Doubled(doubled) => doubled.packed_bytes(),
        }
    }
}

impl Method {
    /// The faster one.
    pub(super) fn of(spec: &Spec, target: &Target) -> Method {
        if let Some(winograd) = Winograd::select(spec, target) {
            return Method::Winograd(Box::new(winograd));
        }
        match Doubled::select(spec, target) {
            Some(doubled) => Method::Doubled(Box::new(doubled)),
            None => Method::Direct(Direct::new(spec, target)),
        }
    }

    pub(super) fn tunables(&self) -> Vec<(&'static str, Attr)> {
        match self {
            Method::Direct(direct) => direct.tunables(),
            Method::Winograd(winograd) => winograd.tunables(),
            Method::Doubled(doubled) => doubled.tunables(),
        }
    }

    pub(super) fn scratch_bytes(&self, spec: &Spec, threads: usize) -> usize {
        match self {
            Method::Direct(direct) => direct.scratch_bytes(spec, threads),
            Method::Winograd(winograd) => winograd.scratch_bytes(spec, threads),
            Method::Doubled(doubled) => doubled.scratch_bytes(threads),
        }
    }

    /// Runs.
    ///
    /// # Safety
    /// As [`KernelDef::run`], after [`Input::prepare`].
    pub(super) unsafe fn run(&self, spec: &Spec, pool: &Pool, shared: Shared<'_>) {
        // SAFETY: passed on.
        unsafe {
            match self {
                Method::Direct(direct) => direct.run(spec, pool, shared),
                Method::Winograd(winograd) => winograd.run(spec, pool, shared),
                Method::Doubled(doubled) => doubled.run(pool, shared),
            }
        }
    }
}

impl Spec {
    fn of(site: &Site<'_>) -> Option<Spec> {
        let conv = ConvSite::of(site)?;
        let input = Input::of(site, &conv)?;
        let ConvSite { output, kernel, stride, pad_low, .. } = conv;
        let pad_low = pad_low.map(usize::cast_signed);
        let places = Places { output, kernel, stride, pad_low };
        let ConvSite { weight: operand, weight_view: layout, epilogue, .. } = conv;
        let whole = site.operands[operand].clone();
        let is_packed = *site.is_param.get(operand)? && whole.is_dense() && whole.offset == 0;
        let weight = Weight { operand, layout, whole, is_packed, packed_at: 0, is_flipped: false };
        Spec::new(site.target.isa, input, weight, places, site.result.clone(), epilogue)
    }

    /// `epilogue` of the convolution of `input` with `weight`, to `result`. `None` where the channels of
    /// that are not contiguous.
    pub(super) fn new(
        isa: Isa,
        input: Input,
        weight: Weight,
        places: Places,
        result: Layout,
        epilogue: Elementwise,
    ) -> Option<Spec> {
        let mut layouts = vec![&result];
        for leaf in &epilogue.leaves {
            let is_scratch = matches!(leaf.source, Source::Frontier(_));
            layouts.push(if is_scratch { &result } else { &leaf.layout });
        }
        let nest = Nest::with_row(&layouts, result.rank() - 1)?;
        let columns = weight.layout.shape[0];
        if nest.row_stride(0) != 1 && columns > 1 {
            return None;
        }
        let Places { output, kernel, stride, pad_low } = places;
        let joined = JoinedRows::new(&nest, JOINED);
        Some(Spec {
            isa,
            input,
            weight,
            output,
            kernel,
            stride,
            pad_low,
            columns,
            result,
            epilogue,
            nest,
            joined,
        })
    }

    /// Taps of the kernel.
    pub(super) fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Number of an output position.
    #[inline(always)]
    pub(super) fn position(&self, sample: usize, [z, y, x]: [usize; SPATIAL]) -> usize {
        let [depth, height, width] = self.output;
        ((sample * depth + z) * height + y) * width + x
    }

    /// Values that [`Spec::epilogue`] needs as scratch.
    pub(super) fn epilogue_len(&self) -> usize {
        self.joined.bytes() / size_of::<f32>()
            + self.joined.elements()
            + self.epilogue.program.scratch_len()
    }

    /// Turns finished sums of channels `columns.0..columns.1` at `n` positions from `position` on
    /// into elements of the result; sums of one position are consecutive, those of the next follow
    /// `stride` values later. Positions of few channels run as one.
    ///
    /// # Safety
    /// As [`KernelDef::run`]; the sums are readable, `scratch` writable.
    #[allow(clippy::too_many_arguments, reason = "a rectangle of sums and where it belongs")]
    #[inline(always)]
    pub(super) unsafe fn epilogue<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        (position, n): (usize, usize),
        columns: (usize, usize),
        sums: *const f32,
        stride: usize,
        scratch: *mut f32,
    ) {
        // One copy of it for each instruction set, not for each way to the sums.
        s.outline(Finish {
            spec: self,
            shared,
            rows: (position, n),
            columns,
            sums,
            stride,
            scratch,
        });
    }
}

/// The arguments of [`Spec::epilogue`].
struct Finish<'a> {
    spec: &'a Spec,
    shared: Shared<'a>,
    /// First position, and how many.
    rows: (usize, usize),
    columns: (usize, usize),
    sums: *const f32,
    stride: usize,
    scratch: *mut f32,
}

impl SimdJob for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Finish { spec, shared, rows: (position, n), columns, sums, stride, scratch } = self;
        let n_columns = columns.1 - columns.0;
        let mut known = [std::ptr::null(); MAX_SLOTS];
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        let is_whole = columns == (0, spec.columns);
        let mut cursor = spec.nest.at(position);
        let mut row = 0;
        while row < n {
            let count = if is_whole { spec.joined.count(position + row, position + n) } else { 1 };
            // SAFETY: positions of a nest lie within its layouts; parts of the scratch are disjoint.
            unsafe {
                let side_by_side = scratch.add(spec.joined.bytes() / size_of::<f32>());
                let program = side_by_side.add(spec.joined.elements());
                let mut sums = sums.add(row * stride);
                if count > 1 && stride != n_columns {
                    for row in 0..count {
                        let to = side_by_side.add(row * n_columns);
                        copy(s, sums.add(row * stride), n_columns, to);
                    }
                    sums = side_by_side.cast_const();
                }
                for (i, leaf) in spec.epilogue.leaves.iter().enumerate() {
                    slots[i] = match leaf.source {
                        Source::Frontier(_) => SlotPtr { ptr: sums.cast(), stride: 1 },
                        Source::Operand(_) | Source::Constant(_) => {
                            let stride = spec.nest.row_stride(1 + i);
                            let at = cursor.position(1 + i) + columns.0 * stride;
                            shared.slot(leaf, at, stride, sums)
                        }
                    };
                }
                if count > 1 {
                    let sizes = spec.epilogue.program.slots().iter().map(|dtype| dtype.size());
                    spec.joined.repeat(0, sizes, &mut slots, scratch.cast(), &mut known);
                }
                let at = cursor.position(0) + columns.0;
                let dst = shared.result().add(at * spec.result.dtype.size());
                spec.epilogue.program.run_row_in(s, count * n_columns, &slots, dst, program);
            }
            cursor.advance_by(count);
            row += count;
        }
    }
}

impl Weight {
    /// `layout` of `[O, C, kernel..]`, a view of operand `operand`, which every run packs with its taps
    /// from the last to the first.
    #[cfg(feature = "training")]
    pub(super) fn flipped(operand: usize, layout: Layout, whole: Layout) -> Weight {
        Weight { operand, layout, whole, is_packed: false, packed_at: 0, is_flipped: true }
    }

    /// What `weight` is packed as from byte `packed_at` on, of `layout` before.
    pub(super) fn part_of_packed(weight: &Weight, layout: Layout, packed_at: usize) -> Weight {
        let Weight { operand, whole, is_packed, .. } = weight.clone();
        Weight { operand, layout, whole, is_packed, packed_at, is_flipped: false }
    }

    /// Elements from one channel to the next.
    pub(super) fn channel_stride(&self) -> usize {
        self.layout.strides[1]
    }

    /// Elements from one column to the next.
    pub(super) fn column_stride(&self) -> usize {
        self.layout.strides[0]
    }

    /// Position of element `(column, channel, tap)`, taps counted row-major.
    pub(super) fn position(&self, column: usize, channel: usize, tap: usize) -> usize {
        let Layout { shape, strides, offset, .. } = &self.layout;
        let n_taps: usize = shape[2..].iter().product();
        let mut tap = if self.is_flipped { n_taps - 1 - tap } else { tap };
        let mut at = offset + column * strides[0] + channel * strides[1];
        for axis in (2..shape.len()).rev() {
            at += tap % shape[axis] * strides[axis];
            tap /= shape[axis];
        }
        at
    }
}

impl KernelDef for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        self.method.tunables()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.method.scratch_bytes(&self.spec, threads)
    }

    fn packing(&self, operand: usize) -> Option<Packing> {
        let weight = &self.spec.weight;
        (weight.is_packed && operand == weight.operand).then(|| {
            let mut name = match &self.method {
                Method::Direct(direct) => direct.packing_name(&self.spec),
                Method::Winograd(winograd) => winograd.packing_name(&self.spec),
                Method::Doubled(doubled) => doubled.packing_name(),
            };
            if weight.layout != weight.whole {
                name += &format!(".of_{}", weight.layout);
            }
            Packing { name, bytes: self.packed_bytes() }
        })
    }

    fn pack(&self, operand: usize, dense: &[u8], packed: &mut [u8], pool: &Pool) {
        let weight = &self.spec.weight;
        assert_eq!(operand, weight.operand, "conv packs its weight only");
        assert_eq!(dense.len(), weight.whole.count() * weight.whole.dtype.size());
        assert_eq!(packed.len(), self.packed_bytes());
        let bases = [dense.as_ptr()];
        let launch = Launch {
            pool,
            operands: &bases,
            result: packed.as_mut_ptr(),
            scratch: packed.as_mut_ptr(),
        };
        let shared = Shared::new(&launch);
        // SAFETY: lengths were checked above.
        unsafe {
            match &self.method {
                Method::Direct(direct) => direct.pack(&self.spec, shared, pool),
                Method::Winograd(winograd) => winograd.pack(&self.spec, shared, pool),
                Method::Doubled(doubled) => doubled.pack(&self.spec, shared, pool),
            }
        }
    }

    fn may_alias(&self, operand: usize) -> bool {
        !self.spec.input.reads(operand)
            && operand != self.spec.weight.operand
            && self.spec.epilogue.may_alias(operand, &self.spec.result)
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        // SAFETY: passed on.
        unsafe {
            self.spec.input.prepare(launch.pool, shared, 0);
            self.method.run(&self.spec, launch.pool, shared);
        }
    }
}
