//! Matrix products to time: STDiT-XL/2's, plain and with everything that is fused into them.
//!
//! Invariant: buffers are made once, before anything is timed.

use kernels::cpu::matmul::{BOperand, BView, Caches, Matmul, MatmulBuffers, MatmulSpec};
use kernels::cpu::{Norm, RowView};
use kernels::program::{Program, ProgramBuilder, Value};
use kernels::{Error, Isa, Pool};
use ops::DType;
use ops::defs::binary::Binary;
use ops::defs::unary::Unary;
use runtime::Arena;

/// `(rows, columns, depth)` of the products of one block with 4096 tokens.
pub const SHAPES: [(usize, usize, usize); 4] =
    [(4096, 1152, 1152), (4096, 3456, 1152), (4096, 4608, 1152), (4096, 1152, 4608)];

/// What is fused into a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fusion {
    /// Nothing.
    Plain,
    /// Layer norm and modulation before, bias and GELU after.
    NormModulateGelu,
    /// Bias, gate and residual after, in place.
    GateResidual,
}

impl Fusion {
    /// Every kind.
    pub const ALL: [Fusion; 3] = [Fusion::Plain, Fusion::NormModulateGelu, Fusion::GateResidual];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Fusion::Plain => "plain",
            Fusion::NormModulateGelu => "norm+modulate, bias+gelu",
            Fusion::GateResidual => "bias, gate, residual",
        }
    }
}

/// Values in `-0.5..0.5`, the same each time.
fn random(n: usize, dtype: DType) -> Result<Arena, runtime::Error> {
    let mut arena = Arena::new((n * dtype.size()).next_multiple_of(4), "operand")?;
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    for bytes in arena.slice_mut(0, arena.len()).chunks_exact_mut(4) {
        // In bf16, two numbers share the place of one f32.
        let word = match dtype {
            DType::Bf16 => pair(next(), next()),
            _ => next().to_bits(),
        };
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Ok(arena)
}

/// Two numbers as bf16, the first in the lower half; what does not fit is cut off.
fn pair(low: f32, high: f32) -> u32 {
    (low.to_bits() >> 16) | (high.to_bits() & 0xffff_0000)
}

/// A product with its buffers.
#[derive(Debug)]
pub struct Product {
    matmul: Matmul,
    pool: Pool,
    a: Arena,
    b: Arena,
    rows: Arena,
    c: Arena,
    scratch: Arena,
}

impl Product {
    /// Makes the buffers, and packs B where a weight would be.
    ///
    /// # Errors
    /// The kernel's, if the shape is empty; out of memory.
    pub fn new(
        (m, n, k): (usize, usize, usize),
        fusion: Fusion,
        dtype: DType,
        isa: Isa,
        pool: Pool,
    ) -> Result<Product, Box<dyn std::error::Error>> {
        let [_, l2, l3] = kernels::caches();
        let digits = dtype == DType::F32 && isa.tiles().is_some();
        let spec = spec((m, n, k), fusion, dtype, digits)?;
        let matmul = Matmul::new(spec, isa, Caches { l2, l3 })?;
        let mut b = random(n * k, dtype)?;
        if !digits {
            let mut packed = Arena::new(matmul.packed_b_bytes(), "packed B")?;
            let bytes = packed.len();
            let from = b.slice(0, n * k * dtype.size());
            matmul.pack_b(&pool, from, (1, k), packed.slice_mut(0, bytes))?;
            b = packed;
        }
        let scratch = Arena::new(matmul.scratch_bytes(pool.threads()), "scratch")?;
        let (a, rows, c) = (random(m * k, dtype)?, random(n + k, dtype)?, random(m * n, dtype)?);
        Ok(Product { matmul, pool, a, b, rows, c, scratch })
    }

    /// Runs once.
    pub fn run(&mut self) {
        let (rows, c) = (self.rows.ptr().cast_const(), self.c.ptr());
        let buffers = MatmulBuffers {
            a: self.a.ptr(),
            b: self.b.ptr(),
            prologue: &[rows, rows],
            epilogue: &[rows, rows, c.cast_const()],
            c,
            scratch: self.scratch.ptr(),
        };
        // SAFETY: the buffers were made for this spec and this pool.
        unsafe { self.matmul.run(&self.pool, &buffers) };
    }

    /// Floating-point operations of one run.
    pub fn flops(&self) -> f64 {
        self.matmul.flops() as f64
    }
}

fn spec(
    (m, n, k): (usize, usize, usize),
    fusion: Fusion,
    dtype: DType,
    digits: bool,
) -> Result<MatmulSpec, Error> {
    let view = |stride| RowView { dtype, row_strides: vec![stride], column_stride: 1, offset: 0 };
    let plain = MatmulSpec {
        digits,
        batch: vec![],
        rows: vec![m],
        columns: n,
        depth: k,
        a: view(k),
        b: if digits {
            let (depth_stride, column_stride) = (1, k);
            BOperand::Dense(BView {
                dtype,
                batch_strides: vec![],
                depth_stride,
                column_stride,
                offset: 0,
            })
        } else {
            BOperand::Packed(dtype)
        },
        product: dtype,
        norm: None,
        prologue: None,
        prologue_operands: vec![],
        epilogue: Program::copy(DType::F32, dtype),
        epilogue_operands: vec![],
        c: view(n),
    };
    let scale_shift = |p: &mut ProgramBuilder, x: Value| {
        let (scale, shift) = (p.slot(dtype), p.slot(dtype));
        let x = p.binary(Binary::Mul, x, scale);
        p.binary(Binary::Add, x, shift)
    };
    let mut p = ProgramBuilder::new();
    let x = p.slot(DType::F32);
    Ok(match fusion {
        Fusion::Plain => plain,
        Fusion::NormModulateGelu => {
            let x = scale_shift(&mut p, x);
            let prologue = Some(p.finish(x, DType::F32)?);
            let mut p = ProgramBuilder::new();
            let (x, bias) = (p.slot(DType::F32), p.slot(dtype));
            let x = p.binary(Binary::Add, x, bias);
            let x = p.unary(Unary::GeluTanh, x);
            MatmulSpec {
                norm: Some(Norm::Layer { eps: 1e-6 }),
                prologue,
                prologue_operands: vec![view(0), view(0)],
                epilogue: p.finish(x, dtype)?,
                epilogue_operands: vec![view(0)],
                ..plain
            }
        }
        Fusion::GateResidual => {
            let bias = p.slot(dtype);
            let x = p.binary(Binary::Add, x, bias);
            let x = scale_shift(&mut p, x);
            MatmulSpec {
                epilogue: p.finish(x, dtype)?,
                epilogue_operands: vec![view(0), view(0), view(n)],
                ..plain
            }
        }
    })
}
