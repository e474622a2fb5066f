//! Integer arithmetic and bits.

use crate::ops::IntOp;
use crate::registers::{Reg, Registers, Value};
use crate::types::Ty;

/// An integer of registers.
trait Int: Value + Ord + Default {
    const BITS: u32;
    /// The type of products that do not wrap.
    type Wide: Value;

    fn from_u32(x: u32) -> Self;
    fn low_u32(self) -> u32;
    fn add(self, y: Self) -> Self;
    fn sub(self, y: Self) -> Self;
    fn mul(self, y: Self) -> Self;
    fn mul_high(self, y: Self) -> Self;
    fn mul_wide(x: Self, y: Self) -> Self::Wide;
    fn add_wide(x: Self::Wide, y: Self::Wide) -> Self::Wide;
    fn add_saturated(self, y: Self) -> Self;
    fn sub_saturated(self, y: Self) -> Self;
    fn div(self, y: Self) -> Self;
    fn rem(self, y: Self) -> Self;
    fn abs(self) -> Self;
    fn neg(self) -> Self;
    fn and(self, y: Self) -> Self;
    fn or(self, y: Self) -> Self;
    fn xor(self, y: Self) -> Self;
    fn not(self) -> Self;
    fn shl(self, n: u32) -> Self;
    fn shr(self, n: u32) -> Self;
    fn is_negative(self) -> bool;
    fn popc(self) -> u32;
    fn clz(self) -> u32;
    fn reverse(self) -> Self;
    /// Low 24 bits, extended as the type is.
    fn low_24(self) -> i64;
}

macro_rules! ints {
    ($($int:ident $wide:ident $double:ident, $negative:expr;)*) => {
        $(impl Int for $int {
            const BITS: u32 = <$int>::BITS;
            type Wide = $wide;

            #[inline]
            #[allow(trivial_numeric_casts, clippy::cast_lossless, reason = "64 bits stay 64")]
            fn from_u32(x: u32) -> Self { x as $int }
            #[inline]
            #[allow(trivial_numeric_casts, clippy::cast_lossless, reason = "64 bits stay 64")]
            fn low_u32(self) -> u32 { self as u32 }
            #[inline]
            fn add(self, y: Self) -> Self { self.wrapping_add(y) }
            #[inline]
            fn sub(self, y: Self) -> Self { self.wrapping_sub(y) }
            #[inline]
            fn mul(self, y: Self) -> Self { self.wrapping_mul(y) }
            #[inline]
            fn mul_high(self, y: Self) -> Self {
                ($double::from(self) * $double::from(y) >> <$int>::BITS) as $int
            }
            #[inline]
            #[allow(trivial_numeric_casts, clippy::cast_lossless, reason = "64 bits stay 64")]
            fn mul_wide(x: Self, y: Self) -> $wide { (x as $wide).wrapping_mul(y as $wide) }
            #[inline]
            fn add_wide(x: $wide, y: $wide) -> $wide { x.wrapping_add(y) }
            #[inline]
            fn add_saturated(self, y: Self) -> Self { self.saturating_add(y) }
            #[inline]
            fn sub_saturated(self, y: Self) -> Self { self.saturating_sub(y) }
            #[inline]
            fn div(self, y: Self) -> Self {
                // The quotient by zero is unspecified; devices give all ones.
                if y == 0 { !0 } else { self.wrapping_div(y) }
            }
            #[inline]
            fn rem(self, y: Self) -> Self { if y == 0 { self } else { self.wrapping_rem(y) } }
            #[inline]
            fn abs(self) -> Self { if self.is_negative() { self.neg() } else { self } }
            #[inline]
            fn neg(self) -> Self { self.wrapping_neg() }
            #[inline]
            fn and(self, y: Self) -> Self { self & y }
            #[inline]
            fn or(self, y: Self) -> Self { self | y }
            #[inline]
            fn xor(self, y: Self) -> Self { self ^ y }
            #[inline]
            fn not(self) -> Self { !self }
            #[inline]
            fn shl(self, n: u32) -> Self { if n < <$int>::BITS { self << n } else { 0 } }
            #[inline]
            fn shr(self, n: u32) -> Self {
                if n < <$int>::BITS {
                    self >> n
                } else if self.is_negative() {
                    !0
                } else {
                    0
                }
            }
            #[inline]
            fn is_negative(self) -> bool { let negative: fn($int) -> bool = $negative; negative(self) }
            #[inline]
            fn popc(self) -> u32 { self.count_ones() }
            #[inline]
            fn clz(self) -> u32 { self.leading_zeros() }
            #[inline]
            fn reverse(self) -> Self { self.reverse_bits() }
            #[inline]
            #[allow(trivial_numeric_casts, clippy::cast_lossless, reason = "64 bits stay 64")]
            fn low_24(self) -> i64 {
                let low = (self as i64) & 0xff_ffff;
                if <$int>::MIN != 0 { low << 40 >> 40 } else { low }
            }
        })*
    };
}

ints! {
    u16 u32 u32, |_| false;
    i16 i32 i32, |x| x < 0;
    u32 u64 u64, |_| false;
    i32 i64 i64, |x| x < 0;
    u64 u64 u128, |_| false;
    i64 i64 i128, |x| x < 0;
}

/// Executes for the lanes of `mask`; `regs` are d, a, b, c.
pub(super) fn integer(registers: &mut Registers, mask: u32, op: IntOp, ty: Ty, regs: [Reg; 4]) {
    match ty {
        Ty::U16 | Ty::U8 => typed::<u16>(registers, mask, op, regs),
        Ty::S16 | Ty::S8 => typed::<i16>(registers, mask, op, regs),
        Ty::S32 => typed::<i32>(registers, mask, op, regs),
        Ty::U64 => typed::<u64>(registers, mask, op, regs),
        Ty::S64 => typed::<i64>(registers, mask, op, regs),
        _ => typed::<u32>(registers, mask, op, regs),
    }
}

fn typed<T: Int>(registers: &mut Registers, mask: u32, op: IntOp, regs: [Reg; 4]) {
    let [d, a, b, _] = regs;
    let (one, two) = ([d, a], [d, a, b]);
    match op {
        IntOp::Add => registers.map2(mask, two, T::add),
        IntOp::Sub => registers.map2(mask, two, T::sub),
        IntOp::MulLo => registers.map2(mask, two, T::mul),
        IntOp::MulHi => registers.map2(mask, two, T::mul_high),
        IntOp::MulWide => registers.map2(mask, two, T::mul_wide),
        IntOp::MadLo => registers.map3(mask, regs, |x: T, y: T, z: T| x.mul(y).add(z)),
        IntOp::MadHi => registers.map3(mask, regs, |x: T, y: T, z: T| x.mul_high(y).add(z)),
        IntOp::MadWide => {
            registers.map3(mask, regs, |x: T, y: T, z: T::Wide| T::add_wide(T::mul_wide(x, y), z));
        }
        IntOp::Mul24 => registers.map2(mask, two, |x: T, y: T| low_product(x, y)),
        IntOp::Mad24 => registers.map3(mask, regs, |x: T, y: T, z: T| low_product(x, y).add(z)),
        IntOp::Div => registers.map2(mask, two, T::div),
        IntOp::Rem => registers.map2(mask, two, T::rem),
        IntOp::Abs => registers.map1(mask, one, T::abs),
        IntOp::Neg => registers.map1(mask, one, T::neg),
        IntOp::Min => registers.map2(mask, two, |x: T, y: T| x.min(y)),
        IntOp::Max => registers.map2(mask, two, |x: T, y: T| x.max(y)),
        IntOp::Sad => registers
            .map3(mask, regs, |x: T, y: T, z: T| z.add(if x < y { y.sub(x) } else { x.sub(y) })),
        IntOp::AddSat => registers.map2(mask, two, T::add_saturated),
        IntOp::SubSat => registers.map2(mask, two, T::sub_saturated),
        IntOp::And => registers.map2(mask, two, T::and),
        IntOp::Or => registers.map2(mask, two, T::or),
        IntOp::Xor => registers.map2(mask, two, T::xor),
        IntOp::Not => registers.map1(mask, one, T::not),
        IntOp::Cnot => registers.map1(mask, one, |x: T| T::from_u32(u32::from(x == T::default()))),
        IntOp::Shl => registers.map2(mask, two, |x: T, n: u32| x.shl(n)),
        IntOp::Shr => registers.map2(mask, two, |x: T, n: u32| x.shr(n)),
        IntOp::Bfe => registers.map3(mask, regs, extract::<T>),
        IntOp::Bfind => registers.map1(mask, one, |x: T| highest(x)),
        IntOp::BfindShift => registers.map1(mask, one, |x: T| match highest(x) {
            u32::MAX => u32::MAX,
            bit => T::BITS - 1 - bit,
        }),
        IntOp::Brev => registers.map1(mask, one, T::reverse),
        IntOp::Popc => registers.map1(mask, one, |x: T| x.popc()),
        IntOp::Clz => registers.map1(mask, one, |x: T| x.clz()),
        IntOp::FunnelLeft => registers.map3(mask, regs, |low: u32, high: u32, n: u32| {
            (pair(low, high) << (n & 31) >> 32) as u32
        }),
        IntOp::FunnelRight => {
            registers.map3(mask, regs, |low: u32, high: u32, n: u32| {
                (pair(low, high) >> (n & 31)) as u32
            });
        }
        IntOp::FunnelLeftClamp => registers.map3(mask, regs, |low: u32, high: u32, n: u32| {
            (pair(low, high) << n.min(32) >> 32) as u32
        }),
        IntOp::FunnelRightClamp => {
            registers.map3(mask, regs, |low: u32, high: u32, n: u32| {
                (pair(low, high) >> n.min(32)) as u32
            });
        }
        IntOp::Prmt => registers.map3(mask, regs, permute),
        IntOp::Dp4a => registers.map3(mask, regs, |x: u32, y: u32, z: u32| {
            let part = |i: u32| field::<T>(x, 8 * i, 8).wrapping_mul(field::<T>(y, 8 * i, 8));
            (0..4).fold(z, |sum, i| sum.wrapping_add(part(i)))
        }),
        IntOp::Dp2aLow | IntOp::Dp2aHigh => registers.map3(mask, regs, |x: u32, y: u32, z: u32| {
            let first = if op == IntOp::Dp2aHigh { 16 } else { 0 };
            let part =
                |i: u32| field::<T>(x, 16 * i, 16).wrapping_mul(field::<T>(y, first + 8 * i, 8));
            (0..2).fold(z, |sum, i| sum.wrapping_add(part(i)))
        }),
    }
}

/// `length` bits of a word from `position` on, as a word of the signedness of `T`.
fn field<T: Int>(word: u32, position: u32, length: u32) -> u32 {
    let is_signed = T::default().sub(T::from_u32(1)).is_negative();
    let at_top = word << (32 - length - position);
    if is_signed {
        (at_top.cast_signed() >> (32 - length)).cast_unsigned()
    } else {
        at_top >> (32 - length)
    }
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn low_product<T: Int>(x: T, y: T) -> T {
    T::from_u32(x.low_24().wrapping_mul(y.low_24()) as u32)
}

/// Bits [position, position + length), extended by the sign bit of the field, or of the number beyond its end.
fn extract<T: Int>(x: T, position: u32, length: u32) -> T {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return T::default();
    }
    let top = (position + length - 1).min(T::BITS - 1);
    let is_negative = x.is_negative() && top == T::BITS - 1
        || T::default().sub(T::from_u32(1)).is_negative() && x.shr(top).low_u32() & 1 == 1;
    let field = if position >= T::BITS { T::default() } else { x.shr(position) };
    if length >= T::BITS || position >= T::BITS {
        return if position >= T::BITS && is_negative { T::default().not() } else { field };
    }
    let ones = T::default().not().shl(length);
    if is_negative { field.or(ones) } else { field.and(ones.not()) }
}

/// Place of the highest bit that differs from the sign; all ones if there is none.
fn highest<T: Int>(x: T) -> u32 {
    let x = if x.is_negative() { x.not() } else { x };
    T::BITS.wrapping_sub(1).wrapping_sub(x.clz())
}

/// Four bytes picked from eight; bit 3 of a selector spreads the sign.
fn permute(low: u32, high: u32, selector: u32) -> u32 {
    let bytes = pair(low, high).to_le_bytes();
    let picked = std::array::from_fn(|i| {
        let nibble = selector >> (4 * i) & 0xf;
        let byte = bytes[(nibble & 7) as usize];
        if nibble & 8 == 0 { byte } else { (byte.cast_signed() >> 7).cast_unsigned() }
    });
    u32::from_le_bytes(picked)
}

/// `bfi`: the low `length` bits of a put into b at `position`; `regs` are d, a, b, position, length.
pub(super) fn insert(registers: &mut Registers, mask: u32, is_wide: bool, regs: [Reg; 5]) {
    let [d, a, b, position, length] = regs;
    let places = registers.narrow[position as usize];
    let lengths = registers.narrow[length as usize];
    let field = |lane: usize| -> u64 {
        let (place, length) = (places[lane] & 0xff, lengths[lane] & 0xff);
        let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
        if place >= 64 { 0 } else { ones << place }
    };
    if is_wide {
        let (a, b) = (registers.wide[a as usize], registers.wide[b as usize]);
        let row = std::array::from_fn(|l| {
            let moved = a[l].checked_shl(places[l] & 0xff).unwrap_or(0);
            b[l] & !field(l) | moved & field(l)
        });
        registers.set(mask, d, &row);
    } else {
        let (a, b) = (registers.narrow[a as usize], registers.narrow[b as usize]);
        let row = std::array::from_fn(|l| {
            let moved = a[l].checked_shl(places[l] & 0xff).unwrap_or(0);
            b[l] & !(field(l) as u32) | moved & field(l) as u32
        });
        registers.set(mask, d, &row);
    }
}

/// A function of three bits, given by its truth table, of each bit.
pub(super) fn lop3(registers: &mut Registers, mask: u32, table: u8, regs: [Reg; 4]) {
    registers.map3(mask, regs, |a: u32, b: u32, c: u32| {
        (0..8).filter(|i| table >> i & 1 == 1).fold(0, |bits, i| {
            let side = |x: u32, bit: u8| if i & bit == 0 { !x } else { x };
            bits | side(a, 4) & side(b, 2) & side(c, 1)
        })
    });
}

/// `add.cc`, `addc`, `sub.cc`, `subc`: with the carry (or borrow) flag.
pub(super) fn with_carry(
    registers: &mut Registers,
    mask: u32,
    ty: Ty,
    is_sub: bool,
    [d, a, b]: [Reg; 3],
    (carry, takes, gives): (Reg, bool, bool),
) {
    let old = registers.preds[carry as usize];
    let mut new = 0;
    let bits = ty.bytes() * 8;
    let one = |l: usize, a: u64, b: u64| {
        let carry = u128::from(takes && old >> l & 1 == 1);
        let (a, b) = (u128::from(a), u128::from(b));
        if is_sub { a.wrapping_sub(b).wrapping_sub(carry) } else { a + b + carry }
    };
    if ty.is_wide() {
        let (a, b) = (registers.wide[a as usize], registers.wide[b as usize]);
        let row = std::array::from_fn(|l| {
            let sum = one(l, a[l], b[l]);
            new |= ((sum >> bits & 1) as u32) << l;
            sum as u64
        });
        registers.set(mask, d, &row);
    } else {
        let (a, b) = (registers.narrow[a as usize], registers.narrow[b as usize]);
        let row = std::array::from_fn(|l| {
            let sum = one(l, a[l].into(), b[l].into());
            new |= ((sum >> bits & 1) as u32) << l;
            sum as u32
        });
        registers.set(mask, d, &row);
    }
    if gives {
        registers.set_pred(mask, carry, new);
    }
}
