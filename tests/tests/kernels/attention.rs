//! Attention in every shape and form.

use ops::DType;

use super::{BF16, F32, check_body};

#[test]
fn attention_runs_every_shape_and_form() {
    // [B, Sq, Sk, H, D]: short, odd, wide heads, more keys than a block, more queries than a block.
    let shapes = [
        [2, 16, 16, 2, 72],
        [3, 5, 7, 2, 12],
        [1, 33, 200, 1, 18],
        [1, 130, 77, 2, 64],
        [1, 70, 150, 1, 512],
        [2, 1, 3, 1, 8],
        [1, 300, 9, 3, 128],
    ];
    for [batch, sq, sk, h, d] in shapes {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let scale = 1.0 / (d as f64).sqrt();
        let name = format!("attention of {sq} x {sk} x {d}");
        let plain = [(q, F32), (k, F32), (k, F32)];
        check_body(&name, "attention", &plain, &[], |b, args| {
            b.attention([args[0], args[1], args[2]], None, None, scale)
        });
        let half = [(q, BF16), (k, BF16), (k, BF16), (&[1, h, sq, sk][..], F32)];
        check_body(&name, "attention", &half, &[], |b, args| {
            b.attention([args[0], args[1], args[2]], Some(args[3]), None, scale)
        });
        let mask: &[usize] = &[batch, sk];
        let bias: &[usize] = &[batch, h, sq, sk];
        let masked = [(q, F32), (k, F32), (k, F32), (bias, F32), (mask, DType::Bool)];
        check_body(&name, "attention", &masked, &[], |b, args| {
            b.attention([args[0], args[1], args[2]], Some(args[3]), Some(args[4]), scale)
        });
        let (angles_q, angles_k): (&[usize], &[usize]) = (&[sq, d / 2], &[sk, d / 2]);
        let prepared = [
            (q, F32),
            (k, F32),
            (k, F32),
            (&[1, 1, 1, d][..], F32),
            (&[d], F32),
            (angles_q, F32),
            (angles_k, F32),
        ];
        for rope_first in [false, true] {
            check_body(&name, "attention", &prepared, &[3, 4], |b, args| {
                let mut rows = [args[0], args[1]];
                for (i, x) in rows.iter_mut().enumerate() {
                    if rope_first {
                        *x = b.rope(*x, args[5 + i])?;
                    }
                    *x = b.rms_norm(*x, 1e-6)?;
                    let weight = b.reshape(args[3 + i], &[1, 1, 1, d])?;
                    *x = b.mul(*x, weight)?;
                    if !rope_first {
                        *x = b.rope(*x, args[5 + i])?;
                    }
                }
                b.attention([rows[0], rows[1], args[2]], None, None, scale)
            });
        }
    }
}

#[test]
fn bf16_attention_runs_odd_sizes_and_every_form() {
    // Odd head dims and odd counts of keys end within a pair; 512 dims are summed in parts.
    let shapes = [
        [3, 16, 16, 4, 72],
        [2, 5, 7, 2, 12],
        [2, 9, 11, 2, 7],
        [1, 50, 145, 1, 10],
        [1, 17, 30, 1, 512],
        [2, 1, 1, 3, 2],
    ];
    for [batch, sq, sk, h, d] in shapes {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let bias: &[usize] = &[1, h, sq, sk];
        let mask: &[usize] = &[batch, sk];
        let plain = [(q, BF16), (k, BF16), (k, BF16)];
        let name = format!("bf16 attention of {sq} x {sk} x {d}");
        // A large negative scale makes a few keys take all the weight.
        for scale in [1.0 / (d as f64).sqrt(), -3.0] {
            check_body(&name, "attention", &plain, &[], |b, args| {
                b.attention([args[0], args[1], args[2]], None, None, scale)
            });
        }
        let scale = 1.0 / (d as f64).sqrt();
        check_body(&name, "attention", &plain, &[], |b, args| {
            let y = b.attention([args[0], args[1], args[2]], None, None, scale)?;
            b.cast(y, F32)
        });
        let both = [plain[0], plain[1], plain[2], (bias, BF16), (mask, DType::Bool)];
        check_body(&name, "attention", &both, &[], |b, args| {
            b.attention([args[0], args[1], args[2]], Some(args[3]), Some(args[4]), scale)
        });
        // Rows that become bf16 on the way in.
        let wide = [(q, F32), (k, BF16), (k, F32)];
        check_body(&name, "attention", &wide, &[], |b, args| {
            let (q, v) = (b.cast(args[0], BF16)?, b.cast(args[2], BF16)?);
            b.attention([q, args[1], v], None, None, scale)
        });
        if d % 2 == 0 {
            let angles: (&[usize], &[usize]) = (&[sq, d / 2], &[sk, d / 2]);
            let (weight, norm): (&[usize], &[usize]) = (&[1, 1, 1, d], &[d]);
            let prepared = [
                plain[0],
                plain[1],
                plain[2],
                (weight, BF16),
                (norm, BF16),
                (angles.0, F32),
                (angles.1, F32),
            ];
            check_body(&name, "attention", &prepared, &[3, 4], |b, args| {
                let mut rows = [args[0], args[1]];
                for (i, x) in rows.iter_mut().enumerate() {
                    *x = b.rms_norm(*x, 1e-6)?;
                    let weight = b.reshape(args[3 + i], &[1, 1, 1, d])?;
                    *x = b.mul(*x, weight)?;
                    *x = b.rope(*x, args[5 + i])?;
                }
                b.attention([rows[0], rows[1], args[2]], None, None, scale)
            });
        }
    }
}

#[test]
fn attention_follows_scores_that_rise_from_key_to_key() {
    // Scores spread over some 20 powers of two, so the largest of the first few keys is far below
    // the largest of all, in the first block of keys and in later ones.
    let (q, k): (&[usize], &[usize]) = (&[1, 70, 1, 8], &[1, 230, 1, 8]);
    for dtype in [F32, BF16] {
        check_body(
            "rising scores",
            "attention",
            &[(q, dtype), (k, dtype), (k, dtype)],
            &[],
            |b, args| b.attention([args[0], args[1], args[2]], None, None, 1.5),
        );
    }
}
