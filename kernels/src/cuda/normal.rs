//! `normal`: standard normal numbers by key, a thread for each. Roofline: some hundred instructions a number;
//! drawn once a step, they are a small part of it.

use ops::{DType, Op};

use crate::body::operand_view;
use crate::kernel::Site;

use super::access::{Access, is_addressable, offset_bytes};
use super::{Arg, Base, CudaKernel, Function, Gpu, Launch};

/// Threads of a block.
const BLOCK: u32 = 256;

/// `result[i.., j..] = number first + j of draw draw under seed`, where those are the words of `keys[i..]`.
/// Pointers: the result, the keys.
#[derive(Clone, PartialEq, Debug)]
pub struct Normal {
    /// A dim of 1, then those of the result: of the keys but the last, then of a row.
    pub dims: Vec<u32>,
    /// Elements of a row.
    pub row_len: u32,
    /// What is written. F32.
    pub result: Access,
    /// Strides along `dims`: 0 for those of a row. I64.
    pub keys: Access,
    /// From one word of a key to the next.
    pub word_stride: u32,
}

impl Normal {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [BLOCK, 1, 1]
    }

    /// Numbers, each a thread's.
    pub fn threads(&self) -> u32 {
        self.dims.iter().product()
    }

    /// Takes a `normal` of an operand or a view of one.
    pub fn select(site: &Site<'_>, _: Gpu) -> Option<CudaKernel> {
        let &[root] = &site.body.outputs[..] else { return None };
        let Some(Op::Normal(_)) = site.body.op(root) else { return None };
        let (key, words) = operand_view(site.body, site.body.node(root).args[0], site.operands)?;
        let is_countable = site.result.count() <= u32::MAX as usize;
        if !is_countable || ![site.result, &words].into_iter().all(is_addressable) {
            return None;
        }
        let n_rows = words.rank() - 1;
        let row = &site.result.shape[n_rows..];
        // A first dim of 1, so that there is one.
        let numbers = |first: u32, rest: &[usize]| -> Vec<u32> {
            std::iter::once(first).chain(rest.iter().map(|&number| number as u32)).collect()
        };
        let of_keys = [&words.strides[..n_rows], &vec![0; row.len()]].concat();
        let function = Normal {
            dims: numbers(1, &site.result.shape),
            row_len: row.iter().product::<usize>() as u32,
            result: Access { dtype: DType::F32, strides: numbers(0, &site.result.strides) },
            keys: Access { dtype: DType::I64, strides: numbers(0, &of_keys) },
            word_stride: words.strides[n_rows] as u32,
        };
        let args = vec![
            Arg { base: Base::Result, offset: offset_bytes(site.result) },
            Arg { base: Base::Operand(key), offset: offset_bytes(&words) },
        ];
        Some(CudaKernel {
            name: "normal",
            tunables: vec![],
            launches: vec![Launch {
                grid: [function.threads().div_ceil(BLOCK), 1, 1],
                args,
                function: Function::Normal(function),
            }],
            scratch_bytes: 0,
            packed: None,
            in_place: vec![],
        })
    }
}
