//! The matrix product on every instruction set against a naive product in f64.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use half::{bf16, f16};
use kernels::cpu::matmul::{BOperand, BView, Caches, Matmul, MatmulBuffers, MatmulSpec};
use kernels::cpu::{Norm, RowView};
use kernels::program::{Program, ProgramBuilder};
use kernels::{Isa, Pool};
use ops::DType;
use ops::defs::binary::Binary;
use ops::defs::unary::Unary;

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

/// Runs `spec` on every instruction set and 1 to 4 threads; equal bytes for all thread counts.
/// Returns C of each instruction set. `b` is the dense B with its depth and column stride.
fn run(
    spec: &MatmulSpec,
    a: &Buffer,
    b: (&Buffer, (usize, usize)),
    prologue: &[&Buffer],
    epilogue: &[&Buffer],
    c: &[u8],
) -> Vec<(Isa, Vec<u8>)> {
    run_within(CACHES, spec, a, b, prologue, epilogue, c)
}

/// The same with block sizes for other caches.
fn run_within(
    caches: Caches,
    spec: &MatmulSpec,
    a: &Buffer,
    b: (&Buffer, (usize, usize)),
    prologue: &[&Buffer],
    epilogue: &[&Buffer],
    c: &[u8],
) -> Vec<(Isa, Vec<u8>)> {
    let pools: Vec<Pool> = (1..=4).map(|threads| Pool::new(threads).unwrap()).collect();
    let mut results = Vec::new();
    for isa in Isa::available() {
        let matmul = Matmul::new(spec.clone(), isa, caches).unwrap();
        let packed = match spec.b {
            BOperand::Packed(_) => {
                let mut packed = vec![0xff; matmul.packed_b_bytes()];
                matmul.pack_b(&pools[1], &b.0.bytes, b.1, &mut packed).unwrap();
                packed
            }
            BOperand::Dense(_) => b.0.bytes.clone(),
        };
        let mut first: Option<Vec<u8>> = None;
        for pool in &pools {
            let mut out = c.to_vec();
            let mut scratch = Scratch::new(matmul.scratch_bytes(pool.threads()));
            let pointers = |buffers: &[&Buffer], c: *const u8| -> Vec<*const u8> {
                // A missing buffer stands for C: the operand is updated in place.
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
            for (isa, c) in run(&spec, &a, (&b, (1, k)), &[], &[], &c) {
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
        for (isa, c) in run(&spec, &a, (&b, b_strides), &[], &[], &c) {
            let what = format!("{m}x{n}x{k} {ta:?} {tb:?} {tc:?} {:?}", spec.b);
            assert_close(isa, &what, &decode(tc, &c), &expected, sum_tolerance(k) + rounding);
        }
    }
}

#[test]
fn bf16_products_lose_nothing_but_the_rounding_of_sums() {
    let mut random = Random(5);
    let mut shapes = vec![(1, 1, 1), (9, 49, 3), (8, 48, 640), (250, 100, 33), (3, 800, 2901)];
    for _ in 0..25 {
        shapes.push((1 + random.below(70), 1 + random.below(140), 1 + random.below(1400)));
    }
    for (m, n, k) in shapes {
        let a = buffer(&mut random, DType::Bf16, m * k);
        let b = buffer(&mut random, DType::Bf16, n * k);
        let b_strides = if random.below(2) == 0 { (1, k) } else { (n, 1) };
        let mut spec = plain(m, n, k);
        spec.product = DType::Bf16;
        spec.a.dtype = DType::Bf16;
        spec.b = match random.below(2) {
            0 => BOperand::Packed(DType::Bf16),
            _ => BOperand::Dense(BView {
                dtype: DType::Bf16,
                batch_strides: vec![],
                depth_stride: b_strides.0,
                column_stride: b_strides.1,
                offset: 0,
            }),
        };
        let at = |i: usize, c: usize| i * b_strides.0 + c * b_strides.1;
        let expected = product((m, n, k), |r, i| a.values[r * k + i], |i, c| b.values[at(i, c)]);
        let c = vec![0xff; m * n * 4];
        for (isa, c) in run(&spec, &a, (&b, b_strides), &[], &[], &c) {
            let what = format!("{m}x{n}x{k} {:?}", spec.b);
            assert_close(isa, &what, &decode(DType::F32, &c), &expected, sum_tolerance(k));
        }
    }
}

/// What numbers a row of A and a column of B are made of in tests of errors.
#[derive(Clone, Copy, Debug)]
enum Numbers {
    /// Of about one size.
    Uniform,
    Normal,
    /// Many small ones and few large ones, as gradients are.
    LogNormal,
    /// Of sizes that differ by up to 2^20 within a row.
    AllSizes,
    /// A's of a large size in one half of the depth, B's in the other.
    Opposite,
    /// One element of a row larger than the others, where B has small ones.
    Outlier,
}

impl Numbers {
    /// Elements of `lines` rows of A, or columns of B, of this depth.
    fn make(self, random: &mut Random, lines: usize, depth: usize, is_b: bool) -> Buffer {
        let mut numbers = Buffer { bytes: Vec::new(), values: Vec::new() };
        for at in 0..lines * depth {
            let k = at % depth;
            let normal: f64 = (0..12).map(|_| (random.value() + 1.0) / 2.0).sum::<f64>() - 6.0;
            let x = match self {
                Numbers::Uniform => random.value(),
                Numbers::Normal => normal,
                Numbers::LogNormal => random.value().signum() * (1.5 * normal).exp(),
                Numbers::AllSizes => random.value() * (random.below(21) as f64).exp2(),
                Numbers::Opposite if (k < depth / 2) == is_b => normal * 1e-3,
                Numbers::Outlier if k == depth / 3 => normal * if is_b { 0.03 } else { 30.0 },
                Numbers::Opposite | Numbers::Outlier => normal,
            };
            let (bytes, value) = encode(DType::F32, x as f32);
            numbers.bytes.extend(bytes);
            numbers.values.push(value);
        }
        numbers
    }
}

#[test]
fn f32_products_are_as_right_on_every_instruction_set_as_chains_of_multiply_adds() {
    use Numbers::{AllSizes, LogNormal, Normal, Opposite, Outlier, Uniform};
    // Half of the last place of f32.
    const HALF_ULP: f64 = f32::EPSILON as f64 / 2.0;
    let mut random = Random(11);
    for ((m, n, k), numbers) in [(33, 40, 32), (40, 33, 192), (64, 48, 1152), (40, 33, 4608)]
        .into_iter()
        .flat_map(|shape| {
            [Uniform, Normal, LogNormal, AllSizes, Opposite, Outlier]
                .map(|numbers| (shape, numbers))
        })
    {
        let a = numbers.make(&mut random, m, k, false);
        let b = numbers.make(&mut random, n, k, true);
        let expected = product((m, n, k), |r, i| a.values[r * k + i], |i, c| b.values[c * k + i]);
        // Root mean square of errors, relative to the sum of absolute products.
        let error = |found: &[f64]| {
            let squares =
                found.iter().zip(&expected).map(|(x, (y, scale))| ((x - y) / scale).powi(2));
            (squares.sum::<f64>() / found.len() as f64).sqrt()
        };
        let mut chains = Vec::with_capacity(m * n);
        for (r, c) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
            let terms = (0..k).map(|i| (a.values[r * k + i] as f32, b.values[c * k + i] as f32));
            chains.push(f64::from(terms.fold(0f32, |sum, (a, b)| a.mul_add(b, sum))));
        }
        let limit = error(&chains);
        let empty = vec![0xff; m * n * 4];
        for (isa, c) in run(&of_digits(m, n, k, (1, k)), &a, (&b, (1, k)), &[], &[], &empty) {
            let error = error(&decode(DType::F32, &c));
            // Blocks of the depth are summed one by one, which no chain is worse for but a short one.
            let what = format!("{isa} {numbers:?} {m}x{n}x{k}: {error:e}, a chain {limit:e}");
            // Digits hold what a large element's size leaves.
            let is_uneven = match numbers {
                Outlier => true,
                LogNormal => k < 1152,
                _ => false,
            };
            let least = if is_uneven { 8.0 * HALF_ULP } else { HALF_ULP };
            assert!(error <= (1.1 * limit).max(least), "{what}");
        }
    }
}

/// A dense B with these strides along the depth and from column to column.
fn dense(dtype: DType, (depth_stride, column_stride): (usize, usize)) -> BOperand {
    BOperand::Dense(BView { dtype, batch_strides: vec![], depth_stride, column_stride, offset: 0 })
}

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
            for (isa, c) in run(&spec, &a, (&b, (n, 1)), &[], &[], &vec![0xff; m * n * 4]) {
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
    for (isa, c) in run(&spec, &a, (&b, (n, 1)), &[], &[], &vec![0xff; batch * m * n * 4]) {
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
    let whole = run(&plain(m, n, k), &a, (&b, (1, k)), &[], &[], &c);
    assert!(run(&spec, &a, (&b, (1, k)), &[], &[], &c) == whole);
    let small = Caches { l2: 1 << 18, l3: 1 << 20 };
    for b_strides in [(1, k), (n, 1)] {
        let (spec, b) = (of_digits(m, n, k, b_strides), (&b, b_strides));
        let whole = run(&spec, &a, b, &[], &[], &c);
        assert!(run_within(small, &spec, &a, b, &[], &[], &c) == whole, "{b_strides:?}");
    }
    // Scratch does not grow with B.
    for isa in Isa::available() {
        let bytes =
            |spec: &MatmulSpec| Matmul::new(spec.clone(), isa, CACHES).unwrap().scratch_bytes(1);
        let added = bytes(&spec).saturating_sub(bytes(&plain(m, n, k)));
        assert!(added < n * k, "{isa}: {added} bytes for a B of {}", 4 * n * k);
    }
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
    for (isa, c) in run(&spec, &a, (&b, (0, 0)), &[], &[], &vec![0xff; 120 * n * 4]) {
        assert_close(isa, "batch", &decode(DType::F32, &c), &expected, sum_tolerance(k));
    }
}

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
    let b = (&b, (1, k));
    let (before, after) = ([&scale, &shift], [&bias, &gate, &in_place]);
    let results = run(&spec, &a, b, &before, &after, &residual.bytes);
    // An activation B is multiplied in the same order.
    let spec = MatmulSpec { b: dense(b_dtype, (1, k)), ..spec };
    assert!(run(&spec, &a, b, &before, &after, &residual.bytes) == results);
    let of_digits = MatmulSpec { digits: true, ..spec };
    let of_digits = run(&of_digits, &a, b, &before, &after, &residual.bytes);
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
