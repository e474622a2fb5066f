//! Warp instructions a second on one core: the pipelined bf16 product of `tests/ptx`, and the others beside it.
//!
//! `cargo run --release -p emulator --example speed`

#![allow(clippy::print_stdout, reason = "an example shows what it measures")]

use std::time::Instant;

use emulator::{Class, Device, Error, Launch, Module, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for checks in [true, false] {
        gemm(checks)?;
    }
    row_sum()?;
    Ok(())
}

fn gemm(checks: bool) -> Result<(), Error> {
    let [m, n, k] = [512_u32, 512, 512];
    let module = Module::parse(include_str!("../tests/ptx/gemm.sm_80.ptx"))?;
    let mut device = Device::new();
    let program = device.load(&module)?;
    // 1.0 in bf16 everywhere.
    let ones: Vec<u8> = 0x3f80_u16.to_le_bytes().repeat((m * k).max(k * n) as usize);
    let (a, b) = (device.alloc(u64::from(2 * m * k))?, device.alloc(u64::from(2 * k * n))?);
    device.upload(a, &ones[..(2 * m * k) as usize])?;
    device.upload(b, &ones[..(2 * k * n) as usize])?;
    let c = device.alloc(u64::from(4 * m * n))?;
    let [a, b, c, nb, kb] = [
        a.to_le_bytes(),
        b.to_le_bytes(),
        c.to_le_bytes(),
        u64::from(n).to_le_bytes(),
        u64::from(k).to_le_bytes(),
    ];
    let params: [&[u8]; 5] = [&a, &b, &c, &nb[..4], &kb[..4]];
    let launch = Launch {
        grid: [n / 64, m / 64, 1],
        block: [128, 1, 1],
        shared_bytes: 2 * 2 * (64 * 40 + 32 * 72),
        params: &params,
    };
    let options =
        Options { checks_never_written: checks, checks_shared_races: checks, ..Options::default() };
    let start = Instant::now();
    let stats = device.launch(&program, "gemm_bf16", &launch, &options)?;
    let what = format!("gemm_bf16 {m}x{n}x{k}, checks of races and unwritten bytes: {checks}");
    report(&what, &stats, start);
    Ok(())
}

fn row_sum() -> Result<(), Error> {
    let (rows, cols) = (1024_u32, 8192_u32);
    let module = Module::parse(include_str!("../tests/ptx/row_sum.sm_80.ptx"))?;
    let mut device = Device::new();
    let program = device.load(&module)?;
    let bytes = u64::from(4 * rows * cols);
    let x = device.alloc(bytes)?;
    device.upload(x, &vec![0; bytes as usize])?;
    let out = device.alloc(u64::from(4 * rows))?;
    let [x, out, cols] = [x.to_le_bytes(), out.to_le_bytes(), u64::from(cols).to_le_bytes()];
    let params: [&[u8]; 3] = [&x, &out, &cols[..4]];
    let launch =
        Launch { grid: [rows, 1, 1], block: [128, 1, 1], shared_bytes: 0, params: &params };
    let start = Instant::now();
    let stats = device.launch(&program, "row_sum", &launch, &Options::default())?;
    report("row_sum 1024x8192", &stats, start);
    Ok(())
}

fn report(what: &str, stats: &emulator::Stats, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let n = stats.total_instructions();
    println!("{what}");
    println!(
        "  {:.2} M warp instructions in {seconds:.3} s: {:.2} M/s, {:.2} G multiply-adds/s",
        n as f64 / 1e6,
        n as f64 / seconds / 1e6,
        stats.multiply_adds as f64 / seconds / 1e9,
    );
    let by_class = Class::ALL.map(|class| (class, stats.instructions(class)));
    let shown: Vec<String> = by_class
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(class, n)| format!("{class:?} {n}"))
        .collect();
    println!("  {}", shown.join(", "));
}
