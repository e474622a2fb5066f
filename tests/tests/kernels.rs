//! Every kernel against the interpreter: on every op's examples and on fused forms, with operands
//! stored dense, permuted and with gaps, on every instruction set of this CPU, and with the same
//! bytes for 1, 2 and 3 threads.
//!
//! Tolerances: f32 results are within a relative L2 of 1e-6 of f64 arithmetic (a few roundings of
//! 6e-8 each; sums are compensated or short), but for attention with 512 head dims, where chains of
//! 512 multiply-adds, on the portable path rounded twice each, come to that: 2e-6. 3x3 convolutions
//! on many channels are computed by minimal filtering, whose transforms cost 1.3e-6: 3e-6. Half
//! results may land on the neighboring number where f32 and f64 round apart: one unit in the last
//! place of one element of a small tensor; bf16 attention also rounds its weights, and rows that it
//! normalizes or rotates, to bf16, each as large an error as that of the result. Movement and
//! integers are exact.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;

use kernels::{Isa, Kernel, Launch, Layout, Pool, Site, Target};
use ops::{
    Builder, DType, Error, Graph, Op, Role, Rounding, Tensor, TensorType, Tolerance, ValueId, eval,
    row_major_strides,
};
use tests::{Rng, relative_l2};

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/conv.rs"]
mod conv;
#[path = "kernels/conv_gradients.rs"]
mod conv_gradients;
#[path = "kernels/norms.rs"]
mod norms;
#[path = "kernels/scatter_add.rs"]
mod scatter_add;

/// Ops without a CPU kernel: only gradients need them.
const WITHOUT_KERNEL: [&str; 0] = [];

/// With a last-level cache so small that small operands are split for it.
fn target(isa: Isa) -> Target {
    Target {
        isa,
        threads: 2,
        l1_bytes: 32 << 10,
        l2_bytes: 1 << 20,
        l3_bytes: 300 << 10,
        gpu: None,
        tiles: None,
    }
}

/// How operands are stored.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Storage {
    Dense,
    /// Axes in another order in memory, from an offset on.
    Permuted,
    /// Every axis longer in memory than in the operand; rows stay contiguous.
    Gaps,
}

/// The layout of a value of type `ty`, and the elements its buffer has.
fn stored(ty: &TensorType, storage: Storage, rng: &mut Rng) -> (Layout, usize) {
    let mut layout = Layout::dense(ty);
    let rank = ty.rank();
    match storage {
        Storage::Dense => {}
        Storage::Permuted => {
            let mut order: Vec<usize> = (0..rank).collect();
            for i in (1..rank).rev() {
                order.swap(i, rng.below(i + 1));
            }
            let dims: Vec<usize> = order.iter().map(|&axis| ty.shape()[axis]).collect();
            let strides = row_major_strides(&dims);
            for (i, &axis) in order.iter().enumerate() {
                layout.strides[axis] = strides[i];
            }
            layout.offset = rng.below(3);
        }
        Storage::Gaps => {
            let dims: Vec<usize> = ty.shape().iter().map(|dim| dim + 1 + rng.below(2)).collect();
            layout.strides = row_major_strides(&dims);
            layout.offset = rng.below(5);
        }
    }
    let extent = layout.extent();
    (layout, extent)
}

fn each_position(layout: &Layout) -> Vec<usize> {
    let dense = row_major_strides(&layout.shape);
    let position = |i: usize| {
        let steps = (0..layout.rank()).map(|a| i / dense[a] % layout.shape[a] * layout.strides[a]);
        layout.offset + steps.sum::<usize>()
    };
    (0..layout.count()).map(position).collect()
}

/// The bytes of a buffer that stores `tensor` as `layout`, the rest filled with `fill`.
fn to_buffer(tensor: &Tensor, layout: &Layout, extent: usize, fill: u8) -> Vec<u8> {
    let size = layout.dtype.size();
    let bytes = tensor.to_bytes();
    let mut buffer = vec![fill; extent * size];
    for (i, at) in each_position(layout).into_iter().enumerate() {
        buffer[at * size..][..size].copy_from_slice(&bytes[i * size..][..size]);
    }
    buffer
}

/// Bytes that start on a multiple of 64, as an arena's do.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0xA5; len + 64];
        let start = bytes.as_ptr().align_offset(64);
        Aligned { bytes, start, len }
    }

    fn ptr(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    fn guard(&self) -> &[u8] {
        &self.bytes[self.start + self.len..]
    }
}

/// `graph` with groups, and groups in them, replaced by their bodies.
fn flattened(graph: &Graph) -> Graph {
    if !graph.values().any(|value| matches!(graph.op(value), Some(Op::Fused(_)))) {
        return graph.clone();
    }
    let mut b = Builder::new(graph.name.clone());
    let mut values: Vec<ValueId> = vec![];
    for node in &graph.nodes {
        let args: Vec<ValueId> = node.args.iter().map(|arg| values[arg.index()]).collect();
        values.push(match &node.role {
            Role::Op(op @ Op::Fused(_)) => op
                .def()
                .decompose(&mut b, &args)
                .expect("a group has a body")
                .expect("its ops are valid"),
            _ => b.copy_node(node, &args).expect("the graph was valid"),
        });
    }
    let outputs: Vec<ValueId> = graph.outputs.iter().map(|out| values[out.index()]).collect();
    flattened(&b.finish(&outputs))
}

struct Case<'a> {
    name: String,
    body: &'a Graph,
    operands: Vec<Tensor>,
    is_param: Vec<bool>,
    tolerance: Tolerance,
}

/// Runs the kernel of a site; `None` if no kernel takes it. The result's bytes, dense.
fn run(case: &Case<'_>, isa: Isa, storage: Storage, threads: usize) -> Option<(String, Vec<u8>)> {
    let mut rng = Rng::named(&case.name);
    let target = target(isa);
    let result_ty = case.body.ty(case.body.outputs[0]);
    let (mut layouts, mut buffers) = (vec![], vec![]);
    for (tensor, &is_param) in case.operands.iter().zip(&case.is_param) {
        let storage = if is_param { Storage::Dense } else { storage };
        let (layout, extent) = stored(tensor.ty(), storage, &mut rng);
        // NaN in the gaps shows up wherever it is read.
        buffers.push(to_buffer(tensor, &layout, extent, 0xFF));
        layouts.push(layout);
    }
    let result_storage = if storage == Storage::Gaps { Storage::Gaps } else { Storage::Dense };
    let (result, extent) = stored(result_ty, result_storage, &mut rng);
    let site = Site {
        body: case.body,
        operands: &layouts,
        is_param: &case.is_param,
        result: &result,
        target: &target,
    };
    let kernel = Kernel::select(&site)?;
    let def = kernel.def();
    let pool = Pool::new(threads).expect("the system starts threads");
    let mut packed: Vec<Aligned> = vec![];
    for (operand, buffer) in buffers.iter().enumerate() {
        let mut to = Aligned::new(match def.packing(operand) {
            Some(packing) => packing.bytes,
            None => buffer.len(),
        });
        let (start, len) = (to.start, to.len);
        match def.packing(operand) {
            Some(_) => {
                assert!(case.is_param[operand], "{}: packs an activation", case.name);
                def.pack(operand, buffer, &mut to.bytes[start..start + len], &pool);
            }
            None => to.bytes[start..start + len].copy_from_slice(buffer),
        }
        packed.push(to);
    }
    let size = result.dtype.size();
    let mut out = Aligned::new(extent * size);
    let mut scratch = Aligned::new(def.scratch_bytes(threads));
    let pointers: Vec<*const u8> = packed.iter_mut().map(|p| p.ptr().cast_const()).collect();
    let launch =
        Launch { pool: &pool, operands: &pointers, result: out.ptr(), scratch: scratch.ptr() };
    // SAFETY: every buffer holds its layout, the scratch has the size the kernel asked for.
    unsafe { def.run(&launch) };
    assert!(scratch.guard().iter().all(|&b| b == 0xA5), "{}: scratch is too small", case.name);
    let mut written = vec![false; extent];
    let start = out.start;
    let mut dense = vec![];
    for at in each_position(&result) {
        written[at] = true;
        dense.extend_from_slice(&out.bytes[start + at * size..][..size]);
    }
    for (at, _) in written.iter().enumerate().filter(|(_, written)| !**written) {
        let bytes = &out.bytes[start + at * size..][..size];
        assert!(bytes.iter().all(|&b| b == 0xA5), "{}: wrote into a gap at {at}", case.name);
    }
    // In place, where the kernel says it may be.
    for operand in 0..layouts.len() {
        if def.may_alias(operand) && layouts[operand] == result {
            let mut shared = Aligned::new(extent * size);
            let (from, len) = (shared.start, shared.len);
            shared.bytes[from..from + len].copy_from_slice(&buffers[operand]);
            let mut pointers = pointers.clone();
            pointers[operand] = shared.ptr().cast_const();
            let launch = Launch {
                pool: &pool,
                operands: &pointers,
                result: shared.ptr(),
                scratch: scratch.ptr(),
            };
            // SAFETY: as above, and the kernel allows the overlap.
            unsafe { def.run(&launch) };
            let inplace: Vec<u8> = each_position(&result)
                .into_iter()
                .flat_map(|at| shared.bytes[from + at * size..][..size].to_vec())
                .collect();
            assert_eq!(inplace, dense, "{}: differs in place of operand {operand}", case.name);
        }
    }
    Some((def.name().to_owned(), dense))
}

/// Runs a case in every way and compares; returns which kernel took it, dense, and the largest
/// error relative to the tolerance.
fn check(case: &Case<'_>) -> Option<(String, f64)> {
    let result_ty = case.body.ty(case.body.outputs[0]).clone();
    let given: BTreeMap<String, Tensor> =
        case.operands.iter().enumerate().map(|(i, t)| (i.to_string(), t.clone())).collect();
    let expected =
        eval(case.body, &given, Rounding::Exact).expect("every operand is given").remove(0);
    let (mut taken, mut worst) = (None, 0f64);
    for isa in Isa::available() {
        for storage in [Storage::Dense, Storage::Permuted, Storage::Gaps] {
            let Some((kernel, bytes)) = run(case, isa, storage, 1) else {
                assert!(storage != Storage::Dense || taken.is_none(), "{}: {isa}", case.name);
                continue;
            };
            let what = format!("{} by {kernel} on {isa}, {storage:?}", case.name);
            for threads in [2, 3] {
                let (_, again) = run(case, isa, storage, threads)
                    .expect("the choice does not depend on threads");
                assert_eq!(again, bytes, "{what}: {threads} threads change the bytes");
            }
            if storage == Storage::Dense {
                taken = Some(kernel);
            }
            let found = Tensor::from_bytes(result_ty.clone(), &bytes).expect("the result is dense");
            let limit = match (case.tolerance, result_ty.dtype()) {
                (_, DType::I64 | DType::I32 | DType::U8 | DType::Bool) => {
                    assert_eq!(found, expected.clone().rounded(), "{what}");
                    continue;
                }
                (Tolerance::Exact, _) => {
                    assert_eq!(found, expected.clone().rounded(), "{what}");
                    continue;
                }
                (Tolerance::Relative(limit), DType::F32) => limit,
                (Tolerance::Relative(_), DType::F16) => 1e-3,
                (Tolerance::Relative(_), _) => 8e-3,
            };
            let error = relative_l2(found.as_floats(), expected.clone().rounded().as_floats());
            assert!(error <= limit, "{what}: error {error:e}, at most {limit:e}");
            worst = worst.max(error / limit);
        }
    }
    taken.map(|kernel| (kernel, worst))
}

#[test]
fn every_example_of_every_op_runs_and_agrees() {
    let mut without: Vec<String> = vec![];
    for (index, example) in Op::examples().into_iter().enumerate() {
        let def = example.op.def();
        let name = format!("{} #{index}", def.name());
        let mut b = Builder::new("site");
        let args: Vec<ValueId> = (example.args.iter().enumerate())
            .map(|(i, ty)| b.input(&i.to_string(), ty.clone()))
            .collect();
        let out = b.op(example.op.clone(), &args).unwrap();
        let body = flattened(&b.finish(&[out]));
        let operands = Rng::named(&name).operands(&example);
        for weights in [false, true] {
            // The second operand as a weight, then as an activation.
            let is_param: Vec<bool> = (0..operands.len()).map(|i| weights && i == 1).collect();
            let case = Case {
                name: name.clone(),
                body: &body,
                operands: operands.clone(),
                is_param,
                tolerance: def.tolerance(),
            };
            if check(&case).is_none() {
                without.push(def.name().to_owned());
            }
        }
    }
    without.sort();
    without.dedup();
    assert_eq!(without, WITHOUT_KERNEL);
}

/// A body on inputs of these shapes, checked with values in [-2, 2]; params by position.
fn check_body(
    name: &str,
    kernel: &str,
    types: &[(&[usize], DType)],
    params: &[usize],
    build: impl Fn(&mut Builder, &[ValueId]) -> Result<ValueId, Error>,
) {
    check_body_in((-2.0, 2.0), name, kernel, types, params, build);
}

/// [`check_body`] with values in `range`.
fn check_body_in(
    range: (f64, f64),
    name: &str,
    kernel: &str,
    types: &[(&[usize], DType)],
    params: &[usize],
    build: impl Fn(&mut Builder, &[ValueId]) -> Result<ValueId, Error>,
) {
    let mut b = Builder::new("site");
    let types: Vec<TensorType> = types
        .iter()
        .map(|(shape, dtype)| TensorType::new(*dtype, *shape).expect("test shapes are small"))
        .collect();
    let args: Vec<ValueId> =
        types.iter().enumerate().map(|(i, ty)| b.input(&i.to_string(), ty.clone())).collect();
    let out = build(&mut b, &args).expect("test bodies are valid");
    let body = b.finish(&[out]);
    let mut rng = Rng::named(name);
    let operands: Vec<Tensor> = types.iter().map(|ty| rng.tensor(ty, range)).collect();
    let is_param = (0..operands.len()).map(|i| params.contains(&i)).collect();
    let is_long = types[0].rank() == 4 && types[0].shape()[3] == 512;
    let convolves = ["conv", "conv_input_grad"].contains(&kernel);
    let is_filtered = convolves && types[1].shape().ends_with(&[3, 3]);
    // Attention on bf16 rows is as exact as they are, also where its result is f32.
    let is_bf16 = kernel == "attention" && types[0].dtype() == BF16;
    let tolerance = Tolerance::Relative(match (is_bf16, is_filtered, is_long) {
        (true, _, _) => 8e-3,
        (false, true, _) => 3e-6,
        (false, false, true) => 2e-6,
        (false, false, false) => 1e-6,
    });
    let case = Case { name: name.to_owned(), body: &body, operands, is_param, tolerance };
    let (taken, _) = check(&case).unwrap_or_else(|| panic!("no kernel takes {name}"));
    assert_eq!(taken, kernel, "{name}");
}

const F32: DType = DType::F32;
const BF16: DType = DType::Bf16;

#[test]
fn maps_run_chains_with_every_kind_of_broadcast() {
    let shape: &[usize] = &[3, 5, 37];
    let types: [(&[usize], DType); 4] =
        [(shape, F32), (&[3, 1, 37], F32), (&[1, 5, 1], BF16), (&[1, 1, 1], F32)];
    check_body("broadcast chain", "map", &types, &[], |b, args| {
        let x = b.mul(args[0], args[1])?;
        let gate = b.cast(args[2], F32)?;
        let gate = b.mul(gate, args[3])?;
        let x = b.silu(x)?;
        let x = b.mul(x, gate)?;
        b.add(x, args[0])
    });
    check_body("long rows", "map", &[(&[2, 40_000], F32), (&[2, 1], F32)], &[], |b, args| {
        let x = b.gelu_tanh(args[0])?;
        b.add(x, args[1])
    });
    check_body("mask", "map", &[(shape, F32), (&[3, 5, 1], DType::I64)], &[], |b, args| {
        let id = b.cast(args[1], F32)?;
        let zero = b.splat_like(id, 0.0)?;
        let mask = b.less(zero, id)?;
        let other = b.mul_scalar(args[0], -3.0)?;
        b.select(mask, args[0], other)
    });
    for exponent in [2.0, -0.5, 3.0, 1.5, 0.3] {
        check_body("power", "map", &[(shape, F32)], &[], |b, args| {
            let x = b.square(args[0])?;
            let x = b.add_scalar(x, 0.1)?;
            b.pow_scalar(x, exponent)
        });
    }
    check_body("integers", "map", &[(&[3, 70][..], DType::I64); 2], &[], |b, args| {
        let x = b.mul(args[0], args[1])?;
        let less = b.less(x, args[0])?;
        let y = b.sub(x, args[1])?;
        let z = b.select(less, x, y)?;
        b.cast(z, DType::I32)
    });
}

#[test]
fn copies_make_views_real() {
    for dtype in [F32, BF16, DType::U8, DType::I64] {
        check_body("transpose", "map", &[(&[2, 45, 67], dtype)], &[], |b, args| {
            b.permute(args[0], &[0, 2, 1])
        });
        check_body("reverse", "map", &[(&[3, 4, 5, 33], dtype)], &[], |b, args| {
            b.permute(args[0], &[3, 1, 2, 0])
        });
        check_body("slice", "map", &[(&[7, 9, 33], dtype)], &[], |b, args| {
            let x = b.slice(args[0], &[1, 0, 2], &[7, 9, 31], &[2, 1, 3])?;
            b.permute(x, &[1, 0, 2])
        });
    }
}

#[test]
fn reductions_fold_any_axes_with_code_around_them() {
    // The last two: short rows, which are joined; enough terms for several parts.
    let shapes: [&[usize]; 4] = [&[3, 50, 70], &[2, 1, 1300], &[600, 3, 2], &[2, 9000, 5]];
    for shape in shapes {
        for axes in [&[2][..], &[1], &[0], &[0, 2], &[0, 1, 2], &[1, 2]] {
            check_body("sum of squares", "reduce", &[(shape, F32)], &[], |b, args| {
                let x = b.square(args[0])?;
                let x = b.reduce_sum(x, axes)?;
                let x = b.add_scalar(x, 0.5)?;
                b.sqrt(x)
            });
            check_body("largest", "reduce", &[(shape, BF16)], &[], |b, args| {
                b.reduce_max(args[0], axes)
            });
        }
    }
}

#[test]
fn halves_of_pairs_are_reduced_where_they_lie() {
    // The gradient by the angles of a rotation: the last element of the operand ends a row.
    for (tokens, heads, pairs) in [(40, 7, 36), (3, 2, 8), (5, 33, 17)] {
        let shape: &[usize] = &[tokens, heads, pairs, 2];
        let types = [(shape, F32), (shape, F32)];
        for axes in [&[0, 1][..], &[1], &[2]] {
            check_body("pairs", "reduce", &types, &[], |b, args| {
                let half = |b: &mut Builder, x, i| b.slice_axis(x, 3, i, i + 1);
                let (x, y) = (half(b, args[0], 0)?, half(b, args[1], 1)?);
                let (z, w) = (half(b, args[0], 1)?, half(b, args[1], 0)?);
                let (a, c) = (b.mul(x, y)?, b.mul(z, w)?);
                let turned = b.sub(a, c)?;
                b.reduce_sum(turned, axes)
            });
        }
    }
}

#[test]
fn few_results_of_many_elements_are_folded_in_parts() {
    // Rows into a strip, whole rows, one row, rows of several; parts that end within a row.
    let cases: [(&[usize], &[usize]); 4] =
        [(&[2003, 99], &[0]), (&[701, 1001], &[0]), (&[200_003], &[0]), (&[7, 3, 30_001], &[0, 2])];
    for (shape, axes) in cases {
        check_body("sum of squares in parts", "reduce", &[(shape, BF16)], &[], |b, args| {
            let x = b.square(args[0])?;
            b.reduce_sum(x, axes)
        });
        check_body("sum in parts", "reduce", &[(shape, F32)], &[], |b, args| {
            let x = b.reduce_sum(args[0], axes)?;
            b.mul_scalar(x, 0.5)
        });
        check_body("largest in parts", "reduce", &[(shape, BF16)], &[], |b, args| {
            b.reduce_max(args[0], axes)
        });
    }
}
