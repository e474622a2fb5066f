//! The reader of engine files: any bytes give an engine or an error, and what is accepted has one form. Length and
//! hash are made right, so that what is behind them is reached.

#![no_main]

use engine::{Arch, Engine};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::Xxh3;

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    if bytes.len() > 40 {
        let length = (data.len() as u64).to_le_bytes();
        bytes[16..24].copy_from_slice(&length);
        let mut state = Xxh3::new();
        state.update(&bytes[..24]);
        state.update(&bytes[40..]);
        bytes[24..40].copy_from_slice(&state.digest128().to_le_bytes());
    }
    let Ok(engine) = Engine::from_bytes(bytes.clone()) else { return };
    assert_eq!(engine.to_bytes().expect("it was accepted"), bytes);
    // What a device would look at.
    engine.code();
    for target in engine.targets() {
        let device = Arch::of_device(target.major, target.minor);
        let runs = |kernel: &engine::Kernel| kernel.image_for(device).is_some();
        assert!(engine.target_for(device, &runs).is_some(), "every target has a device");
    }
});
