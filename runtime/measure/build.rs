//! Numbers the sources that a calibration is of: the kernels, and how they are measured and modeled.
//! Calibrations of other sources are not used.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Relative to this crate.
const SOURCES: [&str; 4] =
    ["../../kernels/src", "src", "../../compiler/src/cost.rs", "../../compiler/src/work.rs"];

fn main() -> io::Result<()> {
    let mut hash = 0xCBF2_9CE4_8422_2325u64;
    let mut cargo = io::stdout().lock();
    for source in SOURCES {
        writeln!(cargo, "cargo::rerun-if-changed={source}")?;
        add(Path::new(source), &mut hash)?;
    }
    writeln!(cargo, "cargo::rustc-env=KERNELS_KEY={hash:016x}")
}

/// Adds the bytes of a file, or of all files below a folder in the order of their names (FNV-1a).
fn add(path: &Path, hash: &mut u64) -> io::Result<()> {
    if path.is_dir() {
        let entries = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path()));
        let mut entries: Vec<PathBuf> = entries.collect::<io::Result<_>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| add(entry, hash));
    }
    for byte in fs::read(path)? {
        *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    }
    Ok(())
}
