//! Elementwise groups and copies.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;

use kernels::cuda::Gpu;
use ops::defs::unary::Unary;
use ops::{Builder, DType, Op, TensorType};
use tests::{Rng, relative_l2};

#[test]
fn every_site_follows_the_interpreter() {
    for site in cuda_tests::sites::sites() {
        let given = site.given();
        let found = cuda_tests::run(&site.graph, &given, Gpu(80));
        let expected = cuda_tests::expected(&site.graph, &given);
        for (found, expected) in found.iter().zip(&expected) {
            let error = relative_l2(found.as_floats(), expected.as_floats());
            assert!(error <= site.limit, "{}: {error}", site.name);
        }
    }
}

/// Where functions are compared: all but those that overflow or are undefined beyond.
fn range(op: Unary) -> (f64, f64) {
    match op {
        Unary::Exp => (-80.0, 80.0),
        Unary::Log | Unary::Sqrt | Unary::Rsqrt => (1e-6, 1e6),
        Unary::Sin | Unary::Cos => (-3e4, 3e4),
        Unary::Recip => (0.01, 1e4),
        _ => (-30.0, 30.0),
    }
}

#[test]
fn functions_of_f32_are_accurate_far_from_zero() {
    for &op in Unary::ALL {
        let mut b = Builder::new(format!("{op:?}"));
        let ty = TensorType::new(DType::F32, [1000]).unwrap();
        let x = b.input("x", ty.clone());
        let y = b.op(Op::Unary(op), &[x]).unwrap();
        let graph = b.finish(&[y]);
        let x = Rng::named(&graph.name).tensor(&ty, range(op));
        let given = BTreeMap::from([("x".to_owned(), x)]);
        let found = cuda_tests::run(&graph, &given, Gpu(80));
        let expected = cuda_tests::expected(&graph, &given);
        for (found, expected) in found[0].as_floats().iter().zip(expected[0].as_floats()) {
            let most = 2e-6 * expected.abs() + 2e-7;
            assert!((found - expected).abs() <= most, "{op:?}: {found} is not {expected}");
        }
    }
}

#[test]
fn operands_are_read_sixteen_bytes_at_a_time() {
    for (name, x, y, bytes) in [
        ("halves", DType::Bf16, DType::Bf16, 16),
        ("floats", DType::F32, DType::F32, 16),
        ("mixed", DType::F32, DType::Bf16, 16),
    ] {
        let mut b = Builder::new(name);
        let x = b.input("x", TensorType::new(x, [64, 48]).unwrap());
        let row = b.input("row", TensorType::new(y, [1, 48]).unwrap());
        let row = b.cast(row, b.ty(x).dtype()).unwrap();
        let y = b.mul(x, row).unwrap();
        let graph = b.finish(&[y]);
        let plan = compiler::compile(graph, &cuda_tests::target(Gpu(90))).unwrap();
        let kernels::Kernel::Cuda(kernel) = &plan.steps[0].kernel else { panic!("a CPU kernel") };
        let (_, compiled) = cuda_tests::compile(&kernel.launches[0].function, Gpu(90));
        let resources = compiled.resources;
        assert_eq!((resources.spill_bytes, resources.stack_bytes), (0, 0), "{name}");
        let memory = compiled
            .ptx
            .lines()
            .filter(|line| line.contains("ld.global") || line.contains("st.global"));
        for line in memory {
            assert!(
                line.contains(".v4.") || line.contains(".v2.b64"),
                "{name}: {line}, not {bytes} bytes"
            );
        }
    }
}
