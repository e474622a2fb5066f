//! Whether the files of a table can be read, before a run needs them.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use media::FrameSource;

use crate::{Error, Result, Row, Table};

/// Height and width that frames are brought to; small, because nobody looks at them.
const SIZE: [usize; 2] = [8, 8];

/// A row whose file is not what the table says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadRow {
    /// Line of the table's file, from 1.
    pub line: u64,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, with its path.
    pub reason: String,
}

/// Decodes the first and the last frame of every file with `n_threads` threads and compares their count
/// with the table's; `each` is told how many rows are done.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn check_files(
    table: &Table,
    n_threads: usize,
    stop: &AtomicBool,
    each: impl Fn(usize) + Sync,
) -> Result<Vec<BadRow>> {
    let (next, n_done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let bad = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..n_threads.max(1) {
            scope.spawn(|| {
                while let Some(row) = table.rows().get(next.fetch_add(1, Ordering::Relaxed)) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Some(reason) = fault(row, stop) {
                        let path = row.path.clone();
                        // A thread that panicked has left the list whole.
                        let mut bad = bad.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        bad.push(BadRow { line: row.line, path, reason });
                    }
                    each(n_done.fetch_add(1, Ordering::Relaxed) + 1);
                }
            });
        }
    });
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let mut bad = bad.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    bad.sort_by_key(|row| row.line);
    Ok(bad)
}

/// What is wrong with the file of `row`.
fn fault(row: &Row, stop: &AtomicBool) -> Option<String> {
    let read = || -> Result<usize> {
        let source = FrameSource::open(&row.path, stop)?;
        let n_frames = source.n_frames();
        let wanted = if n_frames > 1 { vec![0, n_frames - 1] } else { vec![0] };
        source.read::<Error>(&wanted, SIZE, stop, |_, _| Ok(()))?;
        Ok(n_frames)
    };
    match (read(), row.num_frames) {
        (Err(error), _) => Some(error.to_string()),
        (Ok(found), Some(stated)) if found != stated => {
            Some(format!("{}: has {found} frames, the table says {stated}", row.path.display()))
        }
        (Ok(_), _) => None,
    }
}
