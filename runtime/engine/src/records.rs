//! The records of an engine: which fields, in which order.

use ops::{DType, TensorType};

use crate::codec::{In, Out, Record, record};
use crate::model::{
    Arg, Image, ImageKind, Kernel, Launch, Matrix, Port, Product, Program, Space, Step, Weight,
};
use crate::{Arch, Blob, Error};

record!(Kernel {
    name: String,
    entry: String,
    block: [u32; 3],
    shared_bytes: u32,
    n_pointers: u32,
    info: Vec<u64>,
    images: Vec<Image>,
});

record!(Image { arch: Arch, kind: ImageKind, registers: u32, spill_bytes: u32, bytes: Blob });

impl Record for ImageKind {
    const MIN_BYTES: usize = 4;

    fn write(&self, out: &mut Out) {
        let tag: u32 = match self {
            ImageKind::Ptx => 0,
            ImageKind::Cubin => 1,
        };
        tag.write(out);
    }

    fn read(input: &mut In<'_>) -> Result<ImageKind, Error> {
        let is_ptx = input.tag("an image", 2)? == 0;
        Ok(if is_ptx { ImageKind::Ptx } else { ImageKind::Cubin })
    }
}

record!(Weight { name: String, ty: TensorType, axes: Vec<u32>, bytes: u64 });

record!(Program {
    name: String,
    target: Arch,
    arena_bytes: u64,
    workspace_bytes: u64,
    lower_bound_bytes: u64,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    steps: Vec<Step>,
});

record!(Port { name: String, ty: TensorType, offset: u64 });

record!(Step {
    label: String,
    scope: String,
    flops: u64,
    bytes: u64,
    scratch_bytes: u64,
    launches: Vec<Launch>,
});

record!(Launch { kernel: u32, grid: [u32; 3], args: Vec<Arg>, product: Option<Product> });

record!(Product {
    factors: DType,
    sums: DType,
    batch: u32,
    rows: u32,
    columns: u32,
    depth: u32,
    left: Matrix,
    right: Matrix,
    result: Matrix,
    bias: Option<u32>,
    residual: Option<Matrix>,
    is_faster: bool,
});

record!(Matrix { pointer: u32, is_transposed: bool, leading: u64, batch_stride: u64 });

record!(Arg { space: Space, offset: u64 });

impl Record for Space {
    const MIN_BYTES: usize = 8;

    fn write(&self, out: &mut Out) {
        let (tag, index): (u32, u32) = match *self {
            Space::Arena => (0, 0),
            Space::Weight(index) => (1, index),
            Space::Constant(index) => (2, index),
        };
        tag.write(out);
        index.write(out);
    }

    fn read(input: &mut In<'_>) -> Result<Space, Error> {
        let (tag, index) = (input.tag("a space", 3)?, u32::read(input)?);
        match tag {
            1 => Ok(Space::Weight(index)),
            2 => Ok(Space::Constant(index)),
            _ if index == 0 => Ok(Space::Arena),
            _ => Err(input.wrong(format!("arena {index}, but there is one"))),
        }
    }
}
