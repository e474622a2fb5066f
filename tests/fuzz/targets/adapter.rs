//! The reader of low-rank adaptations: PEFT's configuration as JSON (none if empty), a zero byte, then safetensors.

#![no_main]

use checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;
use training::Adapter;

/// Weights above this many elements are not made.
const MAX_ELEMENTS: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some(end) = data.iter().position(|&byte| byte == 0) else { return };
    let (config, weights) = (&data[..end], &data[end + 1..]);
    let config = match config {
        [] => None,
        text => match serde_json::from_slice(text) {
            Ok(config) => Some(config),
            Err(_) => return,
        },
    };
    let Ok(file) = Checkpoint::from_safetensors_bytes(weights.to_vec()) else { return };
    let Ok(adapter) = Adapter::read(&file, config.as_ref(), None, "input".into()) else { return };
    assert!(adapter.rank() > 0 && adapter.alpha() > 0.0 && adapter.factors().len() > 0);
    for (name, factors) in adapter.factors() {
        let [first, second] = [&factors.first, &factors.second].map(Vec::len);
        assert!(first % adapter.rank() == 0 && second % adapter.rank() == 0, "{name}");
        let shape = [second / adapter.rank(), first / adapter.rank()];
        let Some(count) = shape[0].checked_mul(shape[1]).filter(|&n| n <= MAX_ELEMENTS) else {
            continue;
        };
        assert!(adapter.merge(name, &mut vec![0.0; count]), "{name}");
    }
});
