//! The readers of models' config.json, and the parameters of the models that they accept.

#![no_main]

use libfuzzer_sys::fuzz_target;
use models::config::{AutoencoderKl, Stdit1, Stdit2, T5};
use models::{stdit1, stdit2, t5, vae};

fuzz_target!(|data: &[u8]| {
    let Ok(json) = serde_json::from_slice(data) else { return };
    // A size may still be refused by a graph; what is returned must be whole.
    let params = [
        Stdit1::from_json(&json).and_then(|config| stdit1::params(&config)),
        Stdit2::from_json(&json).and_then(|config| stdit2::params(&config)),
        T5::from_json(&json).and_then(|config| t5::params(&config)),
        AutoencoderKl::from_json(&json).and_then(|config| vae::params(&config)),
    ];
    for (name, shape) in params.into_iter().flatten().flatten() {
        assert!(!name.is_empty() && shape.iter().all(|&dim| dim > 0), "{name}: {shape:?}");
    }
});
