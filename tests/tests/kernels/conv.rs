//! Convolutions with what runs in them.

use ops::defs::conv::Window;
use ops::{Builder, Error, TensorType, ValueId};

use super::{BF16, F32, check_body};

#[test]
fn convolutions_run_every_window_with_epilogues() {
    type Lists = [&'static [usize]; 3];
    let cases: [(&[usize], &[usize], Lists); 8] = [
        (&[1, 12, 11, 64], &[96, 64, 3, 3], [&[1, 1], &[1, 1], &[1, 1]]),
        (&[2, 9, 8, 3], &[50, 3, 3, 3], [&[1, 1], &[1, 1], &[1, 1]]),
        (&[1, 9, 8, 40], &[3, 40, 3, 3], [&[2, 2], &[0, 0], &[1, 1]]),
        (&[1, 17, 19, 4], &[8, 4, 1, 1], [&[1, 1], &[0, 0], &[0, 0]]),
        (&[1, 5, 5, 130], &[16, 130, 1, 1], [&[2, 1], &[0, 0], &[0, 0]]),
        (&[2, 40, 16], &[24, 16, 5], [&[2], &[4], &[0]]),
        (&[1, 3, 8, 8, 4], &[20, 4, 1, 2, 2], [&[1, 2, 2], &[0; 3], &[0; 3]]),
        (&[1, 4, 5, 6, 8], &[7, 8, 3, 3, 3], [&[1, 1, 1], &[2, 1, 1], &[0, 1, 1]]),
    ];
    for (x, weight, [stride, low, high]) in cases {
        let window = Window::new(stride, low, high);
        let out = [weight[0]];
        for dtype in [F32, BF16] {
            let types = [(x, dtype), (weight, dtype), (&out[..], dtype)];
            check_body("conv and bias", "conv", &types, &[1, 2], |b, args| {
                let y = b.conv(args[0], args[1], &window)?;
                let mut shape = vec![1; b.shape(y).len()];
                *shape.last_mut().unwrap() = weight[0];
                let bias = b.reshape(args[2], &shape)?;
                b.add(y, bias)
            });
        }
        let mut b = Builder::new("shape");
        let args = [x, weight].map(|dims| b.input("", TensorType::new(F32, dims).unwrap()));
        let y = b.conv(args[0], args[1], &window).unwrap();
        let result = b.shape(y).to_vec();
        let types = [(x, F32), (weight, F32), (&out[..], F32), (&result[..], F32)];
        check_body("conv, bias, silu, residual", "conv", &types, &[1], |b, args| {
            let y = b.conv(args[0], args[1], &window)?;
            let mut shape = vec![1; result.len()];
            *shape.last_mut().unwrap() = weight[0];
            let bias = b.reshape(args[2], &shape)?;
            let y = b.add(y, bias)?;
            let y = b.silu(y)?;
            b.add(y, args[3])
        });
    }
}

/// `x` in `b`, height and width doubled by repeating elements.
fn doubled(b: &mut Builder, x: ValueId) -> Result<ValueId, Error> {
    let &[n, h, w, c] = b.shape(x) else { unreachable!("images have four axes") };
    let x = b.reshape(x, &[n, h, 1, w, 1, c])?;
    let x = b.broadcast(x, &[n, h, 2, w, 2, c])?;
    b.reshape(x, &[n, 2 * h, 2 * w, c])
}

#[test]
fn convolutions_take_norm_activation_and_doubling_on_the_way_in() {
    // [N, H, W, C], [O, kernel], groups: filtered by tiles with and without a rest, more channels
    // than a chunk, patches of few channels, odd channels in pairs, taps as columns, a 1-wide kernel.
    let cases: [([usize; 4], [usize; 2], usize); 7] = [
        ([1, 32, 32, 16], [32, 3], 4),
        ([2, 21, 30, 20], [17, 3], 5),
        ([1, 40, 33, 160], [48, 3], 32),
        ([1, 9, 7, 4], [20, 3], 2),
        ([1, 10, 9, 33], [18, 3], 11),
        ([2, 12, 70, 64], [3, 3], 8),
        ([1, 13, 11, 24], [40, 1], 8),
    ];
    for (x, [out, kernel], groups) in cases {
        let [n, h, w, c] = x;
        let pad = [kernel / 2; 2];
        let window = Window::new(&[1, 1], &pad, &pad);
        let weight = [out, c, kernel, kernel];
        for dtype in [F32, BF16] {
            let types = [
                (&x[..], dtype),
                (&weight[..], dtype),
                (&[c], dtype),
                (&[c], dtype),
                (&[1, 1, 1, out], dtype),
                (&[n, h, w, out], dtype),
            ];
            check_body("norm, silu, conv", "conv", &types, &[1, 2, 3, 4], |b, args| {
                let y = b.group_norm(args[0], args[2], args[3], groups, 1e-6)?;
                let y = b.silu(y)?;
                let y = b.conv(y, args[1], &window)?;
                let y = b.add(y, args[4])?;
                b.add(args[5], y)
            });
            check_body("silu, conv", "conv", &types[..2], &[1], |b, args| {
                let y = b.silu(args[0])?;
                b.conv(y, args[1], &window)
            });
            check_body("scale, conv", "conv", &types[..3], &[1], |b, args| {
                let scale = b.reshape(args[2], &[1, 1, 1, c])?;
                let y = b.mul(args[0], scale)?;
                b.conv(y, args[1], &window)
            });
            check_body("doubling, conv", "conv", &types[..2], &[1], |b, args| {
                let y = doubled(b, args[0])?;
                b.conv(y, args[1], &window)
            });
            let residual = [n, 2 * h, 2 * w, out];
            let with_residual = [types[0], types[1], types[4], (&residual[..], dtype)];
            check_body("doubling, conv, residual", "conv", &with_residual, &[1, 2], |b, args| {
                let y = doubled(b, args[0])?;
                let y = b.conv(y, args[1], &window)?;
                let y = b.add(y, args[2])?;
                b.add(args[3], y)
            });
            check_body("norm, doubling, conv", "conv", &types[..4], &[1], |b, args| {
                let y = b.group_norm(args[0], args[2], args[3], groups, 1e-6)?;
                let y = doubled(b, y)?;
                b.conv(y, args[1], &window)
            });
        }
    }
}

#[test]
fn filtered_convolutions_run_any_padding() {
    let (x, weight): (&[usize], &[usize]) = (&[1, 31, 34, 24], &[40, 24, 3, 3]);
    for (low, high) in [([0, 0], [0, 0]), ([0, 2], [3, 1]), ([2, 2], [2, 2])] {
        let window = Window::new(&[1, 1], &low, &high);
        check_body("padded conv", "conv", &[(x, F32), (weight, F32)], &[1], |b, args| {
            b.conv(args[0], args[1], &window)
        });
    }
}
