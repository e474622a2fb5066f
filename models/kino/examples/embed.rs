//! Makes the embedded model: copies a pipeline folder, with every float tensor stored as bf16.
//!
//! ```text
//! cargo run --release -p kino --example embed --no-default-features -- \
//!     run/model models/kino/embedded/tiny-flare-1.1
//! ```
//!
//! Equal input gives equal bytes. Only what `kino` reads is copied: `model_index.json`, the README
//! with the licence, tokenizer, configurations, weights. The README and what only other programs read of a tokenizer
//! stay as they are where the folder of a training run has none.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use checkpoint::{Checkpoint, DType, TensorView, write_safetensors};

/// Files that are copied as they are, below the folder.
const COPIED: [&str; 7] = [
    "README.md",
    "model_index.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "transformer/config.json",
    "vae/config.json",
];

/// Those of them that may be missing.
const KEPT: [&str; 2] = ["README.md", "tokenizer/tokenizer_config.json"];

/// Weight files.
const WEIGHTS: [&str; 3] = [
    "text_encoder/model.safetensors",
    "transformer/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
];

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [from, to] = args.as_slice() else { bail!("usage: embed FROM_FOLDER TO_FOLDER") };
    for file in COPIED.iter().chain(&WEIGHTS) {
        let folder = to.join(file);
        let folder = folder.parent().context("every file has a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    for file in COPIED {
        if KEPT.contains(&file) && !from.join(file).exists() {
            continue;
        }
        let bytes = fs::read(from.join(file)).with_context(|| file.to_string())?;
        fs::write(to.join(file), bytes).with_context(|| file.to_string())?;
    }
    for file in WEIGHTS {
        convert(&from.join(file), &to.join(file))?;
    }
    Ok(())
}

/// Rewrites a checkpoint with its floats rounded to the nearest bf16.
fn convert(from: &Path, to: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(from)?;
    let mut tensors = BTreeMap::new();
    for info in checkpoint.tensors() {
        let mut view = checkpoint.tensor(info.name)?;
        if let Some(values) = view.to_f32() {
            let bytes = values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes());
            let bytes = Cow::Owned(bytes.collect());
            view = TensorView { dtype: DType::BF16, shape: view.shape, bytes };
        }
        tensors.insert(info.name.to_string(), view);
    }
    write_safetensors(to, &tensors, checkpoint.metadata())?;
    Ok(())
}
