//! Ops that sum over elements, and the forms that models have of them.

use ops::defs::conv::Window;
use ops::defs::norm_grad::NormGrad;
use ops::{DType, TensorType};

use super::{Candidate, Grown, Growth};

impl Growth {
    pub(super) fn reduce(&mut self) -> Grown {
        let x = self.pick_rank(1)?;
        let shape = self.b.shape(x.value).to_vec();
        let mut axes: Vec<usize> = (0..shape.len()).filter(|_| self.random.one_in(2)).collect();
        if axes.is_empty() {
            axes.push(shape.len() - 1);
        }
        let n: usize = axes.iter().map(|&axis| shape[axis]).product();
        let value = match self.random.below(3) {
            0 => self.b.reduce_sum(x.value, &axes)?,
            1 => self.b.reduce_mean(x.value, &axes)?,
            _ => self.b.reduce_max(x.value, &axes)?,
        };
        Ok(Candidate { value, bound: x.bound * n as f64, is_raw: false, known: None })
    }

    pub(super) fn norm(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let shape = self.b.shape(x.value).to_vec();
        let last = shape.len() - 1;
        let value = match self.random.below(4) {
            0 => self.b.layer_norm(x.value, 1e-2)?,
            1 => {
                let normed = self.b.rms_norm(x.value, 1e-2)?;
                let mut dims = vec![1; shape.len()];
                dims[last] = shape[last];
                let weight = self.fresh(DType::F32, &dims);
                self.b.mul(normed, weight.value)?
            }
            2 => {
                let weight = self.fresh(DType::F32, &[shape[last]]);
                let bias = self.fresh(DType::F32, &[shape[last]]);
                let normed = self.b.group_norm(x.value, weight.value, bias.value, 1, 1e-2)?;
                self.b.silu(normed)?
            }
            _ => {
                let axis = self.random.below(shape.len());
                self.b.softmax(x.value, axis)?
            }
        };
        Ok(Candidate { value, bound: 10.0, is_raw: false, known: None })
    }

    /// A weighted norm and its gradients: by what is normalized, and by the weight.
    pub(super) fn norm_gradient(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let shape = self.b.shape(x.value).to_vec();
        let last = shape.len() - 1;
        let mut dims = vec![1; shape.len()];
        dims[last] = shape[last];
        let weight = self.fresh(DType::F32, &dims).value;
        let grad = self.fresh(DType::F32, &shape).value;
        let centered = self.random.one_in(2);
        let eps = 1e-2;
        let normed = if centered {
            self.b.layer_norm(x.value, eps)?
        } else {
            self.b.rms_norm(x.value, eps)?
        };
        let weighted = self.b.mul(normed, weight)?;
        let by_normed = self.b.mul(grad, weight)?;
        let by_x = self.b.op(NormGrad { eps, centered }, &[x.value, by_normed])?;
        let along = self.b.mul(grad, normed)?;
        // Mostly what the weight is the same for; or each row's own.
        let axes: Vec<usize> = if self.random.one_in(4) { vec![last] } else { (0..last).collect() };
        let by_weight = self.b.reduce_sum(along, &axes)?;
        let value = self.b.add(weighted, by_x)?;
        let value = self.b.add(value, by_weight)?;
        let bound = 100.0 * self.b.ty(x.value).count() as f64;
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    /// Thin matrices times a product, as the gradients of a low-rank adaptation are.
    pub(super) fn thin_products(&mut self) -> Grown {
        let matrix = |growth: &mut Growth, turned: bool, rows: usize, columns: usize| {
            let shape = if turned { [columns, rows] } else { [rows, columns] };
            growth.fresh(DType::F32, &shape).value
        };
        let [rows, depth, columns] = [(); 3].map(|()| 4 + self.random.below(5));
        let turned = [(); 4].map(|()| self.random.one_in(2));
        let first = matrix(self, turned[0], rows, depth);
        let second = matrix(self, turned[1], depth, columns);
        let product = self.b.matmul(first, second, turned[0], turned[1])?;
        let factor = if self.random.one_in(2) { self.b.mul_scalar(product, 0.5)? } else { product };
        let behind = matrix(self, turned[2], columns, 1);
        let before = matrix(self, turned[3], rows, 1);
        let mut value = self.b.matmul(factor, behind, false, turned[2])?;
        if !self.random.one_in(3) {
            // Of the product itself, turned.
            let other = self.b.matmul(before, product, !turned[3], false)?;
            value = self.b.matmul(value, other, false, false)?;
        }
        let bound = 1e6;
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    /// The gradients of a linear layer: by its operand, its weight, and its bias, in any order.
    pub(super) fn linear_gradient(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let shape = self.b.shape(x.value).to_vec();
        let width = shape[shape.len() - 1];
        let tokens = shape[..shape.len() - 1].iter().product();
        let out = 2 + self.random.below(20);
        let grad = self.fresh(DType::F32, &[tokens, out]).value;
        let weight = self.fresh(DType::F32, &[out, width]).value;
        let rows = self.b.reshape(x.value, &[tokens, width])?;
        let bias_first = self.random.one_in(2);
        let early = if bias_first { Some(self.b.reduce_sum(grad, &[0])?) } else { None };
        let by_weight = self.b.matmul(grad, rows, true, false)?;
        let by_x = self.b.matmul(grad, weight, false, false)?;
        let by_bias = match early {
            Some(by_bias) => by_bias,
            None => self.b.reduce_sum(grad, &[0])?,
        };
        let by_bias = if self.random.one_in(2) {
            let so_far = self.fresh(DType::F32, &[1, out]).value;
            self.b.add(so_far, by_bias)?
        } else {
            by_bias
        };
        let by_bias = self.b.reshape(by_bias, &[out, 1])?;
        let both = self.b.add(by_weight, by_bias)?;
        let value = self.b.matmul(by_x, both, false, true)?;
        let bound = x.bound * 100.0 * (tokens * width * out) as f64;
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    pub(super) fn linear(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let width = self.b.shape(x.value)[self.b.ty(x.value).rank() - 1];
        let out = 1 + self.random.below(4);
        let weight = self.fresh(DType::F32, &[out, width]);
        let bias = self.fresh(DType::F32, &[out]);
        let bias = (!self.random.one_in(3)).then_some(bias.value);
        let value = self.b.linear(x.value, weight.value, bias)?;
        let bound = x.bound * 2.0 * width as f64 + 2.0;
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    /// A product of two computed values, in any transposition.
    pub(super) fn product(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let shape = self.b.shape(x.value).to_vec();
        let rank = shape.len();
        let (transpose_a, transpose_b) = (self.random.one_in(2), self.random.one_in(2));
        let k = shape[if transpose_a { rank - 2 } else { rank - 1 }];
        let n = 1 + self.random.below(3);
        let mut other = shape.clone();
        other[rank - 2] = if transpose_b { n } else { k };
        other[rank - 1] = if transpose_b { k } else { n };
        let y = self.fresh(DType::F32, &other);
        let (mut y, mut transpose_b) = (y.value, transpose_b);
        if self.random.one_in(2) {
            let mut axes: Vec<usize> = (0..rank).collect();
            axes.swap(rank - 1, rank - 2);
            y = self.b.permute(y, &axes)?;
            transpose_b = !transpose_b;
        }
        let value = self.b.matmul(x.value, y, transpose_a, transpose_b)?;
        Ok(Candidate { value, bound: x.bound * 2.0 * k as f64, is_raw: false, known: None })
    }

    pub(super) fn attention(&mut self) -> Grown {
        let x = self.pick_rank(3)?;
        let q = self.b.shape(x.value).to_vec();
        let rank = q.len();
        let keys = 1 + self.random.below(3);
        let mut shape = q.clone();
        shape[rank - 3] = keys;
        let k = self.fresh(DType::F32, &shape);
        let v = self.fresh(DType::F32, &shape);
        let mask = if self.random.one_in(2) {
            let ty = TensorType::new(DType::Bool, [&q[..rank - 3], &[keys]].concat())?;
            self.n_named += 1;
            Some(self.b.input(&format!("mask{}", self.n_named), ty))
        } else {
            None
        };
        let value = self.b.attention([x.value, k.value, v.value], None, mask, 0.5)?;
        Ok(Candidate { value, bound: 2.0, is_raw: false, known: None })
    }

    pub(super) fn conv(&mut self) -> Grown {
        let x = self.pick_rank(3)?;
        let shape = self.b.shape(x.value).to_vec();
        if shape.len() > 5 {
            return Ok(x);
        }
        let spatial = shape.len() - 2;
        let channels = shape[spatial + 1];
        let out = 1 + self.random.below(3);
        let weight =
            self.fresh(DType::F32, &[&[out, channels], vec![3; spatial].as_slice()].concat());
        let window = Window::new(&vec![1; spatial], &vec![1; spatial], &vec![1; spatial]);
        // On the way in what a decoder has there: an activation, every pixel twice.
        let mut input = x.value;
        if self.random.one_in(3) {
            input = self.b.silu(input)?;
        }
        if let (&[n, h, w, c], true) = (&shape[..], self.random.one_in(3)) {
            input = self.b.reshape(input, &[n, h, 1, w, 1, c])?;
            input = self.b.broadcast(input, &[n, h, 2, w, 2, c])?;
            input = self.b.reshape(input, &[n, 2 * h, 2 * w, c])?;
        }
        let is_same = input == x.value;
        let value = self.b.conv(input, weight.value, &window)?;
        let mut dims = vec![1; shape.len()];
        dims[spatial + 1] = out;
        let bias = self.fresh(DType::F32, &dims);
        let mut value = self.b.add(value, bias.value)?;
        if out == channels && is_same {
            value = self.b.add(value, x.value)?;
        }
        let bound = x.bound * 2.0 * (channels * 3usize.pow(spatial as u32)) as f64 + 18.0;
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    /// The form of a transformer block: modulated norm, linear layer, activation, gate, residual,
    /// the modulation perhaps chosen per frame.
    pub(super) fn block(&mut self) -> Grown {
        let x = self.pick_rank(3)?;
        let shape = self.b.shape(x.value).to_vec();
        let width = shape[shape.len() - 1];
        let mut row = vec![1; shape.len()];
        row[shape.len() - 1] = width;
        let shift = self.fresh(DType::F32, &row);
        let scale = self.fresh(DType::F32, &row);
        let gate = self.fresh(DType::F32, &row);
        let weight = self.fresh(DType::F32, &[width, width]);
        let bias = self.fresh(DType::F32, &[width]);
        let b = &mut self.b;
        let normed = b.layer_norm(x.value, 1e-2)?;
        let scale = b.add_scalar(scale.value, 1.0)?;
        let scaled = b.mul(normed, scale)?;
        let mut y = b.add(scaled, shift.value)?;
        if self.random.one_in(2) {
            let mut frames = vec![1; shape.len()];
            frames[0] = shape[0];
            self.n_named += 1;
            let ty = TensorType::new(DType::Bool, frames)?;
            let mask = b.input(&format!("mask{}", self.n_named), ty);
            let other = b.mul(normed, shift.value)?;
            y = b.select(mask, y, other)?;
        }
        let y = b.linear(y, weight.value, Some(bias.value))?;
        let y = b.gelu_tanh(y)?;
        let y = b.mul(gate.value, y)?;
        let value = b.add(x.value, y)?;
        let bound = x.bound + 100.0 * width as f64;
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    /// Self attention from one projection, with norm and rotation of queries and keys in either order.
    pub(super) fn head_attention(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let width = self.b.shape(x.value)[self.b.ty(x.value).rank() - 1];
        let rows = self.b.ty(x.value).count() / width;
        let (heads, head) = (2, 4);
        let weight = self.fresh(DType::F32, &[3 * heads * head, width]);
        let norm = self.fresh(DType::F32, &[1, 1, head]);
        let angles = self.fresh(DType::F32, &[rows, head / 2]);
        let norm_first = self.random.one_in(2);
        let b = &mut self.b;
        let x = b.reshape(x.value, &[rows, width])?;
        let qkv = b.linear(x, weight.value, None)?;
        let qkv = b.reshape(qkv, &[rows, 3, heads, head])?;
        let mut parts = [qkv; 3];
        for (i, part) in parts.iter_mut().enumerate() {
            let slice = b.slice_axis(qkv, 1, i, i + 1)?;
            *part = b.reshape(slice, &[rows, heads, head])?;
            if i < 2 && !norm_first {
                *part = b.rope(*part, angles.value)?;
            }
            if i < 2 {
                let normed = b.rms_norm(*part, 1e-2)?;
                *part = b.mul(normed, norm.value)?;
            }
            if i < 2 && norm_first {
                *part = b.rope(*part, angles.value)?;
            }
        }
        let value = b.attention(parts, None, None, 0.5)?;
        Ok(Candidate { value, bound: 200.0, is_raw: false, known: None })
    }
}
