//! The reader of PTX modules, and the decoder of the modules that it accepts.

#![no_main]

use emulator::{Device, Module};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(module) = Module::parse(text) else { return };
    for function in &module.functions {
        assert!(!function.name.is_empty() && function.line > 0, "{function:?}");
    }
    // Names may be unknown and instructions too; what loads has its entries.
    if let Ok(program) = Device::new().load(&module) {
        let n_entries = module.functions.iter().filter(|f| f.is_entry && f.is_defined).count();
        assert_eq!(program.entries().count(), n_entries);
    }
});
