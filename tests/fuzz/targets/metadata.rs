//! The metadata readers of every media format; what is read can be stored again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use media::Metadata;

fuzz_target!(|data: &[u8]| {
    let Ok(metadata) = media::read_metadata_from_bytes(data) else { return };
    let mut again = Metadata::new();
    for (key, text) in metadata.iter() {
        again.push(key, text).expect("read from a file");
    }
    assert_eq!(again, metadata);
});
