//! Ends the process when something takes too long: a kernel that never ends cannot be ended otherwise.

use std::process::exit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is under way, since when.
type Phase = Arc<Mutex<(String, Instant)>>;

/// A thread that watches.
pub(crate) struct Watchdog(Phase);

impl Watchdog {
    /// Allows `limit` for each phase.
    pub(crate) fn start(limit: Duration) -> Watchdog {
        let phase: Phase = Arc::new(Mutex::new(("starting".into(), Instant::now())));
        let watched = Arc::clone(&phase);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(200));
                let (what, since) = watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if since.elapsed() > limit {
                    eprintln!(
                        "FAILED: {what} did not end within {} s (--timeout)",
                        limit.as_secs()
                    );
                    exit(1);
                }
            }
        });
        Watchdog(phase)
    }

    /// The time of `what` begins.
    pub(crate) fn begin(&self, what: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (what.to_string(), Instant::now());
    }
}
