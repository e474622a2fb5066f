//! The registers of a warp: rows of 32 lanes.
//!
//! Registers of up to 32 bits are rows of `u32`, whose bits above the register's width are zero; registers of
//! 64 bits are rows of `u64`; predicates are masks. Constants and special registers are rows too, so that an
//! operand is always an index of a row and loops over lanes have nothing to decide.

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// Index of a row, among those of its width.
pub(crate) type Reg = u32;

/// A row of words.
pub(crate) type Row<W> = [W; LANES];

/// A predicate as it is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PredUse {
    pub(crate) reg: Reg,
    pub(crate) is_negated: bool,
}

/// Index of the predicate that is always true.
pub(crate) const ALWAYS: PredUse = PredUse { reg: 0, is_negated: false };

#[derive(Clone, Debug, Default)]
pub(crate) struct Registers {
    pub(crate) narrow: Vec<Row<u32>>,
    pub(crate) wide: Vec<Row<u64>>,
    pub(crate) preds: Vec<u32>,
}

/// A word of a row.
pub(crate) trait Word: Copy {
    fn row(registers: &Registers, reg: Reg) -> &Row<Self>;
    fn row_mut(registers: &mut Registers, reg: Reg) -> &mut Row<Self>;
}

impl Word for u32 {
    #[inline]
    fn row(registers: &Registers, reg: Reg) -> &Row<Self> {
        &registers.narrow[reg as usize]
    }

    #[inline]
    fn row_mut(registers: &mut Registers, reg: Reg) -> &mut Row<Self> {
        &mut registers.narrow[reg as usize]
    }
}

impl Word for u64 {
    #[inline]
    fn row(registers: &Registers, reg: Reg) -> &Row<Self> {
        &registers.wide[reg as usize]
    }

    #[inline]
    fn row_mut(registers: &mut Registers, reg: Reg) -> &mut Row<Self> {
        &mut registers.wide[reg as usize]
    }
}

/// What a lane of a register is taken as.
pub(crate) trait Value: Copy {
    type W: Word;
    fn of(word: Self::W) -> Self;
    fn word(self) -> Self::W;
}

macro_rules! values {
    ($($value:ty, $word:ty, $of:expr, $into:expr;)*) => {
        $(impl Value for $value {
            type W = $word;
            #[inline]
            fn of(word: $word) -> Self {
                let of: fn($word) -> $value = $of;
                of(word)
            }
            #[inline]
            fn word(self) -> $word {
                let into: fn($value) -> $word = $into;
                into(self)
            }
        })*
    };
}

values! {
    u8, u32, |w| w as u8, u32::from;
    i8, u32, |w| w as i8, |v| u32::from(v.cast_unsigned());
    u16, u32, |w| w as u16, u32::from;
    i16, u32, |w| w as i16, |v| u32::from(v.cast_unsigned());
    u32, u32, |w| w, |v| v;
    i32, u32, u32::cast_signed, i32::cast_unsigned;
    u64, u64, |w| w, |v| v;
    i64, u64, u64::cast_signed, i64::cast_unsigned;
    f32, u32, f32::from_bits, f32::to_bits;
    f64, u64, f64::from_bits, f64::to_bits;
}

impl Registers {
    pub(crate) fn pred(&self, used: PredUse) -> u32 {
        let bits = self.preds[used.reg as usize];
        if used.is_negated { !bits } else { bits }
    }

    pub(crate) fn set_pred(&mut self, mask: u32, reg: Reg, bits: u32) {
        let old = &mut self.preds[reg as usize];
        *old = *old & !mask | bits & mask;
    }

    /// Writes the lanes of `mask`.
    #[inline]
    pub(crate) fn set<W: Word>(&mut self, mask: u32, reg: Reg, row: &Row<W>) {
        let to = W::row_mut(self, reg);
        if mask == u32::MAX {
            *to = *row;
            return;
        }
        for lane in 0..LANES {
            to[lane] = if mask >> lane & 1 == 1 { row[lane] } else { to[lane] };
        }
    }

    #[inline]
    pub(crate) fn map1<A: Value, D: Value>(
        &mut self,
        mask: u32,
        [d, a]: [Reg; 2],
        f: impl Fn(A) -> D,
    ) {
        let row = A::W::row(self, a).map(|a| f(A::of(a)).word());
        self.set(mask, d, &row);
    }

    #[inline]
    pub(crate) fn map2<A: Value, B: Value, D: Value>(
        &mut self,
        mask: u32,
        [d, a, b]: [Reg; 3],
        f: impl Fn(A, B) -> D,
    ) {
        let (a, b) = (A::W::row(self, a), B::W::row(self, b));
        let row: Row<D::W> = std::array::from_fn(|l| f(A::of(a[l]), B::of(b[l])).word());
        self.set(mask, d, &row);
    }

    #[inline]
    pub(crate) fn map3<A: Value, B: Value, C: Value, D: Value>(
        &mut self,
        mask: u32,
        [d, a, b, c]: [Reg; 4],
        f: impl Fn(A, B, C) -> D,
    ) {
        let (a, b, c) = (A::W::row(self, a), B::W::row(self, b), C::W::row(self, c));
        let row: Row<D::W> =
            std::array::from_fn(|l| f(A::of(a[l]), B::of(b[l]), C::of(c[l])).word());
        self.set(mask, d, &row);
    }

    /// Lanes for which `f` holds.
    #[inline]
    pub(crate) fn compare<A: Value>(&self, [a, b]: [Reg; 2], f: impl Fn(A, A) -> bool) -> u32 {
        let (a, b) = (A::W::row(self, a), A::W::row(self, b));
        (0..LANES).fold(0, |bits, l| bits | u32::from(f(A::of(a[l]), A::of(b[l]))) << l)
    }
}

/// Lanes of a mask, lowest first.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}
