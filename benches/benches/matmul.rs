//! The matrix product at STDiT-XL/2's shapes, plain and fused, in f32 and bf16, on 1 and 2
//! threads.
//! Criterion's `thrpt` counts FLOPs as elements: 1 Gelem/s is 1 GFLOP/s.

use std::time::Duration;

use benches::peak::fma_peak;
use benches::product::{Fusion, Product, SHAPES};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::{Isa, Pool};
use ops::DType;

#[allow(clippy::print_stdout, reason = "the limit belongs beside the measurements")]
fn matmul(criterion: &mut Criterion) {
    let isa = Isa::detect();
    for (threads, dtype) in [1, 2].into_iter().flat_map(|n| [(n, DType::F32), (n, DType::Bf16)]) {
        let pool = || Pool::new(threads).expect("the system starts two threads");
        println!("{isa}, {threads} threads: f32 peak {:.0} GFLOP/s", fma_peak(isa, &pool()) / 1e9);
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

criterion_group!(benches, matmul);
criterion_main!(benches);
