//! The matrix product at STDiT-XL/2's shapes, plain and fused, and the two products of its gradients,
//! in f32 and bf16, on 1 and 2 threads.
//! Criterion's `thrpt` counts FLOPs as elements: 1 Gelem/s is 1 GFLOP/s.

use std::time::Duration;

use benches::peak::f32_peak;
use benches::product::{Fusion, Product, SHAPES};
use benches::site::Timed;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::{Isa, Pool};
use ops::{DType, TensorType};

#[allow(clippy::print_stdout, reason = "the limit belongs beside the measurements")]
fn matmul(criterion: &mut Criterion) {
    let isa = Isa::detect();
    for (threads, dtype) in [1, 2].into_iter().flat_map(|n| [(n, DType::F32), (n, DType::Bf16)]) {
        let pool = || Pool::new(threads).expect("the system starts two threads");
        println!("{isa}, {threads} threads: f32 peak {:.0} GFLOP/s", f32_peak(isa, &pool()) / 1e9);
        let mut group = criterion.benchmark_group(format!("matmul {dtype}, {threads} threads"));
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(2));
        for (m, n, k) in SHAPES {
            for fusion in Fusion::ALL {
                let mut product = Product::new((m, n, k), fusion, dtype, isa, pool())
                    .expect("the shapes are valid");
                group.throughput(Throughput::Elements(product.flops() as u64));
                let id = BenchmarkId::new(fusion.name(), format!("{m}x{n}x{k}"));
                group.bench_function(id, |bencher| bencher.iter(|| product.run()));
            }
        }
        group.finish();
    }
}

/// The gradients of `y = x w'` by `x`, `[m, n] x [n, k]`, and by the weight, `[m, n]' x [m, k]`; nothing is
/// packed before.
fn gradients(criterion: &mut Criterion) {
    for (dtype, threads) in [(DType::F32, 1), (DType::F32, 2), (DType::Bf16, 1), (DType::Bf16, 2)] {
        let mut group = criterion.benchmark_group(format!("gradients {dtype}, {threads} threads"));
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(2));
        for (m, n, k) in SHAPES {
            for (by, right, is_weight) in [("input", [n, k], false), ("weight", [m, k], true)] {
                let pool = Pool::new(threads).expect("the system starts two threads");
                let types = [[m, n], right]
                    .map(|shape| TensorType::new(dtype, shape).expect("it is small"));
                let timed = Timed::of_types(&types, &[], pool, |b, args| {
                    b.matmul(args[0], args[1], is_weight, false)
                });
                let mut timed = timed.expect("the shapes are valid").expect("it has a kernel");
                group.throughput(Throughput::Elements(timed.flops()));
                let id = BenchmarkId::new(format!("by {by}"), format!("{m}x{n}x{k}"));
                group.bench_function(id, |bencher| bencher.iter(|| timed.run()));
            }
        }
        group.finish();
    }
}

criterion_group!(benches, matmul, gradients);
criterion_main!(benches);
