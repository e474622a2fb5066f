//! Products with a norm and code before, and code after.

use kernels::cpu::Norm;
use kernels::cpu::matmul::{BOperand, MatmulSpec};
use kernels::program::ProgramBuilder;
use ops::DType;
use ops::defs::binary::Binary;
use ops::defs::unary::Unary;

use super::{
    Buffer, Operands, Random, assert_close, buffer, decode, dense, plain, product, run,
    sum_tolerance, view,
};

/// The shape of an adaLN block's product: norm, modulate, product, bias, GELU, gate, residual.
fn fused_case(norm: Norm, a_dtype: DType, b_dtype: DType, (m, n, k): (usize, usize, usize)) {
    let mut random = Random(4);
    let eps = match norm {
        Norm::Layer { eps } | Norm::Rms { eps } => f64::from(eps),
    };
    let a = buffer(&mut random, a_dtype, m * k);
    let b = buffer(&mut random, b_dtype, n * k);
    let [shift, scale] = [0, 1].map(|_| buffer(&mut random, DType::F32, k));
    let [bias, gate] = [0, 1].map(|_| buffer(&mut random, DType::F32, n));
    let residual = buffer(&mut random, DType::F32, m * n);
    let in_place = Buffer { bytes: vec![], values: vec![] };

    let mut p = ProgramBuilder::new();
    let x = p.slot(DType::F32);
    let (s, t) = (p.slot(DType::F32), p.slot(DType::F32));
    let one = p.constant(1.0);
    let s = p.binary(Binary::Add, s, one);
    let x = p.binary(Binary::Mul, x, s);
    let x = p.binary(Binary::Add, x, t);
    let prologue = p.finish(x, DType::F32).unwrap();

    let mut p = ProgramBuilder::new();
    let x = p.slot(DType::F32);
    let (bias_slot, gate_slot) = (p.slot(DType::F32), p.slot(DType::F32));
    let residual_slot = p.slot(DType::F32);
    let x = p.binary(Binary::Add, x, bias_slot);
    let x = p.unary(Unary::GeluTanh, x);
    let x = p.binary(Binary::Mul, x, gate_slot);
    let x = p.binary(Binary::Add, x, residual_slot);
    let epilogue = p.finish(x, DType::F32).unwrap();

    let column = || view(DType::F32, &[0], 1);
    let spec = MatmulSpec {
        a: view(a_dtype, &[k], 1),
        b: BOperand::Packed(b_dtype),
        product: b_dtype,
        norm: Some(norm),
        prologue: Some(prologue),
        prologue_operands: vec![column(), column()],
        epilogue,
        epilogue_operands: vec![column(), column(), view(DType::F32, &[n], 1)],
        ..plain(m, n, k)
    };

    let mut normed = vec![0.0; m * k];
    for r in 0..m {
        let row = &a.values[r * k..][..k];
        let mean = match norm {
            Norm::Layer { .. } => row.iter().sum::<f64>() / k as f64,
            Norm::Rms { .. } => 0.0,
        };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / k as f64;
        for i in 0..k {
            let x = (row[i] - mean) / (square + eps).sqrt();
            normed[r * k + i] = x * (1.0 + scale.values[i]) + shift.values[i];
        }
    }
    let mut expected = product((m, n, k), |r, i| normed[r * k + i], |i, c| b.values[c * k + i]);
    for (at, (x, _)) in expected.iter_mut().enumerate() {
        let y = Unary::GeluTanh.apply(*x + bias.values[at % n]);
        *x = y * gate.values[at % n] + residual.values[at];
    }
    let operands = Operands {
        prologue: &[&scale, &shift],
        epilogue: &[&bias, &gate, &in_place],
        ..Operands::plain(&a, &b, (1, k))
    };
    let results = run(&spec, &operands, &residual.bytes);
    // An activation B is multiplied in the same order.
    let spec = MatmulSpec { b: dense(b_dtype, (1, k)), ..spec };
    assert!(run(&spec, &operands, &residual.bytes) == results);
    let of_digits = MatmulSpec { digits: true, ..spec };
    let of_digits = run(&of_digits, &operands, &residual.bytes);
    for (isa, c) in results.into_iter().chain(of_digits) {
        // The norm adds roundings of its own to each product, and GELU's slope reaches 1.13.
        let rounding = match b_dtype {
            // Half an ulp of each element of A, of either sign: they mostly cancel.
            DType::Bf16 => 4.0 / 512.0 / (k as f64).sqrt(),
            _ => 0.0,
        };
        let tolerance = 3.0 * sum_tolerance(k) + rounding;
        assert_close(isa, "fused", &decode(DType::F32, &c), &expected, tolerance);
    }
}

#[test]
fn layer_norm_modulate_gelu_gate_residual_in_place() {
    fused_case(Norm::Layer { eps: 1e-6 }, DType::F32, DType::F32, (61, 75, 1157));
    fused_case(Norm::Layer { eps: 1e-6 }, DType::F32, DType::F32, (5, 801, 1700));
    fused_case(Norm::Layer { eps: 1e-6 }, DType::F32, DType::F32, (250, 60, 1400));
}

#[test]
fn rms_norm_of_bf16_rows() {
    fused_case(Norm::Rms { eps: 1e-6 }, DType::Bf16, DType::F32, (23, 130, 700));
}

#[test]
fn bf16_products_take_norm_and_prologue() {
    fused_case(Norm::Layer { eps: 1e-6 }, DType::Bf16, DType::Bf16, (61, 75, 1157));
    fused_case(Norm::Layer { eps: 1e-6 }, DType::F32, DType::Bf16, (5, 130, 2900));
    fused_case(Norm::Rms { eps: 1e-6 }, DType::Bf16, DType::Bf16, (23, 130, 700));
}
