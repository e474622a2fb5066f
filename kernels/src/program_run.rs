//! Running a [`Program`]: one instruction over a chunk of lanes at a time.
//!
//! Contiguous f32 operands are read where they are, and the last instruction writes f32 results to
//! where they go; everything else passes through chunk registers in the scratch. A value that is
//! the same for the whole row is kept as one splatted vector.

use ops::DType;
use ops::defs::binary::Binary;
use ops::defs::unary::Unary;

use crate::isa::Isa;
use crate::program::{CHUNK, Instr, MAX_INSTRS, Program, SlotPtr, Value};
use crate::simd::{MAX_LANES, Simd, SimdJob, dispatch, prefetch, prefetch_write};
use crate::vec_math;

/// A map over lanes with what is done to each, always inlined.
macro_rules! lanes {
    ($map:ident($($arg:expr),*), |$($lane:ident),*| $body:expr) => {
        $map(
            $($arg,)*
            #[inline(always)]
            |$($lane),*| $body,
        )
    };
}

impl Program {
    /// Computes `n` elements of one row: reads them from `slots`, writes them to consecutive
    /// addresses from `dst` on.
    ///
    /// # Safety
    /// Every slot is readable for `n` elements of its type at its stride (once, if that is 0), and
    /// `dst` is writable for `n` elements of the result's type. `dst` overlaps no slot, or has
    /// exactly its addresses and element size. `scratch` is writable for
    /// [`Program::scratch_len`] values and overlaps nothing else.
    ///
    /// # Panics
    /// If there are fewer `slots` than the program reads.
    pub unsafe fn run_row(
        &self,
        isa: Isa,
        n: usize,
        slots: &[SlotPtr],
        dst: *mut u8,
        scratch: *mut f32,
    ) {
        dispatch(isa, Row { program: self, n, slots, dst, scratch });
    }

    /// [`Program::run_row`] inside a [`SimdJob`].
    ///
    /// # Safety
    /// As [`Program::run_row`].
    #[inline(always)]
    pub unsafe fn run_row_in<S: Simd>(
        &self,
        s: S,
        n: usize,
        slots: &[SlotPtr],
        dst: *mut u8,
        scratch: *mut f32,
    ) {
        // The interpreter is large: one copy of it for each instruction set.
        s.outline(Row { program: self, n, slots, dst, scratch });
    }

    /// Elements `start..start + n` of a row; `dst` is the first of them.
    ///
    /// # Safety
    /// As [`Program::run_row`], with `n <= CHUNK`.
    #[inline(always)]
    unsafe fn run_chunk<S: Simd>(
        &self,
        s: S,
        start: usize,
        n: usize,
        slots: &[SlotPtr],
        dst: *mut u8,
        scratch: *mut f32,
    ) {
        // SAFETY: scratch_len counts MAX_LANES for each instruction, then the registers, then one
        // chunk for a result that is converted; loads and stores stay below n <= CHUNK.
        unsafe {
            let registers = scratch.add(self.instrs.len() * MAX_LANES);
            let converted = registers.add(self.n_registers * CHUNK);
            let mut values = [Source { ptr: scratch.cast_const(), step: 0 }; MAX_INSTRS];
            let last = self.instrs.len() - 1;
            let direct = self.result == DType::F32;
            for (index, instr) in self.instrs.iter().enumerate() {
                let splat = scratch.add(index * MAX_LANES);
                let register = registers.add(usize::from(self.registers[index]) * CHUNK);
                let to = match (index == last, direct) {
                    (true, true) => dst.cast::<f32>(),
                    (true, false) => converted,
                    (false, _) => register,
                };
                let scalar =
                    index != last && instr.operands().all(|x| values[usize::from(x.0)].step == 0);
                let (to, len, step) = if scalar { (splat, S::LANES, 0) } else { (to, n, 1) };
                values[index] = Source { ptr: to.cast_const(), step };
                let value = |x: Value| values[usize::from(x.0)];
                match *instr {
                    Instr::Load { slot } => {
                        let from = SlotPtr {
                            ptr: slots[slot].ptr.offset(
                                start as isize
                                    * slots[slot].stride
                                    * self.slots[slot].size() as isize,
                            ),
                            stride: slots[slot].stride,
                        };
                        let to = if index == last { to } else { register };
                        let x = load(s, self.slots[slot], from, n, to, splat);
                        // What is converted is converted from where it is.
                        let is_there = !direct && x.step == 1;
                        if index == last && x.ptr != to.cast_const() && !is_there {
                            lanes!(map1(s, n, x, to), |x| x);
                        }
                        values[index] = x;
                    }
                    Instr::Const(x) => {
                        s.store(splat, s.splat(x));
                        let x = Source { ptr: splat.cast_const(), step: 0 };
                        if index == last {
                            lanes!(map1(s, n, x, to), |x| x);
                        }
                        values[index] = x;
                    }
                    Instr::Unary { op, x } => unary(s, op, len, value(x), to),
                    Instr::Binary { op, x, y } => binary(s, op, len, value(x), value(y), to),
                    Instr::Select { condition, x, y } => {
                        lanes!(
                            map3(s, len, value(condition), value(x), value(y), to),
                            |c, x, y| s.select(s.ne(c, s.splat(0.0)), x, y)
                        );
                    }
                    Instr::Round { dtype, x } => match dtype {
                        DType::Bf16 => lanes!(map1(s, len, value(x), to), |x| s.round_bf16(x)),
                        DType::F16 => lanes!(map1(s, len, value(x), to), |x| s.round_f16(x)),
                        _ => lanes!(map1(s, len, value(x), to), |x| x),
                    },
                }
            }
            if !direct {
                let made = if values[last].step == 1 { values[last].ptr } else { converted };
                store(s, self.result, made, n, dst);
            }
        }
    }
}

/// The arguments of [`Program::run_row`].
struct Row<'a> {
    program: &'a Program,
    n: usize,
    slots: &'a [SlotPtr],
    dst: *mut u8,
    scratch: *mut f32,
}

impl SimdJob for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let program = self.program;
        assert!(self.slots.len() >= program.slots.len(), "a slot has no pointer");
        let mut start = 0;
        while start < self.n {
            let len = CHUNK.min(self.n - start);
            // SAFETY: the caller of `run_row` promises n elements; the chunk lies within them.
            unsafe {
                let dst = self.dst.add(start * program.result.size());
                if start + len < self.n {
                    self.ask(start + len);
                }
                program.run_chunk(s, start, len, self.slots, dst, self.scratch);
            }
            start += len;
        }
    }
}

impl Row<'_> {
    /// Asks for what the chunk from `start` on reads and writes: memory is waited for while the chunk before is worked
    /// on.
    #[inline(always)]
    fn ask(&self, start: usize) {
        let lines = |dtype: DType| (0..CHUNK * dtype.size()).step_by(64);
        let size = self.program.result.size();
        for byte in lines(self.program.result) {
            prefetch_write(self.dst.wrapping_add(start * size + byte));
        }
        for (slot, &dtype) in self.slots.iter().zip(&self.program.slots) {
            if slot.stride == 1 {
                for byte in lines(dtype) {
                    prefetch(slot.ptr.wrapping_add(start * dtype.size() + byte));
                }
            }
        }
    }
}

/// Where a value's lanes are: at `ptr + i * step`; step 0 is one splatted vector.
#[derive(Clone, Copy)]
struct Source {
    ptr: *const f32,
    step: usize,
}

/// # Safety
/// The sources are readable for `n` lanes, `to` writable.
#[inline(always)]
unsafe fn map1<S: Simd>(s: S, n: usize, x: Source, to: *mut f32, f: impl Fn(S::F) -> S::F) {
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + S::LANES <= n {
            s.store(to.add(i), f(s.load(x.ptr.add(i * x.step))));
            i += S::LANES;
        }
        if i < n {
            let rest = n - i;
            s.store_n(to.add(i), f(s.load_n(x.ptr.add(i * x.step), rest)), rest);
        }
    }
}

/// # Safety
/// As [`map1`].
#[inline(always)]
unsafe fn map2<S: Simd>(
    s: S,
    n: usize,
    x: Source,
    y: Source,
    to: *mut f32,
    f: impl Fn(S::F, S::F) -> S::F,
) {
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + S::LANES <= n {
            let a = s.load(x.ptr.add(i * x.step));
            s.store(to.add(i), f(a, s.load(y.ptr.add(i * y.step))));
            i += S::LANES;
        }
        if i < n {
            let rest = n - i;
            let a = s.load_n(x.ptr.add(i * x.step), rest);
            s.store_n(to.add(i), f(a, s.load_n(y.ptr.add(i * y.step), rest)), rest);
        }
    }
}

/// # Safety
/// As [`map1`].
#[inline(always)]
unsafe fn map3<S: Simd>(
    s: S,
    n: usize,
    x: Source,
    y: Source,
    z: Source,
    to: *mut f32,
    f: impl Fn(S::F, S::F, S::F) -> S::F,
) {
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + S::LANES <= n {
            let a = s.load(x.ptr.add(i * x.step));
            let b = s.load(y.ptr.add(i * y.step));
            s.store(to.add(i), f(a, b, s.load(z.ptr.add(i * z.step))));
            i += S::LANES;
        }
        if i < n {
            let rest = n - i;
            let a = s.load_n(x.ptr.add(i * x.step), rest);
            let b = s.load_n(y.ptr.add(i * y.step), rest);
            s.store_n(to.add(i), f(a, b, s.load_n(z.ptr.add(i * z.step), rest)), rest);
        }
    }
}

/// # Safety
/// As [`map1`].
#[inline(always)]
unsafe fn unary<S: Simd>(s: S, op: Unary, n: usize, x: Source, to: *mut f32) {
    // SAFETY: passed on.
    unsafe {
        match op {
            Unary::Neg => lanes!(map1(s, n, x, to), |x| s.neg(x)),
            Unary::Abs => lanes!(map1(s, n, x, to), |x| s.abs(x)),
            Unary::Exp => lanes!(map1(s, n, x, to), |x| vec_math::exp(s, x)),
            Unary::Log => lanes!(map1(s, n, x, to), |x| vec_math::log(s, x)),
            Unary::Recip => lanes!(map1(s, n, x, to), |x| s.div(s.splat(1.0), x)),
            Unary::Square => lanes!(map1(s, n, x, to), |x| s.mul(x, x)),
            Unary::Sqrt => lanes!(map1(s, n, x, to), |x| s.sqrt(x)),
            Unary::Rsqrt => lanes!(map1(s, n, x, to), |x| vec_math::rsqrt(s, x)),
            Unary::Sin => lanes!(map1(s, n, x, to), |x| vec_math::sin(s, x)),
            Unary::Cos => lanes!(map1(s, n, x, to), |x| vec_math::cos(s, x)),
            Unary::Tanh => lanes!(map1(s, n, x, to), |x| vec_math::tanh(s, x)),
            Unary::Sigmoid => lanes!(map1(s, n, x, to), |x| vec_math::sigmoid(s, x)),
            Unary::Silu => lanes!(map1(s, n, x, to), |x| vec_math::silu(s, x)),
            Unary::GeluTanh => lanes!(map1(s, n, x, to), |x| vec_math::gelu_tanh(s, x)),
        }
    }
}

/// # Safety
/// As [`map1`].
#[inline(always)]
unsafe fn binary<S: Simd>(s: S, op: Binary, n: usize, x: Source, y: Source, to: *mut f32) {
    let zero = s.splat(0.0);
    let one = s.splat(1.0);
    // SAFETY: passed on.
    unsafe {
        match op {
            Binary::Add => lanes!(map2(s, n, x, y, to), |x, y| s.add(x, y)),
            Binary::Sub => lanes!(map2(s, n, x, y, to), |x, y| s.sub(x, y)),
            Binary::Mul => lanes!(map2(s, n, x, y, to), |x, y| s.mul(x, y)),
            Binary::Div => lanes!(map2(s, n, x, y, to), |x, y| s.div(x, y)),
            Binary::Max => lanes!(map2(s, n, x, y, to), |x, y| s.max(x, y)),
            Binary::Min => lanes!(map2(s, n, x, y, to), |x, y| s.min(x, y)),
            Binary::Less => lanes!(map2(s, n, x, y, to), |x, y| s.select(s.lt(x, y), one, zero)),
            Binary::Equal => lanes!(map2(s, n, x, y, to), |x, y| s.select(s.eq(x, y), one, zero)),
        }
    }
}

/// Element `i` of a row, converted; integers beyond 2^24 round.
///
/// # Safety
/// The element is readable.
#[inline(always)]
unsafe fn element(dtype: DType, ptr: *const u8) -> f32 {
    // SAFETY: the caller promises an element of this type.
    unsafe {
        match dtype {
            DType::F32 => ptr.cast::<f32>().read_unaligned(),
            DType::F16 => half::f16::from_bits(ptr.cast::<u16>().read_unaligned()).to_f32(),
            DType::Bf16 => half::bf16::from_bits(ptr.cast::<u16>().read_unaligned()).to_f32(),
            DType::I64 => ptr.cast::<i64>().read_unaligned() as f32,
            DType::I32 => ptr.cast::<i32>().read_unaligned() as f32,
            DType::U8 | DType::Bool => f32::from(*ptr),
        }
    }
}

/// Makes `n` elements of a slot available: in place if they are contiguous f32, else in `to`, or in
/// `splat` if there is only one.
///
/// # Safety
/// The slot is readable for `n` elements, `to` writable for as many, `splat` for one vector.
#[inline(always)]
unsafe fn load<S: Simd>(
    s: S,
    dtype: DType,
    from: SlotPtr,
    n: usize,
    to: *mut f32,
    splat: *mut f32,
) -> Source {
    // SAFETY: element addresses are those the caller promises.
    unsafe {
        match (from.stride, dtype) {
            (0, _) => {
                s.store(splat, s.splat(element(dtype, from.ptr)));
                return Source { ptr: splat.cast_const(), step: 0 };
            }
            (1, DType::F32) => return Source { ptr: from.ptr.cast(), step: 1 },
            (1, DType::Bf16) => {
                let from = from.ptr.cast::<u16>();
                let mut i = 0;
                while i + S::LANES <= n {
                    s.store(to.add(i), s.load_bf16(from.add(i)));
                    i += S::LANES;
                }
                if i < n {
                    s.store_n(to.add(i), s.load_bf16_n(from.add(i), n - i), n - i);
                }
            }
            (1, DType::F16) => {
                let from = from.ptr.cast::<u16>();
                let mut i = 0;
                while i + S::LANES <= n {
                    s.store(to.add(i), s.load_f16(from.add(i)));
                    i += S::LANES;
                }
                if i < n {
                    s.store_n(to.add(i), s.load_f16_n(from.add(i), n - i), n - i);
                }
            }
            (stride, _) => {
                let step = stride * dtype.size() as isize;
                let mut i = 0;
                // Halves of pairs, as those that a rotation turns.
                while (stride, dtype) == (2, DType::F32) && i + S::LANES <= n {
                    s.store(to.add(i), s.load_alternate(from.ptr.cast::<f32>().add(2 * i)));
                    i += S::LANES;
                }
                for i in i..n {
                    *to.add(i) = element(dtype, from.ptr.offset(i as isize * step));
                }
            }
        }
    }
    Source { ptr: to.cast_const(), step: 1 }
}

/// `n` elements of a row as f32: in place if they are contiguous f32, else converted into `to`.
///
/// # Safety
/// The slot is readable for `n` elements, `to` writable for as many.
#[inline(always)]
pub(crate) unsafe fn load_f32<S: Simd>(
    s: S,
    dtype: DType,
    from: SlotPtr,
    n: usize,
    to: *mut f32,
) -> *const f32 {
    let mut splat = [0f32; MAX_LANES];
    // SAFETY: passed on.
    unsafe {
        let x = load(s, dtype, from, n, to, splat.as_mut_ptr());
        if x.step == 0 {
            lanes!(map1(s, n, x, to), |x| x);
            return to.cast_const();
        }
        x.ptr
    }
}

/// Writes `n` values as `dtype`; to integers they truncate and saturate, to bool nonzero is 1.
///
/// # Safety
/// `from` is readable for `n` values, `dst` writable for `n` elements.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(s: S, dtype: DType, from: *const f32, n: usize, dst: *mut u8) {
    // SAFETY: lanes below n.
    unsafe {
        let values = std::slice::from_raw_parts(from, n);
        match dtype {
            DType::F32 => std::ptr::copy_nonoverlapping(from, dst.cast(), n),
            DType::Bf16 => {
                let dst = dst.cast::<u16>();
                let mut i = 0;
                while i + S::LANES <= n {
                    s.store_bf16(dst.add(i), s.load(from.add(i)));
                    i += S::LANES;
                }
                if i < n {
                    s.store_bf16_n(dst.add(i), s.load_n(from.add(i), n - i), n - i);
                }
            }
            DType::F16 => {
                let dst = dst.cast::<u16>();
                let mut i = 0;
                while i + S::LANES <= n {
                    s.store_f16(dst.add(i), s.load(from.add(i)));
                    i += S::LANES;
                }
                if i < n {
                    s.store_f16_n(dst.add(i), s.load_n(from.add(i), n - i), n - i);
                }
            }
            DType::I64 => {
                for (i, &x) in values.iter().enumerate() {
                    dst.cast::<i64>().add(i).write_unaligned(x as i64);
                }
            }
            DType::I32 => {
                for (i, &x) in values.iter().enumerate() {
                    dst.cast::<i32>().add(i).write_unaligned(x as i32);
                }
            }
            DType::U8 => {
                for (i, &x) in values.iter().enumerate() {
                    *dst.add(i) = x as u8;
                }
            }
            DType::Bool => {
                for (i, &x) in values.iter().enumerate() {
                    *dst.add(i) = u8::from(x != 0.0);
                }
            }
        }
    }
}
