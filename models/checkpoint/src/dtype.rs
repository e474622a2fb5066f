//! Element types of stored tensors, and their conversion to f32.

use std::borrow::Cow;
use std::fmt;

use half::slice::HalfFloatSliceExt;

/// The type of a tensor's elements, little endian in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DType {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    BF16,
    /// Signed 64-bit.
    I64,
    /// Signed 32-bit.
    I32,
    /// Signed 16-bit.
    I16,
    /// Signed 8-bit.
    I8,
    /// Unsigned 64-bit.
    U64,
    /// Unsigned 32-bit.
    U32,
    /// Unsigned 16-bit.
    U16,
    /// Unsigned 8-bit.
    U8,
    /// One byte, zero or not.
    Bool,
}

/// Every type with its safetensors spelling and its bytes per element; the one table behind the methods.
const TABLE: [(DType, &str, usize); 13] = [
    (DType::F64, "F64", 8),
    (DType::F32, "F32", 4),
    (DType::F16, "F16", 2),
    (DType::BF16, "BF16", 2),
    (DType::I64, "I64", 8),
    (DType::I32, "I32", 4),
    (DType::I16, "I16", 2),
    (DType::I8, "I8", 1),
    (DType::U64, "U64", 8),
    (DType::U32, "U32", 4),
    (DType::U16, "U16", 2),
    (DType::U8, "U8", 1),
    (DType::Bool, "BOOL", 1),
];

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        TABLE[self as usize].2
    }

    /// The spelling in a safetensors header, such as `BF16`.
    pub fn safetensors_name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The type of that spelling, if there is one.
    pub fn from_safetensors_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Whether `to_f32` converts it.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    pub(crate) fn list() -> String {
        TABLE.map(|row| row.0.to_string()).join(", ")
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.safetensors_name().to_ascii_lowercase())
    }
}

impl serde::Serialize for DType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A tensor's elements: contiguous, row major, little endian.
///
/// `bytes` is borrowed from the file where the file has them in this form. Nothing is promised about its
/// alignment: a safetensors header may have any length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: DType,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// `dtype.size()` times the product of `shape` bytes.
    pub bytes: Cow<'a, [u8]>,
}

impl TensorView<'_> {
    /// The elements as f32 (f64 rounds to nearest, f16 and bf16 are exact); `None` for integer types.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let bytes = &*self.bytes;
        match self.dtype {
            DType::F32 => {
                Some(bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
            }
            DType::F64 => Some(
                bytes.as_chunks().0.iter().map(|word| f64::from_le_bytes(*word) as f32).collect(),
            ),
            DType::F16 => {
                let halves: Vec<half::f16> = bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|word| half::f16::from_le_bytes(*word))
                    .collect();
                let mut out = vec![0.0; halves.len()];
                halves.convert_to_f32_slice(&mut out);
                Some(out)
            }
            DType::BF16 => Some(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|word| f32::from_bits(u32::from(u16::from_le_bytes(*word)) << 16))
                    .collect(),
            ),
            DType::I64
            | DType::I32
            | DType::I16
            | DType::I8
            | DType::U64
            | DType::U32
            | DType::U16
            | DType::U8
            | DType::Bool => None,
        }
    }
}
