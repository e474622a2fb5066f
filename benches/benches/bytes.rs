//! Kernels that are bound by bytes, at STDiT-XL/2's and the VAE's shapes, in f32 and bf16, on 1 and 2
//! threads. Criterion's `thrpt` counts what is read and written, each element once.

use std::time::Duration;

use benches::site::Timed;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::Pool;
use ops::{Builder, DType, Error, TensorType, ValueId};

type Build = fn(&mut Builder, &[ValueId]) -> Result<ValueId, Error>;

/// A kernel by name, its operands, and what it computes of them.
struct Case {
    kernel: &'static str,
    /// Shapes of operands of the measured type.
    shapes: &'static [&'static [usize]],
    /// Operands of a fixed type, after those.
    others: &'static [(DType, &'static [usize])],
    build: Build,
}

const CASES: [Case; 10] = [
    Case {
        kernel: "concat",
        shapes: &[&[4096, 1152], &[4096, 1152]],
        others: &[],
        build: |b, args| b.concat(args, 1),
    },
    Case {
        kernel: "gather",
        shapes: &[&[128, 1024]],
        others: &[(DType::I64, &[128])],
        build: |b, args| b.gather(args[0], args[1]),
    },
    Case {
        kernel: "group_norm",
        shapes: &[&[1, 256, 256, 128], &[128], &[128]],
        others: &[],
        build: |b, args| {
            let y = b.group_norm(args[0], args[1], args[2], 32, 1e-6)?;
            b.silu(y)
        },
    },
    Case {
        kernel: "map",
        shapes: &[&[4096, 1152], &[4096, 1152]],
        others: &[],
        build: |b, args| b.add(args[0], args[1]),
    },
    Case {
        kernel: "map transpose",
        shapes: &[&[128, 256, 256]],
        others: &[],
        build: |b, args| b.permute(args[0], &[1, 2, 0]),
    },
    Case {
        kernel: "norm",
        shapes: &[&[4096, 1152], &[1, 1152]],
        others: &[],
        build: |b, args| {
            let normed = b.rms_norm(args[0], 1e-6)?;
            b.mul(normed, args[1])
        },
    },
    Case {
        kernel: "pad",
        shapes: &[&[1, 255, 255, 128]],
        others: &[],
        build: |b, args| b.pad(args[0], &[0, 0, 0, 0], &[0, 1, 1, 0]),
    },
    Case {
        kernel: "reduce",
        shapes: &[&[4096, 1152]],
        others: &[],
        build: |b, args| b.reduce_mean(args[0], &[1]),
    },
    // The gradient of a bias.
    Case {
        kernel: "reduce rows",
        shapes: &[&[4096, 4608]],
        others: &[],
        build: |b, args| b.reduce_sum(args[0], &[0]),
    },
    Case {
        kernel: "rope",
        shapes: &[&[256, 16, 16, 72]],
        others: &[(DType::F32, &[16, 36])],
        build: |b, args| b.rope(args[0], args[1]),
    },
];

fn bytes(criterion: &mut Criterion) {
    for (dtype, threads) in [(DType::F32, 1), (DType::F32, 2), (DType::Bf16, 1), (DType::Bf16, 2)] {
        let mut group = criterion.benchmark_group(format!("bytes {dtype}, {threads} threads"));
        group.sample_size(10).warm_up_time(Duration::from_millis(100));
        group.measurement_time(Duration::from_millis(500));
        for Case { kernel, shapes, others, build } in CASES {
            let pool = Pool::new(threads).expect("the system starts two threads");
            let operands = shapes.iter().map(|shape| (dtype, *shape)).chain(others.iter().copied());
            let types: Result<Vec<TensorType>, Error> =
                operands.map(|(dtype, shape)| TensorType::new(dtype, shape)).collect();
            let timed = Timed::of_types(&types.expect("the shapes are valid"), &[], pool, build);
            let mut timed = timed.expect("the shapes are valid").expect("it has a kernel");
            assert!(kernel.starts_with(timed.kernel()), "{kernel} is run by {}", timed.kernel());
            group.throughput(Throughput::Bytes(timed.bytes()));
            group.bench_function(BenchmarkId::from_parameter(kernel), |bencher| {
                bencher.iter(|| timed.run());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bytes);
criterion_main!(benches);
