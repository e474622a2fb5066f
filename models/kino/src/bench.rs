//! `kino bench`: our speed, memory and results, alone or beside those of other runtimes.
//!
//! Every side is a process of its own, our side is this program again with `--serve`. What is measured and how is in the
//! crate `benches`; this file is its command line.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, anyhow};
use benches::measure::{Lab, Peers, tolerance};
use benches::report::{Measured, TABLE_HEAD};
use benches::work::{self, Work};
use clap::Args;
use kernels::Target;
use models::nearest;
use ops::DType;
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::{VERSION, machine, progress, settings};

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct BenchOptions {
    /// Only these rows; see --list
    #[arg(long, num_args = 1.., value_name = "NAME")]
    only: Vec<String>,
    /// Also the rows that take minutes
    #[arg(long)]
    full: bool,
    /// Only this storage type [default: both]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    dtype: Option<DType>,
    // Names of products are no code, which a documentation comment would have to call them.
    #[arg(
        long,
        help = "Also measure PyTorch, OpenVINO, ONNX Runtime and OpenBLAS, which benches/peers/install installs"
    )]
    with_peers: bool,
    /// The peers' program
    #[arg(long, value_name = "FILE", default_value = "benches/peers/serve.py")]
    peers: PathBuf,
    /// The Python that the peers are installed for
    #[arg(long, value_name = "FILE", default_value = "target/peers/bin/python")]
    python: PathBuf,
    /// Most runs of each side
    #[arg(long, value_name = "N", default_value_t = 7)]
    turns: usize,
    /// Seconds for each pair of sides, after which only the least number of runs is taken
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    budget: u64,
    /// Threads of every side [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Most memory of our arena and weights together, such as 900MiB [default: no limit]
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,
    /// Keep made-up weights in this folder and use those that are there [default: a temporary folder]
    #[arg(long, value_name = "FOLDER")]
    weights: Option<PathBuf>,
    /// Also print where our time goes, by kernel
    #[arg(long, conflicts_with = "json")]
    profile: bool,
    /// List the rows
    #[arg(long)]
    list: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    /// Be a side of a measurement: answer requests on standard input
    #[arg(long, hide = true)]
    serve: bool,
}

fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" | "fp32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        _ => Err("expected f32 or bf16".into()),
    }
}

/// The command.
pub(crate) fn run(
    options: &BenchOptions,
    forced_isa: Option<&str>,
    interrupt: &AtomicBool,
) -> Outcome<()> {
    let target = machine::target(forced_isa, options.threads)?;
    let memory = options.memory.as_deref().map(settings::parse_memory).transpose()?;
    if options.serve {
        let (input, output) = (io::stdin().lock(), io::stdout().lock());
        return Ok(benches::ours::serve(&target, memory, input, output)?);
    }
    if options.list {
        list(options.json);
        return Ok(());
    }
    let rows = rows(options)?;
    let peers = if options.with_peers { Some(peers(options)?) } else { None };
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let weights = match &options.weights {
        None => scratch.path().to_path_buf(),
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            folder.canonicalize().with_context(|| folder.display().to_string())?
        }
    };
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let threads = target.threads.to_string();
    let lab = Lab {
        isa: target.isa,
        threads: target.threads,
        turns: options.turns,
        budget: Duration::from_secs(options.budget),
        weights,
        scratch: scratch.path().to_path_buf(),
        ours: &|| {
            let mut command = Command::new(&program);
            command.args(["bench", "--serve", "--threads", &threads]);
            command.args(memory.iter().flat_map(|bytes| ["--memory".into(), bytes.to_string()]));
            command
        },
        peers,
        free_bytes: || machine::memory().map(|[_, free]| free),
        note: &|line| progress::write_err(line),
        interrupt,
    };
    let dtypes = options.dtype.map_or(vec![DType::F32, DType::Bf16], |dtype| vec![dtype]);
    let mut results = vec![];
    if !options.json {
        progress::write_out(&format!("{}\n\n{TABLE_HEAD}", heading(&target)));
    }
    for work in rows {
        let measured = lab.measure(&work, &dtypes)?;
        if !options.json {
            let lines: String = measured.iter().map(Measured::table_lines).collect();
            progress::write_out(&lines);
        }
        results.extend(measured);
    }
    if options.json {
        let document = json!({
            "version": VERSION, "cpu": machine::cpu_name(), "isa": target.isa.name(),
            "threads": target.threads,
            "tolerance": { "f32": tolerance(DType::F32), "bf16": tolerance(DType::Bf16) },
            "results": results.iter().map(Measured::to_json).collect::<Vec<_>>(),
        });
        progress::write_out(&format!("{document:#}\n"));
    } else if options.profile {
        let lines: String = results.iter().map(Measured::profile_lines).collect();
        progress::write_out(&format!("\n{lines}"));
    }
    check(&results)
}

/// Fails for a wrong result of ours: a speed without the right result is none.
fn check(results: &[Measured]) -> Outcome<()> {
    let is_wrong = |row: &&Measured| row.sides[0].is_right(row.dtype) == Some(false);
    let wrong: Vec<String> = results
        .iter()
        .filter(is_wrong)
        .map(|row| format!("{} {}", row.work.name, row.dtype))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let rows = wrong.join(", ");
    Err(Failure::Run(anyhow!("our results differ from PyTorch's beyond the tolerance: {rows}")))
}

fn heading(target: &Target) -> String {
    format!(
        "{}, {}, {} threads. Seconds are of one run; a peer's time over ours is of common turns.",
        machine::cpu_name(),
        target.isa,
        target.threads
    )
}

fn list(json: bool) {
    let rows = work::all();
    let text = if json {
        let row = |work: &Work| json!({ "row": work.name, "about": work.about, "only_full": work.is_slow });
        format!("{:#}\n", json!(rows.iter().map(row).collect::<Vec<_>>()))
    } else {
        let line = |work: &Work| {
            let note = if work.is_slow { " (--full)" } else { "" };
            format!("{:<18} {}{note}\n", work.name, work.about)
        };
        rows.iter().map(line).collect()
    };
    progress::write_out(&text);
}

/// The rows that are asked for, in the order of the table.
fn rows(options: &BenchOptions) -> Outcome<Vec<Work>> {
    let all = work::all();
    for name in &options.only {
        if work::find(name).is_none() {
            let meant = nearest::nearest(name, all.iter().map(|work| work.name));
            let reason = "there is no such row; did you mean";
            return Err(Failure::usage(format!(
                "--only {name}: {reason} {meant}? (--list shows all)"
            )));
        }
    }
    let is_named = |work: &Work| options.only.iter().any(|name| name == work.name);
    let is_wanted = |work: &Work| match options.only.is_empty() {
        true => options.full || !work.is_slow,
        false => is_named(work),
    };
    Ok(all.into_iter().filter(is_wanted).collect())
}

/// The peers' program and interpreter.
fn peers(options: &BenchOptions) -> Outcome<Peers> {
    let find = |flag: &str, path: &Path, advice: &str| {
        if path.is_file() {
            // Not `canonicalize`: a virtual environment's interpreter is a link that knows where it is.
            return std::path::absolute(path).map_err(Failure::from);
        }
        Err(Failure::usage(format!("{flag} {}: no such file; {advice}", path.display())))
    };
    let script = find("--peers", &options.peers, "run in the repository, or name its serve.py")?;
    let advice = "run benches/peers/install first, or name a Python that has the peers";
    Ok(Peers { python: find("--python", &options.python, advice)?, script })
}
