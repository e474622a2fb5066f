//! Links the program so that functions of the same code are one: kernels are instantiated for many types
//! and instruction sets, and half a megabyte of them comes out equal.

use std::env;
use std::io::{self, Write};

#[expect(clippy::disallowed_methods, reason = "Cargo tells a build script by variables")]
fn main() -> io::Result<()> {
    let mut cargo = io::stdout().lock();
    writeln!(cargo, "cargo::rerun-if-changed=build.rs")?;
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|found| found == value);
    // There Rust brings its own linker, which can do it; a linker that someone chose may not.
    let has_lld = is("TARGET", "x86_64-unknown-linux-gnu") && env::var_os("RUSTC_LINKER").is_none();
    if has_lld && is("PROFILE", "release") {
        writeln!(cargo, "cargo::rustc-link-arg-bins=-Wl,--icf=all")?;
    }
    Ok(())
}
