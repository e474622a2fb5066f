//! What a matrix product is to compute: plain data, checked before anything is chosen for it.

use ops::DType;
use ops::defs::binary::Binary;

use crate::Error;
use crate::program::{Instr, Program};

use super::matmul_rows::{Norm, RowView};

/// Where B comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum BOperand {
    /// Packed by [`super::matmul::Matmul::pack_b`] in this type: f32, bf16 or f16.
    Packed(DType),
    /// Read where it is and packed in every run.
    Dense(BView),
}

/// B in memory; strides and offset count elements.
#[derive(Clone, Debug, PartialEq)]
pub struct BView {
    /// f32, bf16 or f16.
    pub dtype: DType,
    /// One for each batch dim.
    pub batch_strides: Vec<usize>,
    /// From one depth to the next.
    pub depth_stride: usize,
    /// From one column to the next.
    pub column_stride: usize,
    /// Position of the first element.
    pub offset: usize,
}

/// A matrix product with everything that is fused into it.
#[derive(Clone, Debug, PartialEq)]
pub struct MatmulSpec {
    /// Leading dims that B has, too.
    pub batch: Vec<usize>,
    /// Further leading dims of A and C; their product is the number of rows M.
    pub rows: Vec<usize>,
    /// N.
    pub columns: usize,
    /// K.
    pub depth: usize,
    /// Rows of A over `batch` and `rows`; its columns are the depth.
    pub a: RowView,
    /// The right operand.
    pub b: BOperand,
    /// Element type of what is multiplied: of A after norm and prologue, and of B. F32, or bf16 or
    /// f16, in which A may be rounded to it on its way in.
    pub product: DType,
    /// Whether f32 is multiplied as digits ([`crate::simd::digits`]) where the CPU can, the depth has a unit of them, and
    /// B is dense.
    pub digits: bool,
    /// Norm of each row of A, before the prologue.
    pub norm: Option<Norm>,
    /// Applied to A's elements: slot 0 is A, or f32 after a norm; the others are
    /// `prologue_operands`. The result is f32.
    pub prologue: Option<Program>,
    /// Operands over rows and depth.
    pub prologue_operands: Vec<RowView>,
    /// Applied to the sums: slot 0 is the sum (f32), the others are `epilogue_operands`.
    pub epilogue: Program,
    /// Operands over rows and columns.
    pub epilogue_operands: Vec<RowView>,
    /// The result over rows and columns; the column stride is 1.
    pub c: RowView,
}

impl MatmulSpec {
    /// Whether all that the epilogue does is to add its operand to the sums, which is one row of f32 for all.
    pub(super) fn adds_bias(&self) -> bool {
        let [
            Instr::Load { slot: 0 },
            Instr::Load { slot: 1 },
            Instr::Binary { op: Binary::Add, x, y },
        ] = self.epilogue.instrs()
        else {
            return false;
        };
        let [bias] = &self.epilogue_operands[..] else { return false };
        let dims = self.batch.iter().chain(&self.rows);
        let is_one_row = dims.zip(&bias.row_strides).all(|(&dim, &stride)| dim == 1 || stride == 0);
        x.0 != y.0 && bias.dtype == DType::F32 && bias.column_stride == 1 && is_one_row
    }

    /// From one row of C to the next, if C may hold the sums while they are made: it is nothing but them and a bias that
    /// they start from, its rows are evenly spaced, and so wide that vectors of `lanes` never reach beyond them.
    pub(super) fn sums_in_c(&self, lanes: usize) -> Option<usize> {
        let is_plain = self.epilogue.is_copy() || self.adds_bias();
        if !is_plain || self.c.dtype != DType::F32 || !self.columns.is_multiple_of(lanes) {
            return None;
        }
        let mut even = None;
        for (&dim, &stride) in self.rows.iter().zip(&self.c.row_strides[self.batch.len()..]).rev() {
            match even {
                _ if dim == 1 => {}
                None => even = Some((stride, dim * stride)),
                Some((row, next)) if next == stride => even = Some((row, dim * stride)),
                Some(_) => return None,
            }
        }
        Some(even.map_or(self.columns, |(row, _)| row))
    }

    /// Whether the parts fit each other.
    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |reason: String| Err(Error::InvalidSpec { kernel: "matmul", reason });
        let dims = [self.batch.as_slice(), self.rows.as_slice(), &[self.columns, self.depth]];
        if dims.iter().any(|dims| dims.contains(&0)) {
            return invalid("a dim is 0".to_owned());
        }
        let rank = self.batch.len() + self.rows.len();
        let named = [("A", &self.a), ("C", &self.c)];
        let prologue = self.prologue_operands.iter().map(|view| ("a prologue operand", view));
        let epilogue = self.epilogue_operands.iter().map(|view| ("an epilogue operand", view));
        for (name, view) in named.into_iter().chain(prologue).chain(epilogue) {
            if view.row_strides.len() != rank {
                let found = view.row_strides.len();
                return invalid(format!("{name} has {found} row strides, expected {rank}"));
            }
        }
        let b_dtype = match &self.b {
            BOperand::Packed(_) if !self.batch.is_empty() => {
                return invalid("packed B has no batch dims".to_owned());
            }
            BOperand::Packed(dtype) => *dtype,
            BOperand::Dense(view) if view.batch_strides.len() != self.batch.len() => {
                let (found, expected) = (view.batch_strides.len(), self.batch.len());
                return invalid(format!("B has {found} batch strides, expected {expected}"));
            }
            BOperand::Dense(view) => view.dtype,
        };
        if !self.product.is_float() {
            return invalid(format!("the product's type is {}, expected a float", self.product));
        }
        if !b_dtype.is_float() || !self.a.dtype.is_float() || !self.c.dtype.is_float() {
            return invalid("A, B and C must be floats".to_owned());
        }
        if self.c.column_stride != 1 && self.columns > 1 {
            return invalid(format!("column stride of C is {}, expected 1", self.c.column_stride));
        }
        let slot0 = if self.norm.is_some() { DType::F32 } else { self.a.dtype };
        if let Some(prologue) = &self.prologue {
            check_slots("prologue", prologue, slot0, &self.prologue_operands)?;
            if prologue.result() != DType::F32 {
                return invalid("the prologue's result must be f32".to_owned());
            }
        } else if !self.prologue_operands.is_empty() {
            return invalid("prologue operands without a prologue".to_owned());
        }
        check_slots("epilogue", &self.epilogue, DType::F32, &self.epilogue_operands)?;
        if self.epilogue.result() != self.c.dtype {
            return invalid("the epilogue's result differs from C's type".to_owned());
        }
        Ok(())
    }
}

fn check_slots(
    name: &str,
    program: &Program,
    slot0: DType,
    operands: &[RowView],
) -> Result<(), Error> {
    let expected: Vec<DType> =
        std::iter::once(slot0).chain(operands.iter().map(|view| view.dtype)).collect();
    if program.slots() == expected {
        return Ok(());
    }
    let reason = format!("the {name} reads {:?}, expected {expected:?}", program.slots());
    Err(Error::InvalidSpec { kernel: "matmul", reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::ProgramBuilder;

    fn view(dtype: DType, row_strides: &[usize]) -> RowView {
        RowView { dtype, row_strides: row_strides.to_vec(), column_stride: 1, offset: 0 }
    }

    /// 32 columns of C, whose rows over `rows` are `strides` apart.
    fn spec(rows: &[usize], strides: &[usize]) -> MatmulSpec {
        MatmulSpec {
            batch: vec![],
            rows: rows.to_vec(),
            columns: 32,
            depth: 1,
            a: view(DType::F32, &vec![1; rows.len()]),
            b: BOperand::Packed(DType::F32),
            product: DType::F32,
            digits: false,
            norm: None,
            prologue: None,
            prologue_operands: vec![],
            epilogue: Program::copy(DType::F32, DType::F32),
            epilogue_operands: vec![],
            c: view(DType::F32, strides),
        }
    }

    /// The same with an operand that is added, of rows that are `strides` apart.
    fn with_operand(op: Binary, dtype: DType, strides: &[usize]) -> MatmulSpec {
        let mut p = ProgramBuilder::new();
        let (x, y) = (p.slot(DType::F32), p.slot(dtype));
        let x = p.binary(op, x, y);
        let epilogue = p.finish(x, DType::F32).expect("it is short");
        let epilogue_operands = vec![view(dtype, strides)];
        MatmulSpec { epilogue, epilogue_operands, ..spec(&[5, 3], &[96, 32]) }
    }

    #[test]
    fn sums_are_made_in_results_that_are_nothing_else() {
        assert_eq!(spec(&[5], &[32]).sums_in_c(16), Some(32));
        assert_eq!(spec(&[5], &[39]).sums_in_c(8), Some(39));
        assert_eq!(spec(&[5, 1, 3], &[120, 7, 40]).sums_in_c(16), Some(40));
        assert_eq!(spec(&[1, 1], &[0, 0]).sums_in_c(16), Some(32));
        assert_eq!(spec(&[5, 3], &[97, 32]).sums_in_c(16), None);
        assert_eq!(spec(&[5], &[32]).sums_in_c(12), None);
        let narrow = Program::copy(DType::F32, DType::Bf16);
        let c = view(DType::Bf16, &[32]);
        assert_eq!(MatmulSpec { epilogue: narrow, c, ..spec(&[5], &[32]) }.sums_in_c(16), None);
    }

    #[test]
    fn they_start_from_a_bias_and_from_nothing_else() {
        assert_eq!(with_operand(Binary::Add, DType::F32, &[0, 0]).sums_in_c(16), Some(32));
        assert_eq!(with_operand(Binary::Add, DType::F32, &[96, 32]).sums_in_c(16), None);
        assert_eq!(with_operand(Binary::Add, DType::Bf16, &[0, 0]).sums_in_c(16), None);
        assert_eq!(with_operand(Binary::Mul, DType::F32, &[0, 0]).sums_in_c(16), None);
    }
}
