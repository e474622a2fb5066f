//! Convolutions of the SD VAE's decoder with bias, on 1 and 2 threads. Criterion's `thrpt` counts
//! FLOPs as elements: 1 Gelem/s is 1 GFLOP/s.

use std::time::Duration;

use benches::site::Timed;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::Pool;
use ops::defs::conv::Window;

/// `[input channels, output channels, height and width, kernel]`.
const SHAPES: [[usize; 4]; 6] = [
    [512, 512, 64, 3],
    [256, 256, 128, 3],
    [128, 128, 256, 3],
    [512, 512, 64, 1],
    [4, 512, 64, 3],
    [128, 3, 256, 3],
];

fn conv(criterion: &mut Criterion) {
    for threads in [1, 2] {
        let mut group = criterion.benchmark_group(format!("conv f32, {threads} threads"));
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(2));
        for [channels, out, side, kernel] in SHAPES {
            let pool = Pool::new(threads).expect("the system starts two threads");
            let pad = kernel / 2;
            let window = Window::new(&[1, 1], &[pad, pad], &[pad, pad]);
            let x: &[usize] = &[1, side, side, channels];
            let weight: &[usize] = &[out, channels, kernel, kernel];
            let timed = Timed::new(&[x, weight, &[1, 1, 1, out]], &[1], pool, |b, args| {
                let y = b.conv(args[0], args[1], &window)?;
                b.add(y, args[2])
            });
            let mut timed = timed.expect("the shapes are valid").expect("conv has a kernel");
            group.throughput(Throughput::Elements(timed.flops()));
            let id = BenchmarkId::from_parameter(format!(
                "{kernel}x{kernel} {channels}->{out} {side}x{side}"
            ));
            group.bench_function(id, |bencher| bencher.iter(|| timed.run()));
        }
        group.finish();
    }
}

criterion_group!(benches, conv);
criterion_main!(benches);
