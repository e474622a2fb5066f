//! An engine of two steps: `t = 2 x + w`, `y = 0.5 t + c`, with `w` a weight and `c` a constant.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::borrow::Cow;
use std::collections::BTreeMap;

use engine::{
    Arch, Arg, Blob, Engine, Image, ImageKind, Kernel, Launch, Port, Program, Space, Step, Weight,
};
use ops::{DType, TensorType};
use runtime::WeightSource;

/// Rows and columns of every tensor.
pub(crate) const SHAPE: [usize; 2] = [30, 10];
/// Elements of every tensor.
pub(crate) const N: usize = SHAPE[0] * SHAPE[1];
/// Bytes of every tensor in the arena.
const BYTES: u64 = 4 * N as u64;

pub(crate) fn ty(dtype: DType, shape: &[usize]) -> TensorType {
    TensorType::new(dtype, shape).expect("a small shape")
}

pub(crate) fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub(crate) fn to_f32s(bytes: &[u8]) -> Vec<f32> {
    let (chunks, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "{} bytes", bytes.len());
    chunks.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()
}

/// The constant `c`.
pub(crate) fn constant() -> Vec<f32> {
    (0..N).map(|i| i as f32 / 16.0).collect()
}

/// What the programs and kernels are for.
fn target() -> Arch {
    "sm_80".parse().expect("a known name")
}

fn affine(factor: f32) -> Kernel {
    let image = Image {
        arch: target(),
        kind: ImageKind::Ptx,
        registers: 0,
        spill_bytes: 0,
        bytes: Blob::from(include_bytes!("affine.ptx").to_vec()),
    };
    Kernel {
        name: "map".into(),
        entry: "affine".into(),
        block: [128, 1, 1],
        shared_bytes: 0,
        n_pointers: 3,
        info: vec![u64::from(factor.to_bits()) | (N as u64) << 32],
        images: vec![image],
    }
}

/// The engine, its weight in the order of `axes`. Its second program is `z = 2 x + c` with an arena as large.
pub(crate) fn engine(axes: &[u32]) -> Engine {
    let port = |name: &str, offset| Port { name: name.into(), ty: ty(DType::F32, &SHAPE), offset };
    let arena = |offset| Arg { space: Space::Arena, offset };
    let weight = Arg { space: Space::Weight(0), offset: 0 };
    let constant_arg = Arg { space: Space::Constant(0), offset: 0 };
    let step = |scope: &str, kernel, args: [Arg; 3]| Step {
        label: "map".into(),
        scope: scope.into(),
        flops: 2 * N as u64,
        bytes: 3 * BYTES,
        scratch_bytes: 0,
        launches: vec![Launch {
            kernel,
            grid: [N.div_ceil(128) as u32, 1, 1],
            args: args.to_vec(),
            product: None,
        }],
    };
    let two_steps = Program {
        name: "two steps".into(),
        target: target(),
        arena_bytes: 2 * BYTES,
        workspace_bytes: 0,
        lower_bound_bytes: 2 * BYTES,
        inputs: vec![port("x", 0)],
        // In place of the input.
        outputs: vec![port("y", 0)],
        steps: vec![
            step("first", 0, [arena(0), weight, arena(BYTES)]),
            step("second", 1, [arena(BYTES), constant_arg, arena(0)]),
        ],
    };
    let one_step = Program {
        name: "one step".into(),
        target: target(),
        arena_bytes: 2 * BYTES,
        workspace_bytes: 0,
        lower_bound_bytes: 2 * BYTES,
        inputs: vec![port("x", 0)],
        outputs: vec![port("z", BYTES)],
        steps: vec![step("only", 0, [arena(0), constant_arg, arena(BYTES)])],
    };
    Engine {
        created_by: "a test".into(),
        model: "affine".into(),
        dtype: DType::F32,
        kernels: vec![affine(2.0), affine(0.5)],
        weights: vec![Weight {
            name: "w".into(),
            ty: ty(DType::F32, &SHAPE),
            axes: axes.to_vec(),
            bytes: BYTES + 64,
        }],
        constants: vec![Blob::from(to_bytes(&constant()))],
        programs: vec![two_steps, one_step],
    }
}

/// The engine with programs for `other` beside those for `sm_80`: they have a kernel of their own for the second
/// step, `y = 0.25 t + c`, whose blocks have `shared_bytes` of shared memory.
pub(crate) fn engine_for(other: &str, shared_bytes: u32) -> Engine {
    let mut engine = engine(&[]);
    let target: Arch = other.parse().expect("a known name");
    let mut kernel = affine(0.25);
    kernel.images[0].arch = target;
    kernel.shared_bytes = shared_bytes;
    engine.kernels.push(kernel);
    for mut program in engine.programs.clone() {
        program.target = target;
        for launch in program.steps.iter_mut().skip(1).flat_map(|step| &mut step.launches) {
            launch.kernel = 2;
        }
        engine.programs.push(program);
    }
    engine
}

/// Tensors by name.
#[derive(Clone, Default)]
pub(crate) struct Tensors(pub(crate) BTreeMap<String, (TensorType, Vec<u8>)>);

impl WeightSource for Tensors {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let found = self.0.get(name);
        Ok(found.map(|(ty, bytes)| (ty.clone(), Cow::Borrowed(&bytes[..]))))
    }
}

/// The weight `w` as f32.
pub(crate) fn weight() -> Vec<f32> {
    (0..N).map(|i| 100.0 - 1.1 * i as f32).collect()
}

/// A checkpoint with `w` in `dtype`.
pub(crate) fn checkpoint(dtype: DType) -> Tensors {
    let bf16 = |x: &f32| ((x.to_bits() >> 16) as u16).to_le_bytes();
    let bytes = match dtype {
        DType::Bf16 => weight().iter().flat_map(bf16).collect(),
        _ => to_bytes(&weight()),
    };
    Tensors(BTreeMap::from([("w".to_string(), (ty(dtype, &SHAPE), bytes))]))
}
