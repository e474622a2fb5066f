//! `matmul_table [PYTHON [THREADS]]`: our product beside `OpenBLAS` (numpy of that interpreter) and the
//! multiply-add peak, all in this run, as a table; in bf16, which numpy lacks, beside the peak alone. Ours and the peer take turns, shape by shape,
//! because a machine's clock changes over minutes. The number is the best of several repetitions.
#![allow(clippy::print_stdout, reason = "the table is the program's output")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use benches::peak::{bf16_peak, fma_peak};
use benches::product::{Fusion, Product, SHAPES};
use kernels::{Isa, Pool};
use ops::DType;

const REPETITIONS: usize = 7;

fn gflops(product: &mut Product) -> f64 {
    product.run();
    let mut best = f64::MAX;
    for _ in 0..REPETITIONS {
        let start = Instant::now();
        product.run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    product.flops() / best / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let python = std::env::args().nth(1).unwrap_or_else(|| "python3".to_owned());
    let threads = match std::env::args().nth(2) {
        Some(threads) => vec![threads.parse()?],
        None => vec![1, 2],
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/matmul.py");
    let isa = Isa::detect();
    println!(
        "| threads | M x N x K | peak | OpenBLAS | plain | ratio | % of peak | norm, gelu | gate |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for threads in threads {
        let mut peer = Command::new(&python)
            .arg(script)
            .env("OPENBLAS_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ask = peer.stdin.take().ok_or("the peer has no input")?;
        let mut answers = BufReader::new(peer.stdout.take().ok_or("the peer has no output")?);
        for (m, n, k) in SHAPES {
            let mut ours = [0.0; Fusion::ALL.len()];
            let mut peak = 0f64;
            let mut blas = 0f64;
            // Twice in turns: a disturbance hits one side's first or second time, not both.
            for _ in 0..2 {
                peak = peak.max(fma_peak(isa, &Pool::new(threads)?) / 1e9);
                writeln!(ask, "{m} {n} {k} {REPETITIONS}")?;
                let mut answer = String::new();
                answers.read_line(&mut answer)?;
                blas = blas.max(answer.trim().parse()?);
                for (best, fusion) in ours.iter_mut().zip(Fusion::ALL) {
                    let mut product =
                        Product::new((m, n, k), fusion, DType::F32, isa, Pool::new(threads)?)?;
                    *best = gflops(&mut product).max(*best);
                }
            }
            let [plain, gelu, gate] = ours;
            println!(
                "| {threads} | {m} x {n} x {k} | {peak:.0} | {blas:.0} | {plain:.0} | {:.2} | {:.0} | {gelu:.0} | {gate:.0} |",
                plain / blas,
                100.0 * plain / peak,
            );
        }
        drop(ask);
        peer.wait()?;
        bf16_rows(isa, threads)?;
    }
    Ok(())
}

/// The rows for bf16, where the CPU has products of bf16 pairs.
fn bf16_rows(isa: Isa, threads: usize) -> Result<(), Box<dyn std::error::Error>> {
    for shape @ (m, n, k) in SHAPES {
        let Some(peak) = bf16_peak(isa, &Pool::new(threads)?) else { break };
        let mut ours = [0.0; Fusion::ALL.len()];
        for (best, fusion) in ours.iter_mut().zip(Fusion::ALL) {
            let mut product = Product::new(shape, fusion, DType::Bf16, isa, Pool::new(threads)?)?;
            *best = gflops(&mut product);
        }
        let ([plain, gelu, gate], peak) = (ours, peak / 1e9);
        println!(
            "| {threads} | {m} x {n} x {k} bf16 | {peak:.0} | | {plain:.0} | | {:.0} | {gelu:.0} | {gate:.0} |",
            100.0 * plain / peak,
        );
    }
    Ok(())
}
