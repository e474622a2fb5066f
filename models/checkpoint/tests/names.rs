//! Fitting checkpoints to parameter lists: every adaptation of upstream's loaders, and the list of what does not fit.

#![allow(clippy::unwrap_used, reason = "clippy exempts tests, but not the functions they share")]

use std::borrow::Cow;
use std::collections::BTreeMap;

use checkpoint::names::{Change, Leniency, Misshapen, Parameter, fit, fit_with};
use checkpoint::{Checkpoint, DType, TensorView, safetensors_bytes};

/// A checkpoint whose tensors count up from 0.
fn stored(tensors: &[(&str, &[usize])]) -> Checkpoint {
    let tensors: BTreeMap<String, TensorView<'_>> = tensors
        .iter()
        .map(|(name, shape)| {
            let n = shape.iter().product::<usize>();
            let bytes = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
            let view =
                TensorView { dtype: DType::F32, shape: shape.to_vec(), bytes: Cow::Owned(bytes) };
            ((*name).to_string(), view)
        })
        .collect();
    Checkpoint::from_bytes(safetensors_bytes(&tensors, &BTreeMap::new()).unwrap()).unwrap()
}

fn parameters(list: &[(&str, &[usize])]) -> Vec<Parameter> {
    list.iter().map(|(name, shape)| ((*name).to_string(), shape.to_vec())).collect()
}

const START: Leniency = Leniency { start: true, subset: false };

#[test]
fn equal_names_and_shapes_fit_unchanged() {
    let checkpoint = stored(&[("a", &[2]), ("b", &[1, 3])]);
    let fitted = fit(&checkpoint, &parameters(&[("a", &[2]), ("b", &[1, 3])])).unwrap();
    assert!(fitted.changes.is_empty() && fitted.dropped.is_empty());
    let view = fitted.tensor("b").unwrap();
    assert_eq!(view.to_f32().unwrap(), [0., 1., 2.]);
    assert!(matches!(view.bytes, Cow::Borrowed(_)));
    assert_eq!(fitted.names().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_misfit_lists_everything_at_once() {
    let checkpoint = stored(&[("a", &[2]), ("extra", &[3]), ("w", &[2, 2])]);
    let expected = parameters(&[("z", &[1]), ("w", &[2, 3]), ("a", &[2]), ("b", &[4])]);
    let misfit = fit(&checkpoint, &expected).unwrap_err();
    assert_eq!(misfit.missing, parameters(&[("b", &[4]), ("z", &[1])]));
    assert_eq!(misfit.unexpected, parameters(&[("extra", &[3])]));
    let misshapen = Misshapen { name: "w".into(), expected: vec![2, 3], found: vec![2, 2] };
    assert_eq!(misfit.misshapen, [misshapen]);
    let text = "the checkpoint does not fit the model: 2 missing, 1 unexpected, 1 misshapen
  missing     b [4]
  missing     z [1]
  unexpected  extra [3]
  misshapen   w: expected [2, 3], found [2, 2]";
    assert_eq!(misfit.to_string(), text);
}

#[test]
fn wrapper_prefixes_are_ignored() {
    let checkpoint = stored(&[("module.a", &[1]), ("module.module.b", &[2])]);
    assert!(fit(&checkpoint, &parameters(&[("a", &[1]), ("b", &[2])])).is_ok());
    let both = stored(&[("module.a", &[1]), ("a", &[1])]);
    let misfit = fit(&both, &parameters(&[("a", &[1])])).unwrap_err();
    assert_eq!(misfit.unexpected, parameters(&[("module.a", &[1])]));
}

#[test]
fn old_attention_names_and_convolutions_fit_a_vae() {
    let at = |name: &str| format!("decoder.mid_block.attentions.0.{name}");
    let pairs = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    for shape in [&[2, 2][..], &[2, 2, 1, 1]] {
        let old: Vec<(String, &[usize])> = pairs
            .iter()
            .flat_map(|(old, _)| {
                [(at(&format!("{old}.weight")), shape), (at(&format!("{old}.bias")), &[2][..])]
            })
            .collect();
        let old: Vec<(&str, &[usize])> = old.iter().map(|(name, s)| (name.as_str(), *s)).collect();
        let checkpoint = stored(&old);
        let expected: Vec<Parameter> = pairs
            .iter()
            .flat_map(|(_, new)| {
                [(at(&format!("{new}.weight")), vec![2, 2]), (at(&format!("{new}.bias")), vec![2])]
            })
            .collect();
        let fitted = fit(&checkpoint, &expected).unwrap();
        let view = fitted.tensor(&at("to_out.0.weight")).unwrap();
        assert_eq!(view.shape, [2, 2]);
        assert_eq!(view.to_f32().unwrap(), [0., 1., 2., 3.]);
        let from = at("proj_attn.weight");
        assert!(fitted.changes.contains(&(at("to_out.0.weight"), Change::Renamed { from })));
    }
    // Transposed or wider kernels are no spelling of a linear layer.
    let wide = stored(&[("m.attentions.0.to_q.weight", &[2, 2, 3, 3])]);
    let misfit = fit(&wide, &parameters(&[("m.attentions.0.to_q.weight", &[2, 2])])).unwrap_err();
    assert_eq!(misfit.misshapen.len(), 1);
}

#[test]
fn null_captions_repeat_their_last_row_or_are_cut() {
    let name = "y_embedder.y_embedding";
    let checkpoint = stored(&[(name, &[2, 3])]);
    let values = |rows| {
        let fitted = fit(&checkpoint, &parameters(&[(name, &[rows, 3])])).unwrap();
        let view = fitted.tensor(name).unwrap();
        assert_eq!(view.shape, [rows, 3]);
        view.to_f32().unwrap()
    };
    assert_eq!(values(4), [0., 1., 2., 3., 4., 5., 3., 4., 5., 3., 4., 5.]);
    assert_eq!(values(1), [0., 1., 2.]);
    let misfit = fit(&checkpoint, &parameters(&[(name, &[2, 4])])).unwrap_err();
    assert_eq!(misfit.misshapen.len(), 1);
}

#[test]
fn an_image_transformer_starts_a_video_one() {
    let checkpoint = stored(&[
        ("pos_embed", &[1, 4, 8]),
        ("x_embedder.proj.weight", &[8, 4, 2, 2]),
        ("blocks.0.attn.proj.bias", &[8]),
    ]);
    let expected = parameters(&[
        ("x_embedder.proj.weight", &[8, 4, 1, 2, 2]),
        ("blocks.0.attn.proj.bias", &[8]),
        ("blocks.0.attn_temp.proj.bias", &[8]),
        ("t_block_temp.1.bias", &[24]),
    ]);
    // For running, new parts are as missing as anything else.
    assert_eq!(fit(&checkpoint, &expected).unwrap_err().missing.len(), 2);
    let fitted = fit_with(&checkpoint, &expected, START).unwrap();
    assert_eq!(fitted.initializable, ["blocks.0.attn_temp.proj.bias", "t_block_temp.1.bias"]);
    assert_eq!(fitted.dropped, ["pos_embed"]);
    assert_eq!(fitted.tensor("x_embedder.proj.weight").unwrap().shape, [8, 4, 1, 2, 2]);
    assert!(fitted.tensor("t_block_temp.1.bias").is_err());
    // A time patch above 1 cannot come from an image model.
    let expected = parameters(&[
        ("x_embedder.proj.weight", &[8, 4, 2, 2, 2]),
        ("blocks.0.attn.proj.bias", &[8]),
    ]);
    assert_eq!(fit_with(&checkpoint, &expected, START).unwrap_err().misshapen.len(), 1);
}

#[test]
fn a_part_that_is_there_in_pieces_is_not_a_start() {
    let checkpoint = stored(&[("blocks.0.attn_temp.proj.bias", &[8])]);
    let expected = parameters(&[
        ("blocks.0.attn_temp.proj.bias", &[8]),
        ("blocks.1.attn_temp.proj.bias", &[8]),
    ]);
    assert_eq!(fit_with(&checkpoint, &expected, START).unwrap_err().missing.len(), 1);
}

#[test]
fn pixart_blocks_start_the_spatial_blocks_of_stdit3() {
    let checkpoint = stored(&[("blocks.0.attn.proj.bias", &[8])]);
    let expected = parameters(&[
        ("spatial_blocks.0.attn.proj.bias", &[8]),
        ("temporal_blocks.0.attn.proj.bias", &[8]),
    ]);
    let fitted = fit_with(&checkpoint, &expected, START).unwrap();
    assert_eq!(fitted.initializable, ["temporal_blocks.0.attn.proj.bias"]);
    assert_eq!(fitted.tensor("spatial_blocks.0.attn.proj.bias").unwrap().shape, [8]);
}

#[test]
fn t5_drops_its_decoder_and_takes_the_tied_embedding() {
    let expected = parameters(&[("shared.weight", &[4, 2])]);
    let decoder: &[(&str, &[usize])] = &[
        ("decoder.block.0.x", &[1]),
        ("lm_head.weight", &[4, 2]),
        ("encoder.embed_tokens.weight", &[4, 2]),
    ];
    let tied = stored(decoder);
    let fitted = fit(&tied, &expected).unwrap();
    assert_eq!(fitted.dropped, ["decoder.block.0.x", "lm_head.weight"]);
    let both = stored(&[decoder, &[("shared.weight", &[4, 2])]].concat());
    assert_eq!(fit(&both, &expected).unwrap().dropped.len(), 3);
    // A VAE's decoder is not a T5's.
    let vae = stored(&[("decoder.conv_in.bias", &[1]), ("a", &[1])]);
    assert_eq!(fit(&vae, &parameters(&[("a", &[1])])).unwrap_err().unexpected.len(), 1);
}

#[test]
fn a_subset_passes_over_what_it_does_not_use() {
    let vae = stored(&[("decoder.conv_in.bias", &[1]), ("encoder.conv_in.bias", &[1])]);
    let expected = parameters(&[("decoder.conv_in.bias", &[1])]);
    assert!(fit(&vae, &expected).is_err());
    let fitted = fit_with(&vae, &expected, Leniency { start: false, subset: true }).unwrap();
    assert_eq!(fitted.dropped, ["encoder.conv_in.bias"]);
}
