//! Ops that move elements.

use ops::{DType, Error, TensorType, ValueId};

use super::{Candidate, Grown, Growth};

impl Growth {
    /// One op that moves elements, or two of a kind.
    pub(super) fn movement(&mut self) -> Grown {
        let mut x = self.pick();
        let kind = self.random.below(6);
        for _ in 0..1 + self.random.below(2) {
            x.value = self.moved(x.value, kind)?;
        }
        Ok(x)
    }

    pub(super) fn moved(&mut self, x: ValueId, kind: usize) -> Result<ValueId, Error> {
        let shape = self.b.shape(x).to_vec();
        let rank = shape.len();
        match kind {
            0 if rank >= 2 => {
                let axis = self.random.below(rank - 1);
                let mut merged = shape.clone();
                merged[axis] *= merged.remove(axis + 1);
                self.b.reshape(x, &merged)
            }
            0 | 1 if rank < 6 => {
                let axis = self.random.below(rank.max(1));
                let mut split = shape.clone();
                if split.is_empty() || split[axis] % 2 == 1 {
                    split.insert(axis.min(split.len()), 1);
                } else {
                    split[axis] /= 2;
                    split.insert(axis, 2);
                }
                self.b.reshape(x, &split)
            }
            2 if rank >= 2 => {
                let mut axes: Vec<usize> = (0..rank).collect();
                axes.swap(self.random.below(rank), self.random.below(rank));
                self.b.permute(x, &axes)
            }
            3 => {
                let start: Vec<usize> = shape.iter().map(|&d| self.random.below(d)).collect();
                let stop: Vec<usize> = (shape.iter().zip(&start))
                    .map(|(&d, &s)| s + 1 + self.random.below(d - s))
                    .collect();
                let step: Vec<usize> = shape.iter().map(|_| 1 + self.random.below(2)).collect();
                self.b.slice(x, &start, &stop, &step)
            }
            4 => {
                let mut wide = shape.clone();
                for dim in wide.iter_mut().filter(|dim| **dim == 1) {
                    *dim = 1 + self.random.below(3);
                }
                if wide == shape {
                    return self.b.stop_gradient(x);
                }
                self.b.broadcast(x, &wide)
            }
            _ => {
                let low: Vec<usize> = shape.iter().map(|_| self.random.below(2)).collect();
                let high: Vec<usize> = shape.iter().map(|_| self.random.below(2)).collect();
                if shape.iter().product::<usize>() > 200 {
                    return Ok(x);
                }
                self.b.pad(x, &low, &high)
            }
        }
    }

    /// A concat, often with a slice behind it that one operand would do for.
    pub(super) fn join(&mut self) -> Grown {
        let x = self.pick_f32();
        let rank = self.b.ty(x.value).rank();
        if rank == 0 {
            return Ok(x);
        }
        let axis = self.random.below(rank);
        let mut shape = self.b.shape(x.value).to_vec();
        shape[axis] = 1 + self.random.below(3);
        let y = self.fresh(DType::F32, &shape);
        let joined = self.b.concat(&[x.value, y.value], axis)?;
        let end = self.b.shape(joined)[axis];
        let value = match self.random.below(3) {
            0 => self.b.slice_axis(joined, axis, 0, end - shape[axis])?,
            1 => self.b.slice_axis(joined, axis, end - 1, end)?,
            _ => joined,
        };
        Ok(Candidate { value, bound: x.bound.max(2.0), is_raw: false, known: None })
    }

    /// Numbers that only a key decides.
    pub(super) fn normal(&mut self) -> Grown {
        let rows = 1 + self.random.below(3);
        self.n_named += 1;
        let ty = TensorType::new(DType::I64, [rows, 3])?;
        let key = self.b.input(&format!("key{}", self.n_named), ty);
        let shape = self.shape(2);
        let value = self.b.normal(key, &shape)?;
        Ok(Candidate { value, bound: 7.0, is_raw: false, known: None })
    }

    pub(super) fn gather(&mut self) -> Grown {
        let ids = TensorType::new(DType::I64, [2, 2])?;
        self.n_named += 1;
        let ids = self.b.input(&format!("ids{}", self.n_named), ids);
        let table = self.pick_rank(1)?;
        if self.b.ty(table.value).rank() > 4 {
            return Ok(table);
        }
        let value = self.b.gather(table.value, ids)?;
        Ok(Candidate { value, is_raw: false, known: None, ..table })
    }
}
