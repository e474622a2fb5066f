//! Writes engines of single kernels at the models' sizes, for `gpu_smoke` on a machine with a GPU.
//! `cargo run -p cuda-tests --example device_speeds -- FOLDER [ARCH] [NAME...] [--tiles]`, with every tile of products
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use std::path::PathBuf;

use cuda_tests::speed::speeds;
use kernels::cuda::Gpu;

fn main() {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().expect("usage: device_speeds FOLDER [ARCH] [NAME...]"));
    let gpu =
        args.next().map_or(Gpu(90), |name| Gpu::from_name(&name).expect("a known generation"));
    let names: Vec<String> = args.collect();
    let tiles = names.iter().any(|name| name == "--tiles");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    for speed in speeds() {
        if names.iter().all(|name| name == "--tiles")
            || names.iter().any(|name| speed.name.contains(name))
        {
            cuda_tests::case::write_engine(&folder, &speed.name, &speed.graph, gpu);
            if speed.name.starts_with("linear-") && tiles {
                cuda_tests::case::write_tiles(&folder, &speed.name, &speed.graph, gpu);
            }
            println!("{}", speed.name);
        }
    }
}
