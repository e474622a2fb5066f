//! Writes what a machine with a GPU is to check: small graphs and the golden models in bf16, as engines with inputs and
//! outputs. `cargo run -p cuda-tests --example device_cases -- FOLDER [ARCH] [--sites-only]`, then on that machine
//! `gpu_check FOLDER/*.engine`, and `gpu_check --cublaslt FOLDER/*.engine` for products by the library.
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use std::path::PathBuf;

use cuda_tests::{attention_sites, plain_sites, sites};
use kernels::cuda::Gpu;
use ops::DType;
use tests::model_cases::half_cases;

fn main() {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().expect("usage: device_cases FOLDER [ARCH]"));
    let sites_only = std::env::args().any(|arg| arg == "--sites-only");
    let gpu = args
        .next()
        .filter(|arg| !arg.starts_with("--"))
        .map_or(Gpu(90), |name| Gpu::from_name(&name).expect("a known generation"));
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let plain = [DType::Bf16, DType::F16].into_iter().flat_map(plain_sites::sites);
    for site in sites::sites().into_iter().chain(attention_sites::sites()).chain(plain) {
        let given = site.given();
        let expected = cuda_tests::expected(&site.graph, &given);
        let name = &site.name;
        cuda_tests::case::write(&folder, name, &site.graph, &given, &expected, site.limit, gpu);
        println!("{name}");
        if name.starts_with("product-") && !name.starts_with("product-1x") {
            // Every tile computes the same.
            cuda_tests::case::write_tiles(&folder, name, &site.graph, gpu);
        }
    }
    if sites_only {
        return;
    }
    for case in half_cases() {
        let name = case.name.replace('/', ".");
        let expected = cuda_tests::expected(&case.wide, &case.typed(&case.wide));
        let given = case.typed(&case.half);
        let limit = 2.0 * case.upstream_error;
        cuda_tests::case::write(&folder, &name, &case.half, &given, &expected, limit, gpu);
        println!("{name}");
    }
}
