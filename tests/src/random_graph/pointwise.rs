//! Ops on elements: each result is of one element of each operand.

use ops::{Builder, DType, Tensor, TensorType};

use super::{Candidate, Grown, Growth};

impl Growth {
    pub(super) fn unary(&mut self) -> Grown {
        let x = self.pick();
        if x.known.is_some() || self.random.one_in(4) {
            let value = self.b.neg(x.value)?;
            return Ok(Candidate { value, is_raw: false, known: x.known.map(|n| n + 1), ..x });
        }
        let x = self.tamed(x, 3.0)?;
        // At least 1/2: inside the domain of everything.
        let positive = |b: &mut Builder| {
            let square = b.square(x.value)?;
            b.add_scalar(square, 0.5)
        };
        let b = &mut self.b;
        let (value, bound) = match self.random.below(12) {
            0 => (b.abs(x.value)?, x.bound),
            1 => (b.exp(x.value)?, x.bound.exp()),
            2 => {
                let p = positive(b)?;
                (b.log(p)?, 3.0)
            }
            3 => {
                let p = positive(b)?;
                (b.recip(p)?, 2.0)
            }
            4 => {
                let p = positive(b)?;
                (b.rsqrt(p)?, 2.0)
            }
            5 => (b.square(x.value)?, x.bound * x.bound),
            6 => {
                let p = positive(b)?;
                (b.sqrt(p)?, 4.0)
            }
            7 => (b.sin(x.value)?, 1.0),
            8 => (b.cos(x.value)?, 1.0),
            9 => (b.sigmoid(x.value)?, 1.0),
            10 => (b.silu(x.value)?, x.bound),
            _ => (b.gelu_tanh(x.value)?, x.bound),
        };
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    pub(super) fn scalar(&mut self) -> Grown {
        let x = self.pick();
        let number = [0.0, 1.0, -1.0, 2.0, 0.5, -0.25, 3.0][self.random.below(7)];
        if x.known.is_some_and(|n| n >= 2) {
            return Ok(x);
        }
        let b = &mut self.b;
        let (value, bound) = match self.random.below(4) {
            0 => (b.add_scalar(x.value, number)?, x.bound + number.abs()),
            1 => (b.mul_scalar(x.value, number)?, x.bound * number.abs()),
            2 => (b.max_scalar(x.value, number)?, x.bound.max(number.abs())),
            _ => (b.min_scalar(x.value, number)?, x.bound.max(number.abs())),
        };
        Ok(Candidate { value, bound, is_raw: false, known: x.known.map(|n| n + 1) })
    }

    /// Something that `x` can be combined with: from the pool, or new with some dims of 1.
    pub(super) fn partner(&mut self, x: Candidate) -> Candidate {
        let ty = self.b.ty(x.value).clone();
        let fits = |other: &TensorType| {
            other.dtype() == ty.dtype()
                && other.rank() == ty.rank()
                && other.shape().iter().zip(ty.shape()).all(|(&o, &t)| o == t || o == 1)
        };
        let fitting: Vec<Candidate> =
            self.pool.iter().copied().filter(|c| fits(self.b.ty(c.value))).collect();
        if !fitting.is_empty() && !self.random.one_in(3) {
            return fitting[self.random.below(fitting.len())];
        }
        let mut shape = ty.shape().to_vec();
        for dim in &mut shape {
            if self.random.one_in(2) {
                *dim = 1;
            }
        }
        self.fresh(ty.dtype(), &shape)
    }

    pub(super) fn binary(&mut self) -> Grown {
        let x = self.pick();
        let y = self.partner(x);
        let both_known = x.known.zip(y.known).map(|(a, b)| a.max(b) + 1);
        if both_known.is_some_and(|n| n > 2) {
            return Ok(x);
        }
        let (x, y) = (self.tamed(x, 50.0)?, self.tamed(y, 50.0)?);
        let (p, q) = if self.random.one_in(2) { (x, y) } else { (y, x) };
        let (p, q) = (p.value, q.value);
        let (sum, product) = (x.bound + y.bound, x.bound * y.bound);
        let b = &mut self.b;
        let (value, bound) = match self.random.below(7) {
            0 | 1 => (b.add(p, q)?, sum),
            2 => (b.sub(p, q)?, sum),
            3 | 4 => (b.mul(p, q)?, product),
            5 if both_known.is_none() => {
                let square = b.square(q)?;
                let positive = b.add_scalar(square, 0.5)?;
                (b.div(p, positive)?, 2.0 * x.bound.max(y.bound))
            }
            _ if self.random.one_in(2) => (b.maximum(p, q)?, sum),
            _ => (b.minimum(p, q)?, sum),
        };
        Ok(Candidate { value, bound, is_raw: false, known: both_known })
    }

    pub(super) fn select(&mut self) -> Grown {
        let raw: Vec<Candidate> = self
            .pool
            .iter()
            .copied()
            .filter(|c| c.is_raw && self.b.ty(c.value).dtype() == DType::F32)
            .collect();
        let a = raw[self.random.below(raw.len())];
        let shape = self.b.shape(a.value).to_vec();
        let other = self.fresh(DType::F32, &shape);
        let cond = if self.random.one_in(3) {
            self.b.equal(a.value, other.value)?
        } else {
            self.b.less(a.value, other.value)?
        };
        let x = self.partner(a);
        let y = self.partner(a);
        let value = self.b.select(cond, x.value, y.value)?;
        let known = a.known.and(other.known).and(x.known.zip(y.known).map(|(a, b)| a.max(b) + 1));
        Ok(Candidate { value, bound: x.bound.max(y.bound), is_raw: false, known })
    }

    pub(super) fn cast(&mut self) -> Grown {
        let x = self.pick_f32();
        let dtype = [DType::Bf16, DType::F16, DType::F32][self.random.below(3)];
        let narrow = self.b.cast(x.value, dtype)?;
        let value = if self.random.one_in(2) { narrow } else { self.b.cast(narrow, DType::F32)? };
        Ok(Candidate { value, is_raw: false, ..x })
    }

    /// Integer arithmetic, then back to floats.
    pub(super) fn integers(&mut self) -> Grown {
        let shape = self.shape(2);
        let x = self.fresh(DType::I32, &shape);
        let y = self.fresh(DType::I32, &[shape[0], 1]);
        let number =
            Tensor::ints(TensorType::new(DType::I32, [1, 1])?, vec![self.random.below(2) as i64]);
        let number = self.b.constant(number);
        let sum = self.b.add(x.value, y.value)?;
        let product = self.b.mul(sum, number)?;
        let wide = self.b.cast(product, DType::I64)?;
        let value = self.b.cast(wide, DType::F32)?;
        let known = x.known.zip(y.known).map(|(a, b)| a.max(b) + 1);
        Ok(Candidate { value, bound: 6.0, is_raw: false, known })
    }

    /// Something that simplification undoes.
    pub(super) fn identity(&mut self) -> Grown {
        let x = self.pick_f32();
        let b = &mut self.b;
        let value = match self.random.below(6) {
            0 => {
                let y = b.neg(x.value)?;
                b.neg(y)?
            }
            1 => {
                let y = b.mul_scalar(x.value, 0.75)?;
                b.mul_scalar(y, 3.0)?
            }
            2 => {
                let y = b.add_scalar(x.value, 0.75)?;
                b.add_scalar(y, 0.5)?
            }
            3 => {
                let y = b.abs(x.value)?;
                b.abs(y)?
            }
            4 => {
                let y = b.neg(x.value)?;
                b.sub(x.value, y)?
            }
            _ => {
                let y = b.neg(x.value)?;
                b.add(y, x.value)?
            }
        };
        Ok(Candidate { value, bound: 3.0 * x.bound + 2.0, is_raw: false, known: None })
    }
}
