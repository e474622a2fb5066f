//! Straight-line elementwise code: what a kernel applies to elements on their way in or out.
//!
//! A [`Program`] reads *slots* (operands), computes in f32, and yields one value per element. It is
//! the one form of fused code: prologues and epilogues of products, attention and convolutions, and
//! whole elementwise kernels. It runs on rows: [`Program::run_row`] takes `n` consecutive elements
//! and works through them in chunks of [`CHUNK`], one instruction over the whole chunk at a time, so
//! that the registers stay in L1 and the cost of choosing an instruction is shared by many lanes.
//!
//! Invariants: an instruction reads values defined before it; the last instruction is the result;
//! every value is used but for the result. A result may be written over a slot whose elements have
//! the same addresses: each element is read before it is written.

use std::fmt;

use ops::DType;
use ops::OpDef as _;
use ops::defs::binary::Binary;
use ops::defs::unary::Unary;

use crate::Error;
use crate::simd::MAX_LANES;

pub(crate) use crate::program_run::{load_f32, store};

/// Lanes of one register.
pub const CHUNK: usize = 512;
/// Most instructions of a program.
pub const MAX_INSTRS: usize = 64;
/// Most slots of a program.
pub const MAX_SLOTS: usize = 32;

/// The result of an instruction, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub(crate) u8);

impl Value {
    /// The number of the instruction.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// One instruction; it defines the value with its own number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Instr {
    /// The element of slot `slot`, converted to f32.
    Load {
        /// Which slot.
        slot: usize,
    },
    /// The same number for every element.
    Const(f32),
    /// A function of one value.
    Unary {
        /// Which.
        op: Unary,
        /// Its operand.
        x: Value,
    },
    /// A function of two values; comparisons give 0 or 1.
    Binary {
        /// Which.
        op: Binary,
        /// Left operand.
        x: Value,
        /// Right operand.
        y: Value,
    },
    /// `x` where `condition` is not zero, else `y`.
    Select {
        /// 0 or 1.
        condition: Value,
        /// Taken if not zero.
        x: Value,
        /// Taken if zero.
        y: Value,
    },
    /// `x` rounded to a float type and widened again.
    Round {
        /// F32 (no effect), F16 or Bf16.
        dtype: DType,
        /// Its operand.
        x: Value,
    },
}

/// Where a slot's elements are during one row.
#[derive(Clone, Copy, Debug)]
pub struct SlotPtr {
    /// The row's first element, of the slot's type.
    pub ptr: *const u8,
    /// Elements from one to the next: 1 contiguous, 0 the same for the whole row.
    pub stride: isize,
}

/// Straight-line elementwise code, valid and with registers assigned.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub(crate) slots: Vec<DType>,
    pub(crate) instrs: Vec<Instr>,
    pub(crate) result: DType,
    /// Chunk register of each instruction; scalars and results leave theirs unused.
    pub(crate) registers: Vec<u8>,
    pub(crate) n_registers: usize,
}

/// Appends instructions one by one; [`ProgramBuilder::finish`] checks the whole.
#[derive(Clone, Debug, Default)]
pub struct ProgramBuilder {
    slots: Vec<DType>,
    instrs: Vec<Instr>,
}

impl ProgramBuilder {
    /// No slot, no instruction.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, instr: Instr) -> Value {
        let value = Value(self.instrs.len().min(u8::MAX.into()) as u8);
        self.instrs.push(instr);
        value
    }

    /// Adds an operand and reads it.
    pub fn slot(&mut self, dtype: DType) -> Value {
        self.slots.push(dtype);
        self.push(Instr::Load { slot: self.slots.len() - 1 })
    }

    /// A number.
    pub fn constant(&mut self, x: f32) -> Value {
        self.push(Instr::Const(x))
    }

    /// `op(x)`.
    pub fn unary(&mut self, op: Unary, x: Value) -> Value {
        self.push(Instr::Unary { op, x })
    }

    /// `op(x, y)`.
    pub fn binary(&mut self, op: Binary, x: Value, y: Value) -> Value {
        self.push(Instr::Binary { op, x, y })
    }

    /// `condition != 0 ? x : y`.
    pub fn select(&mut self, condition: Value, x: Value, y: Value) -> Value {
        self.push(Instr::Select { condition, x, y })
    }

    /// Rounds to `dtype` and widens again.
    pub fn round(&mut self, dtype: DType, x: Value) -> Value {
        self.push(Instr::Round { dtype, x })
    }

    /// The program that stores `result` as `dtype`. Instructions that do not contribute are
    /// dropped; slots stay, so that their numbering is the caller's.
    ///
    /// # Errors
    /// [`Error::ProgramTooLong`] beyond [`MAX_INSTRS`] or [`MAX_SLOTS`].
    pub fn finish(self, result: Value, dtype: DType) -> Result<Program, Error> {
        let Self { slots, instrs } = self;
        if instrs.len() > usize::from(u8::MAX) {
            let (found, limit) = (instrs.len(), MAX_INSTRS);
            return Err(Error::ProgramTooLong { what: "instructions", found, limit });
        }
        let result = usize::from(result.0);
        let mut used = vec![false; instrs.len()];
        used[result] = true;
        for (index, instr) in instrs.iter().enumerate().rev() {
            if used[index] {
                for operand in instr.operands() {
                    used[usize::from(operand.0)] = true;
                }
            }
        }
        let mut renumbered = vec![Value(0); instrs.len()];
        let mut kept = Vec::new();
        for (index, instr) in instrs.into_iter().enumerate().take(result + 1) {
            if used[index] {
                renumbered[index] = Value(kept.len() as u8);
                kept.push(instr.map_operands(|x| renumbered[usize::from(x.0)]));
            }
        }
        Program::new(slots, kept, dtype)
    }
}

impl Instr {
    /// Values it reads, in order.
    pub fn operands(&self) -> impl Iterator<Item = Value> + use<> {
        let (operands, n) = match *self {
            Self::Load { slot: _ } | Self::Const(_) => ([Value(0); 3], 0),
            Self::Unary { op: _, x } | Self::Round { dtype: _, x } => ([x; 3], 1),
            Self::Binary { op: _, x, y } => ([x, y, y], 2),
            Self::Select { condition, x, y } => ([condition, x, y], 3),
        };
        operands.into_iter().take(n)
    }

    fn map_operands(self, f: impl Fn(Value) -> Value) -> Self {
        match self {
            Self::Load { .. } | Self::Const(_) => self,
            Self::Unary { op, x } => Self::Unary { op, x: f(x) },
            Self::Round { dtype, x } => Self::Round { dtype, x: f(x) },
            Self::Binary { op, x, y } => Self::Binary { op, x: f(x), y: f(y) },
            Self::Select { condition, x, y } => {
                Self::Select { condition: f(condition), x: f(x), y: f(y) }
            }
        }
    }
}

impl Program {
    /// Checks `instrs` and assigns registers; the last instruction is the result, stored as
    /// `result`.
    ///
    /// # Errors
    /// [`Error::ProgramTooLong`] beyond the limits, [`Error::InvalidProgram`] for an operand that
    /// is not defined before its use, an unknown slot, or rounding to a type that is not a float.
    pub fn new(slots: Vec<DType>, instrs: Vec<Instr>, result: DType) -> Result<Self, Error> {
        let limits =
            [("instructions", instrs.len(), MAX_INSTRS), ("slots", slots.len(), MAX_SLOTS)];
        for (what, found, limit) in limits {
            if found > limit {
                return Err(Error::ProgramTooLong { what, found, limit });
            }
        }
        let invalid = |reason: String| Err(Error::InvalidProgram { reason });
        if instrs.is_empty() {
            return invalid("no instructions".to_owned());
        }
        for (index, instr) in instrs.iter().enumerate() {
            if let Some(operand) = instr.operands().find(|x| usize::from(x.0) >= index) {
                return invalid(format!("%{index} reads %{}, which is not defined yet", operand.0));
            }
            match *instr {
                Instr::Load { slot } if slot >= slots.len() => {
                    return invalid(format!("%{index} reads slot {slot} of {}", slots.len()));
                }
                Instr::Round { dtype, x: _ } if !dtype.is_float() => {
                    return invalid(format!("%{index} rounds to {}", dtype.name()));
                }
                _ => {}
            }
        }
        let (registers, n_registers) = assign_registers(&instrs);
        Ok(Self { slots, instrs, result, registers, n_registers })
    }

    /// The program that only converts slot 0.
    pub fn copy(from: DType, to: DType) -> Self {
        Self::new(vec![from], vec![Instr::Load { slot: 0 }], to).expect("one load is valid")
    }

    /// Types of the slots.
    pub fn slots(&self) -> &[DType] {
        &self.slots
    }

    /// The instructions in order.
    pub fn instrs(&self) -> &[Instr] {
        &self.instrs
    }

    /// Type of the result in memory.
    pub fn result(&self) -> DType {
        self.result
    }

    /// Whether it only converts slot 0 to the result's type.
    pub fn is_copy(&self) -> bool {
        matches!(self.instrs[..], [Instr::Load { slot: 0 }])
    }

    /// f32 values of scratch one thread needs; align the scratch to 64 bytes for full speed.
    pub fn scratch_len(&self) -> usize {
        self.instrs.len() * MAX_LANES + (self.n_registers + 1) * CHUNK
    }
}

/// Gives each instruction a register that no live value holds; an operand read for the last time
/// passes its register on.
fn assign_registers(instrs: &[Instr]) -> (Vec<u8>, usize) {
    let mut last_use: Vec<usize> = (0..instrs.len()).collect();
    for (index, instr) in instrs.iter().enumerate() {
        for operand in instr.operands() {
            last_use[usize::from(operand.0)] = index;
        }
    }
    let mut holder: Vec<Option<usize>> = Vec::new();
    let mut registers = Vec::with_capacity(instrs.len());
    for index in 0..instrs.len() {
        for held in &mut holder {
            held.take_if(|value| last_use[*value] <= index);
        }
        let register = holder.iter().position(Option::is_none).unwrap_or_else(|| {
            holder.push(None);
            holder.len() - 1
        });
        holder[register] = Some(index);
        registers.push(register as u8);
    }
    (registers, holder.len())
}

impl fmt::Display for Program {
    /// `(f32, bf16) -> f32 { %0 = load 0; %1 = load 1; %2 = add %0 %1 }`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots: Vec<&str> = self.slots.iter().map(|dtype| dtype.name()).collect();
        write!(f, "({}) -> {} {{ ", slots.join(", "), self.result.name())?;
        for (index, instr) in self.instrs.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "%{index} = {instr}")?;
        }
        f.write_str(" }")
    }
}

impl fmt::Display for Instr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load { slot } => write!(f, "load {slot}"),
            Self::Const(x) => write!(f, "const {x:?}"),
            Self::Unary { op, x } => write!(f, "{} %{}", op.name(), x.0),
            Self::Binary { op, x, y } => write!(f, "{} %{} %{}", op.name(), x.0, y.0),
            Self::Select { condition, x, y } => {
                write!(f, "select %{} %{} %{}", condition.0, x.0, y.0)
            }
            Self::Round { dtype, x } => write!(f, "round_{} %{}", dtype.name(), x.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    fn run(program: &Program, isa: Isa, n: usize, slots: &[SlotPtr], dst: *mut u8) {
        let mut scratch = vec![f32::NAN; program.scratch_len()];
        // SAFETY: the tests pass buffers of n elements.
        unsafe { program.run_row(isa, n, slots, dst, scratch.as_mut_ptr()) };
    }

    fn slot<T>(data: &[T], stride: isize) -> SlotPtr {
        SlotPtr { ptr: data.as_ptr().cast(), stride }
    }

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 - 300.0) / 97.0).collect()
    }

    #[test]
    fn every_function_follows_its_definition() {
        let (x, y) = (ramp(700), ramp(701));
        let y: Vec<f32> = y[1..].iter().rev().copied().collect();
        for isa in Isa::available() {
            for &op in Unary::ALL {
                let mut p = ProgramBuilder::new();
                let a = p.slot(DType::F32);
                let a = p.unary(op, a);
                let program = p.finish(a, DType::F32).unwrap();
                let mut out = vec![0f32; x.len()];
                run(&program, isa, x.len(), &[slot(&x, 1)], out.as_mut_ptr().cast());
                for (&x, &found) in x.iter().zip(&out) {
                    let expected = op.apply(f64::from(x));
                    let close =
                        (f64::from(found) - expected).abs() <= 1e-6 * (1.0 + expected.abs());
                    let same = f64::from(found) == expected || expected.is_nan() && found.is_nan();
                    assert!(close || same, "{isa} {op:?} {x}");
                }
            }
            for &op in Binary::ALL {
                let mut p = ProgramBuilder::new();
                let (a, b) = (p.slot(DType::F32), p.slot(DType::F32));
                let a = p.binary(op, a, b);
                let program = p.finish(a, DType::F32).unwrap();
                let mut out = vec![0f32; x.len()];
                let slots = [slot(&x, 1), slot(&y, 1)];
                run(&program, isa, x.len(), &slots, out.as_mut_ptr().cast());
                for (i, &found) in out.iter().enumerate() {
                    let expected = op.apply(f64::from(x[i]), f64::from(y[i])) as f32;
                    assert!(found.to_bits() == expected.to_bits(), "{isa} {op:?} {i}");
                }
            }
        }
    }

    #[test]
    fn tails_touch_nothing_behind_the_row() {
        for isa in Isa::available() {
            for n in [1, 3, 15, 16, 17, 511, 512, 513, 1030] {
                let x = ramp(n);
                let mut p = ProgramBuilder::new();
                let a = p.slot(DType::F32);
                let a = p.unary(Unary::Square, a);
                let program = p.finish(a, DType::F32).unwrap();
                let mut out = vec![7f32; n + 20];
                run(&program, isa, n, &[slot(&x, 1)], out.as_mut_ptr().cast());
                assert!(out[..n].iter().zip(&x).all(|(y, x)| *y == x * x), "{isa} {n}");
                assert!(out[n..].iter().all(|&y| y == 7.0), "{isa} {n}");
            }
        }
    }

    #[test]
    fn strides_scalars_and_element_types_load_and_store() {
        let n = 600;
        let x: Vec<half::bf16> = ramp(2 * n).iter().map(|&x| half::bf16::from_f32(x)).collect();
        let (scalar, ints) = ([3i64], (0..n as i32).collect::<Vec<_>>());
        for isa in Isa::available() {
            let mut p = ProgramBuilder::new();
            let (a, b, c) = (p.slot(DType::Bf16), p.slot(DType::I64), p.slot(DType::I32));
            let half = p.constant(0.5);
            let b = p.binary(Binary::Mul, b, half);
            let zero = p.constant(0.0);
            let condition = p.binary(Binary::Less, a, zero);
            let a = p.select(condition, b, a);
            let a = p.binary(Binary::Add, a, c);
            let program = p.finish(a, DType::F16).unwrap();
            let mut out = vec![half::f16::ZERO; n];
            let slots = [slot(&x, 2), slot(&scalar, 0), slot(&ints, 1)];
            run(&program, isa, n, &slots, out.as_mut_ptr().cast());
            for i in 0..n {
                let a = x[2 * i].to_f32();
                let expected = if a < 0.0 { 1.5 } else { a } + i as f32;
                assert_eq!(out[i], half::f16::from_f32(expected), "{isa} {i}");
            }
        }
    }

    #[test]
    fn the_result_may_replace_an_operand() {
        for isa in Isa::available() {
            let mut x = ramp(1000);
            let expected: Vec<f32> = x.iter().map(|x| x * x + x).collect();
            let mut p = ProgramBuilder::new();
            let a = p.slot(DType::F32);
            let square = p.unary(Unary::Square, a);
            let sum = p.binary(Binary::Add, square, a);
            let program = p.finish(sum, DType::F32).unwrap();
            let dst = x.as_mut_ptr();
            let slots = [SlotPtr { ptr: dst.cast_const().cast(), stride: 1 }];
            run(&program, isa, 1000, &slots, dst.cast());
            assert_eq!(x, expected, "{isa}");
        }
    }

    #[test]
    fn prints_every_instruction_and_drops_unused_ones() {
        let mut p = ProgramBuilder::new();
        let x = p.slot(DType::F32);
        let unused = p.slot(DType::Bf16);
        p.unary(Unary::Exp, unused);
        let c = p.constant(0.1);
        let y = p.binary(Binary::Max, x, c);
        let y = p.round(DType::Bf16, y);
        let y = p.select(x, y, c);
        let program = p.finish(y, DType::Bf16).unwrap();
        let text = "(f32, bf16) -> bf16 { %0 = load 0; %1 = const 0.1; %2 = max %0 %1; \
                    %3 = round_bf16 %2; %4 = select %0 %3 %1 }";
        assert_eq!(program.to_string(), text);
    }

    #[test]
    fn refuses_undefined_values_and_slots() {
        let new = |instrs| Program::new(vec![DType::F32], instrs, DType::F32).unwrap_err();
        let error = new(vec![Instr::Unary { op: Unary::Exp, x: Value(0) }]);
        assert_eq!(error.to_string(), "invalid program: %0 reads %0, which is not defined yet");
        let error = new(vec![Instr::Load { slot: 1 }]);
        assert_eq!(error.to_string(), "invalid program: %0 reads slot 1 of 1");
        let error = new(vec![]);
        assert_eq!(error.to_string(), "invalid program: no instructions");
    }

    #[test]
    fn refuses_programs_beyond_the_limit() {
        let mut p = ProgramBuilder::new();
        let mut x = p.slot(DType::F32);
        for _ in 0..MAX_INSTRS {
            x = p.unary(Unary::Neg, x);
        }
        let error = p.finish(x, DType::F32).unwrap_err();
        assert_eq!(error.to_string(), "program needs 65 instructions, at most 64 fit; split it");
    }
}
