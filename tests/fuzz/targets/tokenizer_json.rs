//! The reader of tokenizer.json, and tokenizing with what it accepts.

#![no_main]

use libfuzzer_sys::fuzz_target;
use text::Tokenizer;

fuzz_target!(|data: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_tokenizer_json(data) {
        drop(tokenizer.ids("a cat, e\u{301} \u{2581}x"));
    }
});
