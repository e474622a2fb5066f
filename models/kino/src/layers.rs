//! Where options come from: the command line, then a configuration file, then an earlier output.
//!
//! A layer is the JSON object of a [`SampleOptions`]. Options that say the same thing in different
//! ways form a group: a layer that sets one of them hides the whole group of the layers below.

use std::fs;
use std::path::Path;

use media::Metadata;
use serde_json::Value;

use crate::config_file;
use crate::failure::{Failure, Outcome};
use crate::options::{Layer, SampleOptions};

/// Options of which a layer's choice replaces the lower layers' as a whole.
const GROUPS: [&[&str]; 3] = [
    &["prompt", "prompt_path", "start_index", "end_index", "num_sample", "sample_index"],
    &["image_size", "resolution", "aspect_ratio"],
    &["output", "save_dir", "sample_name", "format"],
];

/// Keys of a group that refine it but do not replace it.
const REFINEMENTS: [&str; 4] = ["start_index", "end_index", "num_sample", "sample_index"];

/// Most bytes of a configuration file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// An earlier output that is to be made again.
#[derive(Debug)]
pub(crate) struct Earlier {
    /// Version that made it.
    pub version: String,
    /// Instruction set that it was made with.
    pub isa: String,
}

/// Adds to the command line's options those of `--config` and `--from`.
pub(crate) fn gather(mut flags: SampleOptions) -> Outcome<(SampleOptions, Option<Earlier>)> {
    let mut typed = std::mem::take(&mut flags.positional);
    typed.append(&mut flags.prompt);
    flags.prompt = typed;
    let mut layers = vec![flags.layer()];
    if let Some(path) = &flags.config {
        layers.push(read_config(path)?);
    }
    let mut earlier = None;
    if let Some(path) = &flags.from {
        let metadata = media::read_metadata(path)?;
        layers.push(read_settings(path, &metadata)?);
        let entry = |key: &str| metadata.get(key).unwrap_or("unknown").to_string();
        earlier = Some(Earlier { version: entry("version"), isa: entry("isa") });
    }
    let merged = layers.into_iter().reduce(over).unwrap_or_default();
    let mut options: SampleOptions = serde_json::from_value(Value::Object(merged))
        .map_err(|error| Failure::Usage(error.to_string()))?;
    options.config = flags.config;
    options.from = flags.from;
    options.profile = flags.profile;
    #[cfg(feature = "cuda")]
    {
        options.engine = flags.engine;
        options.device = flags.device;
        options.products = flags.products;
    }
    Ok((options, earlier))
}

/// `upper` over `lower`.
fn over(upper: Layer, mut lower: Layer) -> Layer {
    for group in GROUPS {
        if group.iter().any(|key| upper.contains_key(*key) && !REFINEMENTS.contains(key)) {
            lower.retain(|key, _| !group.contains(&key.as_str()));
        }
    }
    lower.extend(upper);
    lower
}

fn read_config(path: &Path) -> Outcome<Layer> {
    let fail = |reason: String| Failure::Run(anyhow::anyhow!("{}: {reason}", path.display()));
    let size = fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(fail(format!("{size} bytes, expected at most {MAX_CONFIG_BYTES}")));
    }
    let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    config_file::parse(&text)
        .map_err(|reason| Failure::Usage(format!("{}: {reason}", path.display())))
}

/// The settings that an earlier output says it was made with.
fn read_settings(path: &Path, metadata: &Metadata) -> Outcome<Layer> {
    let fail = |reason: String| Failure::Run(anyhow::anyhow!("{}: {reason}", path.display()));
    let settings = metadata
        .get("settings")
        .ok_or_else(|| fail("its metadata has no settings to sample again".into()))?;
    let options: SampleOptions = serde_json::from_str(settings)
        .map_err(|error| fail(format!("its settings are not those of this version: {error}")))?;
    let mut settings = options.layer();
    let prompt = metadata.get("prompt").ok_or_else(|| fail("its metadata has no prompt".into()))?;
    settings.insert("prompt".into(), Value::Array(vec![prompt.into()]));
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_text(upper: &str, lower: &str) -> String {
        Value::Object(over(config_file::parse(upper).unwrap(), config_file::parse(lower).unwrap()))
            .to_string()
    }

    #[test]
    fn a_size_hides_the_size_below() {
        assert_eq!(
            over_text("resolution = \"240p\"", "image_size = [64, 64]"),
            r#"{"resolution":"240p"}"#
        );
        assert_eq!(
            over_text("num_sample = 2", "prompt = \"a\""),
            r#"{"num_sample":2,"prompt":["a"]}"#
        );
    }
}
