//! Element types and tensor types.
//!
//! A [`TensorType`] that exists is valid: rank at most [`MAX_RANK`], every dim at least 1, and an
//! element count that fits [`MAX_COUNT`]. Code behind it multiplies dims without checks.

use crate::Error;

/// Largest rank of a tensor.
pub const MAX_RANK: usize = 10;
/// Largest number of elements of a tensor (2^40: 4 TiB of f32).
pub const MAX_COUNT: usize = 1 << 40;

/// Type of one element.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Two's complement, 64 bits. Token ids.
    I64,
    /// Two's complement, 32 bits.
    I32,
    /// Unsigned, 8 bits. Pixels.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every element type, in declaration order.
    pub const ALL: [DType; 7] =
        [DType::F32, DType::F16, DType::Bf16, DType::I64, DType::I32, DType::U8, DType::Bool];

    /// The name that prints and parses, as in `bf16[2, 3]`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }

    /// The element type called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of one element.
    #[inline]
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::I64 => 8,
            DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether values are floating point.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::Bf16)
    }

    /// The nearest value this float type stores, ties to even; for integer types `x` itself.
    pub fn round(self, x: f64) -> f64 {
        match self {
            DType::F32 => f64::from(x as f32),
            DType::F16 => half::f16::from_f32(to_odd_f32(x)).to_f64(),
            DType::Bf16 => half::bf16::from_f32(to_odd_f32(x)).to_f64(),
            DType::I64 | DType::I32 | DType::U8 | DType::Bool => x,
        }
    }
}

/// `x` in f32 if it is one, else the neighbor whose last bit is 1: rounding that to 16 bits is rounding `x`, because
/// no f32 with that bit lies halfway between two of them ("When double rounding is odd", Boldo and Melquiond, 2005).
/// `half` rounds an f64 by its upper 32 bits, which takes values just above a half for ties.
fn to_odd_f32(x: f64) -> f32 {
    let nearest = x as f32;
    if !x.is_finite() || f64::from(nearest) == x {
        return nearest;
    }
    let is_away = f64::from(nearest).abs() > x.abs();
    f32::from_bits((nearest.to_bits() - u32::from(is_away)) | 1)
}

/// Element type and shape of a value. Prints as `f32[2, 3]`; a scalar is `f32[]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TensorType {
    dtype: DType,
    shape: Vec<usize>,
}

impl TensorType {
    /// Checks the limits in the module documentation.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<TensorType, Error> {
        let shape = shape.into();
        if shape.len() > MAX_RANK {
            return Err(Error::Shape(format!("rank {} is above {MAX_RANK}", shape.len())));
        }
        let mut count = 1usize;
        for &dim in &shape {
            count = count.checked_mul(dim).filter(|&n| n <= MAX_COUNT).ok_or_else(|| {
                Error::Shape(format!("shape {shape:?} has more than {MAX_COUNT} elements"))
            })?;
            if dim == 0 {
                return Err(Error::Shape(format!("shape {shape:?} has an empty axis")));
            }
        }
        Ok(TensorType { dtype, shape })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dims, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the dense row-major tensor.
    pub fn bytes(&self) -> usize {
        self.count() * self.dtype.size()
    }

    /// The same shape with another element type.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> TensorType {
        TensorType { dtype, shape: self.shape.clone() }
    }

    /// The same element type with another shape.
    pub fn with_shape(&self, shape: impl Into<Vec<usize>>) -> Result<TensorType, Error> {
        TensorType::new(self.dtype, shape)
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> Vec<usize> {
        row_major_strides(&self.shape)
    }
}

/// Row-major strides of `shape`, in elements.
pub fn row_major_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::DType;

    /// Every bf16 and f16 with its upper neighbor: what lies halfway goes to the even one, and the smallest f64 beside
    /// it to the nearer.
    #[test]
    fn halves_round_to_even_and_nothing_else_is_a_half() {
        let value = |dtype, bits| match dtype {
            DType::F16 => half::f16::from_bits(bits).to_f64(),
            _ => half::bf16::from_bits(bits).to_f64(),
        };
        for (dtype, largest) in [(DType::Bf16, 0x7f7f), (DType::F16, 0x7bff)] {
            for bits in 0..largest {
                let (low, high) = (value(dtype, bits), value(dtype, bits + 1));
                let half = low + (high - low) / 2.0;
                let even = if bits % 2 == 0 { low } else { high };
                for sign in [1.0, -1.0] {
                    assert_eq!(dtype.round(sign * low), sign * low);
                    assert_eq!(dtype.round(sign * half), sign * even, "{bits:#x}");
                    assert_eq!(dtype.round(sign * half.next_down()), sign * low, "{bits:#x}");
                    assert_eq!(dtype.round(sign * half.next_up()), sign * high, "{bits:#x}");
                }
            }
            assert_eq!(dtype.round(f64::MAX), f64::INFINITY);
            assert!(dtype.round(f64::NAN).is_nan());
        }
    }
}
