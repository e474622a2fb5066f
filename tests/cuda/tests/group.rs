//! Products of four warps that read shared memory themselves, with every tile, at ragged edges.

use kernels::Kernel;
use kernels::cuda::gemm::{Method, Tile};
use kernels::cuda::{Function, Gpu};
use ops::{Builder, DType, Graph, TensorType};
use tests::{Rng, relative_l2};

const GPU: Gpu = Gpu(90);

/// Runs `graph` with every tile of groups, in every order, and compares.
fn check(graph: &Graph, limit: f64) {
    let mut rng = Rng::named(&graph.name);
    let declared = graph.inputs().chain(graph.params());
    let given = declared
        .map(|(value, name)| (name.to_string(), rng.tensor(graph.ty(value), (-2.0, 2.0))))
        .collect();
    let plan = compiler::compile(graph.clone(), &cuda_tests::target(GPU))
        .unwrap_or_else(|error| panic!("{}: {error}", graph.name));
    let expected = cuda_tests::expected(graph, &given);
    for tile in Tile::GROUPS {
        let plan = cuda_tests::tiles::with_method(&plan, Method::Group(tile));
        let kernels = plan.steps.iter().filter_map(|step| match &step.kernel {
            Kernel::Cuda(kernel) => Some(kernel),
            _ => None,
        });
        let products = kernels.flat_map(|kernel| &kernel.launches).filter(|launch| {
            let is_product = matches!(launch.function, Function::Matmul(_));
            is_product
                && cuda_tests::compile(&launch.function, GPU).1.ptx.contains("wgmma.mma_async")
        });
        assert!(products.count() > 0, "{}: no product of a group", graph.name);
        let found = cuda_tests::run_orders(&plan, &given, GPU);
        let error = relative_l2(found[0].as_floats(), expected[0].as_floats());
        assert!(error <= limit, "{} {tile:?}: {error}", graph.name);
    }
}

#[test]
fn sites_of_the_models_follow_the_interpreter() {
    let mut n = 0;
    for site in cuda_tests::sites::sites() {
        // The others take long here, or have a single row, which is no group's.
        if ["product-300x264x136", "product-130x96x1152"].contains(&&*site.name) {
            check(&site.graph, site.limit);
            n += 1;
        }
    }
    assert_eq!(n, 2, "sites have other names");
}

#[test]
fn rows_columns_and_depths_that_fill_no_tile() {
    for (dtype, [m, n, k]) in [
        (DType::Bf16, [65, 129, 40]),
        (DType::F16, [257, 24, 8]),
        (DType::Bf16, [9, 17, 136]),
        // Depths and columns that fill no copy.
        (DType::Bf16, [70, 30, 33]),
    ] {
        let mut b = Builder::new(format!("group_{dtype}_{m}x{n}x{k}"));
        let x = b.input("x", TensorType::new(dtype, [m, k]).unwrap());
        let weight = b.param("weight", TensorType::new(dtype, [n, k]).unwrap());
        let y = b.matmul(x, weight, false, true).unwrap();
        check(&b.finish(&[y]), 3e-3);
    }
}
