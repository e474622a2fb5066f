//! Folders: which file is read, shards, configs, pipelines, and what a checkpoint is identified as.

#![allow(clippy::unwrap_used, reason = "clippy exempts tests, but not the functions they share")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoint::{
    Checkpoint, DType, Error, Evidence, Format, Kind, Pipeline, TensorView, identify,
    write_safetensors,
};
use serde_json::json;

fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let tensors: BTreeMap<String, TensorView<'_>> = tensors
        .iter()
        .map(|(name, shape)| {
            let bytes = vec![0; 2 * shape.iter().product::<usize>()];
            let view =
                TensorView { dtype: DType::BF16, shape: shape.to_vec(), bytes: Cow::Owned(bytes) };
            ((*name).to_string(), view)
        })
        .collect();
    write_safetensors(path, &tensors, &BTreeMap::new()).unwrap();
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().map(|info| info.name).collect()
}

#[test]
fn shards_are_joined_through_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("model-00001-of-00002.safetensors"), &[("a", &[2]), ("unlisted", &[1])]);
    write(&at("model-00002-of-00002.safetensors"), &[("b", &[3])]);
    let index = json!({"metadata": {"total_size": 10}, "weight_map": {
        "b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}});
    fs::write(at("model.safetensors.index.json"), index.to_string()).unwrap();
    for path in [folder.path().to_path_buf(), at("model.safetensors.index.json")] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.format(), Format::Sharded);
        assert_eq!(names(&checkpoint), ["a", "b"]);
        assert_eq!(checkpoint.tensor("b").unwrap().shape, [3]);
    }
    let wrong = json!({"weight_map": {"c": "model-00001-of-00002.safetensors"}});
    fs::write(at("model.safetensors.index.json"), wrong.to_string()).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error.root(), Error::NotInShard { tensor, .. } if tensor == "c"), "{error}");
    for outside in ["../x.safetensors", "/etc/passwd", "..", "a\\b", ""] {
        let index = json!({"weight_map": {"c": outside}});
        fs::write(at("model.safetensors.index.json"), index.to_string()).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(matches!(error.root(), Error::ShardName { .. }), "{outside}: {error}");
    }
}

#[test]
fn the_folder_of_a_training_checkpoint_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fs::copy(fixtures.join("protocol4.zip.pt"), model.join("pytorch_model-00001.bin")).unwrap();
    let index = json!({"weight_map": {"w": "pytorch_model-00001.bin"}});
    fs::write(model.join("pytorch_model.bin.index.json"), index.to_string()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.to_f32("w").unwrap(), [1., 2., 3., 4.]);
}

#[test]
fn bad_paths_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| Checkpoint::open(folder.path().join(name)).unwrap_err();
    assert!(
        open("missing.pt").to_string().contains("missing.pt: cannot open"),
        "{}",
        open("missing.pt")
    );
    assert!(matches!(Checkpoint::open(folder.path()).unwrap_err().root(), Error::NoWeights { .. }));
    fs::write(folder.path().join("empty.pt"), []).unwrap();
    assert!(open("empty.pt").to_string().contains("an empty file"));
    fs::write(folder.path().join("text.pt"), "hello, this is not a checkpoint").unwrap();
    assert!(
        open("text.pt").to_string().contains("starts \"hello, this is n\""),
        "{}",
        open("text.pt")
    );
    write(&folder.path().join("model.safetensors"), &[("a", &[1])]);
    fs::write(folder.path().join("config.json"), "{").unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("config.json: config.json is not valid: EOF"), "{error}");
}

#[test]
fn a_pipeline_names_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let index = json!({"_class_name": "OpenSora11Pipeline", "scheduler": {"type": "iddpm"},
        "safety_checker": [null, null], "vae": ["diffusers", "AutoencoderKL"]});
    fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
    let error = Pipeline::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("part vae: its folder is missing"), "{error}");
    fs::create_dir(folder.path().join("vae")).unwrap();
    let pipeline = Pipeline::open(folder.path()).unwrap();
    assert_eq!(pipeline.components.len(), 1);
    assert_eq!(pipeline.components["vae"].class, "AutoencoderKL");
    assert_eq!(pipeline.part("vae").unwrap(), folder.path().join("vae"));
    assert_eq!(pipeline.model_index["scheduler"]["type"], "iddpm");
    assert!(pipeline.part("transformer").unwrap_err().to_string().contains("which has vae"));
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error.root(), Error::IsPipeline { .. }), "{error}");
}

/// Tensors that tell an `STDiT-2` of depth 2, hidden size 64, 4 heads.
const STDIT2: &[(&str, &[usize])] = &[
    ("x_embedder.proj.weight", &[64, 4, 1, 2, 2]),
    ("t_block_temp.1.weight", &[192, 64]),
    ("rope.freqs", &[8]),
    ("y_embedder.y_embedding", &[12, 32]),
    ("y_embedder.y_proj.fc1.weight", &[64, 32]),
    ("blocks.0.attn_temp.qkv.weight", &[192, 64]),
    ("blocks.0.attn.q_norm.weight", &[16]),
    ("blocks.0.mlp.fc1.weight", &[256, 64]),
    ("blocks.1.mlp.fc1.weight", &[256, 64]),
    ("final_layer.linear.weight", &[32, 64]),
];

#[test]
fn transformers_are_identified_by_their_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, STDIT2);
    let identity = identify(&Checkpoint::open(&path).unwrap());
    assert_eq!((identity.kind, identity.evidence), (Kind::StDit2, Evidence::Tensors));
    let expected = json!({"hidden_size": 64, "in_channels": 4, "patch_size": [1, 2, 2], "depth": 2,
        "caption_channels": 32, "model_max_length": 12, "mlp_ratio": 4.0, "pred_sigma": true, "qk_norm": true,
        "num_heads": 4});
    assert_eq!(json!(identity.config), expected);
    assert!(identity.assumed.is_empty());
    let n: usize = STDIT2.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(identity.n_parameters, n as u64);
    assert_eq!(identity.by_dtype[&DType::BF16].bytes, 2 * n as u64);
    assert_eq!(identity.n_tensors, 10);
    assert_eq!(json!(identity)["by_dtype"]["bf16"]["n_tensors"], 10);
}

#[test]
fn config_json_wins_and_contradictions_are_told() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model.safetensors"), STDIT2);
    let config = json!({"architectures": ["STDiT2"], "depth": 28, "num_heads": 4, "mlp_ratio": 4, "freeze": null});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.config().unwrap()["depth"], 28);
    let identity = identify(&checkpoint);
    assert_eq!((identity.kind, identity.evidence), (Kind::StDit2, Evidence::Config));
    assert_eq!(identity.class.as_deref(), Some("STDiT2"));
    assert_eq!(identity.config["depth"], 28);
    assert_eq!(identity.config["hidden_size"], 64);
    assert_eq!(identity.contradictions, ["config.json says depth = 28, the tensors say 2"]);
    let wrong = checkpoint.with_config(json!({"_class_name": "AutoencoderKL"}));
    let identity = identify(&wrong);
    assert_eq!(identity.kind, Kind::AutoencoderKl);
    assert_eq!(
        identity.contradictions,
        ["config.json says AutoencoderKL, the tensors are those of STDiT2"]
    );
}

#[test]
fn other_models_are_identified_by_their_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let identity = |tensors: &[(&str, &[usize])]| {
        write(&path, tensors);
        let identity = identify(&Checkpoint::open(&path).unwrap());
        (identity.kind, json!(identity.config), identity.assumed)
    };
    let (kind, config, assumed) = identity(&[
        ("shared.weight", &[40, 8]),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", &[6, 8]),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[32, 2]),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", &[20, 8]),
        ("encoder.block.1.layer.0.SelfAttention.q.weight", &[6, 8]),
    ]);
    assert_eq!(kind, Kind::T5Encoder);
    let expected = json!({"vocab_size": 40, "d_model": 8, "num_layers": 2, "num_heads": 2, "d_kv": 3, "d_ff": 20,
        "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu"});
    assert_eq!(config, expected);
    assert_eq!(assumed, ["feed_forward_proj"]);

    let (kind, config, assumed) = identity(&[
        ("encoder.conv_in.weight", &[8, 3, 3, 3]),
        ("encoder.down_blocks.0.resnets.0.conv1.weight", &[8, 8, 3, 3]),
        ("encoder.down_blocks.0.resnets.1.conv1.weight", &[8, 8, 3, 3]),
        ("encoder.down_blocks.1.resnets.0.conv1.weight", &[16, 8, 3, 3]),
        ("encoder.down_blocks.1.resnets.1.conv1.weight", &[16, 16, 3, 3]),
        ("decoder.conv_in.weight", &[16, 4, 3, 3]),
        ("decoder.conv_out.weight", &[3, 8, 3, 3]),
    ]);
    assert_eq!(kind, Kind::AutoencoderKl);
    let expected = json!({"block_out_channels": [8, 16], "layers_per_block": 2, "in_channels": 3,
        "out_channels": 3, "latent_channels": 4, "norm_num_groups": 32, "use_quant_conv": false,
        "use_post_quant_conv": false});
    assert_eq!(config, expected);
    assert_eq!(assumed, ["norm_num_groups"]);

    let (kind, config, assumed) = identity(&[
        ("module.x_embedder.proj.weight", &[144, 4, 1, 2, 2]),
        ("module.blocks.0.attn_temp.qkv.weight", &[1, 1]),
        ("module.pos_embed", &[1, 64, 144]),
    ]);
    assert_eq!(kind, Kind::StDit1);
    assert_eq!((&config["num_heads"], &config["n_spatial_tokens"]), (&json!(2), &json!(64)));
    assert_eq!(assumed, ["num_heads"]);

    let embed: (&str, &[usize]) = ("x_embedder.proj.weight", &[1, 4, 2, 2]);
    assert_eq!(identity(&[embed, ("spatial_blocks.0.attn.qkv.bias", &[1])]).0, Kind::StDit3);
    assert_eq!(identity(&[embed, ("blocks.0.scale_shift_table", &[6, 1])]).0, Kind::PixArt);
    assert_eq!(identity(&[embed, ("blocks.0.adaLN_modulation.1.weight", &[6, 1])]).0, Kind::Dit);
    let pipeline: &[(&str, &[usize])] = &[("spatial_vae.module.x", &[1]), ("temporal_vae.x", &[1])];
    assert_eq!(identity(pipeline).0, Kind::VideoAutoencoderPipeline);
    assert_eq!(identity(&[("what", &[1])]).0, Kind::Unknown);
}
