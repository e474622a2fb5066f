//! Products that are cut into blocks: along a long depth, for a batch, for small caches.

use kernels::Isa;
use kernels::cpu::matmul::{BOperand, BView, Caches, Matmul, MatmulSpec};
use ops::DType;

use super::{
    CACHES, Operands, Random, assert_close, buffer, decode, dense, of_digits, plain, product, run,
    run_within, sum_tolerance, view,
};

#[test]
fn gradients_of_weights_are_cut_along_their_depth() {
    let mut random = Random(6);
    // Rows that are one block for all tasks; several blocks of rows; narrow panels; odd depths.
    for (m, n, k) in [(20, 300, 3001), (300, 100, 2700), (261, 17, 1501), (70, 1, 5003)] {
        for dtype in [DType::F32, DType::Bf16] {
            let (a, b) = (buffer(&mut random, dtype, m * k), buffer(&mut random, dtype, n * k));
            let spec = MatmulSpec {
                digits: true,
                a: view(dtype, &[1], m),
                b: dense(dtype, (n, 1)),
                product: dtype,
                ..plain(m, n, k)
            };
            let at = |i: usize, c: usize| b.values[i * n + c];
            let expected = product((m, n, k), |r, i| a.values[i * m + r], at);
            for (isa, c) in run(&spec, &Operands::plain(&a, &b, (n, 1)), &vec![0xff; m * n * 4]) {
                let what = format!("{m}x{n}x{k} {dtype:?}");
                assert_close(isa, &what, &decode(DType::F32, &c), &expected, sum_tolerance(k));
            }
        }
    }
}

#[test]
fn entries_of_a_batch_are_cut_along_their_depth() {
    let mut random = Random(8);
    let (batch, m, n, k) = (3, 21, 60, 1501);
    let a = buffer(&mut random, DType::F32, batch * m * k);
    let b = buffer(&mut random, DType::F32, batch * k * n);
    let spec = MatmulSpec {
        digits: true,
        batch: vec![batch],
        a: view(DType::F32, &[k * m, 1], m),
        b: BOperand::Dense(BView {
            dtype: DType::F32,
            batch_strides: vec![k * n],
            depth_stride: n,
            column_stride: 1,
            offset: 0,
        }),
        c: view(DType::F32, &[m * n, n], 1),
        ..plain(m, n, k)
    };
    let mut expected = Vec::new();
    for entry in 0..batch {
        let (a, b) = (&a.values[entry * k * m..], &b.values[entry * k * n..]);
        expected.extend(product((m, n, k), |r, i| a[i * m + r], |i, c| b[i * n + c]));
    }
    for (isa, c) in run(&spec, &Operands::plain(&a, &b, (n, 1)), &vec![0xff; batch * m * n * 4]) {
        assert_close(isa, "batch", &decode(DType::F32, &c), &expected, sum_tolerance(k));
    }
}

#[test]
fn blocks_do_not_change_a_bit() {
    let mut random = Random(7);
    let (m, n, k) = (270, 200, 2000);
    let (a, b) = (buffer(&mut random, DType::F32, m * k), buffer(&mut random, DType::F32, n * k));
    let spec = MatmulSpec { b: dense(DType::F32, (1, k)), ..plain(m, n, k) };
    let c = vec![0xff; m * n * 4];
    let whole = run(&plain(m, n, k), &Operands::plain(&a, &b, (1, k)), &c);
    assert!(run(&spec, &Operands::plain(&a, &b, (1, k)), &c) == whole);
    let small = Caches { l2: 1 << 18, l3: 1 << 20 };
    for b_strides in [(1, k), (n, 1)] {
        let (spec, operands) = (of_digits(m, n, k, b_strides), Operands::plain(&a, &b, b_strides));
        let whole = run(&spec, &operands, &c);
        assert!(run_within(small, &spec, &operands, &c) == whole, "{b_strides:?}");
    }
    // Scratch does not grow with B.
    for isa in Isa::available() {
        let bytes =
            |spec: &MatmulSpec| Matmul::new(spec.clone(), isa, CACHES).unwrap().scratch_bytes(1);
        let added = bytes(&spec).saturating_sub(bytes(&plain(m, n, k)));
        assert!(added < n * k, "{isa}: {added} bytes for a B of {}", 4 * n * k);
    }
}
