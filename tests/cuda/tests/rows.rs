//! Norms, softmax and reductions of rows, alone and with code around them.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use kernels::cuda::Gpu;
use ops::{Builder, DType, Graph, TensorType};

fn ty(dtype: DType, shape: &[usize]) -> TensorType {
    TensorType::new(dtype, shape).expect("a valid shape")
}

/// Runs `graph`, whose kernels must be those of `functions`.
fn check(graph: &Graph, range: (f64, f64), functions: &[&str]) {
    for gpu in [Gpu(80), Gpu(90)] {
        assert_eq!(cuda_tests::functions(graph, gpu), functions, "{}", graph.name);
    }
    let error = cuda_tests::distance(graph, &cuda_tests::given(&graph.name, graph, range), Gpu(80));
    let result = graph.ty(graph.outputs[0]).dtype();
    let most = if result == DType::F32 { 2e-6 } else { 4e-3 };
    assert!(error < most, "{}: {error}", graph.name);
}

#[test]
fn norms_of_rows_of_any_length_follow_the_interpreter() {
    for (dtype, rows, len) in [
        (DType::F32, 3, 1),
        (DType::F32, 70, 7),
        (DType::Bf16, 37, 72),
        (DType::F16, 5, 1152),
        (DType::F32, 4, 2048),
        (DType::Bf16, 2, 2056),
        (DType::Bf16, 2, 4096),
        (DType::F32, 1, 4099),
        (DType::F32, 1, 32_000),
        (DType::F32, 1, 70_000),
    ] {
        for norm in 0..3 {
            let mut b = Builder::new(format!("{norm}_{dtype}_{rows}x{len}"));
            let x = b.input("x", ty(dtype, &[rows, len]));
            let y = match norm {
                0 => b.layer_norm(x, 1e-6).unwrap(),
                1 => b.rms_norm(x, 1e-6).unwrap(),
                _ => b.softmax(x, 1).unwrap(),
            };
            check(&b.finish(&[y]), (-2.0, 5.0), &["rows"]);
        }
    }
}

#[test]
fn code_around_a_norm_is_part_of_its_launch() {
    for (dtype, n, s, len) in
        [(DType::F32, 2, 5, 36), (DType::Bf16, 2, 9, 1152), (DType::Bf16, 3, 2, 4096)]
    {
        let mut b = Builder::new(format!("modulated_{dtype}_{len}"));
        let x = b.input("x", ty(dtype, &[n, s, len]));
        let residual = b.input("residual", ty(dtype, &[n, s, len]));
        let [scale, shift] = ["scale", "shift"].map(|name| b.input(name, ty(dtype, &[n, 1, len])));
        let y = b.layer_norm(x, 1e-6).unwrap();
        let y = b.mul(y, scale).unwrap();
        let y = b.add(y, shift).unwrap();
        let y = b.add(y, residual).unwrap();
        check(&b.finish(&[y]), (-2.0, 5.0), &["rows"]);
    }
}

#[test]
fn a_row_may_be_written_over_what_it_is_made_of() {
    for (rows, len) in [(5, 40), (3, 5000), (1, 40_000)] {
        let mut b = Builder::new(format!("in_place_{rows}x{len}"));
        let parts = ["x", "y"].map(|name| b.input(name, ty(DType::F32, &[rows, len])));
        let y = b.concat(&parts, 0).unwrap();
        let z = b.softmax(y, 1).unwrap();
        let z = b.add(z, y).unwrap();
        let graph = b.finish(&[z]);
        let plan = compiler::compile(graph.clone(), &cuda_tests::target(Gpu(80))).unwrap();
        let last = plan.steps.last().unwrap();
        let compiler::Place::Buffer(from) = last.operands[0].place else { panic!("no buffer") };
        let offset = |buffer: compiler::BufferId| plan.buffers[buffer.index()].offset;
        assert_eq!(offset(from), offset(last.result), "{plan}");
        check(&graph, (-2.0, 5.0), &["map", "map", "rows"]);
    }
}

#[test]
fn softmax_takes_any_axis() {
    let mut b = Builder::new("columns");
    let x = b.input("x", ty(DType::F32, &[3, 40, 6]));
    let y = b.softmax(x, 1).unwrap();
    check(&b.finish(&[y]), (-8.0, 8.0), &["rows"]);
}

#[test]
fn reductions_of_rows_follow_the_interpreter() {
    for (shape, axes) in [
        (vec![3, 5, 7], vec![2]),
        (vec![3, 8, 16], vec![1, 2]),
        (vec![2, 3000], vec![1]),
        (vec![40, 33], vec![0, 1]),
        (vec![5, 12], vec![0]),
        (vec![9, 4, 40], vec![0, 1]),
        (vec![3, 5, 7, 6], vec![1, 3]),
    ] {
        let dtypes =
            if shape.len() == 2 { vec![DType::F32, DType::Bf16] } else { vec![DType::F32] };
        for dtype in dtypes {
            for is_sum in [true, false] {
                let mut b = Builder::new(format!("{is_sum}_{dtype}_{shape:?}_{axes:?}"));
                let x = b.input("x", ty(dtype, &shape));
                let x = b.square(x).unwrap();
                let y = if is_sum { b.reduce_sum(x, &axes) } else { b.reduce_max(x, &axes) };
                let y = b.sqrt(y.unwrap()).unwrap();
                let last = axes.contains(&(shape.len() - 1));
                let is_row = last && axes.windows(2).all(|pair| pair[0] + 1 == pair[1]);
                let function = if is_row { "rows" } else { "columns" };
                check(&b.finish(&[y]), (-3.0, 5.0), &[function]);
            }
        }
    }
}
