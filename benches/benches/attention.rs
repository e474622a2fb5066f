//! Attention at STDiT-XL/2's shapes (16 heads of 72) and the VAE's (one head of 512), and its gradients
//! at the first, in f32 and bf16, on 1 and 2 threads. Criterion's `thrpt` counts FLOPs as elements: 1 Gelem/s is 1 GFLOP/s.

use std::time::Duration;

use benches::site::Timed;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::Pool;
use ops::defs::attention_grad::AttentionGrad;
use ops::{DType, TensorType};

/// `[batch, queries, keys, heads, head dims]`: spatial, long, temporal, cross, VAE.
const SHAPES: [[usize; 5]; 6] = [
    [1, 1024, 1024, 16, 72],
    [1, 4096, 4096, 16, 72],
    [16, 256, 256, 16, 72],
    [256, 16, 16, 16, 72],
    [1, 4096, 120, 16, 72],
    [1, 4096, 4096, 1, 512],
];

fn attention(criterion: &mut Criterion) {
    for (dtype, threads) in [(DType::F32, 1), (DType::F32, 2), (DType::Bf16, 1), (DType::Bf16, 2)] {
        let mut group = criterion.benchmark_group(format!("attention {dtype}, {threads} threads"));
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(2));
        for [batch, sq, sk, heads, d] in SHAPES {
            let pool = Pool::new(threads).expect("the system starts two threads");
            let rows = |s: usize| TensorType::new(dtype, [batch, s, heads, d]);
            let types = [sq, sk, sk].map(|s| rows(s).expect("the shapes are valid"));
            let timed = Timed::of_types(&types, &[], pool, |b, args| {
                b.attention([args[0], args[1], args[2]], None, None, 1.0 / (d as f64).sqrt())
            });
            let mut timed = timed.expect("the shapes are valid").expect("attention has a kernel");
            group.throughput(Throughput::Elements(timed.flops()));
            let id = BenchmarkId::from_parameter(format!("{batch}x{sq}x{sk} {heads} of {d}"));
            group.bench_function(id, |bencher| bencher.iter(|| timed.run()));
        }
        group.finish();
    }
}

/// FLOPs are those of five products: what the kernel does again does not count.
fn gradients(criterion: &mut Criterion) {
    for (dtype, threads) in [(DType::F32, 1), (DType::F32, 2), (DType::Bf16, 1), (DType::Bf16, 2)] {
        let name = format!("gradients of attention {dtype}, {threads} threads");
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(2));
        for [batch, sq, sk, heads, d] in &SHAPES[..5] {
            let pool = Pool::new(threads).expect("the system starts two threads");
            let rows = |s: usize| TensorType::new(dtype, [*batch, s, *heads, *d]);
            let types = [*sq, *sk, *sk, *sq, *sq].map(|s| rows(s).expect("the shapes are valid"));
            let scale = 1.0 / (*d as f64).sqrt();
            let timed =
                Timed::of_types(&types, &[], pool, |b, args| b.op(AttentionGrad { scale }, args));
            let mut timed = timed.expect("the shapes are valid").expect("gradients have a kernel");
            group.throughput(Throughput::Elements(timed.flops()));
            let id = BenchmarkId::from_parameter(format!("{batch}x{sq}x{sk} {heads} of {d}"));
            group.bench_function(id, |bencher| bencher.iter(|| timed.run()));
        }
        group.finish();
    }
}

criterion_group!(benches, attention, gradients);
criterion_main!(benches);
