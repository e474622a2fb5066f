//! The log of a run as it is read back.
//!
//! A log is outside data: a broken line is a message with its number. What follows the last end of a line is no
//! line: a run is writing it, or was killed while it did. Steps never go back, so that what was logged up to a step
//! is the beginning of the file.

use std::fmt;

use super::event::{Event, Record};

/// Everything that a log says, in order. It begins with a start, and steps never go back.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct History {
    /// The lines.
    pub records: Vec<Record>,
}

/// A line that no run writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokenLine {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BrokenLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl History {
    /// Reads a log.
    ///
    /// # Errors
    /// The first broken line.
    pub fn parse(bytes: &[u8]) -> Result<History, BrokenLine> {
        let mut history = History::default();
        let mut place = Place::default();
        for (index, line) in complete_lines(bytes).enumerate() {
            let fail = |reason| BrokenLine { line: index + 1, reason };
            let record: Record =
                serde_json::from_slice(line).map_err(|error| fail(reason(&error)))?;
            place.advance(&record.event).map_err(fail)?;
            history.records.push(record);
        }
        Ok(history)
    }

    /// How many bytes of `bytes`, which is the log that this was read from, are events up to `step`.
    pub fn n_bytes_up_to(&self, step: u64, bytes: &[u8]) -> usize {
        let n_records = self.records.partition_point(|record| record.event.step() <= step);
        complete_lines(bytes).take(n_records).map(<[u8]>::len).sum()
    }

    /// Updates so far.
    pub fn step(&self) -> u64 {
        self.records.last().map_or(0, |record| record.event.step())
    }
}

/// Where a log is: steps never go back, and no update is made twice.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Place {
    /// Step of the newest event.
    step: Option<u64>,
    /// The newest update.
    update: u64,
}

impl Place {
    /// Goes on by `event`, or fails with the reason why it cannot be the next.
    pub(super) fn advance(&mut self, event: &Event) -> Result<(), String> {
        let step = event.step();
        match self.step {
            None if !matches!(event, Event::Start(_)) => {
                return Err("a log begins with a start, this is another event".into());
            }
            Some(before) if step < before => {
                return Err(format!("an event of step {step} after one of step {before}"));
            }
            _ => {}
        }
        if let Event::Step(update) = event {
            if step <= self.update {
                return Err(format!("update {step} after update {}", self.update));
            }
            if update.seconds < 0.0 || update.data_wait_seconds < 0.0 {
                return Err(format!("update {step} took a negative time"));
            }
            self.update = step;
        }
        self.step = Some(step);
        Ok(())
    }
}

/// Lines that have their end, with it.
fn complete_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"))
}

/// What is wrong with a line. Every line is the first of its own document, whose number would mislead.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let Some((reason, _)) = text.rsplit_once(" at line ") else { return text };
    match error.column() {
        0 => reason.into(),
        column => format!("{reason} at column {column}"),
    }
}
