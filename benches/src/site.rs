//! One kernel at one site, ready to be timed.
//!
//! Invariant: operands, packed weights and scratch are made once, before anything is timed.

use std::fmt;

use kernels::{Isa, Kernel, Launch, Layout, Pool, Site, Target};
use ops::{Builder, DType, Error, TensorType, ValueId};
use runtime::Arena;

/// A kernel with its buffers.
pub struct Timed {
    kernel: Kernel,
    pool: Pool,
    operands: Vec<Arena>,
    result: Arena,
    scratch: Arena,
    flops: u64,
}

impl fmt::Debug for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timed").field("kernel", &self.kernel).finish_non_exhaustive()
    }
}

impl Timed {
    /// The kernel for what `build` makes of dense f32 operands of these shapes, those in `weights`
    /// packed; `None` if no kernel takes it.
    ///
    /// # Errors
    /// Those of `build` and of the shapes.
    pub fn new(
        shapes: &[&[usize]],
        weights: &[usize],
        pool: Pool,
        build: impl FnOnce(&mut Builder, &[ValueId]) -> Result<ValueId, Error>,
    ) -> Result<Option<Timed>, Box<dyn std::error::Error>> {
        let types: Result<Vec<TensorType>, Error> =
            shapes.iter().map(|shape| TensorType::new(DType::F32, *shape)).collect();
        Timed::of_types(&types?, weights, pool, build)
    }

    /// As [`Timed::new`], for dense operands of f32, bf16, or small i64.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn of_types(
        types: &[TensorType],
        weights: &[usize],
        pool: Pool,
        build: impl FnOnce(&mut Builder, &[ValueId]) -> Result<ValueId, Error>,
    ) -> Result<Option<Timed>, Box<dyn std::error::Error>> {
        let mut b = Builder::new("site");
        let mut args = vec![];
        for (i, ty) in types.iter().enumerate() {
            args.push(b.input(&i.to_string(), ty.clone()));
        }
        let out = build(&mut b, &args)?;
        let body = b.finish(&[out]);
        let layouts: Vec<Layout> = args.iter().map(|&arg| Layout::dense(body.ty(arg))).collect();
        let is_param: Vec<bool> = (0..args.len()).map(|i| weights.contains(&i)).collect();
        let result = Layout::dense(body.ty(out));
        let target = Target::of_cpu(Isa::detect(), pool.threads());
        let site = Site {
            body: &body,
            operands: &layouts,
            is_param: &is_param,
            result: &result,
            target: &target,
        };
        let Some(kernel) = Kernel::select(&site) else { return Ok(None) };
        let def = kernel.def();
        let mut operands = vec![];
        for (i, &arg) in args.iter().enumerate() {
            let mut dense = Arena::new(body.ty(arg).bytes(), "operand")?;
            fill(dense.slice_mut(0, body.ty(arg).bytes()), body.ty(arg).dtype());
            operands.push(match def.packing(i) {
                None => dense,
                Some(packing) => {
                    let mut packed = Arena::new(packing.bytes, "packed operand")?;
                    let from = dense.slice(0, dense.len());
                    def.pack(i, from, packed.slice_mut(0, packing.bytes), &pool);
                    packed
                }
            });
        }
        let scratch = Arena::new(def.scratch_bytes(pool.threads()), "scratch")?;
        let result = Arena::new(body.ty(out).bytes(), "result")?;
        let flops = body.flops();
        Ok(Some(Timed { kernel, pool, operands, result, scratch, flops }))
    }

    /// FLOPs of one run, as the ops state them.
    pub fn flops(&self) -> u64 {
        self.flops
    }

    /// The printed name of the kernel.
    pub fn kernel(&self) -> &'static str {
        self.kernel.def().name()
    }

    /// Bytes of operands, as the kernel holds them, and of the result.
    pub fn bytes(&self) -> u64 {
        let operands: usize = self.operands.iter().map(Arena::len).sum();
        (operands + self.result.len()) as u64
    }

    /// Runs once.
    pub fn run(&mut self) {
        let operands: Vec<*const u8> =
            self.operands.iter().map(|arena| arena.ptr().cast_const()).collect();
        let launch = Launch {
            pool: &self.pool,
            operands: &operands,
            result: self.result.ptr(),
            scratch: self.scratch.ptr(),
        };
        // SAFETY: buffers hold their dense layouts, the scratch is as large as the kernel asked
        // for this pool, and none of them overlap; the instruction set is this CPU's.
        unsafe { self.kernel.def().run(&launch) };
    }
}

/// Fills an operand with floats in [-1, 1), or with integers below 128.
fn fill(bytes: &mut [u8], dtype: DType) {
    let size = dtype.size();
    for (i, element) in bytes.chunks_exact_mut(size).enumerate() {
        if dtype == DType::I64 {
            element.copy_from_slice(&(i as i64 * 31 % 128).to_le_bytes());
            continue;
        }
        // Scattered: the fractional parts of multiples of the golden ratio.
        let x = (i as f64 * 0.618_033_988_749_895).fract() as f32;
        // The upper half of an f32 is a bf16.
        element.copy_from_slice(&(2.0 * x - 1.0).to_le_bytes()[4 - size..]);
    }
}
