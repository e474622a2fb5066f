//! The matrix product on every instruction set against a naive product in f64.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cuts;
mod errors;
mod fused;
mod sums;

use half::{bf16, f16};
use kernels::cpu::RowView;
use kernels::cpu::matmul::{BOperand, BView, Caches, Matmul, MatmulBuffers, MatmulSpec};
use kernels::program::Program;
use kernels::{Isa, Pool};
use ops::DType;

/// With a last-level cache so small that small products are cut into blocks for it.
const CACHES: Caches = Caches { l2: 1 << 20, l3: 128 << 10 };

/// A small generator with a fixed seed per test.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn value(&mut self) -> f64 {
        self.next() as f64 / f64::from(1u32 << 30) - 1.0
    }
}

/// A buffer of some type, and the exact values it holds.
struct Buffer {
    bytes: Vec<u8>,
    values: Vec<f64>,
}

fn buffer(random: &mut Random, dtype: DType, n: usize) -> Buffer {
    let mut bytes = Vec::new();
    let mut values = Vec::new();
    for _ in 0..n {
        let x = random.value() as f32;
        let (stored, value) = encode(dtype, x);
        bytes.extend(stored);
        values.push(value);
    }
    Buffer { bytes, values }
}

fn encode(dtype: DType, x: f32) -> (Vec<u8>, f64) {
    match dtype {
        DType::F32 => (x.to_le_bytes().to_vec(), f64::from(x)),
        DType::Bf16 => (bf16::from_f32(x).to_le_bytes().to_vec(), bf16::from_f32(x).to_f64()),
        DType::F16 => (f16::from_f32(x).to_le_bytes().to_vec(), f16::from_f32(x).to_f64()),
        other => panic!("no {other:?} here"),
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(dtype.size())
        .map(|c| match dtype {
            DType::F32 => f64::from(f32::from_le_bytes(c.try_into().unwrap())),
            DType::Bf16 => bf16::from_le_bytes(c.try_into().unwrap()).to_f64(),
            _ => f16::from_le_bytes(c.try_into().unwrap()).to_f64(),
        })
        .collect()
}

/// Scratch aligned to 64 bytes, filled with NaN so that reading too early shows.
struct Scratch {
    bytes: Vec<u8>,
}

impl Scratch {
    fn new(n: usize) -> Self {
        Self { bytes: vec![0xff; n + 64] }
    }
    fn ptr(&mut self) -> *mut u8 {
        let start = self.bytes.as_ptr().align_offset(64);
        self.bytes[start..].as_mut_ptr()
    }
}

fn view(dtype: DType, row_strides: &[usize], column_stride: usize) -> RowView {
    RowView { dtype, row_strides: row_strides.to_vec(), column_stride, offset: 0 }
}

fn plain(m: usize, n: usize, k: usize) -> MatmulSpec {
    MatmulSpec {
        digits: false,
        batch: vec![],
        rows: vec![m],
        columns: n,
        depth: k,
        a: view(DType::F32, &[k], 1),
        b: BOperand::Packed(DType::F32),
        product: DType::F32,
        norm: None,
        prologue: None,
        prologue_operands: vec![],
        epilogue: Program::copy(DType::F32, DType::F32),
        epilogue_operands: vec![],
        c: view(DType::F32, &[n], 1),
    }
}

/// The same of a dense B as digits, where the CPU multiplies those.
fn of_digits(m: usize, n: usize, k: usize, b: (usize, usize)) -> MatmulSpec {
    MatmulSpec { digits: true, b: dense(DType::F32, b), ..plain(m, n, k) }
}

/// What a product reads, as buffers. An empty one stands for C, where the operand is updated in place.
struct Operands<'a> {
    a: &'a Buffer,
    /// Dense.
    b: &'a Buffer,
    /// From one depth of B to the next, and from column to column.
    b_strides: (usize, usize),
    prologue: &'a [&'a Buffer],
    epilogue: &'a [&'a Buffer],
}

impl<'a> Operands<'a> {
    fn plain(a: &'a Buffer, b: &'a Buffer, b_strides: (usize, usize)) -> Operands<'a> {
        Operands { a, b, b_strides, prologue: &[], epilogue: &[] }
    }
}

/// Runs `spec` on every instruction set and 1 to 4 threads; equal bytes for all thread counts.
/// Returns C of each instruction set, which has the bytes `c` before.
fn run(spec: &MatmulSpec, operands: &Operands<'_>, c: &[u8]) -> Vec<(Isa, Vec<u8>)> {
    run_within(CACHES, spec, operands, c)
}

/// The same with block sizes for other caches.
fn run_within(
    caches: Caches,
    spec: &MatmulSpec,
    operands: &Operands<'_>,
    c: &[u8],
) -> Vec<(Isa, Vec<u8>)> {
    let &Operands { a, b, b_strides, prologue, epilogue } = operands;
    let pools: Vec<Pool> = (1..=4).map(|threads| Pool::new(threads).unwrap()).collect();
    let mut results = Vec::new();
    for isa in Isa::available() {
        let matmul = Matmul::new(spec.clone(), isa, caches).unwrap();
        let packed = match spec.b {
            BOperand::Packed(_) => {
                let mut packed = vec![0xff; matmul.packed_b_bytes()];
                matmul.pack_b(&pools[1], &b.bytes, b_strides, &mut packed).unwrap();
                packed
            }
            BOperand::Dense(_) => b.bytes.clone(),
        };
        let mut first: Option<Vec<u8>> = None;
        for pool in &pools {
            let mut out = c.to_vec();
            let mut scratch = Scratch::new(matmul.scratch_bytes(pool.threads()));
            let pointers = |buffers: &[&Buffer], c: *const u8| -> Vec<*const u8> {
                let get = |x: &&Buffer| if x.bytes.is_empty() { c } else { x.bytes.as_ptr() };
                buffers.iter().map(get).collect()
            };
            let c = out.as_mut_ptr();
            let (prologue, epilogue) = (pointers(prologue, c), pointers(epilogue, c));
            let buffers = MatmulBuffers {
                a: a.bytes.as_ptr(),
                b: packed.as_ptr(),
                prologue: &prologue,
                epilogue: &epilogue,
                c,
                scratch: scratch.ptr(),
            };
            // SAFETY: the buffers were made for this spec.
            unsafe { matmul.run(pool, &buffers) };
            let first = first.get_or_insert_with(|| out.clone());
            assert!(*first == out, "{isa}: {} threads differ from one", pool.threads());
        }
        results.push((isa, first.unwrap()));
    }
    results
}

/// `tolerance` is relative to the sum of absolute products, as rounding errors are.
fn assert_close(isa: Isa, what: &str, found: &[f64], expected: &[(f64, f64)], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &(expected, scale))) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance * scale.max(1e-3),
            "{isa} {what} element {i}: found {found}, expected {expected}, scale {scale}"
        );
    }
}

/// Error of a sum of `depth` products in f32, relative to the sum of their absolute values.
fn sum_tolerance(depth: usize) -> f64 {
    // A chain of n roundings drifts by about sqrt(n) half ulps; 4 leaves room for the worst of many.
    4.0 * f64::from(f32::EPSILON) * (depth as f64).sqrt()
}

fn product(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<(f64, f64)> {
    let mut c = Vec::with_capacity(m * n);
    for r in 0..m {
        for col in 0..n {
            let products = (0..k).map(|i| a(r, i) * b(i, col));
            c.push(products.fold((0.0, 0.0), |(sum, scale), x| (sum + x, scale + x.abs())));
        }
    }
    c
}

#[test]
fn f32_matches_the_naive_product_on_ragged_shapes() {
    let mut random = Random(1);
    let mut shapes =
        vec![(1, 1, 1), (1, 1152, 300), (7, 16, 5), (8, 48, 4), (9, 49, 321), (250, 100, 33)];
    shapes.extend([(3, 800, 1400), (130, 15, 1290), (17, 385, 640)]);
    for _ in 0..25 {
        shapes.push((1 + random.below(70), 1 + random.below(140), 1 + random.below(90)));
    }
    for (m, n, k) in shapes {
        let a = buffer(&mut random, DType::F32, m * k);
        let b = buffer(&mut random, DType::F32, n * k);
        // Torch's weight layout: [N, K].
        let expected = product((m, n, k), |r, i| a.values[r * k + i], |i, c| b.values[c * k + i]);
        let c = vec![0xff; m * n * 4];
        for spec in [plain(m, n, k), of_digits(m, n, k, (1, k))] {
            for (isa, c) in run(&spec, &Operands::plain(&a, &b, (1, k)), &c) {
                let what = format!("{m}x{n}x{k}, digits: {}", spec.digits);
                assert_close(isa, &what, &decode(DType::F32, &c), &expected, sum_tolerance(k));
            }
        }
    }
}

#[test]
fn element_types_and_transposes_mix_freely() {
    let mut random = Random(2);
    let types = [DType::F32, DType::Bf16, DType::F16];
    for case in 0..36 {
        let (m, n, k) = (1 + random.below(40), 1 + random.below(90), 1 + random.below(400));
        let (ta, tb, tc) = (types[case % 3], types[case / 3 % 3], types[case / 9 % 3]);
        let (a, b) = (buffer(&mut random, ta, m * k), buffer(&mut random, tb, n * k));
        let a_strides = if random.below(2) == 0 { (k, 1) } else { (1, m) };
        let b_strides = if random.below(2) == 0 { (1, k) } else { (n, 1) };
        let mut spec = MatmulSpec { digits: true, ..plain(m, n, k) };
        spec.a = view(ta, &[a_strides.0], a_strides.1);
        spec.c.dtype = tc;
        spec.epilogue = Program::copy(DType::F32, tc);
        spec.b = match random.below(2) {
            0 => BOperand::Packed(tb),
            _ => BOperand::Dense(BView {
                dtype: tb,
                batch_strides: vec![],
                depth_stride: b_strides.0,
                column_stride: b_strides.1,
                offset: 0,
            }),
        };
        let expected = product(
            (m, n, k),
            |r, i| a.values[r * a_strides.0 + i * a_strides.1],
            |i, c| b.values[i * b_strides.0 + c * b_strides.1],
        );
        // The result's own rounding: half an ulp, relative to the value, at most the scale.
        let rounding = match tc {
            DType::Bf16 => 1.0 / 256.0,
            DType::F16 => 1.0 / 2048.0,
            _ => 0.0,
        };
        let c = vec![0xff; m * n * tc.size()];
        for (isa, c) in run(&spec, &Operands::plain(&a, &b, b_strides), &c) {
            let what = format!("{m}x{n}x{k} {ta:?} {tb:?} {tc:?} {:?}", spec.b);
            assert_close(isa, &what, &decode(tc, &c), &expected, sum_tolerance(k) + rounding);
        }
    }
}

/// A dense B with these strides along the depth and from column to column.
fn dense(dtype: DType, (depth_stride, column_stride): (usize, usize)) -> BOperand {
    BOperand::Dense(BView { dtype, batch_strides: vec![], depth_stride, column_stride, offset: 0 })
}

#[test]
fn batches_broadcast_and_rows_follow_their_strides() {
    let mut random = Random(3);
    // [2, 3] batch, B repeats over the first dim; rows [4, 5] of A and C are permuted in memory.
    let (n, k) = (37, 29);
    let a = buffer(&mut random, DType::F32, 6 * 20 * k);
    let b = buffer(&mut random, DType::F32, 3 * n * k);
    let spec = MatmulSpec {
        batch: vec![2, 3],
        rows: vec![4, 5],
        a: view(DType::F32, &[60 * k, 20 * k, k, 4 * k], 1),
        b: BOperand::Dense(BView {
            dtype: DType::F32,
            batch_strides: vec![0, n * k],
            depth_stride: n,
            column_stride: 1,
            offset: 0,
        }),
        c: view(DType::F32, &[60 * n, 20 * n, 5 * n, n], 1),
        ..plain(20, n, k)
    };
    let mut expected = Vec::new();
    for batch in 0..6 {
        for row in 0..20 {
            let start = batch * 20 * k + (row / 5) * k + (row % 5) * 4 * k;
            let b = &b.values[batch % 3 * n * k..];
            expected.extend(product((1, n, k), |_, i| a.values[start + i], |i, c| b[i * n + c]));
        }
    }
    for (isa, c) in run(&spec, &Operands::plain(&a, &b, (0, 0)), &vec![0xff; 120 * n * 4]) {
        assert_close(isa, "batch", &decode(DType::F32, &c), &expected, sum_tolerance(k));
    }
}

#[test]
fn refuses_contradictory_specs() {
    let isa = Isa::PORTABLE;
    let refused = |spec: MatmulSpec| Matmul::new(spec, isa, CACHES).unwrap_err().to_string();
    let mut spec = plain(2, 3, 4);
    spec.c.dtype = DType::Bf16;
    assert_eq!(refused(spec), "invalid matmul: the epilogue's result differs from C's type");
    let mut spec = plain(2, 3, 4);
    spec.a.row_strides.push(1);
    assert_eq!(refused(spec), "invalid matmul: A has 2 row strides, expected 1");
    let mut spec = plain(2, 3, 4);
    spec.batch.push(2);
    assert!(refused(spec).starts_with("invalid matmul: A has 1 row strides, expected 2"));
    assert_eq!(refused(plain(0, 3, 4)), "invalid matmul: a dim is 0");
}

#[test]
fn pack_b_refuses_wrong_lengths() {
    let pool = Pool::new(1).unwrap();
    let matmul = Matmul::new(plain(1, 8, 2), Isa::PORTABLE, CACHES).unwrap();
    let pack = |dense: &[u8], packed: &mut [u8]| matmul.pack_b(&pool, dense, (8, 1), packed);
    assert!(pack(&[0; 64], &mut [0; 64]).is_ok());
    assert!(pack(&[0; 60], &mut [0; 64]).is_err());
    assert!(pack(&[0; 64], &mut [0; 60]).is_err());
}
