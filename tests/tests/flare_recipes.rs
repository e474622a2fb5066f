//! The recipes of the embedded model beside the model: what they make has its shapes, and the data set's captions are of
//! its tokenizer's pieces.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use models::config::{Stdit, Stdit2};
use pipeline::Transformer;
use tests::whole_run::embedded;
use training::{Model, Subject, Text, find};

/// Id of what no piece is of.
const UNKNOWN: u32 = 2;

/// So that parts of one may be used with parts of the other; patches are smaller here.
#[test]
fn recipes_make_models_of_the_embedded_shapes() {
    let embedded = embedded();
    let Subject::Autoencoder(autoencoder) = find("flare-vae").unwrap().subject().unwrap() else {
        panic!("an autoencoder")
    };
    assert_eq!(autoencoder.config, embedded.vae);
    let flare = find("flare").unwrap();
    let Text::Encoder { config, lr_factor: _ } = flare.options().unwrap().text else {
        panic!("an encoder")
    };
    assert_eq!(config, embedded.t5);
    let Model::Stdit2(config) = flare.model().unwrap() else { panic!("STDiT-2") };
    let Transformer::Stdit2(known) = embedded.transformer else { panic!("STDiT-2") };
    let common = Stdit { patch_size: known.common.patch_size, ..config.common.clone() };
    assert_eq!(Stdit2 { common, ..config }, known);
}

#[test]
fn captions_are_of_the_embedded_tokenizers_pieces() {
    let tokenizer = embedded().tokenizer;
    let flare = find("flare").unwrap();
    let most = flare.model().unwrap().common().model_max_length;
    let Text::Encoder { config, lr_factor: _ } = flare.options().unwrap().text else {
        panic!("an encoder")
    };
    let captions = data::flare::captions();
    // Ten creatures, four actions, eight directions, four grounds.
    assert_eq!(captions.len(), 1280);
    let mut seen = vec![];
    for caption in captions.into_iter().flatten() {
        let ids = tokenizer.ids(&caption).unwrap();
        assert!(!ids.contains(&UNKNOWN), "{caption}: {ids:?}");
        assert!(ids.len() <= most, "{caption}: {} tokens", ids.len());
        assert!(ids.iter().all(|&id| (id as usize) < config.vocab_size), "{caption}: {ids:?}");
        seen.push(ids);
    }
    seen.sort();
    seen.dedup();
    // No two captions are the same to the model.
    assert_eq!(seen.len(), 3 * 1280);
}
