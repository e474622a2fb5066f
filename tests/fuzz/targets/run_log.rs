//! The log of a training run: a history or a message, and what a resumed run keeps of it is a history too.

#![no_main]
#![allow(dead_code, reason = "the reader's modules serve the writer too")]

#[path = "../../../models/training/src/run_log/event.rs"]
mod event;
#[path = "../../../models/training/src/run_log/history.rs"]
mod history;

use history::History;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(history) = History::parse(bytes) else { return };
    for step in [0, history.step() / 2, history.step(), u64::MAX] {
        let kept =
            History::parse(&bytes[..history.n_bytes_up_to(step, bytes)]).expect("a beginning");
        let n_kept = kept.records.len();
        assert_eq!(format!("{:?}", kept.records), format!("{:?}", &history.records[..n_kept]));
        assert!(kept.step() <= step);
        assert!(history.records[n_kept..].iter().all(|record| record.event.step() > step));
    }
    for record in &history.records {
        let line = serde_json::to_vec(record).expect("a record is JSON");
        let again: event::Record = serde_json::from_slice(&line).expect("it was written");
        assert_eq!(again.event.step(), record.event.step());
    }
});
