//! Where options come from: the command line, then a configuration file, then an earlier output.
//!
//! A layer is the JSON object of a [`SampleOptions`]. Options that say the same thing in different
//! ways form a group: a layer that sets one of them hides the whole group of the layers below.

use std::fs;
use std::path::Path;

use media::Metadata;
use serde_json::{Map, Value};

use crate::failure::{Failure, Outcome};
use crate::nearest::nearest;
use crate::options::SampleOptions;

/// Options as JSON.
pub(crate) type Layer = Map<String, Value>;

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
    let mut layers = vec![layer(&flags)];
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
    Ok((options, earlier))
}

/// The options that are set.
pub(crate) fn layer(options: &SampleOptions) -> Layer {
    let value = serde_json::to_value(options).expect("options are plain data");
    let Value::Object(mut map) = value else { unreachable!("a struct is an object") };
    map.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
    map
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

/// Every key of a configuration file.
fn known_keys() -> Vec<String> {
    // Flags are left out of a layer while they are off.
    let all =
        SampleOptions { json: true, quiet: true, no_clean_caption: true, ..Default::default() };
    match serde_json::to_value(all) {
        Ok(Value::Object(map)) => map.into_iter().map(|(key, _)| key).collect(),
        _ => unreachable!("options are an object"),
    }
}

fn read_config(path: &Path) -> Outcome<Layer> {
    let fail = |reason: String| Failure::Run(anyhow::anyhow!("{}: {reason}", path.display()));
    let size = fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(fail(format!("{size} bytes, expected at most {MAX_CONFIG_BYTES}")));
    }
    let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    parse_config(&text).map_err(|reason| Failure::Usage(format!("{}: {reason}", path.display())))
}

/// A TOML document as a layer. Keys are in snake or kebab case.
fn parse_config(text: &str) -> Result<Layer, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })?;
    let known = known_keys();
    let mut map = Layer::new();
    for (key, value) in table {
        let name = key.replace('-', "_");
        if !known.contains(&name) {
            let meant = nearest(&name, known.iter().map(String::as_str));
            return Err(format!("unknown key `{key}`; did you mean `{meant}`?"));
        }
        let mut value = serde_json::to_value(value).map_err(|error| error.to_string())?;
        if value.is_null() {
            // What JSON cannot hold: TOML's `nan` and `inf`.
            return Err(format!("key `{key}`: expected a finite number"));
        }
        if name == "prompt" && value.is_string() {
            value = Value::Array(vec![value]);
        }
        if map.insert(name, value).is_some() {
            return Err(format!("key `{key}` is there twice"));
        }
    }
    // Types are checked here, where the file is known.
    let options: SampleOptions =
        serde_json::from_value(Value::Object(map)).map_err(|error| error.to_string())?;
    Ok(layer(&options))
}

/// The settings that an earlier output says it was made with.
fn read_settings(path: &Path, metadata: &Metadata) -> Outcome<Layer> {
    let fail = |reason: String| Failure::Run(anyhow::anyhow!("{}: {reason}", path.display()));
    let settings = metadata
        .get("settings")
        .ok_or_else(|| fail("its metadata has no settings to sample again".into()))?;
    let options: SampleOptions = serde_json::from_str(settings)
        .map_err(|error| fail(format!("its settings are not those of this version: {error}")))?;
    let mut settings = layer(&options);
    let prompt = metadata.get("prompt").ok_or_else(|| fail("its metadata has no prompt".into()))?;
    settings.insert("prompt".into(), Value::Array(vec![prompt.into()]));
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_text(upper: &str, lower: &str) -> String {
        Value::Object(over(parse_config(upper).unwrap(), parse_config(lower).unwrap())).to_string()
    }

    #[test]
    fn both_spellings_of_a_key_are_one() {
        assert_eq!(
            over_text("cfg-scale = 2", "cfg_scale = 3\nseed = 1"),
            r#"{"cfg_scale":2.0,"seed":1}"#
        );
        assert!(parse_config("cfg-scale = 2\ncfg_scale = 3").unwrap_err().contains("twice"));
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

    #[test]
    fn an_unknown_key_names_the_nearest() {
        for (text, expected) in [
            ("cgf_scale = 1", "did you mean `cfg_scale`?"),
            ("num-frame = 1", "did you mean `num_frames`?"),
            ("seed = \"x\"", "expected u64"),
            ("a = [", "line 1"),
            ("fps = nan", "expected a finite number"),
            ("config = \"x\"", "unknown key `config`"),
        ] {
            let error = parse_config(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn frames_are_a_number_or_a_name() {
        assert_eq!(over_text("num_frames = 16", ""), r#"{"num_frames":"16"}"#);
        assert_eq!(over_text("num_frames = \"2s\"", ""), r#"{"num_frames":"2s"}"#);
    }
}
