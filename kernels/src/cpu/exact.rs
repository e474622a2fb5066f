//! Elementwise groups with integer arithmetic: f64 and i64, one element after the other, by the
//! functions of the op tables themselves. For token ids, masks and counters, where exactness counts
//! and speed does not.

use half::{bf16, f16};
use ops::defs::binary::Binary;
use ops::defs::scalar::Scalar;
use ops::defs::unary::Unary;
use ops::{Class, DType, Graph, Op, Role, ValueId};

use crate::Layout;
use crate::program::{MAX_SLOTS, SlotPtr};

use crate::body::{Leaf, Source, leaf};

/// Elements that are run at a time.
const LANES: usize = 64;
/// Most instructions.
const MAX_STEPS: usize = 256;

/// One instruction; integers and floats are told apart when the code is made.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Step {
    Load { slot: usize, dtype: DType },
    Unary(Unary, usize),
    Scalar(Scalar, usize),
    Floats(Binary, [usize; 2]),
    Ints(Binary, [usize; 2], DType),
    Select([usize; 3]),
    Cast { from: DType, to: DType, x: usize },
}

/// Code for an elementwise group of any element types. Step `i` writes register `i`; the last one is
/// the result.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Exact {
    steps: Vec<Step>,
    leaves: Vec<Leaf>,
    result: DType,
}

impl Exact {
    /// The code that computes `root` from operands and constants.
    pub(crate) fn compile(body: &Graph, root: ValueId, operands: &[Layout]) -> Option<Exact> {
        let mut code = Exact { steps: vec![], leaves: vec![], result: body.ty(root).dtype() };
        let mut done = vec![None; body.nodes.len()];
        code.value(body, root, root, operands, &mut done)?;
        (code.steps.len() <= MAX_STEPS && code.leaves.len() <= MAX_SLOTS).then_some(code)
    }

    fn value(
        &mut self,
        body: &Graph,
        root: ValueId,
        value: ValueId,
        operands: &[Layout],
        done: &mut [Option<usize>],
    ) -> Option<usize> {
        if let Some(done) = done[value.index()] {
            return Some(done);
        }
        let node = body.node(value);
        let dtype = |value: ValueId| body.ty(value).dtype();
        let step = match &node.role {
            Role::Op(op) if op.def().class() == Class::Elementwise => {
                let mut args = [0; 3];
                for (arg, &value) in args.iter_mut().zip(&node.args) {
                    *arg = self.value(body, root, value, operands, done)?;
                }
                let [x, y, _] = args;
                match op {
                    Op::Unary(op) => Step::Unary(*op, x),
                    Op::Scalar(op) => Step::Scalar(*op, x),
                    Op::Binary(op) if dtype(node.args[0]).is_float() => Step::Floats(*op, [x, y]),
                    Op::Binary(op) => Step::Ints(*op, [x, y], node.ty.dtype()),
                    Op::Select(_) => Step::Select(args),
                    Op::Cast(cast) => Step::Cast { from: dtype(node.args[0]), to: cast.dtype, x },
                    _ => return None,
                }
            }
            Role::Op(Op::Broadcast(_)) if leaf(body, value, operands).is_none() => {
                let register = self.value(body, root, node.args[0], operands, done)?;
                done[value.index()] = Some(register);
                return Some(register);
            }
            Role::Op(_) | Role::Input(_) | Role::Constant(_) | Role::Param(_) => {
                let Leaf { source, layout } = leaf(body, value, operands)?;
                let shape = body.ty(root).shape();
                if layout.rank() != shape.len() {
                    return None;
                }
                let layout = layout.broadcast(shape);
                let step = Step::Load { slot: self.leaves.len(), dtype: layout.dtype };
                self.leaves.push(Leaf { source, layout });
                step
            }
        };
        self.steps.push(step);
        done[value.index()] = Some(self.steps.len() - 1);
        done[value.index()]
    }

    /// What the slots read.
    pub(crate) fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// As [`crate::body::Elementwise::may_alias`].
    pub(crate) fn may_alias(&self, operand: usize, result: &Layout) -> bool {
        let mut reads =
            self.leaves.iter().filter(|leaf| leaf.source == Source::Operand(operand)).peekable();
        reads.peek().is_some()
            && reads.all(|leaf| {
                leaf.layout.shape == result.shape
                    && leaf.layout.strides == result.strides
                    && leaf.layout.offset == result.offset
                    && leaf.layout.dtype.size() == result.dtype.size()
            })
    }

    /// Bytes of scratch for one thread.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.steps.len() * LANES * 8
    }

    /// Computes `n` elements, `step` elements apart from `dst` on.
    ///
    /// # Safety
    /// As [`crate::program::Program::run_row`]; `scratch` has [`Exact::scratch_bytes`].
    pub(crate) unsafe fn run_row(
        &self,
        n: usize,
        slots: &[SlotPtr],
        dst: *mut u8,
        step: usize,
        scratch: *mut u8,
    ) {
        let mut start = 0;
        while start < n {
            let len = LANES.min(n - start);
            // SAFETY: registers lie in the scratch, elements in what the caller promises.
            unsafe {
                let registers = scratch.cast::<u64>();
                for index in 0..self.steps.len() {
                    self.run_step(index, start, len, slots, registers);
                }
                let last = registers.add((self.steps.len() - 1) * LANES);
                let size = self.result.size();
                for i in 0..len {
                    store(self.result, *last.add(i), dst.add((start + i) * step * size));
                }
            }
            start += len;
        }
    }

    /// # Safety
    /// As [`Exact::run_row`].
    unsafe fn run_step(
        &self,
        index: usize,
        start: usize,
        len: usize,
        slots: &[SlotPtr],
        registers: *mut u64,
    ) {
        let float = f64::from_bits;
        let int = u64::cast_signed;
        for i in 0..len {
            // SAFETY: a register has LANES >= len values.
            let read = |register: usize| unsafe { *registers.add(register * LANES + i) };
            let value = match self.steps[index] {
                Step::Load { slot, dtype } => {
                    let SlotPtr { ptr, stride } = slots[slot];
                    let offset = (start + i) as isize * stride * dtype.size() as isize;
                    // SAFETY: the caller promises n elements.
                    unsafe { load(dtype, ptr.offset(offset)) }
                }
                Step::Unary(op, x) => op.apply(float(read(x))).to_bits(),
                Step::Scalar(op, x) => op.apply(float(read(x))).to_bits(),
                Step::Floats(op, [x, y]) => {
                    let value = op.apply(float(read(x)), float(read(y)));
                    if op.is_comparison() { u64::from(value != 0.0) } else { value.to_bits() }
                }
                Step::Ints(op, [x, y], dtype) => {
                    wrap(dtype, op.apply_int(int(read(x)), int(read(y)))).cast_unsigned()
                }
                Step::Select([condition, x, y]) => {
                    if read(condition) != 0 {
                        read(x)
                    } else {
                        read(y)
                    }
                }
                Step::Cast { from, to, x } => cast(from, to, read(x)),
            };
            // SAFETY: as for `read`.
            unsafe { *registers.add(index * LANES + i) = value };
        }
    }
}

/// The integer that `dtype` stores for `x`.
fn wrap(dtype: DType, x: i64) -> i64 {
    match dtype {
        DType::I32 => i64::from(x as i32),
        DType::U8 => i64::from(x as u8),
        DType::Bool => i64::from(x != 0),
        DType::I64 | DType::F32 | DType::F16 | DType::Bf16 => x,
    }
}

fn cast(from: DType, to: DType, x: u64) -> u64 {
    match (from.is_float(), to.is_float()) {
        (true, true) => x,
        (false, true) => (x.cast_signed() as f64).to_bits(),
        (false, false) => wrap(to, x.cast_signed()).cast_unsigned(),
        (true, false) => {
            let x = f64::from_bits(x);
            let value = match to {
                DType::I32 => i64::from(x as i32),
                DType::U8 => i64::from(x as u8),
                DType::Bool => i64::from(x != 0.0),
                DType::I64 | DType::F32 | DType::F16 | DType::Bf16 => x as i64,
            };
            value.cast_unsigned()
        }
    }
}

/// # Safety
/// An element of this type is readable at `ptr`.
unsafe fn load(dtype: DType, ptr: *const u8) -> u64 {
    // SAFETY: the caller promises the element.
    unsafe {
        match dtype {
            DType::F32 => f64::from(ptr.cast::<f32>().read_unaligned()).to_bits(),
            DType::F16 => f64::from(ptr.cast::<f16>().read_unaligned()).to_bits(),
            DType::Bf16 => f64::from(ptr.cast::<bf16>().read_unaligned()).to_bits(),
            DType::I64 => ptr.cast::<u64>().read_unaligned(),
            DType::I32 => i64::from(ptr.cast::<i32>().read_unaligned()).cast_unsigned(),
            DType::U8 | DType::Bool => u64::from(*ptr),
        }
    }
}

/// # Safety
/// An element of this type is writable at `ptr`.
unsafe fn store(dtype: DType, value: u64, ptr: *mut u8) {
    // SAFETY: the caller promises the element.
    unsafe {
        match dtype {
            DType::F32 => ptr.cast::<f32>().write_unaligned(f64::from_bits(value) as f32),
            DType::F16 => {
                ptr.cast::<f16>()
                    .write_unaligned(f16::from_f64(dtype.round(f64::from_bits(value))));
            }
            DType::Bf16 => {
                ptr.cast::<bf16>()
                    .write_unaligned(bf16::from_f64(dtype.round(f64::from_bits(value))));
            }
            DType::I64 => ptr.cast::<u64>().write_unaligned(value),
            DType::I32 => ptr.cast::<i32>().write_unaligned(value as i32),
            DType::U8 | DType::Bool => *ptr = value as u8,
        }
    }
}
