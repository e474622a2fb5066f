//! Tables of measured tiles: trials take the way they try, the fastest is kept, and plans follow it.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::sync::Arc;
use std::time::Duration;

use kernels::cuda::gemm::Method;
use kernels::cuda::tiles::{Product, Tiles, Tuning};
use kernels::cuda::{CudaKernel, Gpu};
use kernels::{Isa, Kernel, Target};
use ops::{Builder, DType, Graph, TensorType};

/// Two products of different sizes, one after the other, which take no less work in another order.
fn graph() -> Graph {
    let ty = |shape: [usize; 2]| TensorType::new(DType::Bf16, shape).unwrap();
    let mut b = Builder::new("two");
    let x = b.input("x", ty([512, 256]));
    let first = b.param("first", ty([256, 384]));
    let second = b.param("second", ty([384, 512]));
    let hidden = b.matmul(x, first, false, false).unwrap();
    let out = b.matmul(hidden, second, false, false).unwrap();
    b.finish(&[out])
}

fn target(gpu: Gpu, tiles: Tiles) -> Target {
    let cpu = tests::compiled::target(Isa::PORTABLE, 1);
    Target { gpu: Some(gpu), tiles: Some(Arc::new(tiles)), ..cpu }
}

/// The products of a plan with their ways, and the kernels that they are part of.
fn products(plan: &compiler::Plan, gpu: Gpu) -> Vec<(Product, Method, CudaKernel)> {
    let kernels = plan.steps.iter().filter_map(|step| match &step.kernel {
        Kernel::Cuda(kernel) => Some(kernel),
        _ => None,
    });
    let mut all = vec![];
    for kernel in kernels {
        let functions = kernel.launches.iter().map(|launch| &launch.function);
        let found = functions.filter_map(|function| Product::of(function, gpu));
        all.extend(found.map(|(product, method)| (product, method, kernel.clone())));
    }
    all
}

#[test]
fn the_fastest_of_all_trials_is_what_plans_take() {
    for gpu in Gpu::ALL {
        let mut tuning = Tuning::default();
        let methods = Tiles::methods(gpu);
        for (at, &method) in methods.iter().enumerate() {
            let plan = compiler::compile(graph(), &target(gpu, Tiles::trial(method))).unwrap();
            let products = products(&plan, gpu);
            assert_eq!(products.len(), 2);
            for (number, (_, taken, kernel)) in products.iter().enumerate() {
                assert_eq!(*taken, method, "{gpu}");
                // The first product is fastest by the last way, the second by the second.
                let slow = if number == 0 { methods.len() - at } else { at.abs_diff(1) };
                tuning.add(kernel, gpu, Duration::from_micros(10 + slow as u64));
                tuning.add(kernel, gpu, Duration::from_micros(12 + slow as u64));
            }
        }
        let measured = tuning.measured();
        assert!(measured.iter().all(|row| row.slowest > row.time));
        // As if by way of a file.
        let tiles: Tiles = tuning.tiles().to_string().parse().unwrap();
        assert_eq!(tiles.len(), 2);
        let plan = compiler::compile(graph(), &target(gpu, tiles)).unwrap();
        let taken: Vec<Method> =
            products(&plan, gpu).into_iter().map(|(_, method, _)| method).collect();
        assert_eq!(taken, [methods[methods.len() - 1], methods[1]], "{gpu}");
        let text = format!("{plan:#}");
        assert_eq!(text.matches("\n  tile ").count(), 2);
        assert_eq!(format!("{:#}", compiler::parse_plan(&text).unwrap()), text);
    }
}

#[test]
fn the_library_is_preferred_where_it_is_faster_than_the_fastest_kernel() {
    let gpu = Gpu(80);
    let methods = Tiles::methods(gpu);
    let mut tuning = Tuning::default();
    let micros = |n: usize| Duration::from_micros(n as u64);
    for (at, &method) in methods.iter().enumerate() {
        let plan = compiler::compile(graph(), &target(gpu, Tiles::trial(method))).unwrap();
        for (_, _, kernel) in products(&plan, gpu) {
            tuning.add(&kernel, gpu, micros(20 + at));
        }
    }
    assert!(tuning.measured().iter().all(|row| row.library.is_none()), "it was not measured");
    // The library takes the first product in less than the fastest kernel, the second in less than the others only.
    let plan = compiler::compile(graph(), &target(gpu, tuning.tiles())).unwrap();
    for ((_, _, kernel), time) in products(&plan, gpu).iter().zip([19, 21]) {
        tuning.add_library(kernel, gpu, micros(time - 1));
        tuning.add_library(kernel, gpu, micros(time + 1));
    }
    let of_library: Vec<_> =
        tuning.measured().into_iter().map(|row| row.library.unwrap()).collect();
    assert!(of_library.iter().all(|library| library.own == micros(20)), "{of_library:?}");
    let tiles: Tiles = tuning.tiles().to_string().parse().unwrap();
    let mut preferred = vec![];
    for (product, method, _) in products(&plan, gpu) {
        assert_eq!(tiles.method(&product), Some(method), "the kernel stays known");
        preferred.push(tiles.prefers_library(&product));
    }
    assert_eq!(preferred, [true, false]);
}

#[test]
fn products_that_no_table_has_are_left_to_the_cost_model() {
    let gpu = Gpu(80);
    let ways = |tiles: Tiles| -> Vec<Method> {
        let plan = compiler::compile(graph(), &target(gpu, tiles)).unwrap();
        products(&plan, gpu).into_iter().map(|(_, method, _)| method).collect()
    };
    let modelled = ways(Tiles::default());
    let other: Tiles = "sm_80 matmul 1 x 7 x 7 x 7 = tensor 16x128x64 4\n\
                        sm_90a matmul 1 x 512 x 384 x 256 = tensor 16x128x64 4"
        .parse()
        .unwrap();
    assert_eq!(ways(other), modelled);
    let one: Tiles = "sm_80 matmul 1 x 512 x 384 x 256 = tensor 128x128x64 3".parse().unwrap();
    let found = ways(one);
    assert_ne!(found[0], modelled[0]);
    assert_eq!(found[1], modelled[1]);
}
