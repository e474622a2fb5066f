//! `vae_table [THREADS [SIZE...]]`: `AutoencoderKL` of the SD VAE's shape in f32 and bf16, on frames of
//! `SIZE` (`256x256`, the default, or `720x1280`), beside the multiply-add peak measured in the same
//! run. One line per run, then where its time goes. FLOPs are those of the definition: minimal
//! filtering needs fewer, so the share of the peak may exceed 100 %.
#![allow(clippy::print_stdout, reason = "the table is the program's output")]

use std::sync::Arc;

use benches::model::{self, Measured};
use kernels::Pool;
use models::config::AutoencoderKl;
use models::vae::{self, FrameBucket};
use ops::DType;

const REPETITIONS: usize = 3;
/// Steps that are listed one by one.
const SLOWEST: usize = 12;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let threads: usize = args.next().map_or(Ok(2), |n| n.parse())?;
    let mut sizes: Vec<String> = args.collect();
    if sizes.is_empty() {
        sizes.push("256x256".to_owned());
    }
    let pool = Arc::new(Pool::new(threads)?);
    let isa = model::target(threads).isa;
    let config = AutoencoderKl::from_json(&serde_json::json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    }))?;
    println!("{isa}, {threads} threads, best of {REPETITIONS}\n");
    println!("| frame | GFLOP | seconds | GFLOP/s | % of f32 peak | arena MiB | weights MiB |");
    println!("|---|---|---|---|---|---|---|");
    let mut profiles = String::new();
    for size in &sizes {
        let (height, width) = size.split_once('x').ok_or("a size is HEIGHTxWIDTH")?;
        let (height, width): (usize, usize) = (height.parse()?, width.parse()?);
        for dtype in [DType::F32, DType::Bf16] {
            let frame = |scale: usize| FrameBucket {
                dtype,
                frames: 1,
                height: height / scale,
                width: width / scale,
            };
            let graphs = [
                ("decode", vae::decoder_graph(&config, &frame(config.downscale()))?),
                ("encode", vae::encoder_graph(&config, &frame(1))?),
            ];
            for (what, graph) in graphs {
                let name = format!("{what} {size} {dtype}");
                let measured = model::measure(graph, &pool, REPETITIONS)?;
                let Measured { flops, seconds, peak, arena_bytes, weight_bytes, .. } = measured;
                let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
                println!(
                    "| {name} | {:.0} | {seconds:.3} | {:.0} | {:.0} | {:.0} | {:.0} |",
                    flops / 1e9,
                    flops / seconds / 1e9,
                    100.0 * flops / seconds / peak,
                    mib(arena_bytes),
                    mib(weight_bytes),
                );
                profiles += &model::profile(&name, &measured);
                let mut steps = measured.steps;
                steps.sort_by(|a, b| b.2.total_cmp(&a.2));
                for (kernel, what, seconds, flops) in steps.into_iter().take(SLOWEST) {
                    let rate = flops as f64 / seconds / 1e9;
                    profiles += &format!(
                        "    {:>8.2} ms {rate:>5.0} GFLOP/s  {kernel} {what}\n",
                        seconds * 1e3
                    );
                }
            }
        }
    }
    println!("\n{profiles}");
    Ok(())
}
