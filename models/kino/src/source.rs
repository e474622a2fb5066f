//! Which model a request means, and loading it.

use pipeline::{Model, Paths, Transformer};

use crate::failure::{Failure, Outcome};
use crate::options::SampleOptions;

/// Name of the embedded model.
pub(crate) const EMBEDDED: &str = "tiny-flare-1.1";

/// Upstream's registry names, as a check of what `--ckpt-path` holds.
const KINDS: [(&str, &str); 4] =
    [("STDiT-XL/2", "STDiT"), ("STDiT", "STDiT"), ("STDiT2-XL/2", "STDiT2"), ("STDiT2", "STDiT2")];

/// Whether this build has the embedded model.
pub(crate) const HAS_EMBEDDED: bool = cfg!(feature = "embedded-model");

/// Says without opening a file whether the options can mean a model.
pub(crate) fn check(options: &SampleOptions) -> Outcome<()> {
    let kinds = || KINDS.map(|(name, _)| name).join(", ");
    match (options.model.as_deref(), &options.ckpt_path) {
        (Some(EMBEDDED), Some(_)) => Err(Failure::usage(format!(
            "--model {EMBEDDED} is the embedded model and takes no --ckpt-path; leave one out"
        ))),
        (Some(EMBEDDED) | None, None) => {
            let parts = [
                ("--vae", &options.vae),
                ("--text-encoder", &options.text_encoder),
                ("--tokenizer", &options.tokenizer),
            ];
            if let Some((flag, _)) = parts.iter().find(|(_, part)| part.is_some()) {
                let reason = "the embedded model has its own parts; give --ckpt-path too";
                return Err(Failure::usage(format!("{flag}: {reason}")));
            }
            if HAS_EMBEDDED {
                return Ok(());
            }
            Err(Failure::usage(
                "this build has no embedded model: give --ckpt-path with a pipeline folder, or \
                 with a transformer's weights and --text-encoder and --vae beside it",
            ))
        }
        (Some(name), path) => {
            if !KINDS.iter().any(|(kind, _)| *kind == name) {
                let known = format!("{EMBEDDED} (embedded), or with --ckpt-path {}", kinds());
                return Err(Failure::usage(format!("--model {name} is unknown; expected {known}")));
            }
            if path.is_none() {
                return Err(Failure::usage(format!(
                    "--model {name} is not embedded; give its weights with --ckpt-path"
                )));
            }
            Ok(())
        }
        (None, Some(_)) => Ok(()),
    }
}

/// Loads the model that [`check`] accepted.
pub(crate) fn load(options: &SampleOptions) -> Outcome<Model> {
    let Some(path) = &options.ckpt_path else { return embedded() };
    if !path.exists() {
        let error = anyhow::anyhow!("{}: no such file or folder", path.display());
        return Err(Failure::Run(error.context("--ckpt-path")));
    }
    let model = Model::open(&Paths {
        model: Some(path.clone()),
        text_encoder: options.text_encoder.clone(),
        tokenizer: options.tokenizer.clone(),
        vae: options.vae.clone(),
    })?;
    let wanted = options.model.as_deref();
    let kind = KINDS.iter().find(|(name, _)| wanted == Some(name)).map(|(_, kind)| *kind);
    if let Some(kind) = kind
        && kind != model.transformer.name()
    {
        let (path, found) = (path.display(), model.transformer.name());
        let name = wanted.unwrap_or_default();
        let error = anyhow::anyhow!("{path} is {found}, --model {name} expects {kind}");
        return Err(Failure::Run(error));
    }
    Ok(model)
}

/// Whether upstream's Open-Sora 1.0 made this transformer's class.
pub(crate) fn is_first_release(model: &Model) -> bool {
    matches!(model.transformer, Transformer::Stdit1(_))
}

/// The files of the model inside this program, by their paths in a pipeline folder.
#[cfg(feature = "embedded-model")]
pub(crate) static EMBEDDED_FILES: [(&str, &[u8]); 8] = {
    macro_rules! file {
        ($path:literal) => {
            ($path, include_bytes!(concat!("../embedded/tiny-flare-1.1/", $path)).as_slice())
        };
    }
    [
        file!("model_index.json"),
        file!("tokenizer/tokenizer.json"),
        file!("text_encoder/config.json"),
        file!("text_encoder/model.safetensors"),
        file!("transformer/config.json"),
        file!("transformer/model.safetensors"),
        file!("vae/config.json"),
        file!("vae/diffusion_pytorch_model.safetensors"),
    ]
};

/// The model inside this program.
#[cfg(feature = "embedded-model")]
pub(crate) fn embedded() -> Outcome<Model> {
    let [index, tokenizer, parts @ ..] = EMBEDDED_FILES.map(|(_, bytes)| bytes);
    let [text_config, text, config, transformer, vae_config, vae] = parts;
    let parts = [(text_config, text), (config, transformer), (vae_config, vae)];
    Ok(Model::from_bytes(EMBEDDED, index, tokenizer, parts)?)
}

/// Says that there is no model inside this program.
#[cfg(not(feature = "embedded-model"))]
pub(crate) fn embedded() -> Outcome<Model> {
    let message = format!("this build has no embedded {EMBEDDED}; give a path instead");
    Err(Failure::Usage(message))
}
