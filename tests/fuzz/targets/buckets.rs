//! Bucket files: buckets or a message; whatever they are, samples go to a bucket of a batch, or to none.

#![no_main]

use data::{BucketFile, VideoSize};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(BucketFile { buckets, frame_interval }) = BucketFile::parse(text) else { return };
    for num_frames in [0, 1, 2, 100, usize::MAX] {
        for height in [0, 64, 720, 1 << 24] {
            let size = VideoSize { num_frames, height, width: 1280 };
            if let Some(id) = buckets.assign(size, frame_interval, u64::MAX) {
                assert!(buckets.batch_size(id) > 0);
                assert!(buckets.shape(id).num_frames <= num_frames);
            }
        }
    }
});
