//! The TOML file of `kino sample --config`: options or a message, and options survive being written.

#![no_main]
#![allow(dead_code, reason = "the program's modules have more than the reader")]

#[path = "../../../models/kino/src/config_file.rs"]
mod config_file;
#[path = "../../../models/kino/src/nearest.rs"]
mod nearest;
#[path = "../../../models/kino/src/options.rs"]
mod options;

use libfuzzer_sys::fuzz_target;
use options::SampleOptions;
use serde_json::Value;

fuzz_target!(|data: &str| {
    let Ok(layer) = config_file::parse(data) else { return };
    let options: SampleOptions =
        serde_json::from_value(Value::Object(layer.clone())).expect("a layer is options");
    assert_eq!(options.layer(), layer);
});
