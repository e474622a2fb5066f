//! A tensor by value, for the interpreter and for constants: dense, row-major, wide elements.
//!
//! Floats of every type are held as f64 and integers as i64, so that one reference semantics serves
//! all element types, and the same graph can be evaluated without rounding (finite differences).

use crate::{DType, Error, TensorType};

/// Elements of a [`Tensor`].
///
/// Equality is that of bits, with all NaNs equal: a tensor equals what its text parses back to, and
/// `0.0` and `-0.0` differ.
#[derive(Clone, Debug)]
pub enum Data {
    /// Values of `f32`, `f16`, `bf16` tensors.
    Float(Vec<f64>),
    /// Values of `i64`, `i32`, `u8`, `bool` tensors.
    Int(Vec<i64>),
}

impl PartialEq for Data {
    fn eq(&self, other: &Data) -> bool {
        match (self, other) {
            (Data::Float(a), Data::Float(b)) => {
                let same =
                    |(x, y): (&f64, &f64)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
                a.len() == b.len() && a.iter().zip(b).all(same)
            }
            (Data::Int(a), Data::Int(b)) => a == b,
            (Data::Float(_), Data::Int(_)) | (Data::Int(_), Data::Float(_)) => false,
        }
    }
}

/// A type and its elements.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    ty: TensorType,
    data: Data,
}

impl Tensor {
    /// A float tensor. Values are kept as given: rounding to the element type is the caller's.
    pub fn floats(ty: TensorType, values: Vec<f64>) -> Tensor {
        assert!(ty.dtype().is_float(), "float data needs a float type, not {ty}");
        assert_eq!(values.len(), ty.count(), "one value per element of {ty}");
        Tensor { ty, data: Data::Float(values) }
    }

    /// An integer or boolean tensor.
    pub fn ints(ty: TensorType, values: Vec<i64>) -> Tensor {
        assert!(!ty.dtype().is_float(), "integer data needs an integer type, not {ty}");
        assert_eq!(values.len(), ty.count(), "one value per element of {ty}");
        Tensor { ty, data: Data::Int(values) }
    }

    /// An f32 tensor.
    pub fn f32(shape: &[usize], values: &[f32]) -> Result<Tensor, Error> {
        let ty = TensorType::new(DType::F32, shape)?;
        if ty.count() != values.len() {
            return Err(Error::Shape(format!("{} values do not fill {ty}", values.len())));
        }
        Ok(Tensor::floats(ty, values.iter().map(|&x| f64::from(x)).collect()))
    }

    /// The type.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// Dims, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.ty.shape()
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Elements of a float tensor. Panics on another type: `infer` has checked it.
    pub fn as_floats(&self) -> &[f64] {
        match &self.data {
            Data::Float(values) => values,
            Data::Int(_) => panic!("infer admitted {} where floats are needed", self.ty),
        }
    }

    /// Elements of an integer or boolean tensor. Panics on another type.
    pub fn as_ints(&self) -> &[i64] {
        match &self.data {
            Data::Int(values) => values,
            Data::Float(_) => panic!("infer admitted {} where integers are needed", self.ty),
        }
    }

    /// Elements as f32, whatever the type.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::Float(values) => values.iter().map(|&x| x as f32).collect(),
            Data::Int(values) => values.iter().map(|&x| x as f32).collect(),
        }
    }

    /// The tensor with every element rounded to what its type stores.
    #[must_use]
    pub fn rounded(mut self) -> Tensor {
        let dtype = self.ty.dtype();
        match &mut self.data {
            Data::Float(values) => values.iter_mut().for_each(|x| *x = dtype.round(*x)),
            Data::Int(values) => values.iter_mut().for_each(|x| {
                *x = match dtype {
                    DType::I32 => i64::from(*x as i32),
                    DType::U8 => i64::from(*x as u8),
                    DType::Bool => i64::from(*x != 0),
                    DType::I64 | DType::F32 | DType::F16 | DType::Bf16 => *x,
                }
            }),
        }
        self
    }

    /// A tensor of type `ty` whose element `i` (row-major) is element `index(i)` of this one.
    /// `ty` must have this tensor's element type.
    pub fn gather_elements(&self, ty: TensorType, index: impl Fn(usize) -> usize) -> Tensor {
        let n = ty.count();
        let data = match &self.data {
            Data::Float(values) => Data::Float((0..n).map(|i| values[index(i)]).collect()),
            Data::Int(values) => Data::Int((0..n).map(|i| values[index(i)]).collect()),
        };
        Tensor { ty, data }
    }

    /// The same elements in row-major order under another shape of the same count.
    #[must_use]
    pub fn reshaped(mut self, ty: TensorType) -> Tensor {
        assert_eq!(self.ty.count(), ty.count(), "a reshape keeps the element count");
        self.ty = ty;
        self
    }

    /// Little-endian bytes as the element type stores them; every NaN as the positive quiet one.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.ty.bytes());
        match &self.data {
            Data::Float(values) => {
                for &x in values {
                    let x = if x.is_nan() { f64::NAN } else { self.ty.dtype().round(x) };
                    match self.ty.dtype() {
                        DType::F16 => bytes.extend(half::f16::from_f64(x).to_le_bytes()),
                        DType::Bf16 => bytes.extend(half::bf16::from_f64(x).to_le_bytes()),
                        _ => bytes.extend((x as f32).to_le_bytes()),
                    }
                }
            }
            Data::Int(values) => {
                let size = self.ty.dtype().size();
                for &x in values {
                    bytes.extend(&x.to_le_bytes()[..size]);
                }
            }
        }
        bytes
    }

    /// The tensor of type `ty` stored in `bytes` (little-endian, dense, row-major).
    pub fn from_bytes(ty: TensorType, bytes: &[u8]) -> Result<Tensor, Error> {
        if bytes.len() != ty.bytes() {
            return Err(Error::Shape(format!("{} bytes do not fill {ty}", bytes.len())));
        }
        let size = ty.dtype().size();
        let chunks = bytes.chunks_exact(size);
        let wide = |chunk: &[u8]| {
            let mut buf = [0; 8];
            buf[..size].copy_from_slice(chunk);
            u64::from_le_bytes(buf)
        };
        let data = match ty.dtype() {
            DType::F32 => {
                Data::Float(chunks.map(|c| f64::from(f32::from_bits(wide(c) as u32))).collect())
            }
            DType::F16 => {
                Data::Float(chunks.map(|c| half::f16::from_bits(wide(c) as u16).to_f64()).collect())
            }
            DType::Bf16 => Data::Float(
                chunks.map(|c| half::bf16::from_bits(wide(c) as u16).to_f64()).collect(),
            ),
            DType::I64 => Data::Int(chunks.map(|c| wide(c) as i64).collect()),
            DType::I32 => Data::Int(chunks.map(|c| i64::from(wide(c) as u32 as i32)).collect()),
            DType::U8 | DType::Bool => Data::Int(chunks.map(|c| wide(c) as i64).collect()),
        };
        Ok(Tensor { ty, data })
    }

    /// FNV-1a of type and bytes: the key under which a large constant prints.
    pub fn content_hash(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in self.ty.to_string().bytes().chain(self.to_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        hash
    }
}
