//! Compiles every kernel that engines of the published models need, for every generation of GPUs, and writes or
//! checks the table of what their code needs.
//!
//! `cargo run --release -p aot --example kernel_table -- --write | --check [--cache FOLDER]`. It needs NVIDIA's
//! compiler and no GPU. `--check` compares with the committed table, says which rows differ and which break a rule,
//! and exits with 1 then. `--cache` keeps what is compiled.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

#[path = "../tests/published/mod.rs"]
mod published;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use aot::table::{Row, Survey, differences, from_text, to_text};
use aot::{Cache, rules};
use cuda_kernels::{COMPILER, Nvrtc};
use kernels::cuda::Gpu;

/// What the first lines of the table say.
const ABOUT: &str = "Kernels of engines of tiny-flare-1.1 (8x64x64), STDiT-2 XL/2 (144p to 720p, 16 and 128 frames), \
                     STDiT-1 XL/2, T5 v1.1 XXL and SD-VAE (512x512, 720x1280),\nin bf16, guided, by generation. Sizes \
                     in bytes; blocks: at once on a multiprocessor. Rules and reasons: runtime/aot/src/rules.rs.\n\
                     cargo run --release -p aot --example kernel_table -- --write";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (writes, folder) = match words[..] {
        ["--write"] => (true, None),
        ["--check"] => (false, None),
        ["--write", "--cache", folder] => (true, Some(PathBuf::from(folder))),
        ["--check", "--cache", folder] => (false, Some(PathBuf::from(folder))),
        _ => {
            eprintln!("error: expected --write or --check, then --cache FOLDER or nothing");
            return ExitCode::from(2);
        }
    };
    match run(writes, folder) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is as it should be.
fn run(writes: bool, folder: Option<PathBuf>) -> Result<bool, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels.tsv");
    let rows = rows(folder)?;
    let text = to_text(&format!("{ABOUT}\n{COMPILER}"), &rows);
    let mut problems = rules::problems(&rows);
    if writes {
        write(&path, text.as_bytes()).map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{} rows, {} bytes: {}", rows.len(), text.len(), path.display());
    } else {
        let committed = std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let expected = from_text(&committed).map_err(|e| format!("{}, {e}", path.display()))?;
        let differences = differences(&expected, &rows);
        println!("{} rows, {} differences", rows.len(), differences.len());
        problems.extend(differences);
        if committed != text && problems.is_empty() {
            problems.push("the lines about the table, or the order of its rows, differ".into());
        }
    }
    for problem in &problems {
        println!("{problem}");
    }
    Ok(problems.is_empty())
}

fn rows(folder: Option<PathBuf>) -> Result<Vec<Row>, String> {
    let tell = |error: &dyn std::fmt::Display| error.to_string();
    let nvrtc = Nvrtc::find().map_err(|error| tell(&error))?;
    let mut survey = Survey::default();
    for (name, graph) in published::graphs() {
        for gpu in Gpu::ALL {
            published::add(&mut survey, &name, &graph, gpu).map_err(|error| tell(&error))?;
        }
        eprintln!("{name}: {} compilations so far", survey.compilations());
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cache = folder.map(Cache::in_folder);
    let told = AtomicUsize::new(0);
    let on_progress = |progress: aot::Progress| {
        let hundreds = progress.done / 100;
        if told.fetch_max(hundreds, Ordering::Relaxed) < hundreds {
            eprintln!("{} of {}", progress.done, progress.all);
        }
    };
    survey.rows(&nvrtc, cache.as_ref(), threads, &on_progress).map_err(|error| tell(&error))
}

/// Beside its name, made durable, then renamed.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
