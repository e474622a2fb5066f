//! The run for `TensorBoard`: event files in a folder of their own, one for each start of the run.
//!
//! Readers take the files of a folder in the order of their names and join them to one curve. A file of a run that
//! goes on says so first, in an event of the next step: what older files have of that step and later is dropped,
//! as it is from the log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::event::{Event, Record, Start, Step, Validation};
use super::protobuf::Message;
use super::tf_record;
use crate::Error;

/// What names begin with; readers look for it. The seconds that follow have ten digits until the year 2286.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".kino";

/// The version of the format by which a start drops what came later.
const FILE_VERSION: &[u8] = b"brain.Event:2";

/// Fields of `Event`.
mod event_field {
    pub(super) const WALL_TIME: u64 = 1;
    pub(super) const STEP: u64 = 2;
    pub(super) const FILE_VERSION: u64 = 3;
    pub(super) const SUMMARY: u64 = 5;
    pub(super) const SESSION_LOG: u64 = 7;
}

/// Fields of `Summary.Value`; a summary has nothing but such values, in field 1.
mod value_field {
    pub(super) const TAG: u64 = 1;
    pub(super) const SIMPLE_VALUE: u64 = 2;
    pub(super) const IMAGE: u64 = 4;
    pub(super) const TENSOR: u64 = 8;
    pub(super) const METADATA: u64 = 9;
}

/// An event file that is appended to.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
    /// The machine's limit, of the newest start.
    limit_gflops: Option<f64>,
}

impl EventFile {
    /// A new file in `folder`, which is made if it is missing, begun at `time`. With `resume_after` the run goes on
    /// after so many updates.
    pub(super) fn create(
        folder: &Path,
        resume_after: Option<u64>,
        time: f64,
    ) -> Result<EventFile, Error> {
        fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let newest = newest(folder).map_err(Error::file(folder))?;
        // Two starts within a second, or a clock that was set back, must not change the order.
        let seconds = (time as u64).max(newest.map_or(0, |newest| newest.saturating_add(1)));
        let path = folder.join(format!("{PREFIX}{seconds:010}{SUFFIX}"));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.map_err(Error::file(&path))?;
        let mut events = EventFile { path, file, limit_gflops: None };
        let version = Message::default()
            .double(event_field::WALL_TIME, time)
            .bytes(event_field::FILE_VERSION, FILE_VERSION);
        events.append(&version)?;
        if let Some(step) = resume_after {
            // `SessionLog`, whose status, field 1, is START, 1.
            let start = Message::default().integer(1, 1);
            let start = at(time, step.saturating_add(1)).message(event_field::SESSION_LOG, &start);
            events.append(&start)?;
        }
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file(folder))?;
        Ok(events)
    }

    /// Appends what there is to see of a record; pictures are read from the run's `folder`.
    pub(super) fn write(&mut self, record: &Record, folder: &Path) -> Result<(), Error> {
        let summary = match &record.event {
            Event::Start(start) => {
                self.limit_gflops = start.limit_gflops;
                text("recipe", start)
            }
            Event::Step(step) => scalars(step, self.limit_gflops),
            Event::Validation(Validation { prompt, frames_png: Some(path), .. }) => {
                let path = folder.join(path);
                let png = fs::read(&path).map_err(Error::file(&path))?;
                picture(&format!("validation/{prompt}"), &png)
                    .ok_or_else(|| Error::run_log(&path, "it is no PNG"))?
            }
            Event::Validation(_) | Event::Replaced(_) | Event::Snapshot(_) | Event::Stop(_) => {
                return Ok(());
            }
        };
        self.append(&at(record.time, record.event.step()).message(event_field::SUMMARY, &summary))
    }

    /// Waits until everything is on the disk.
    pub(super) fn flush(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::file(&self.path))
    }

    fn append(&mut self, event: &Message) -> Result<(), Error> {
        let record = tf_record::record(event.as_bytes());
        self.file.write_all(&record).map_err(Error::file(&self.path))
    }
}

/// Seconds in the name of the newest event file.
fn newest(folder: &Path) -> io::Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let seconds = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let seconds = seconds.and_then(|name| name.split('.').next()?.parse().ok());
        newest = newest.max(seconds);
    }
    Ok(newest)
}

/// An `Event` without content.
fn at(time: f64, step: u64) -> Message {
    Message::default().double(event_field::WALL_TIME, time).integer(event_field::STEP, step)
}

/// A `Summary` of every number of an update.
fn scalars(step: &Step, limit_gflops: Option<f64>) -> Message {
    let rates = [
        ("speed/samples_per_second", step.per_second(step.samples)),
        ("speed/tokens_per_second", step.per_second(step.tokens)),
        ("speed/share_of_limit", limit_gflops.and_then(|limit| step.share_of(limit))),
    ];
    let numbers = [
        ("loss", f64::from(step.loss)),
        ("learning_rate", step.lr),
        ("gradient_norm", f64::from(step.grad_norm)),
        ("epoch", step.epoch as f64),
        ("speed/step_seconds", step.seconds),
        ("speed/data_wait_seconds", step.data_wait_seconds),
        ("memory/resident_bytes", step.rss_bytes as f64),
    ];
    let rates = rates.into_iter().filter_map(|(tag, rate)| Some((tag, rate?)));
    numbers.into_iter().chain(rates).fold(Message::default(), |summary, (tag, number)| {
        let value = Message::default().bytes(value_field::TAG, tag.as_bytes());
        summary.message(1, &value.float(value_field::SIMPLE_VALUE, number as f32))
    })
}

/// A `Summary` of the recipe, as a block of code in Markdown.
fn text(tag: &str, start: &Start) -> Message {
    let markdown = format!("```toml\n{}\n```", start.recipe_text);
    // `TensorProto`: type (7, string), shape (one dim of size 1), elements.
    let dim = Message::default().integer(1, 1);
    let shape = Message::default().message(2, &dim);
    let tensor = Message::default().integer(1, 7).message(2, &shape).bytes(8, markdown.as_bytes());
    // `SummaryMetadata.plugin_data.plugin_name`.
    let plugin = Message::default().bytes(1, b"text");
    let metadata = Message::default().message(1, &plugin);
    let value = Message::default()
        .bytes(value_field::TAG, tag.as_bytes())
        .message(value_field::TENSOR, &tensor)
        .message(value_field::METADATA, &metadata);
    Message::default().message(1, &value)
}

/// A `Summary` of a picture; `None` if it is no PNG.
fn picture(tag: &str, png: &[u8]) -> Option<Message> {
    let [width, height] = super::png_size(png)?;
    // `Image`: height, width, channels, the file.
    let image = Message::default()
        .integer(1, height.into())
        .integer(2, width.into())
        .integer(3, 3)
        .bytes(4, png);
    let value = Message::default().bytes(value_field::TAG, tag.as_bytes());
    Some(Message::default().message(1, &value.message(value_field::IMAGE, &image)))
}
