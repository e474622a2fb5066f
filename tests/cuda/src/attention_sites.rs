//! Sites of attention: every form and kernel of it, odd sizes, masks that leave a whole tile out.

use ops::defs::attention::Attention;
use ops::{Builder, DType, Error, Example, Tensor, TensorType, ValueId};

use crate::sites::Site;

/// bf16 rows and weights: 8 bits each.
const HALF: f64 = 8e-3;
/// f32 sums of some hundred terms, and exponentials of 2e-7.
const SINGLE: f64 = 2e-6;

/// All of them.
pub fn sites() -> Vec<Site> {
    let made = [long(), short(), parts(), masked_and_biased(), any_head(), wide(), prepared()];
    made.into_iter().chain([examples()]).flatten().collect()
}

/// The op's own examples: every combination of operands, at the smallest sizes.
pub fn examples() -> Vec<Site> {
    let make = |(index, example): (usize, Example)| {
        let types: Vec<(&[usize], DType)> =
            example.args.iter().map(|ty| (ty.shape(), ty.dtype())).collect();
        let limit = if types[0].1 == DType::F32 { SINGLE } else { HALF };
        site(&format!("example-{index}"), limit, &types, |b, args| b.op(example.op.clone(), args))
    };
    Attention::examples().into_iter().enumerate().map(make).collect()
}

/// A graph of one body over inputs of these types.
fn site(
    name: &str,
    limit: f64,
    types: &[(&[usize], DType)],
    build: impl Fn(&mut Builder, &[ValueId]) -> Result<ValueId, Error>,
) -> Site {
    let mut b = Builder::new("attention");
    let input = |(index, (shape, dtype)): (usize, &(&[usize], DType))| {
        let ty = TensorType::new(*dtype, *shape).expect("a valid shape");
        b.input(&index.to_string(), ty)
    };
    let args: Vec<ValueId> = types.iter().enumerate().map(input).collect();
    let output = build(&mut b, &args).expect("a valid body");
    Site { name: format!("attention-{name}"), graph: b.finish(&[output]), limit }
}

/// Several tiles and blocks, the last ones ragged.
pub fn long() -> Vec<Site> {
    // [B, Sq, Sk, H, D]
    let shapes = [
        ([1, 128, 128, 2, 64], DType::Bf16),
        ([1, 130, 200, 2, 72], DType::Bf16),
        ([1, 70, 120, 1, 128], DType::F16),
        ([2, 33, 9, 1, 32], DType::F16),
    ];
    let make = |([batch, sq, sk, h, d], dtype): ([usize; 5], DType)| {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let name = format!("{dtype}-{batch}x{sq}x{sk}x{h}x{d}");
        site(&name, HALF, &[(q, dtype), (k, dtype), (k, dtype)], |b, args| {
            b.attention([args[0], args[1], args[2]], None, None, 1.0 / (d as f64).sqrt())
        })
    };
    // Scores spread over some 70 powers of two: the largest so far is far below later ones.
    let (q, k): (&[usize], &[usize]) = (&[1, 70, 1, 8], &[1, 230, 1, 8]);
    let spread = [DType::Bf16, DType::F16].map(|dtype| {
        site(&format!("spread-{dtype}"), HALF, &[(q, dtype), (k, dtype), (k, dtype)], |b, args| {
            b.attention([args[0], args[1], args[2]], None, None, 1.5)
        })
    });
    shapes.into_iter().map(make).chain(spread).collect()
}

/// Up to 16 or 32 rows, each warp with a pair of its own; pairs that do not fill the last block.
pub fn short() -> Vec<Site> {
    let shapes = [[3, 16, 16, 2, 72], [5, 7, 9, 1, 64], [2, 20, 31, 3, 24], [1, 1, 1, 1, 8]];
    let make = |[batch, sq, sk, h, d]: [usize; 5]| {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let half = DType::Bf16;
        let name = format!("short-{batch}x{sq}x{sk}x{h}x{d}");
        site(&name, HALF, &[(q, half), (k, half), (k, half)], |b, args| {
            b.attention([args[0], args[1], args[2]], None, None, -1.0 / (d as f64).sqrt())
        })
    };
    shapes.into_iter().map(make).collect()
}

/// Queries, keys and values of one product `[B, T, S, 3 H D]`, over S and over T.
pub fn parts() -> Vec<Site> {
    let (batch, t, s, h, d) = (2, 3, 66, 2, 72);
    let x: &[usize] = &[batch, t, s, 3 * h * d];
    let make = |is_over_time: bool| {
        let name = if is_over_time { "over-time" } else { "over-space" };
        site(name, HALF, &[(x, DType::Bf16)], |b, args| {
            let x = b.reshape(args[0], &[batch, t, s, 3, h, d])?;
            let axes = [0, 2, 1, 3, 4];
            let mut parts = [x; 3];
            for (index, part) in parts.iter_mut().enumerate() {
                let y = b.slice_axis(x, 3, index, index + 1)?;
                let y = b.reshape(y, &[batch, t, s, h, d])?;
                *part = if is_over_time { b.permute(y, &axes)? } else { y };
            }
            let y = b.attention(parts, None, None, 0.1)?;
            if is_over_time { b.permute(y, &axes) } else { Ok(y) }
        })
    };
    [false, true].map(make).into()
}

/// Keys that take no part, in the middle of tiles and whole tiles of them; scores with a bias.
pub fn masked_and_biased() -> Vec<Site> {
    let mut sites = vec![];
    for [batch, sq, sk, h, d] in [[2, 40, 150, 1, 72], [3, 16, 16, 2, 32], [1, 70, 64, 1, 64]] {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let (mask, bias): (&[usize], &[usize]) = (&[batch, sk], &[1, h, sq, sk]);
        let half = DType::Bf16;
        let name = format!("{batch}x{sq}x{sk}x{h}x{d}");
        let rows = [(q, half), (k, half), (k, half)];
        let masked = [&rows[..], &[(mask, DType::Bool)]].concat();
        sites.push(site(&format!("masked-{name}"), HALF, &masked, |b, args| {
            b.attention([args[0], args[1], args[2]], None, Some(args[3]), 0.2)
        }));
        let biased = [&rows[..], &[(bias, half)]].concat();
        sites.push(site(&format!("biased-{name}"), HALF, &biased, |b, args| {
            let y = b.attention([args[0], args[1], args[2]], Some(args[3]), None, 1.0)?;
            b.cast(y, DType::F32)
        }));
        let both = [&rows[..], &[(bias, DType::F32), (mask, DType::Bool)]].concat();
        sites.push(site(&format!("both-{name}"), HALF, &both, |b, args| {
            b.attention([args[0], args[1], args[2]], Some(args[3]), Some(args[4]), -0.3)
        }));
    }
    // No key but some of the second tile and the last one, and none in the second sequence.
    let (q, k): (&[usize], &[usize]) = (&[2, 20, 1, 16], &[2, 200, 1, 16]);
    let half = DType::Bf16;
    let types = [(q, half), (k, half), (k, half), (&[2, 200][..], DType::Bool)];
    sites.push(site("whole-tiles", HALF, &types, |b, args| {
        let takes_part = |i: i64| i64::from((64..90).contains(&i) || i == 199);
        let ty = TensorType::new(DType::Bool, [2, 200]).expect("a valid shape");
        let kept = b.constant(Tensor::ints(ty, (0..400).map(takes_part).collect()));
        let mask = b.mul(args[3], kept)?;
        b.attention([args[0], args[1], args[2]], None, Some(mask), 0.2)
    }));
    sites
}

/// f32 rows and odd heads, on ordinary units; bf16 rows that are f32 in memory.
pub fn any_head() -> Vec<Site> {
    let mut sites = vec![];
    for ([batch, sq, sk, h, d], dtype, limit) in [
        ([1, 33, 70, 2, 72], DType::F32, SINGLE),
        ([2, 5, 7, 2, 12], DType::F32, SINGLE),
        ([2, 9, 11, 2, 7], DType::Bf16, HALF),
    ] {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let (mask, bias): (&[usize], &[usize]) = (&[batch, sk], &[1, h, sq, sk]);
        let name = format!("{dtype}-{batch}x{sq}x{sk}x{h}x{d}");
        let rows = [(q, dtype), (k, dtype), (k, dtype)];
        let scale = 1.0 / (d as f64).sqrt();
        sites.push(site(&format!("fma-{name}"), limit, &rows, |b, args| {
            b.attention([args[0], args[1], args[2]], None, None, scale)
        }));
        let both = [&rows[..], &[(bias, DType::F32), (mask, DType::Bool)]].concat();
        sites.push(site(&format!("fma-both-{name}"), limit, &both, |b, args| {
            b.attention([args[0], args[1], args[2]], Some(args[3]), Some(args[4]), scale)
        }));
    }
    let x: &[usize] = &[1, 20, 2, 16];
    let types = [(x, DType::F32), (x, DType::Bf16), (x, DType::F32)];
    sites.push(site("cast", HALF, &types, |b, args| {
        let (q, v) = (b.cast(args[0], DType::Bf16)?, b.cast(args[2], DType::Bf16)?);
        b.attention([q, args[1], v], None, None, 0.25)
    }));
    sites
}

/// Heads wider than a warp's registers.
pub fn wide() -> Vec<Site> {
    let mut sites = vec![];
    for [sq, sk, d] in [[20, 40, 512], [5, 66, 160]] {
        let (q, k, mask): (&[usize], &[usize], &[usize]) =
            (&[1, sq, 1, d], &[1, sk, 1, d], &[1, sk]);
        let types = |dtype: DType| [(q, dtype), (k, dtype), (k, dtype)];
        let name = format!("wide-{sq}x{sk}x{d}");
        sites.push(site(&name, HALF, &types(DType::Bf16), |b, args| {
            b.attention([args[0], args[1], args[2]], None, None, 0.1)
        }));
        let masked = [&types(DType::F16)[..], &[(mask, DType::Bool)]].concat();
        sites.push(site(&format!("masked-{name}"), HALF, &masked, |b, args| {
            let y = b.attention([args[0], args[1], args[2]], None, Some(args[3]), -0.3)?;
            b.cast(y, DType::F32)
        }));
    }
    sites
}

/// Queries and keys that are normalized, weighted and rotated before.
pub fn prepared() -> Vec<Site> {
    let mut sites = vec![];
    for ([batch, sq, sk, h, d], dtype, limit) in [
        ([2, 16, 16, 3, 72], DType::Bf16, HALF),
        ([1, 70, 33, 1, 64], DType::Bf16, HALF),
        ([2, 5, 7, 2, 12], DType::F32, SINGLE),
        ([1, 3, 9, 1, 18], DType::Bf16, HALF),
    ] {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let (weight, norm): (&[usize], &[usize]) = (&[1, 1, 1, d], &[d]);
        let (angles_q, angles_k): (&[usize], &[usize]) = (&[sq, d / 2], &[sk, d / 2]);
        let rows = [(q, dtype), (k, dtype), (k, dtype), (weight, dtype), (norm, dtype)];
        let types = [&rows[..], &[(angles_q, DType::F32), (angles_k, DType::F32)]].concat();
        // Both orders once, then each in turn.
        let orders: &[bool] = match sites.len() {
            0 => &[false, true],
            n if n % 2 == 0 => &[false],
            _ => &[true],
        };
        for &is_rotated_first in orders {
            let order = if is_rotated_first { "rotated" } else { "normalized" };
            let name = format!("{order}-{dtype}-{batch}x{sq}x{sk}x{h}x{d}");
            sites.push(site(&name, limit, &types, |b, args| {
                let mut rows = [args[0], args[1]];
                for (i, x) in rows.iter_mut().enumerate() {
                    if is_rotated_first {
                        *x = b.rope(*x, args[5 + i])?;
                    }
                    *x = b.rms_norm(*x, 1e-6)?;
                    let weight = b.reshape(args[3 + i], &[1, 1, 1, d])?;
                    *x = b.mul(*x, weight)?;
                    if !is_rotated_first {
                        *x = b.rope(*x, args[5 + i])?;
                    }
                }
                b.attention([rows[0], rows[1], args[2]], None, None, 0.3)
            }));
        }
    }
    sites
}
