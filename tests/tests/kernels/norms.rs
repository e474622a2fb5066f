//! Norms over an axis and over groups, and their gradients.

use ops::DType;
use ops::defs::norm_grad::NormGrad;

use super::{BF16, F32, check_body, check_body_in};

#[test]
fn norms_run_with_code_before_and_after() {
    for n in [1, 8, 17, 72, 1152] {
        let x: &[usize] = &[2, 3, n];
        let types: [(&[usize], DType); 4] =
            [(x, F32), (&[2, 1, n], F32), (&[2, 1, n], F32), (&[1, 1, n], F32)];
        check_body("modulate", "norm", &types, &[3], |b, args| {
            let y = b.layer_norm(args[0], 1e-6)?;
            let y = b.mul(y, args[3])?;
            let scale = b.add_scalar(args[1], 1.0)?;
            let y = b.mul(y, scale)?;
            b.add(y, args[2])
        });
        check_body(
            "weighted rms of a sum",
            "norm",
            &[(x, BF16), (x, BF16), (&[n], F32)],
            &[2],
            |b, args| {
                let sum = b.add(args[0], args[1])?;
                let y = b.rms_norm(sum, 1e-6)?;
                let weight = b.reshape(args[2], &[1, 1, n])?;
                let y = b.cast(y, F32)?;
                b.mul(y, weight)
            },
        );
        check_body("softmax", "norm", &[(x, F32)], &[], |b, args| b.softmax(args[0], 2));
        check_body("softmax of columns", "norm", &[(x, F32)], &[], |b, args| b.softmax(args[0], 1));
    }
}

#[test]
fn gradients_of_norms_run_with_code_before_and_after() {
    for (rows, n, centered) in [(5, 72, true), (3, 1153, true), (70, 72, false), (2, 1, false)] {
        let shape: &[usize] = &[rows, n];
        let types = [(shape, BF16), (shape, F32), (&[1, n], F32), (shape, F32)];
        check_body("gradient of a norm", "norm_grad", &types, &[], |b, args| {
            let x = b.cast(args[0], F32)?;
            let grad = b.mul(args[1], args[2])?;
            let by_x = b.op(NormGrad { eps: 1e-6, centered }, &[x, grad])?;
            b.add(args[3], by_x)
        });
    }
}

#[test]
fn norms_of_heads_take_rows_of_several_heads_at_a_time() {
    // Queries as a product leaves them beside keys and values: heads lie side by side, tokens apart.
    for (tokens, heads, d) in [(9, 4, 72), (40, 3, 32), (3, 50, 20)] {
        let (all, own): ([usize; 4], [usize; 4]) =
            ([2, tokens, 3 * heads, d], [2, tokens, heads, d]);
        let types: [(&[usize], DType); 3] = [(&all, BF16), (&[1, 1, 1, d], BF16), (&own, BF16)];
        check_body("norm of heads", "norm", &types[..2], &[1], |b, args| {
            let x = b.slice_axis(args[0], 2, heads, 2 * heads)?;
            let y = b.rms_norm(x, 1e-6)?;
            b.mul(y, args[1])
        });
        for centered in [false, true] {
            check_body("gradient of a norm of heads", "norm_grad", &types, &[], |b, args| {
                let x = b.slice_axis(args[0], 2, heads, 2 * heads)?;
                let grad = b.mul(args[2], args[1])?;
                b.op(NormGrad { eps: 1e-6, centered }, &[x, grad])
            });
        }
    }
}

#[test]
fn sums_of_norms_make_them_again() {
    // Rows that join, along one axis and two; rows of which several are made at a time; long ones, in parts; single
    // elements; rows short enough to join that are many.
    let cases: [(&[usize], &[usize]); 6] = [
        (&[9, 40, 72], &[0, 1]),
        (&[3, 50, 17], &[1]),
        (&[2, 5, 1152], &[1]),
        (&[2, 700, 1152], &[0, 1]),
        (&[4, 3, 1], &[0]),
        (&[2, 6000, 100], &[1]),
    ];
    for (shape, axes) in cases {
        for dtype in [F32, BF16] {
            let types = [(shape, dtype), (shape, F32)];
            check_body("sum of a norm by its cotangent", "reduce", &types, &[], |b, args| {
                let y = b.layer_norm(args[0], 1e-6)?;
                let y = b.cast(y, F32)?;
                let y = b.mul(args[1], y)?;
                let sum = b.reduce_sum(y, axes)?;
                b.mul_scalar(sum, 0.5)
            });
            check_body("sum of a norm", "reduce", &types[..1], &[], |b, args| {
                let y = b.rms_norm(args[0], 1e-6)?;
                b.reduce_sum(y, axes)
            });
        }
    }
    // Of heads beside others, and of columns.
    let shape: &[usize] = &[2, 30, 12, 72];
    check_body("sum of norms of heads", "reduce", &[(shape, F32)], &[], |b, args| {
        let x = b.slice_axis(args[0], 2, 4, 8)?;
        let grad = b.slice_axis(args[0], 2, 8, 12)?;
        let y = b.rms_norm(x, 1e-6)?;
        let y = b.mul(grad, y)?;
        b.reduce_sum(y, &[0, 1, 2])
    });
    check_body("sum of norms of columns", "reduce", &[(&[70, 33], F32)], &[], |b, args| {
        let x = b.permute(args[0], &[1, 0])?;
        let y = b.layer_norm(x, 1e-6)?;
        b.reduce_sum(y, &[0])
    });
}

#[test]
fn norms_keep_their_accuracy_under_a_large_mean() {
    // 1000 +- 1: the mean is some 2000 deviations, of which raw squares in f32 would leave nothing.
    let x: &[usize] = &[2, 300, 64];
    let types = [(x, F32), (&[64], F32), (&[64], F32)];
    let range = (999.0, 1001.0);
    check_body_in(range, "far layer_norm", "norm", &types[..1], &[], |b, args| {
        b.layer_norm(args[0], 1e-6)
    });
    check_body_in(range, "far group_norm", "group_norm", &types, &[1, 2], |b, args| {
        let y = b.group_norm(args[0], args[1], args[2], 4, 1e-6)?;
        let bias = b.reshape(args[2], &[1, 1, 64])?;
        b.sub(y, bias)
    });
}

#[test]
fn group_norms_run_with_an_activation() {
    for (shape, groups) in [
        (&[1, 9, 7, 32][..], 32),
        (&[2, 33, 40, 48], 4),
        (&[2, 300, 128], 32),
        (&[1, 3, 100, 6], 3),
    ] {
        let channels = &shape[shape.len() - 1..];
        let types = [(shape, F32), (channels, F32), (channels, F32)];
        check_body("group_norm silu", "group_norm", &types, &[1, 2], |b, args| {
            let y = b.group_norm(args[0], args[1], args[2], groups, 1e-6)?;
            b.silu(y)
        });
        // Rows of the operand that do not lie side by side, or are not f32; what rows share, and what they do not.
        let (axis, n) = (shape.len() - 1, channels[0]);
        let (mut wide, mut shared) = (shape.to_vec(), vec![1; shape.len()]);
        (wide[axis], shared[axis]) = (2 * n, n);
        for dtype in [F32, BF16] {
            let types = [(&wide[..], dtype), (channels, dtype), (channels, dtype), (shape, dtype)];
            check_body("group_norm, bias, residual", "group_norm", &types, &[1, 2], |b, args| {
                let x = b.slice_axis(args[0], axis, n, 2 * n)?;
                let y = b.group_norm(x, args[1], args[2], groups, 1e-6)?;
                let bias = b.reshape(args[2], &shared)?;
                let y = b.add(y, bias)?;
                b.add(y, args[3])
            });
            let types = [types[3], types[1], types[2]];
            check_body("group_norm, bias", "group_norm", &types, &[1, 2], |b, args| {
                let y = b.group_norm(args[0], args[1], args[2], groups, 1e-6)?;
                let bias = b.reshape(args[2], &shared)?;
                b.add(y, bias)
            });
        }
    }
}
