//! `kino report`: what a run of training did, as one page and in a few lines, while it goes on or afterwards.

use std::path::PathBuf;

use clap::Args;
use training::run_log;

use crate::failure::{Failure, Outcome};
use crate::train_summary::Summary;
use crate::{progress, train_page};

/// The page's file where none is named, in the run's folder.
const PAGE: &str = "report.html";

/// What to report.
#[derive(Args, Debug)]
pub(crate) struct ReportOptions {
    /// Folder of the run
    run: PathBuf,
    /// Where the page goes [default: report.html in the folder of the run]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Draw updates on a logarithmic axis
    #[arg(long)]
    log_x: bool,
    /// Print a summary as JSON; a page is written only if --output names one
    #[arg(long)]
    json: bool,
}

/// The command.
pub(crate) fn run(options: &ReportOptions) -> Outcome<()> {
    let folder = &options.run;
    let history = run_log::read(folder).map_err(|error| Failure::Run(error.into()))?;
    let Some(summary) = Summary::of(&history) else {
        let reason = anyhow::anyhow!("{}: the run has logged nothing yet", folder.display());
        return Err(Failure::Run(reason));
    };
    let default = (!options.json).then(|| folder.join(PAGE));
    let output = options.output.clone().or(default);
    if let Some(path) = &output {
        let page = train_page::html(folder, &summary, options.log_x);
        media::write_file(path, page.as_bytes())?;
    }
    if options.json {
        progress::write_out(&format!("{:#}\n", summary.to_json(folder)));
        return Ok(());
    }
    let mut text = summary.to_text();
    if let Some(path) = output {
        text += &format!("wrote    {}\n", path.display());
    }
    progress::write_out(&text);
    Ok(())
}
