//! `matmul` with everything that is fused into it: from a site to a [`Matmul`].
//!
//! Takes one product per body. Operand A may pass through a norm of its rows and elementwise code
//! while it is packed; the result through elementwise code while it is in cache. A weight of rank 2
//! is packed once at load, in its stored element type; any other B is packed in every run, part by part. Rows are
//! numbered over all leading dims, so A, C and the operands may be strided views.

use ops::{Attr, DType, Graph, Op, ValueId};

use crate::Layout;
use crate::kernel::{Columns, Kernel, KernelDef, Launch, Packing, Site};
use crate::pool::Pool;
use crate::program::{Instr, MAX_SLOTS, Program};

use super::matmul::{BOperand, BView, Caches, Matmul, MatmulBuffers, MatmulSpec};
use super::matmul_rows::{Norm, RowView};
use super::reduce_columns::ColumnSums;
use super::shared::Shared;
use crate::body::{Elementwise, Leaf, Source, compile_elementwise, operand_view};
use crate::matmul_site::MatmulSite;
use crate::simd::digits::DEPTHS_OF_DIGITS;

/// Elements of B from which on digits are made of it: of fewer, that takes longer than it saves. One row only reads B, but
/// how many there are besides does not matter: some of the tokens give the bits of all.
const LEAST_OF_DIGITS: usize = 1 << 19;

/// A product and where its parts come from.
#[derive(Clone, Debug)]
pub struct FusedMatmul {
    matmul: Matmul,
    a: Source,
    b: usize,
    prologue: Vec<Source>,
    epilogue: Vec<Source>,
    /// Which operands the result may lie over.
    in_place: Vec<bool>,
    /// Strides of a weight's depth and columns in its dense form.
    weight_strides: (usize, usize),
}

/// Operand A on its way into the product: source 0 is what rows are read from.
struct Left {
    norm: Option<Norm>,
    program: Option<Program>,
    leaves: Vec<Leaf>,
}

impl FusedMatmul {
    /// Takes one `matmul` in the form described above.
    pub fn select(site: &Site<'_>) -> Option<FusedMatmul> {
        let product = MatmulSite::of(site)?;
        let weight_strides = product.b_strides();
        let digits = site.target.isa.tiles().is_some()
            && [product.product, product.b_view.dtype] == [DType::F32; 2]
            && product.depth >= DEPTHS_OF_DIGITS
            && product.rows.iter().product::<usize>() > 1
            && product.columns * product.depth >= LEAST_OF_DIGITS;
        // Digits take more memory than a weight, so they are made in each run; of what is packed, they are not made
        // faster.
        let b = if product.is_weight && !digits {
            BOperand::Packed(product.b_view.dtype)
        } else {
            BOperand::Dense(BView {
                dtype: product.b_view.dtype,
                batch_strides: product.b_batch_strides(),
                depth_stride: weight_strides.0,
                column_stride: weight_strides.1,
                offset: product.b_view.offset,
            })
        };
        let left = left(site.body, product.a, site.operands)?;
        if product.transposes_a() && left.norm.is_some() {
            return None;
        }
        let code = &product.epilogue;
        let at = code.leaves.iter().position(|leaf| matches!(leaf.source, Source::Frontier(_)))?;
        let in_place = (0..site.operands.len())
            .map(|operand| {
                let elsewhere =
                    left.leaves.iter().any(|leaf| leaf.source == Source::Operand(operand));
                operand != product.b && !elsewhere && code.may_alias(operand, site.result)
            })
            .collect();
        let (epilogue, leaves) = with_first(code, at)?;

        let a_views: Vec<RowView> =
            left.leaves.iter().map(|leaf| rows(&product.a_rows(&leaf.layout))).collect();
        let epilogue_views: Vec<RowView> =
            leaves[1..].iter().map(|leaf| rows(&leaf.layout)).collect();
        let (a_view, prologue_views) = a_views.split_first()?;
        let spec = joined(MatmulSpec {
            batch: product.batch,
            rows: product.rows,
            columns: product.columns,
            depth: product.depth,
            a: a_view.clone(),
            b,
            product: product.product,
            digits,
            norm: left.norm,
            prologue: left.program,
            prologue_operands: prologue_views.to_vec(),
            epilogue,
            epilogue_operands: epilogue_views,
            c: rows(site.result),
        });
        let caches = Caches { l2: site.target.l2_bytes, l3: site.target.l3_bytes };
        let matmul = Matmul::new(spec, site.target.isa, caches).ok()?;
        let sources =
            |leaves: &[Leaf]| leaves[1..].iter().map(|leaf| leaf.source.clone()).collect();
        Some(FusedMatmul {
            matmul,
            a: left.leaves[0].source.clone(),
            b: product.b,
            prologue: sources(&left.leaves),
            epilogue: sources(&leaves),
            in_place,
            weight_strides,
        })
    }
}

/// Reads what makes operand A: a view, or elementwise code, or a norm and elementwise code.
fn left(body: &Graph, a: ValueId, operands: &[Layout]) -> Option<Left> {
    if let Some((operand, layout)) = operand_view(body, a, operands) {
        let leaf = Leaf { source: Source::Operand(operand), layout };
        return Some(Left { norm: None, program: None, leaves: vec![leaf] });
    }
    let mut norms = body.values().filter_map(|value| match body.op(value)? {
        Op::LayerNorm(norm) => Some((value, Norm::Layer { eps: norm.eps as f32 })),
        Op::RmsNorm(norm) => Some((value, Norm::Rms { eps: norm.eps as f32 })),
        _ => None,
    });
    let Some((value, norm)) = norms.next() else {
        // Any leaf that is not repeated along the rows can be what rows are read from.
        let code = compile_elementwise(body, a, &[], operands)?.widened();
        let first = code.leaves.iter().position(|leaf| !leaf.layout.strides.contains(&0));
        let (program, leaves) = with_first(&code, first.unwrap_or(0))?;
        return Some(Left { norm: None, program: Some(program), leaves });
    };
    if norms.next().is_some() || body.ty(value).shape() != body.ty(a).shape() {
        return None;
    }
    let (operand, layout) = operand_view(body, body.node(value).args[0], operands)?;
    let source = Leaf { source: Source::Operand(operand), layout };
    if value == a {
        return Some(Left { norm: Some(norm), program: None, leaves: vec![source] });
    }
    let code = compile_elementwise(body, a, &[value], operands)?.widened();
    let at = code.leaves.iter().position(|leaf| matches!(leaf.source, Source::Frontier(_)))?;
    let (program, mut leaves) = with_first(&code, at)?;
    leaves[0] = source;
    Some(Left { norm: Some(norm), program: Some(program), leaves })
}

/// The code with leaf `at` in slot 0.
fn with_first(code: &Elementwise, at: usize) -> Option<(Program, Vec<Leaf>)> {
    if at >= code.leaves.len() {
        return None;
    }
    let mut order: Vec<usize> = (0..code.leaves.len()).collect();
    order.swap(0, at);
    let slots = order.iter().map(|&slot| code.program.slots()[slot]).collect();
    let instrs = code.program.instrs().iter().map(|instr| match *instr {
        // A swap is its own inverse.
        Instr::Load { slot } => Instr::Load { slot: order[slot] },
        other => other,
    });
    let program = Program::new(slots, instrs.collect(), code.program.result()).ok()?;
    Some((program, order.iter().map(|&slot| code.leaves[slot].clone()).collect()))
}

/// A layout as rows over all axes but the last.
fn rows(layout: &Layout) -> RowView {
    let n = layout.rank() - 1;
    RowView {
        dtype: layout.dtype,
        row_strides: layout.strides[..n].to_vec(),
        column_stride: layout.strides[n],
        offset: layout.offset,
    }
}

/// The same product with neighboring row dims joined where every operand steps evenly.
fn joined(mut spec: MatmulSpec) -> MatmulSpec {
    let n_batch = spec.batch.len();
    let mut at = 0;
    while at + 1 < spec.rows.len() {
        let inner_dim = spec.rows[at + 1];
        let axis = n_batch + at;
        let even = |view: &RowView| {
            view.row_strides[axis] == view.row_strides[axis + 1] * inner_dim || spec.rows[at] == 1
        };
        let views = || {
            [&spec.a, &spec.c]
                .into_iter()
                .chain(&spec.prologue_operands)
                .chain(&spec.epilogue_operands)
        };
        if !views().all(even) {
            at += 1;
            continue;
        }
        spec.rows[at] *= inner_dim;
        spec.rows.remove(at + 1);
        spec.a.row_strides.remove(axis);
        spec.c.row_strides.remove(axis);
        for view in spec.prologue_operands.iter_mut().chain(&mut spec.epilogue_operands) {
            view.row_strides.remove(axis);
        }
    }
    spec
}

impl KernelDef for FusedMatmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        let blocks = self.matmul.blocks().map(|(name, size)| (name, Attr::Int(size as i64)));
        let words = Attr::Str(self.matmul.words().dtype().to_string());
        blocks.into_iter().chain([("words", words)]).collect()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.matmul.scratch_bytes(threads)
    }

    fn packing(&self, operand: usize) -> Option<Packing> {
        let BOperand::Packed(dtype) = self.matmul.spec().b else { return None };
        if operand != self.b {
            return None;
        }
        let spec = self.matmul.spec();
        let bytes = self.matmul.packed_b_bytes();
        let (depth, column) = self.weight_strides;
        let name = format!(
            "{}.{}.{dtype}.k{}s{depth}.n{}s{column}",
            self.matmul.packed_b_form(),
            self.matmul.isa(),
            spec.depth,
            spec.columns
        );
        Some(Packing { name, bytes })
    }

    fn pack(&self, _: usize, dense: &[u8], packed: &mut [u8], pool: &Pool) {
        self.matmul
            .pack_b(pool, dense, self.weight_strides, packed)
            .expect("`packing` states the size of the packed weight");
    }

    fn may_alias(&self, operand: usize) -> bool {
        self.in_place[operand]
    }

    fn columns_read(&self) -> Option<Columns> {
        let Source::Operand(operand) = self.a else { return None };
        let columns = self.matmul.columns_of_a().filter(|_| cfg!(feature = "training"));
        columns.map(|columns| Columns { operand, ..columns })
    }

    unsafe fn run_with_sums(&self, launch: &Launch<'_>, (kernel, sums): (&Kernel, &Launch<'_>)) {
        let Kernel::Reduce(reduce) = kernel else {
            unreachable!("the plan was checked: only reductions add up columns")
        };
        // SAFETY: passed on.
        unsafe { self.multiply(launch, Some(ColumnSums::new(reduce, sums))) }
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        // SAFETY: passed on.
        unsafe { self.multiply(launch, None) }
    }
}

impl FusedMatmul {
    /// Runs.
    ///
    /// # Safety
    /// As [`KernelDef::run_with_sums`], or [`KernelDef::run`].
    unsafe fn multiply(&self, launch: &Launch<'_>, sums: Option<ColumnSums<'_>>) {
        let shared = Shared::new(launch);
        let base = |source: &Source| match source {
            Source::Operand(operand) => shared.operand(*operand),
            Source::Constant(bytes) => bytes.as_ptr(),
            Source::Frontier(_) => unreachable!("the frontier is slot 0"),
        };
        let mut prologue = [std::ptr::null(); MAX_SLOTS];
        let mut epilogue = [std::ptr::null(); MAX_SLOTS];
        for (table, sources) in [(&mut prologue, &self.prologue), (&mut epilogue, &self.epilogue)] {
            for (slot, source) in table.iter_mut().zip(sources) {
                *slot = base(source);
            }
        }
        let buffers = MatmulBuffers {
            a: base(&self.a),
            b: shared.operand(self.b),
            prologue: &prologue[..self.prologue.len()],
            epilogue: &epilogue[..self.epilogue.len()],
            c: shared.result(),
            scratch: shared.scratch(),
        };
        // SAFETY: the caller promises buffers that hold the layouts the spec was made from; B is
        // packed as `packing` asks; C lies over an operand only where `may_alias` allows it.
        unsafe { self.matmul.run_with_sums(launch.pool, &buffers, sums) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ops::DType;

    #[test]
    fn swapped_slots_load_the_same_leaves() {
        let mut b = ops::Builder::new("body");
        let ty = |shape: &[usize]| ops::TensorType::new(DType::F32, shape).unwrap();
        let x = b.input("0", ty(&[2, 3]));
        let y = b.input("1", ty(&[1, 3]));
        let sum = b.sub(x, y).unwrap();
        let graph = b.finish(&[sum]);
        let layouts = [Layout::dense(&ty(&[2, 3])), Layout::dense(&ty(&[1, 3]))];
        let code = compile_elementwise(&graph, sum, &[], &layouts).unwrap();
        let (program, leaves) = with_first(&code, 1).unwrap();
        assert_eq!(leaves[0].source, Source::Operand(1));
        assert_eq!(program.instrs()[0], Instr::Load { slot: 1 });
    }
}
