//! Gathers, concats, pads and copies: bits move unchanged.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use cuda_tests::functions;
use kernels::cuda::Gpu;
use ops::{Builder, DType, Graph, TensorType};

fn ty(dtype: DType, shape: &[usize]) -> TensorType {
    TensorType::new(dtype, shape).expect("a valid shape")
}

/// The result of `graph` is the interpreter's, bit by bit.
fn check(graph: &Graph, range: (f64, f64)) {
    let given = cuda_tests::given(&graph.name, graph, range);
    let found = cuda_tests::run(graph, &given, Gpu(80));
    assert!(found == cuda_tests::expected(graph, &given), "{}", graph.name);
}

#[test]
fn rows_are_gathered_and_ids_outside_give_zeros() {
    for (table, ids, id_dtype) in [
        (vec![5, 3], vec![7], DType::I32),
        (vec![9, 64], vec![2, 5], DType::I64),
        (vec![4, 2, 24], vec![3, 3], DType::I64),
        (vec![6], vec![2, 9], DType::I32),
    ] {
        for dtype in [DType::Bf16, DType::F32, DType::I64] {
            let mut b = Builder::new(format!("gather_{dtype}_{table:?}_{ids:?}"));
            let x = b.input("table", ty(dtype, &table));
            let ids = b.input("ids", ty(id_dtype, &ids));
            let y = b.gather(x, ids).unwrap();
            check(&b.finish(&[y]), (-2.0, table[0] as f64 + 1.0));
        }
    }
}

#[test]
fn parts_are_joined_along_any_axis() {
    for dtype in [DType::Bf16, DType::F32, DType::I64, DType::U8, DType::Bool] {
        for axis in 0..3 {
            let mut b = Builder::new(format!("concat_{dtype}_{axis}"));
            let mut shape = vec![3, 4, 16];
            let x = b.input("x", ty(dtype, &shape));
            shape[axis] = 5;
            let y = b.input("y", ty(dtype, &shape));
            let z = b.concat(&[x, y, x], axis).unwrap();
            check(&b.finish(&[z]), (-1e9, 1e9));
        }
    }
}

#[test]
fn zeros_surround_what_is_padded() {
    for dtype in [DType::Bf16, DType::F32, DType::I64] {
        let mut b = Builder::new(format!("pad_{dtype}"));
        let x = b.input("x", ty(dtype, &[3, 4, 8]));
        let y = b.pad(x, &[0, 1, 0], &[2, 0, 8]).unwrap();
        check(&b.finish(&[y]), (-1e9, 1e9));
    }
}

#[test]
fn views_become_real() {
    for dtype in [DType::Bf16, DType::F32, DType::I32, DType::I64, DType::U8, DType::Bool] {
        for (name, axes) in [("transposed", [2, 1, 0]), ("turned", [1, 0, 2]), ("half", [0, 2, 1])]
        {
            let mut b = Builder::new(format!("{name}_{dtype}"));
            let x = b.input("x", ty(dtype, &[33, 5, 40]));
            let y = b.permute(x, &axes).unwrap();
            check(&b.finish(&[y]), (-1e9, 1e9));
        }
        let mut b = Builder::new(format!("repeated_{dtype}"));
        let x = b.input("x", ty(dtype, &[3, 1, 8, 1]));
        let y = b.broadcast(x, &[3, 5, 8, 4]).unwrap();
        check(&b.finish(&[y]), (-1e9, 1e9));
    }
}

#[test]
fn what_crosses_goes_through_tiles() {
    for (dtype, shape, axes) in [
        (DType::Bf16, vec![40, 70], vec![1, 0]),
        (DType::F32, vec![2, 33, 3, 64], vec![0, 3, 2, 1]),
        (DType::U8, vec![16, 17], vec![1, 0]),
        (DType::I32, vec![5, 20, 31], vec![0, 2, 1]),
    ] {
        let mut b = Builder::new(format!("crossed_{dtype}_{shape:?}"));
        let x = b.input("x", ty(dtype, &shape));
        let y = b.permute(x, &axes).unwrap();
        let graph = b.finish(&[y]);
        assert_eq!(functions(&graph, Gpu(90)), ["transpose"], "{}", graph.name);
        check(&graph, (-1e9, 1e9));
    }
}

#[test]
fn heads_are_moved_sixteen_bytes_at_a_time() {
    let mut b = Builder::new("heads");
    let x = b.input("x", ty(DType::Bf16, &[2, 5, 4, 72]));
    let y = b.permute(x, &[0, 2, 1, 3]).unwrap();
    let graph = b.finish(&[y]);
    assert_eq!(functions(&graph, Gpu(90)), ["map"]);
    let plan = compiler::compile(graph.clone(), &cuda_tests::target(Gpu(90))).unwrap();
    assert!(plan.to_string().contains("vector = 8"), "{plan}");
    check(&graph, (-1e9, 1e9));
}
