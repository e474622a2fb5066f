//! What a prompt may say besides its text: a conditioning suffix, texts of loops, a mask strategy; and
//! caption cleaning. A second pass over each part gives the same.

#![no_main]

use diffusion::MaskStrategy;
use libfuzzer_sys::fuzz_target;
use text::prompts::{Loops, check_prompt, split_suffix};

fuzz_target!(|data: &str| {
    if check_prompt(data).is_err() {
        return;
    }
    drop(text::text_preprocessing(data, true));
    if let Ok(loops) = Loops::split(data) {
        let again = Loops::split(&loops.merge()).expect("merged by us");
        assert_eq!(again.last_loop(), loops.last_loop());
    }
    let Ok(parts) = split_suffix(data) else { return };
    let Ok(strategy) = MaskStrategy::parse(&parts.mask_strategy) else { return };
    for index in 0..=strategy.last_loop().unwrap_or(0).min(3) {
        for lengths in [&[1][..], &[8, 3]] {
            let Ok(frames) = strategy.place(index, 8, lengths) else { continue };
            assert_eq!(frames.len(), 8);
            for given in frames.into_iter().flatten() {
                assert!(given.frame < lengths[given.reference]);
                assert!((0.0..=1.0).contains(&given.edit_ratio));
            }
        }
    }
});
