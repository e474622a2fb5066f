//! `kino synth`: a checkpoint of a published architecture with made-up weights, to measure and to try loading with.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use benches::Error;
use benches::synth::{SHARD_BYTES, Synthetic, Watch};
use clap::Args;
use media::Format;
use models::{nearest, published};

use crate::failure::{Failure, Outcome};
use crate::options::Storage;
use crate::{machine, parts, progress, source, units};

/// What to make.
#[derive(Args, Debug)]
pub(crate) struct SynthOptions {
    /// stdit-xl, stdit2-xl, t5-large, t5-xl, t5-xxl or sd-vae
    model: String,
    /// The folder to make
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Type of the weights
    #[arg(long, default_value = "f32")]
    dtype: Storage,
    /// The same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Threads; do not change the weights [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print errors only
    #[arg(long, short)]
    quiet: bool,
}

/// The command.
pub(crate) fn run(options: &SynthOptions, interrupt: &AtomicBool) -> Outcome<()> {
    let threads = machine::target(None, options.threads)?.threads;
    let name = options.model.as_str();
    if name == source::EMBEDDED {
        let reason = "is embedded with its real weights; kino sample runs it";
        return Err(Failure::usage(format!("{name} {reason}")));
    }
    let Some(model) = published::find(name) else {
        let names: Vec<&str> = parts::published_names().collect();
        return Err(Failure::usage(format!(
            "no published architecture is called {name}; did you mean {}? Expected {}",
            nearest::nearest(name, names.iter().copied()),
            names.join(", ")
        )));
    };
    media::check_writable(&options.out, Format::Folder)?;
    let synthetic = Synthetic {
        config: Some(model.config_json()),
        params: model.architecture()?.params()?,
        dtype: options.dtype.stored(),
        seed: options.seed,
        shard_bytes: SHARD_BYTES,
    };
    let bytes = synthetic.bytes()?;
    let console = progress::Console::new(options.quiet, false);
    let mut stage = console.stage("weights", bytes);
    stage.time(|stage| {
        let watch = Watch { threads, on_bytes: &mut |done| stage.set(done), interrupt };
        synthetic.write(&options.out, watch)
    })?;
    stage.finish();
    let path = options.out.display();
    console.print(&format!("{path}: {}, {}\n", model.about, units::bytes(bytes as f64)));
    Ok(())
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Interrupted => Failure::Interrupted { written: 0 },
            error => Failure::Run(error.into()),
        }
    }
}
