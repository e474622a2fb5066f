//! Types of PTX instructions.

/// A type suffix of an instruction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ty {
    Pred,
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Ty {
    /// The type that `text` names; untyped bits are unsigned.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "pred" => Self::Pred,
            "b8" | "u8" => Self::U8,
            "s8" => Self::S8,
            "b16" | "u16" => Self::U16,
            "s16" => Self::S16,
            "b32" | "u32" => Self::U32,
            "s32" => Self::S32,
            "b64" | "u64" => Self::U64,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Pred => 0,
            Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::S32 | Self::F16x2 | Self::Bf16x2 | Self::Tf32 | Self::F32 => 4,
            Self::U64 | Self::S64 | Self::F64 => 8,
        }
    }

    pub(crate) fn is_wide(self) -> bool {
        self.bytes() == 8
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn is_integer(self) -> bool {
        self.is_signed() || matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64)
    }

    /// One or two half-precision numbers.
    pub(crate) fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F16x2 | Self::Bf16x2)
    }

    /// Whether it is a pair of half-precision numbers.
    pub(crate) fn is_packed(self) -> bool {
        matches!(self, Self::F16x2 | Self::Bf16x2)
    }
}
