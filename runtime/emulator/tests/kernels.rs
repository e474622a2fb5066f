//! Kernels that NVRTC compiled (`tests/ptx`), against references computed here, in every order of warps.

mod common;

use common::{Arg, Session, difference, from_bf16, from_f16, noise, product, ptx, to_bf16, to_f16};
use emulator::{Arrival, Class, Options, Order};

/// Orders of warps, each with copies that land late and early.
fn modes() -> Vec<Options> {
    let orders = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(2)];
    let arrivals = [Arrival::Late, Arrival::Early];
    orders
        .iter()
        .flat_map(|&order| {
            arrivals.map(|arrival| Options {
                order,
                arrival,
                checks_block_races: true,
                ..Options::default()
            })
        })
        .collect()
}

fn bf16s(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&v| to_bf16(v)).collect()
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&v| from_bf16(to_bf16(v))).collect()
}

#[test]
fn silu_times_up_in_bf16() {
    // The last block is partly beyond the end.
    let n = 8 * 300;
    let (gate, up) = (noise(n, 1), noise(n, 2));
    for options in modes() {
        let mut s = Session::new(&ptx("elementwise.sm_80.ptx"));
        let (g, u) = (s.upload_u16(&bf16s(&gate)), s.upload_u16(&bf16s(&up)));
        let out = s.alloc(2 * n as u64);
        let args = [g, u, out, Arg::U32(n as u32 / 8)];
        let stats = s.launch("silu_mul_bf16", ([3, 1, 1], 128, 0), &args, &options).unwrap();
        for (i, bits) in s.u16s(out, n).into_iter().enumerate() {
            let (g, u) = (from_bf16(to_bf16(gate[i])), from_bf16(to_bf16(up[i])));
            let expected = g / (1.0 + (-g).exp()) * u;
            // Half a unit of bf16, and the approximations of the exponential.
            let tolerance = expected.abs() / 250.0 + 1e-30;
            assert!((from_bf16(bits) - expected).abs() <= tolerance, "{i}: {expected}");
        }
        assert_eq!((stats.global_loaded, stats.global_stored), (4 * n as u64, 2 * n as u64));
    }
}

#[test]
fn fused_multiply_add_in_f16() {
    let n = 259;
    let x: Vec<u16> = (0..n).map(|i| to_f16(i as f32 / 16.0 - 8.0)).collect();
    let y: Vec<u16> = (0..n).map(|i| to_f16(1.0 - i as f32 / 128.0)).collect();
    let mut s = Session::new(&ptx("elementwise.sm_80.ptx"));
    let (px, py, out) = (s.upload_u16(&x), s.upload_u16(&y), s.alloc(2 * n as u64));
    let args = [px, py, out, Arg::F32(0.75), Arg::U32(n as u32)];
    s.launch("axpy_f16", ([2, 1, 1], 128, 0), &args, &Options::default()).unwrap();
    for (i, bits) in s.u16s(out, n).into_iter().enumerate() {
        let exact = f64::from(from_f16(x[i])) * 0.75 + f64::from(from_f16(y[i]));
        // Rounded once: within half a unit in the last of 11 bits.
        let error = (f64::from(from_f16(bits)) - exact).abs();
        assert!(error <= exact.abs() / 2048.0, "{i}: {exact} {}", from_f16(bits));
    }
}

#[test]
fn functions_of_the_mathematical_library_and_division() {
    let (rows, cols, depth) = (5, 7, 9);
    let n = rows * cols * depth;
    let x: Vec<f32> = noise(n, 3).iter().map(|v| v * 4.0).collect();
    let mut s = Session::new(&ptx("elementwise.sm_80.ptx"));
    let (px, out) = (s.upload_f32(&x), s.alloc(4 * n as u64));
    let dims = [rows, cols, depth].map(|d| Arg::U32(d as u32));
    let args = [px, out, dims[0], dims[1], dims[2]];
    s.launch("permute_gelu", ([3, 1, 1], 128, 0), &args, &Options::default()).unwrap();
    let expected: Vec<f64> = (0..n)
        .map(|i| {
            let (r, c, d) = (i % rows, i / rows % cols, i / (rows * cols));
            let v = f64::from(x[(r * cols + c) * depth + d]);
            let inner = 0.797_884_560_8 * (v + 0.044_715 * v * v * v);
            0.5 * v * (1.0 + inner.tanh()) + v.sin() * (v.abs() + 1.0).ln()
        })
        .collect();
    let error = difference(&s.f32s(out, n), &expected);
    assert!(error < 2e-6, "{error}");
}

#[test]
fn row_sums_by_a_tree_with_barriers() {
    let (rows, cols) = (3, 1000);
    let x = noise(rows * cols, 4);
    let expected: Vec<f64> =
        x.chunks(cols).map(|row| row.iter().map(|&v| f64::from(v)).sum()).collect();
    for options in modes() {
        let mut s = Session::new(&ptx("row_sum.sm_80.ptx"));
        let (px, out) = (s.upload_f32(&x), s.alloc(4 * rows as u64));
        let args = [px, out, Arg::U32(cols as u32)];
        let stats = s.launch("row_sum", ([rows as u32, 1, 1], 128, 0), &args, &options).unwrap();
        let error = difference(&s.f32s(out, rows), &expected);
        assert!(error < 1e-4, "{error}");
        assert_eq!(stats.barriers, 8 * rows as u64);
    }
}

#[test]
fn collectives_of_a_warp() {
    let x: Vec<u32> = (0..64).map(|i| (i * 37 + 11) % 97).collect();
    for options in modes() {
        let mut s = Session::new(&ptx("warp.sm_80.ptx"));
        let (px, out) = (s.upload_u32(&x), s.alloc(4 * 10 * 64));
        s.launch("warp_ops", ([1, 1, 1], 64, 0), &[px, out], &options).unwrap();
        let found = s.u32s(out, 640);
        for (warp, values) in x.chunks(32).enumerate() {
            let odd = (0..32).fold(0, |m, l| m | (values[l] & 1) << l);
            for lane in 0..32 {
                let v = values[lane];
                let same = (0..32).fold(0, |m, l| m | u32::from(values[l] & 3 == v & 3) << l);
                let first_odd = values[odd.trailing_zeros() as usize];
                let rank = (odd & ((1 << lane) - 1)).count_ones() + first_odd;
                let expected = [
                    values.iter().sum(),
                    values[..=lane].iter().sum(),
                    values[(lane + 5) & 31],
                    values[if lane % 8 == 7 { lane } else { lane + 1 }],
                    odd,
                    u32::from(values.iter().any(|&v| v > 90)),
                    1,
                    same,
                    *values.iter().max().unwrap(),
                    if v & 1 == 1 { rank } else { 0 },
                ];
                let at = 10 * (32 * warp + lane);
                assert_eq!(found[at..at + 10], expected, "warp {warp}, lane {lane}");
            }
        }
    }
}

#[test]
fn products_by_wmma() {
    let [m, n, k] = [32, 48, 80];
    let (a, b) = (rounded(&noise(m * k, 5)), rounded(&noise(k * n, 6)));
    let expected: Vec<f64> = product(&a, &b, [m, n, k]).iter().map(|v| 2.0 * v).collect();
    // Numbers of eight bits are numbers of f16, too.
    let transposed: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
    let halves = |values: &[f32]| -> Vec<u16> {
        values.iter().map(|&v| if v.abs() < 1e-4 { 0 } else { to_f16(v) }).collect()
    };
    for options in modes() {
        let mut s = Session::new(&ptx("wmma.sm_80.ptx"));
        let grid = [n as u32 / 16, m as u32 / 16, 1];
        let dims = [Arg::U32(n as u32), Arg::U32(k as u32)];
        let (pa, pb, c) =
            (s.upload_u16(&bf16s(&a)), s.upload_u16(&bf16s(&b)), s.alloc(4 * (m * n) as u64));
        let args = [pa, pb, c, dims[0], dims[1]];
        let stats = s.launch("wmma_bf16", (grid, 32, 0), &args, &options).unwrap();
        assert!(difference(&s.f32s(c, m * n), &expected) < 1e-4);
        assert_eq!(stats.multiply_adds, (m * n * k) as u64);

        let (pa, pb) = (s.upload_u16(&halves(&a)), s.upload_u16(&halves(&transposed)));
        let c = s.alloc(4 * (m * n) as u64);
        let args = [pa, pb, c, dims[0], dims[1]];
        s.launch("wmma_f16", (grid, 32, 0), &args, &options).unwrap();
        assert!(difference(&s.f32s(c, m * n), &expected) < 1e-2);
    }
}

/// The product kernel on a tile row and two tile columns.
fn gemm(text: &str, options: &Options) {
    let [m, n, k] = [64, 128, 96];
    let (a, b) = (rounded(&noise(m * k, 7)), rounded(&noise(k * n, 8)));
    let mut s = Session::new(text);
    let (pa, pb, c) =
        (s.upload_u16(&bf16s(&a)), s.upload_u16(&bf16s(&b)), s.alloc(4 * (m * n) as u64));
    let args = [pa, pb, c, Arg::U32(n as u32), Arg::U32(k as u32)];
    let shared = 2 * 2 * (64 * 40 + 32 * 72);
    let grid = [n as u32 / 64, m as u32 / 64, 1];
    let launched = s.launch("gemm_bf16", (grid, 128, shared), &args, options);
    let stats = launched.unwrap_or_else(|e| panic!("{e}"));
    let error = difference(&s.f32s(c, m * n), &product(&a, &b, [m, n, k]));
    assert!(error < 1e-4, "{error}");
    assert_eq!(stats.multiply_adds, (m * n * k) as u64);
    assert_eq!(stats.products, (m * n * k / (16 * 8 * 16)) as u64);
    // Every tile of a and b is copied once for each tile of the result.
    assert_eq!(stats.global_loaded, 2 * (m * k * n / 64 + k * n * m / 64) as u64);
    assert!(stats.instructions(Class::Matrix) > stats.products);
}

#[test]
fn products_by_mma_with_two_stages() {
    for target in ["sm_80", "sm_90a"] {
        let text = ptx(&format!("gemm.{target}.ptx"));
        for options in modes() {
            gemm(&text, &options);
        }
    }
}

#[test]
fn attention_with_online_softmax() {
    let (n, d) = (128, 64);
    let [q, k, v] = [9, 10, 11].map(|seed| rounded(&noise(n * d, seed)));
    let scale = 0.125;
    let mut expected = vec![];
    for i in 0..n {
        let dot = |j: usize| -> f64 {
            (0..d).map(|e| f64::from(q[i * d + e]) * f64::from(k[j * d + e])).sum()
        };
        let weights: Vec<f64> = (0..n).map(|j| (dot(j) * scale).exp()).collect();
        let total: f64 = weights.iter().sum();
        for e in 0..d {
            let sum: f64 = (0..n).map(|j| weights[j] * f64::from(v[j * d + e])).sum();
            expected.push(sum / total);
        }
    }
    for options in modes() {
        let mut s = Session::new(&ptx("attention.sm_90a.ptx"));
        let [pq, pk, pv] = [&q, &k, &v].map(|x| s.upload_u16(&bf16s(x)));
        let out = s.alloc(2 * (n * d) as u64);
        let args = [pq, pk, pv, out, Arg::U32(n as u32), Arg::F32(scale as f32)];
        s.launch("attention", ([n as u32 / 64, 1, 1], 128, 0), &args, &options).unwrap();
        let found: Vec<f32> = s.u16s(out, n * d).into_iter().map(from_bf16).collect();
        // Probabilities and results are rounded to bf16; results are below 0.2.
        let error = difference(&found, &expected);
        assert!(error < 2e-3, "{error}");
    }
}

#[test]
fn atomics_on_shared_and_global_memory() {
    let x: Vec<u32> = (0..300).map(|i| (i * i + 3) % 61).collect();
    let weights = [1, 2, 3, 5, 7, 11, 13, 17];
    for mut options in modes() {
        // The loop that adds bf16 pairs by compare-and-swap begins with a plain read of what others change.
        options.checks_block_races = false;
        let mut s = Session::new(&ptx("atomics.sm_80.ptx"));
        let px = s.upload_u32(&x);
        let bins = s.upload_u32(&[0; 8]);
        let sum = s.upload_f32(&[0.5]);
        let halves = s.upload_u16(&[0, to_f16(8.0)]);
        let brains = s.upload_u16(&[0, 0]);
        let extremes = s.upload_u32(&[1000, 0, 0, 0]);
        let args = [px, bins, sum, halves, brains, extremes, Arg::U32(300)];
        s.launch("histogram", ([3, 1, 1], 128, 0), &args, &options).unwrap();
        let mut expected = [0; 8];
        for &v in &x {
            expected[v as usize & 7] += weights[v as usize & 7];
        }
        assert_eq!(s.u32s(bins, 8), expected);
        assert_eq!(s.f32s(sum, 1), [0.5 + x.iter().sum::<u32>() as f32]);
        assert_eq!(s.u16s(halves, 2), [to_f16(300.0), to_f16(608.0)]);
        // 0.5 a time stops at 128, where half a unit of bf16 is lost to the even neighbor; so does 1.0 at 256.
        assert_eq!(s.u16s(brains, 2).map_bf16(), [128.0, 256.0]);
        let [least, most, or, first] = s.u32s(extremes, 4)[..] else { panic!("four numbers") };
        assert_eq!(least, *x.iter().min().unwrap());
        assert_eq!(most, *x.iter().max().unwrap());
        assert_eq!(or, x.iter().fold(0, |or, v| or | v));
        assert!(x.contains(&first) && first != 0);
        let (address, bytes) = s.program.global("n_blocks_done").unwrap();
        let mut done = vec![0; bytes as usize];
        s.device.download(address, &mut done).unwrap();
        assert_eq!(done, 3_u32.to_le_bytes());
    }
}

trait MapBf16 {
    fn map_bf16(&self) -> Vec<f32>;
}

impl MapBf16 for Vec<u16> {
    fn map_bf16(&self) -> Vec<f32> {
        self.iter().map(|&bits| from_bf16(bits)).collect()
    }
}

#[test]
fn the_number_of_host_threads_changes_nothing() {
    let (rows, cols) = (64, 500);
    let x = noise(rows * cols, 12);
    let run = |threads: usize| {
        let options = Options { threads: threads.try_into().unwrap(), ..Options::default() };
        let mut s = Session::new(&ptx("row_sum.sm_80.ptx"));
        let (px, out) = (s.upload_f32(&x), s.alloc(4 * rows as u64));
        let args = [px, out, Arg::U32(cols as u32)];
        let stats = s.launch("row_sum", ([rows as u32, 1, 1], 128, 0), &args, &options).unwrap();
        (s.u32s(out, rows), stats)
    };
    assert_eq!(run(1), run(4));
}
