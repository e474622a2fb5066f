//! `normal {shape}` of operand `key` i64 `[rows.., 3]`: standard normal numbers f32 `[rows.., shape..]`, drawn by
//! [`crate::philox`]. A row's key is a seed, the number of the draw, and the number of the row's first element in
//! the draw; the others follow in row-major order. Words are taken as unsigned.
//!
//! A pure function of the key: the same for any device, batch and order. It has no gradient.

use crate::op::{arity, ints};
use crate::philox::normal4;
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, Tensor, TensorType, ValueId};

/// Words of a row's key.
const KEY_WORDS: usize = 3;

/// `normal`.
#[derive(Clone, PartialEq, Debug)]
pub struct Normal {
    /// Dims of a row.
    pub shape: Vec<usize>,
}

impl Normal {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Normal, Error> {
        let op = Normal { shape: attrs.indices("shape")? };
        attrs.end().map(|()| op)
    }

    /// One row, several, none; rows that begin within a group of four, one number, and keys of any bits.
    pub fn examples() -> Vec<Example> {
        let example = |shape: &[usize], key: &[usize], (low, high): (f64, f64)| {
            let op = Normal { shape: shape.to_vec() };
            Example::f32(op, &[key]).of(DType::I64).in_range(low, high)
        };
        vec![
            example(&[2, 3, 5], &[1, 3], (0.0, 9.0)),
            example(&[7], &[5, 3], (0.0, 1e6)),
            example(&[4, 8], &[3], (-1e18, 1e18)),
            example(&[], &[2, 3, 3], (-4.0, 4.0)),
            example(&[1, 33], &[2, 1, 3], (-1e12, 1e12)),
        ]
    }
}

impl OpDef for Normal {
    fn name(&self) -> &'static str {
        "normal"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("shape", ints(&self.shape))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("normal", args, 1)?;
        match args[0].shape().split_last() {
            Some((&KEY_WORDS, rows)) if args[0].dtype() == DType::I64 => {
                TensorType::new(DType::F32, [rows, &self.shape].concat())
            }
            _ => Err(Error::operand("normal", 0, args[0], "keys, i64 [rows.., 3]")),
        }
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let n_row: usize = self.shape.iter().product();
        let (keys, _) = args[0].as_ints().as_chunks::<KEY_WORDS>();
        let value = |i: usize| {
            let [seed, draw, first] = keys[i / n_row].map(i64::cast_unsigned);
            let element = first.wrapping_add((i % n_row) as u64);
            normal4(seed, draw, element / 4)[(element % 4) as usize]
        };
        Tensor::floats(out.clone(), (0..out.count()).map(value).collect())
    }

    fn vjp(
        &self,
        _: &mut Builder,
        _: &[ValueId],
        _: ValueId,
        _: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        Ok(vec![None])
    }

    fn flops(&self, _: &[&TensorType], out: &TensorType) -> u64 {
        // A logarithm, a root, a sine or cosine, and products with them; integers do not count.
        6 * out.count() as u64
    }
}

impl Builder {
    /// Standard normal numbers `[rows.., shape..]` for keys i64 `[rows.., 3]`: seed, draw, first element.
    pub fn normal(&mut self, key: ValueId, shape: &[usize]) -> Result<ValueId, Error> {
        self.op(Normal { shape: shape.to_vec() }, &[key])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Rounding, eval};

    fn draw(keys: &[[i64; 3]], n: usize) -> Vec<f64> {
        let mut b = Builder::new("draw");
        let ty = TensorType::new(DType::I64, [keys.len(), 3]).expect("a small shape");
        let key = b.constant(Tensor::ints(ty, keys.as_flattened().to_vec()));
        let out = b.normal(key, &[n]).expect("keys are valid");
        let out = eval(&b.finish(&[out]), &BTreeMap::new(), Rounding::Exact);
        out.expect("it has no inputs")[0].as_floats().to_vec()
    }

    #[test]
    fn a_part_of_a_draw_is_the_same_numbers() {
        let whole = draw(&[[7, 2, 0]], 40);
        assert_eq!(draw(&[[7, 2, 5], [7, 2, 18]], 13), [&whole[5..18], &whole[18..31]].concat());
        for other in [[8, 2, 0], [7, 3, 0], [7 + (1 << 32), 2, 0], [7, 2 + (1 << 32), 0]] {
            assert!(draw(&[other], 40).iter().zip(&whole).all(|(a, b)| a != b), "{other:?}");
        }
        // The last element of a draw, and the first.
        let [last, first] = draw(&[[7, 2, -1]], 2)[..] else { panic!("two were asked for") };
        assert_eq!((last, first), (draw(&[[7, 2, -1]], 1)[0], whole[0]));
    }
}
