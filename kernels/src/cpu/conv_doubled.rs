//! 3x3 windows over an input whose height and width are doubled: each sees every element of two by two places twice
//! along an axis, or two places of which one is seen twice. So there are four *phases*, one for each place within a
//! doubled element: a convolution of the input as it was before, by 2x2 taps that are sums of those of the weight, whose
//! result is every second row and column. That is 4 of 9 multiplications.
//!
//! Taps are summed in f32 and rounded to the weight's type when it is packed; a weight that every run packs, as one
//! that is trained, is left to [`Direct`].

use half::{bf16, f16};
use ops::{Attr, DType};

use crate::kernel::Launch;
use crate::{Layout, Pool, Target};

use super::conv::{Places, SPATIAL, Spec, Weight};
use super::conv_direct::Direct;
use super::shared::Shared;

/// Taps of the weight along an axis that one tap of a phase is the sum of, by the place within a doubled element.
const SUMS: [[&[usize]; 2]; 2] = [[&[0], &[1, 2]], [&[0, 1], &[2]]];

/// Such a convolution.
#[derive(Clone, Debug)]
pub(super) struct Doubled {
    phases: Vec<Phase>,
}

#[derive(Clone, Debug)]
struct Phase {
    /// Place along height and width.
    place: [usize; 2],
    spec: Spec,
    direct: Direct,
}

impl Doubled {
    pub(super) fn select(spec: &Spec, target: &Target) -> Option<Doubled> {
        let is_3x3 = spec.kernel[1..] == [3, 3] && spec.stride == [1; SPATIAL];
        let is_same = spec.pad_low[1..] == [1, 1] && spec.output[1..] == spec.input.dims[1..];
        if !(spec.input.is_doubled() && is_3x3 && is_same && spec.weight.is_packed) {
            return None;
        }
        let mut phases: Vec<Phase> = vec![];
        let mut packed_at = 0;
        for place in [[0, 0], [0, 1], [1, 0], [1, 1]] {
            let [depth, height, width] = spec.output;
            let [pad, y, x] = [spec.pad_low[0], 1 - place[0] as isize, 1 - place[1] as isize];
            let places = Places {
                output: [depth, height / 2, width / 2],
                kernel: [spec.kernel[0], 2, 2],
                stride: spec.stride,
                pad_low: [pad, y, x],
            };
            let part = |layout: &Layout| {
                let rank = layout.rank();
                let (mut start, mut shape, mut step) =
                    (vec![0; rank], layout.shape.clone(), vec![1; rank]);
                for (axis, place) in [rank - 3, rank - 2].into_iter().zip(place) {
                    (start[axis], shape[axis], step[axis]) = (place, shape[axis] / 2, 2);
                }
                layout.sliced(&start, &shape, &step)
            };
            let mut epilogue = spec.epilogue.clone();
            for leaf in &mut epilogue.leaves {
                leaf.layout = part(&leaf.layout);
            }
            let weight = Weight::part_of_packed(&spec.weight, summed_layout(spec), packed_at);
            let (input, result) = (spec.input.undoubled(), part(&spec.result));
            let spec = Spec::new(spec.isa, input, weight, places, result, epilogue)?;
            let direct = Direct::new(&spec, target);
            packed_at += direct.packed_bytes(&spec).next_multiple_of(64);
            phases.push(Phase { place, spec, direct });
        }
        Some(Doubled { phases })
    }

    pub(super) fn tunables(&self) -> Vec<(&'static str, Attr)> {
        let mut all = vec![("phases", Attr::Int(self.phases.len() as i64))];
        all.extend(self.phases[0].direct.tunables());
        all
    }

    pub(super) fn packed_bytes(&self) -> usize {
        let bytes = |phase: &Phase| phase.direct.packed_bytes(&phase.spec).next_multiple_of(64);
        self.phases.iter().map(bytes).sum()
    }

    pub(super) fn packing_name(&self) -> String {
        let Phase { spec, direct, .. } = &self.phases[0];
        format!("doubled.{}", direct.packing_name(spec))
    }

    /// Packs the weight at load.
    ///
    /// # Safety
    /// Operand 0 is the dense weight, the result writable for the packed one.
    pub(super) unsafe fn pack(&self, spec: &Spec, shared: Shared<'_>, pool: &Pool) {
        let layout = summed_layout(spec);
        let mut summed = vec![0u8; layout.count() * layout.dtype.size()];
        for phase in &self.phases {
            // SAFETY: the caller's promise; the sums have the layout that the phase's weight has.
            unsafe {
                sum_taps(spec, phase.place, shared.operand(0), &mut summed);
                let at = phase.spec.weight.packed_at;
                let packed = shared.result().add(at);
                let operands = [summed.as_ptr()];
                let launch = Launch { pool, operands: &operands, result: packed, scratch: packed };
                phase.direct.pack(&phase.spec, Shared::new(&launch), pool);
                let end = phase.direct.packed_bytes(&phase.spec);
                std::ptr::write_bytes(packed.add(end), 0, end.next_multiple_of(64) - end);
            }
        }
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        let bytes = |phase: &Phase| phase.direct.scratch_bytes(&phase.spec, threads);
        self.phases.iter().map(bytes).max().unwrap_or(0)
    }

    /// Runs.
    ///
    /// # Safety
    /// As [`crate::kernel::KernelDef::run`], after [`super::conv_input::Input::prepare`].
    pub(super) unsafe fn run(&self, pool: &Pool, shared: Shared<'_>) {
        for Phase { spec, direct, .. } in &self.phases {
            // SAFETY: passed on; phases write different elements, each after what an operand has there was read.
            unsafe { direct.run(spec, pool, shared) };
        }
    }
}

/// The layout of a phase's weight before it is packed: `[O, C, kernel..]`, dense.
fn summed_layout(spec: &Spec) -> Layout {
    let mut shape = spec.weight.layout.shape.clone();
    let rank = shape.len();
    shape[rank - 2..].fill(2);
    let strides = ops::row_major_strides(&shape);
    Layout { dtype: spec.weight.layout.dtype, shape, strides, offset: 0 }
}

/// Writes the taps of the phase at `place`, as [`summed_layout`] says.
///
/// # Safety
/// `dense` is the base of a buffer that holds the weight's layout; it need not be aligned.
unsafe fn sum_taps(spec: &Spec, place: [usize; 2], dense: *const u8, summed: &mut [u8]) {
    let weight = &spec.weight;
    let dtype = weight.layout.dtype;
    let (channels, depth) = (weight.layout.shape[1], spec.kernel[0]);
    let row = channels * depth * 4 * dtype.size();
    // SAFETY: the layout's positions lie within the buffer.
    let read = |at: usize| unsafe {
        match dtype {
            DType::Bf16 => dense.cast::<bf16>().add(at).read_unaligned().to_f32(),
            DType::F16 => dense.cast::<f16>().add(at).read_unaligned().to_f32(),
            _ => dense.cast::<f32>().add(at).read_unaligned(),
        }
    };
    for (column, to) in summed.chunks_exact_mut(row).enumerate() {
        for tap in 0..depth * 4 {
            let (z, y, x) = (tap / 4, tap / 2 % 2, tap % 2);
            let (rows, columns) = (SUMS[place[0]][y], SUMS[place[1]][x]);
            let terms =
                || rows.iter().flat_map(|y| columns.iter().map(move |x| (z * 3 + y) * 3 + x));
            let mut starts = [0; 4];
            let count = terms().count();
            for (start, term) in starts.iter_mut().zip(terms()) {
                *start = weight.position(column, 0, term);
            }
            for channel in 0..channels {
                let at = channel * weight.channel_stride();
                let sum: f32 = starts[..count].iter().map(|start| read(start + at)).sum();
                let to = &mut to[(channel * depth * 4 + tap) * dtype.size()..][..dtype.size()];
                match dtype {
                    DType::Bf16 => to.copy_from_slice(&bf16::from_f32(sum).to_le_bytes()),
                    DType::F16 => to.copy_from_slice(&f16::from_f32(sum).to_le_bytes()),
                    _ => to.copy_from_slice(&sum.to_le_bytes()),
                }
            }
        }
    }
}
