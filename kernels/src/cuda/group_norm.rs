//! `group_norm` of channels-last values, with elementwise code before and after.
//!
//! Three launches. Blocks of positions take the mean of each group, and the squares around it, from
//! registers; a block per group combines them in order (Chan, Golub and `LeVeque`, Updating formulae
//! and a pairwise algorithm for computing sample variances, equation 2.1) and gives each channel its
//! center and factor; elementwise code applies them. What runs when does not matter to the
//! numbers: cuts and orders are fixed. Roofline: memory bandwidth, the operand read twice and the
//! result written once.

use ops::defs::binary::Binary;
use ops::{Attr, DType, Op, TensorType, ValueId};

use crate::Layout;
use crate::body::{Elementwise, Source, compile_elementwise, leaf};
use crate::kernel::Site;
use crate::nest::Nest;
use crate::program::{ProgramBuilder, Value};

use super::access::{offset_bytes, widest_vector};
use super::code::{Code, inline, leaf_args, may_alias};
use super::map::{Map, leaf_slots};
use super::rows::step;
use super::{Arg, Base, CudaKernel, Function, Gpu, Launch, WARP};

/// Threads of a block, where channels allow it.
const BLOCK: u32 = 256;
/// Most threads of a block.
const MAX_BLOCK: u32 = 1024;
/// Elements that a thread holds.
const HELD: u32 = 32;

/// Mean and squares around it, of each group in each block of positions: f32 `[2, N, G, blocks]`.
/// Blocks run along x, samples along y. Pointers: those, then the input's slots.
#[derive(Clone, PartialEq, Debug)]
pub struct GroupSums {
    /// N.
    pub samples: u32,
    /// Positions of a sample.
    pub positions: u32,
    /// C.
    pub channels: u32,
    /// G.
    pub groups: u32,
    /// Dims that positions of all samples are numbered over.
    pub outer: Vec<u32>,
    /// From operands to what is normalized; strides of `outer`, then of channels.
    pub input: Code,
    /// Consecutive channels of a thread.
    pub vector: u32,
    /// Positions that a thread holds.
    pub runs: u32,
    /// Positions that a block reads at once.
    pub rows: u32,
}

impl GroupSums {
    /// Threads of a block: whole warps.
    pub fn block(&self) -> [u32; 3] {
        [(self.rows * self.channels / self.vector).next_multiple_of(WARP), 1, 1]
    }

    /// Positions of a block.
    pub fn block_positions(&self) -> u32 {
        self.rows * self.runs
    }

    /// Blocks of a sample.
    pub fn blocks(&self) -> u32 {
        self.positions.div_ceil(self.block_positions())
    }

    /// Lanes that combine one group: a part of a warp.
    pub fn lanes(&self) -> u32 {
        let [threads, _, _] = self.block();
        let share = (threads / self.groups).clamp(1, WARP);
        1 << share.ilog2()
    }

    fn bytes(&self) -> usize {
        2 * 4 * (self.samples * self.groups * self.blocks()) as usize
    }
}

/// From those to what is subtracted from each channel and what the difference is multiplied by: f32
/// `[2, N, C]`. A block for each group of each sample. Pointers: the result, the sums, weight's slots.
#[derive(Clone, PartialEq, Debug)]
pub struct GroupScale {
    /// N.
    pub samples: u32,
    /// C.
    pub channels: u32,
    /// G.
    pub groups: u32,
    /// Positions of a sample.
    pub positions: u32,
    /// Blocks of a sample.
    pub blocks: u32,
    /// Positions of a block, but for the last one.
    pub block_positions: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Weight, by channel.
    pub weight: Code,
}

impl GroupScale {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [self.blocks.next_power_of_two().clamp(WARP, BLOCK), 1, 1]
    }

    fn bytes(&self) -> usize {
        2 * 4 * (self.samples * self.channels) as usize
    }
}

/// A group norm of a body, as launches.
struct Parts {
    sums: GroupSums,
    scale: GroupScale,
    input: Elementwise,
    weight: Elementwise,
    bias: Elementwise,
}

/// Takes one `group_norm` with any elementwise code around it.
pub(super) fn select(site: &Site<'_>, _: Gpu) -> Option<CudaKernel> {
    let &[root] = &site.body.outputs[..] else { return None };
    let mut found =
        site.body.values().filter(|&value| matches!(site.body.op(value), Some(Op::GroupNorm(_))));
    let value = found.next()?;
    if found.next().is_some() || site.body.ty(value).shape() != site.result.shape {
        return None;
    }
    let parts = Parts::of(site, value)?;
    let epilogue = compile_elementwise(site.body, root, &[value], site.operands)?;
    let to = Arg { base: Base::Result, offset: offset_bytes(site.result) };
    let launches = parts.launches(site.result, &epilogue, to, 0)?;
    let reads_affine = |operand: usize| {
        let mut leaves = parts.weight.leaves.iter().chain(&parts.bias.leaves);
        leaves.any(|leaf| leaf.source == Source::Operand(operand))
    };
    let in_place = (0..site.operands.len())
        .map(|operand| {
            !reads_affine(operand) && may_alias(&[&parts.input, &epilogue], operand, site.result)
        })
        .collect();
    Some(CudaKernel {
        name: "group_norm",
        tunables: vec![
            ("block", Attr::Int(parts.sums.block_positions().into())),
            ("vector", Attr::Int(parts.sums.vector.into())),
        ],
        launches,
        scratch_bytes: parts.scratch_bytes(),
        packed: None,
        in_place,
    })
}

/// The launches that write `value` of the body, dense and in type `dtype`, where `to` says, and
/// the bytes of scratch that they use from `scratch` on. Takes elementwise code after one
/// `group_norm` of a value of the same shape.
pub fn materialize(
    site: &Site<'_>,
    value: ValueId,
    dtype: DType,
    to: Arg,
    scratch: usize,
) -> Option<(Vec<Launch>, usize)> {
    let norm = group_norm_before(site, value)?;
    let ty: TensorType = site.body.ty(value).with_dtype(dtype);
    if site.body.ty(norm).shape() != ty.shape() {
        return None;
    }
    let parts = Parts::of(site, norm)?;
    let epilogue = compile_elementwise(site.body, value, &[norm], site.operands)?.stored_as(dtype);
    let launches = parts.launches(&Layout::dense(&ty), &epilogue, to, scratch)?;
    Some((launches, parts.scratch_bytes()))
}

fn group_norm_before(site: &Site<'_>, value: ValueId) -> Option<ValueId> {
    match site.body.op(value)? {
        Op::GroupNorm(_) => Some(value),
        _ => site.body.node(value).args.iter().find_map(|&arg| group_norm_before(site, arg)),
    }
}

impl Parts {
    fn of(site: &Site<'_>, value: ValueId) -> Option<Parts> {
        let Some(Op::GroupNorm(norm)) = site.body.op(value) else { return None };
        let shape = site.body.ty(value).shape();
        let args = &site.body.node(value).args;
        let affine = |arg: usize| {
            leaf(site.body, args[arg], site.operands)?;
            Some(compile_elementwise(site.body, args[arg], &[], site.operands)?.widened())
        };
        let affine = [affine(1)?, affine(2)?];
        let input = compile_elementwise(site.body, args[0], &[], site.operands)?.widened();
        let layouts: Vec<&Layout> = input.leaves.iter().map(|leaf| &leaf.layout).collect();
        if layouts.is_empty() {
            return None;
        }
        let nest = Nest::with_row(&layouts, shape.len() - 1)?;
        let (samples, channels) = (shape[0] as u32, shape[shape.len() - 1] as u32);
        let positions = shape.iter().product::<usize>() / shape[0] / channels as usize;
        let positions = u32::try_from(positions).ok()?;
        samples.checked_mul(positions)?;
        let strides = |leaf: usize| (0..nest.rank()).map(|axis| step(&nest, axis, leaf)).collect();
        let code = Code::of(&input, strides)?;
        let offsets: Vec<usize> = leaf_args(&input.leaves).map(|arg| arg.offset).collect();
        let vector = widest_vector(code.memory().zip(offsets), channels);
        let vectors = channels / vector;
        let rows = (BLOCK / vectors).max(1);
        if vectors > MAX_BLOCK || samples > u16::MAX.into() {
            return None;
        }
        let runs = (HELD / vector).min(positions.div_ceil(rows));
        let sums = GroupSums {
            samples,
            positions,
            channels,
            groups: norm.groups as u32,
            outer: (0..nest.rank() - 1).map(|axis| nest.dim(axis) as u32).collect(),
            input: code,
            vector,
            runs,
            rows: rows.min(positions),
        };
        let [weight, bias] = affine;
        let along = |leaf: usize| vec![weight.leaves[leaf].layout.strides[0] as u32];
        let scale = GroupScale {
            samples,
            channels,
            groups: sums.groups,
            positions,
            blocks: sums.blocks(),
            block_positions: sums.block_positions(),
            eps: norm.eps as f32,
            weight: Code::of(&weight, along)?,
        };
        Some(Parts { sums, scale, input, weight, bias })
    }

    fn scratch_bytes(&self) -> usize {
        self.scale.bytes() + self.sums.bytes()
    }

    /// The three launches, the last of which writes `result` from `to` on.
    fn launches(
        &self,
        result: &Layout,
        epilogue: &Elementwise,
        to: Arg,
        scratch: usize,
    ) -> Option<Vec<Launch>> {
        let at = |offset: usize| Arg { base: Base::Scratch, offset: scratch + offset };
        let (channels, sums) = (at(0), at(self.scale.bytes()));
        let measure = Launch {
            grid: [self.sums.blocks(), self.sums.samples, 1],
            args: std::iter::once(sums.clone()).chain(leaf_args(&self.input.leaves)).collect(),
            function: Function::GroupSums(self.sums.clone()),
        };
        let combine = Launch {
            grid: [self.scale.groups, self.scale.samples, 1],
            args: [channels.clone(), sums]
                .into_iter()
                .chain(leaf_args(&self.weight.leaves))
                .collect(),
            function: Function::GroupScale(self.scale.clone()),
        };
        Some(vec![measure, combine, self.apply(result, epilogue, to, channels.offset)?])
    }

    /// `epilogue((input - center) * factor + bias)`.
    fn apply(
        &self,
        result: &Layout,
        epilogue: &Elementwise,
        to: Arg,
        channels: usize,
    ) -> Option<Launch> {
        let rank = result.rank();
        let strided = |dtype: DType, by_sample: usize, by_channel: usize| {
            let mut strides = vec![0; rank];
            strides[rank - 1] = by_channel;
            strides[0] = by_sample;
            Layout { dtype, shape: result.shape.clone(), strides, offset: 0 }
        };
        let statistic = strided(DType::F32, self.scale.channels as usize, 1);
        let bias_layouts: Vec<Layout> = (self.bias.leaves.iter())
            .map(|leaf| strided(leaf.layout.dtype, 0, leaf.layout.strides[0]))
            .collect();
        let mut slots = leaf_slots(&self.input.leaves);
        for part in 0..2 {
            let offset = channels + part * self.scale.bytes() / 2;
            slots.push((&statistic, Arg { base: Base::Scratch, offset }));
        }
        slots.extend(bias_layouts.iter().zip(leaf_args(&self.bias.leaves)));
        slots.extend(leaf_slots(&epilogue.leaves));

        let mut builder = ProgramBuilder::new();
        let x = append(&mut builder, &self.input, None);
        let (center, factor) = (builder.slot(DType::F32), builder.slot(DType::F32));
        let bias = append(&mut builder, &self.bias, None);
        let y = builder.binary(Binary::Sub, x, center);
        let y = builder.binary(Binary::Mul, y, factor);
        let y = builder.binary(Binary::Add, y, bias);
        let y = append(&mut builder, epilogue, Some(y));
        let program = builder.finish(y, epilogue.program.result()).ok()?;
        Map::launch(result, program, &slots, to)
    }
}

/// Appends `code` with new slots for what it reads; `computed` is its frontier.
fn append(builder: &mut ProgramBuilder, code: &Elementwise, computed: Option<Value>) -> Value {
    let mut slots = vec![];
    for leaf in &code.leaves {
        slots.push(match (&leaf.source, computed) {
            (Source::Frontier(_), Some(value)) => value,
            _ => builder.slot(leaf.layout.dtype),
        });
    }
    inline(builder, &code.program, &slots)
}
