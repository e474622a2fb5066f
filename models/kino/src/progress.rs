//! What a user sees while a command runs: bars on a terminal, plain lines elsewhere, or nothing.
//!
//! Results go to standard output, everything else to standard error. A closed pipe is no error:
//! the video matters, not the talk about it.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Bars,
    Lines,
    Silent,
}

/// Standard output and error.
#[derive(Debug)]
pub(crate) struct Console {
    mode: Mode,
    prints: bool,
    bars: MultiProgress,
    warnings: Vec<String>,
}

/// A stage that is running.
#[derive(Debug)]
pub(crate) struct Stage {
    bar: ProgressBar,
    mode: Mode,
    name: &'static str,
    /// Time that counts for the stage.
    pub elapsed: Duration,
}

impl Console {
    /// `--quiet` shows errors only; `--json` leaves standard output to the document.
    pub(crate) fn new(quiet: bool, json: bool) -> Console {
        let mode = match (quiet || json, io::stderr().is_terminal()) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Bars,
            (false, false) => Mode::Lines,
        };
        let target = match mode {
            Mode::Bars => ProgressDrawTarget::stderr(),
            Mode::Lines | Mode::Silent => ProgressDrawTarget::hidden(),
        };
        let bars = MultiProgress::with_draw_target(target);
        Console { mode, prints: !(quiet || json), bars, warnings: Vec::new() }
    }

    /// A result, unless quiet.
    pub(crate) fn print(&self, text: &str) {
        if self.prints {
            write_out(text);
        }
    }

    /// Something the user should know.
    pub(crate) fn warn(&mut self, text: String) {
        match self.mode {
            Mode::Bars => self.bars.suspend(|| write_err(&format!("warning: {text}"))),
            Mode::Lines => write_err(&format!("warning: {text}")),
            Mode::Silent => {}
        }
        self.warnings.push(text);
    }

    /// A line that stays, above the bars.
    #[cfg(feature = "train")]
    pub(crate) fn line(&self, text: &str) {
        match self.mode {
            // A terminal that is gone needs no line.
            Mode::Bars => drop(self.bars.println(text)),
            Mode::Lines => write_err(text),
            Mode::Silent => {}
        }
    }

    /// A line where there are no bars that say the same.
    #[cfg(feature = "train")]
    pub(crate) fn line_without_bars(&self, text: &str) {
        if self.mode == Mode::Lines {
            write_err(text);
        }
    }

    /// Every warning so far.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Begins a stage of `total` units of work, each of which takes about as long as the others.
    pub(crate) fn stage(&self, name: &'static str, total: u64) -> Stage {
        let template = "{prefix:>8} {bar:32} {percent:>3}%  {elapsed} passed, {eta} left  {msg}";
        self.stage_as(template, name, total)
    }

    /// Begins a stage whose [`Stage::note`] tells what time is left: one that may begin in the middle, or pause.
    #[cfg(feature = "train")]
    pub(crate) fn stage_with_own_pace(&self, name: &'static str, total: u64) -> Stage {
        self.stage_as("{prefix:>8} {bar:32} {percent:>3}%  {elapsed} passed, {msg}", name, total)
    }

    fn stage_as(&self, template: &str, name: &'static str, total: u64) -> Stage {
        let bar = self.bars.add(ProgressBar::new(total.max(1)));
        let style = ProgressStyle::with_template(template).expect("the template is right");
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(name);
        if self.mode == Mode::Bars {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Stage { bar, mode: self.mode, name, elapsed: Duration::ZERO }
    }
}

impl Stage {
    /// Sets how many units there are, where that is known late.
    pub(crate) fn set_length(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Moves to `done` units.
    pub(crate) fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Says more beside the bar.
    #[cfg(feature = "train")]
    pub(crate) fn note(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Moves by one unit.
    pub(crate) fn advance(&self) {
        self.bar.inc(1);
    }

    /// Runs a part of the stage and counts its time.
    pub(crate) fn time<T>(&mut self, body: impl FnOnce(&Stage) -> T) -> T {
        let start = Instant::now();
        let result = body(self);
        self.elapsed += start.elapsed();
        result
    }

    /// Ends the stage; its seconds.
    pub(crate) fn finish(&self) -> f64 {
        self.bar.finish_and_clear();
        let seconds = self.elapsed.as_secs_f64();
        if self.mode != Mode::Silent {
            write_err(&format!("{:>8} {}", self.name, crate::units::seconds(seconds)));
        }
        seconds
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // An error ends the stage too; its bar must not stay under the message.
        self.bar.finish_and_clear();
    }
}

/// One line or more on standard output; `false` if nobody reads it any more.
pub(crate) fn write_out(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// One line on standard error.
pub(crate) fn write_err(line: &str) {
    // There is nobody to tell that nobody reads.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
