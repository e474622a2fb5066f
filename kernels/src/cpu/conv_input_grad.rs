//! `conv_input_grad` with elementwise code of its result: the convolution of the cotangent with the
//! weight, whose taps come in the opposite order and whose inputs and outputs change places.
//!
//! Where the window moves by more than 1, neighbors of the result meet other taps, and meet the same again a
//! stride later. So there are *phases*, for each place within a stride one: a convolution that moves by 1, of
//! every stride-th tap, whose result is every stride-th element. No product with the zeros between is made.
//! All are the two methods of [`super::conv::Conv`], with its limits.
//!
//! The weight is packed in each run: training changes it in each step.

use ops::{Attr, Op};

use crate::body::{Elementwise, compile_elementwise, operand_view};
use crate::conv_site::per_axis;
use crate::kernel::{KernelDef, Launch, Site};
use crate::simd::{Simd, SimdJob, dispatch};
use crate::{Isa, Layout};

use super::conv::{Method, Places, SPATIAL, Spec, Weight};
use super::conv_input::Input;
use super::shared::{Shared, aligned};

/// The gradient of a convolution with respect to its first operand.
#[derive(Clone, Debug)]
pub struct ConvInputGrad {
    isa: Isa,
    /// Largest first; never empty.
    phases: Vec<Phase>,
    weight: usize,
    epilogue: Box<Elementwise>,
    result: Layout,
}

/// A part of the result.
#[derive(Clone, Debug)]
struct Phase {
    spec: Spec,
    /// `None` where no tap meets it.
    method: Option<Method>,
}

/// A phase along one axis.
#[derive(Clone, Copy, Debug)]
struct AxisPhase {
    /// First element of the result, and how many.
    first: usize,
    n: usize,
    /// First tap, and how many.
    tap: usize,
    n_taps: usize,
    pad_low: isize,
}

/// The phases of an axis of `dim` elements under a window of `n_taps` taps.
fn phases_along(dim: usize, n_taps: usize, stride: usize, pad_low: usize) -> Vec<AxisPhase> {
    let phase = |first: usize| {
        // Element `i` of the phase meets tap `tap + stride * j` at position `at + i - j` of the cotangent.
        let (at, tap) = ((first + pad_low) / stride, (first + pad_low) % stride);
        let n_taps = n_taps.saturating_sub(tap).div_ceil(stride);
        let pad_low = n_taps.cast_signed() - 1 - at.cast_signed();
        AxisPhase { first, n: (dim - first).div_ceil(stride), tap, n_taps, pad_low }
    };
    (0..stride.min(dim)).map(phase).collect()
}

impl ConvInputGrad {
    /// Takes one `conv_input_grad` of operands as they are stored, with elementwise code after.
    pub fn select(site: &Site<'_>) -> Option<ConvInputGrad> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut found = site.body.values().filter_map(|value| match site.body.op(value)? {
            Op::ConvInputGrad(op) => Some((value, &op.window)),
            _ => None,
        });
        let (value, window) = found.next()?;
        if found.next().is_some() || site.body.ty(value).shape() != site.result.shape {
            return None;
        }
        let [grad, weight] = site.body.node(value).args[..] else { return None };
        let (weight, view) = operand_view(site.body, weight, site.operands)?;
        let input = Input::stored(site, grad)?;
        let epilogue = compile_elementwise(site.body, root, &[value], site.operands)?;
        // Every choice of one phase for each axis.
        let mut choices: Vec<Vec<AxisPhase>> = vec![vec![]];
        for (axis, &stride) in window.stride.iter().enumerate() {
            let (dim, n_taps) = (site.result.shape[axis + 1], view.shape[axis + 2]);
            let along = phases_along(dim, n_taps, stride, window.pad_low[axis]);
            let with =
                |before: &Vec<AxisPhase>, phase: &AxisPhase| [&before[..], &[*phase]].concat();
            choices = choices
                .iter()
                .flat_map(|before| along.iter().map(move |phase| with(before, phase)))
                .collect();
        }
        let whole = &site.operands[weight];
        let mut phases = vec![];
        for choice in &choices {
            let weight =
                Weight::flipped(weight, taps_of(&view, choice, &window.stride), whole.clone());
            let part = |layout: &Layout| elements_of(layout, choice, &window.stride);
            let mut code = epilogue.clone();
            for leaf in &mut code.leaves {
                leaf.layout = part(&leaf.layout);
            }
            let along =
                |number: fn(&AxisPhase) -> usize| choice.iter().map(number).collect::<Vec<_>>();
            let pad_low: Vec<isize> = choice.iter().map(|phase| phase.pad_low).collect();
            let places = Places {
                output: per_axis(&along(|phase| phase.n), 1),
                kernel: per_axis(&along(|phase| phase.n_taps), 1),
                stride: [1; SPATIAL],
                pad_low: per_axis(&pad_low, 0),
            };
            let result = part(site.result);
            let spec = Spec::new(site.target.isa, input.clone(), weight, places, result, code)?;
            let method = (spec.taps() > 0).then(|| Method::of(&spec, site.target));
            phases.push(Phase { spec, method });
        }
        phases.sort_by_key(|phase| std::cmp::Reverse(phase.spec.taps()));
        Some(ConvInputGrad {
            isa: site.target.isa,
            phases,
            weight,
            epilogue: Box::new(epilogue),
            result: site.result.clone(),
        })
    }
}

/// The taps of a phase of a weight `[O, C, kernel..]`, as `[C, O, kernel..]`.
fn taps_of(weight: &Layout, phase: &[AxisPhase], stride: &[usize]) -> Layout {
    let (mut start, mut step) = (vec![0; 2], vec![1; 2]);
    start.extend(phase.iter().map(|phase| phase.tap));
    step.extend(stride);
    let mut shape = weight.shape[..2].to_vec();
    shape.extend(phase.iter().map(|phase| phase.n_taps));
    let mut axes: Vec<usize> = (0..weight.rank()).collect();
    axes.swap(0, 1);
    weight.sliced(&start, &shape, &step).permuted(&axes)
}

/// The elements of a phase of a value with the result's shape.
fn elements_of(layout: &Layout, phase: &[AxisPhase], stride: &[usize]) -> Layout {
    let rank = layout.rank();
    let (mut start, mut shape, mut step) = (vec![0; rank], layout.shape.clone(), vec![1; rank]);
    for (axis, phase) in phase.iter().enumerate() {
        (start[axis + 1], shape[axis + 1], step[axis + 1]) = (phase.first, phase.n, stride[axis]);
    }
    layout.sliced(&start, &shape, &step)
}

impl Phase {
    fn scratch_bytes(&self, threads: usize) -> usize {
        match &self.method {
            Some(method) => method.scratch_bytes(&self.spec, threads),
            None => threads * Zeros::worker_bytes(&self.spec),
        }
    }
}

impl KernelDef for ConvInputGrad {
    fn name(&self) -> &'static str {
        "conv_input_grad"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        let mut all = vec![("phases", Attr::Int(self.phases.len() as i64))];
        all.extend(self.phases[0].method.iter().flat_map(Method::tunables));
        all
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.phases.iter().map(|phase| phase.scratch_bytes(threads)).max().unwrap_or(0)
    }

    fn may_alias(&self, operand: usize) -> bool {
        // A phase reads what belongs to its elements just before it writes them.
        !self.phases[0].spec.input.reads(operand)
            && operand != self.weight
            && self.epilogue.may_alias(operand, &self.result)
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        for Phase { spec, method } in &self.phases {
            match method {
                // SAFETY: passed on; the input needs no preparation.
                Some(method) => unsafe { method.run(spec, launch.pool, shared) },
                None => {
                    let lines = spec.input.samples * spec.output[0] * spec.output[1];
                    launch.pool.run(lines, &|line, worker| {
                        dispatch(self.isa, Zeros { spec, shared, line, worker });
                    });
                }
            }
        }
    }
}

/// A line of positions that no tap meets.
struct Zeros<'a> {
    spec: &'a Spec,
    shared: Shared<'a>,
    line: usize,
    worker: usize,
}

impl Zeros<'_> {
    /// Sums of one position, and the epilogue's scratch.
    fn worker_bytes(spec: &Spec) -> usize {
        aligned(4 * spec.columns) + aligned(4 * spec.epilogue_len())
    }
}

impl SimdJob for Zeros<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Zeros { spec, shared, line, worker } = self;
        let n = spec.output[2];
        // SAFETY: the caller of `KernelDef::run` promises the result and scratch for all workers.
        unsafe {
            let own = shared.scratch().add(worker * Zeros::worker_bytes(spec));
            let (sums, scratch) = (own.cast::<f32>(), own.add(aligned(4 * spec.columns)).cast());
            std::ptr::write_bytes(sums, 0, spec.columns);
            spec.epilogue(s, shared, (line * n, n), (0, spec.columns), sums, 0, scratch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tap_meets_every_element_that_it_met_forward() {
        for (n_taps, stride, pad_low, pad_high) in
            [(3, 1, 1, 1), (3, 2, 0, 1), (3, 2, 2, 0), (1, 2, 0, 0), (2, 3, 4, 1), (5, 2, 4, 3)]
        {
            for dim in 1..=9usize {
                let Some(room) = (dim + pad_low + pad_high).checked_sub(n_taps) else { continue };
                let mut forward = vec![];
                for out in 0..=room / stride {
                    let at = |tap: usize| (out * stride + tap).checked_sub(pad_low);
                    let inside = (0..n_taps).filter_map(|tap| Some((at(tap)?, out, tap)));
                    forward.extend(inside.filter(|(at, ..)| *at < dim));
                }
                let mut backward = vec![];
                for phase in phases_along(dim, n_taps, stride, pad_low) {
                    for i in 0..phase.n {
                        for j in 0..phase.n_taps {
                            // Flipped: the last tap comes first.
                            let tap = phase.tap + stride * (phase.n_taps - 1 - j);
                            let from = i.cast_signed() + j.cast_signed() - phase.pad_low;
                            let from = usize::try_from(from).ok().filter(|&at| at <= room / stride);
                            backward.extend(from.map(|at| (phase.first + stride * i, at, tap)));
                        }
                    }
                }
                forward.sort_unstable();
                backward.sort_unstable();
                assert_eq!(forward, backward, "{n_taps} taps, {stride}, {pad_low}, {dim}");
            }
        }
    }
}
