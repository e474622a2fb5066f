//! The parser of the IR's text form: what parses, prints to text that parses to the same text.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    let Ok(graph) = ops::parse(data) else { return };
    let printed = graph.to_string();
    // Large constants are kept beside the text, and a text that names them does not parse alone.
    if let Ok(again) = ops::parse(&printed) {
        assert_eq!(printed, again.to_string());
    }
    drop(ops::verify(&graph));
});
