//! The TOML file of `--config` as options: keys in snake or kebab case, types as on the command line.
//!
//! A file is outside data: whatever it holds gives options or a message that names the place.

use models::nearest::nearest;
use serde_json::Value;

use crate::options::{Layer, SampleOptions};

/// Keys of lists, of which one entry may stand for itself.
const LISTS: [&str; 3] = ["prompt", "reference_path", "mask_strategy"];

/// A TOML document as a layer. Keys are in snake or kebab case.
pub(crate) fn parse(text: &str) -> Result<Layer, String> {
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
        if LISTS.contains(&name.as_str()) && value.is_string() {
            value = Value::Array(vec![value]);
        }
        if map.insert(name, value).is_some() {
            return Err(format!("key `{key}` is there twice"));
        }
    }
    // Types are checked here, where the file is known.
    let options: SampleOptions =
        serde_json::from_value(Value::Object(map)).map_err(|error| error.to_string())?;
    Ok(options.layer())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(config: &str) -> String {
        Value::Object(parse(config).unwrap()).to_string()
    }

    #[test]
    fn both_spellings_of_a_key_are_one() {
        assert_eq!(text("cfg-scale = 2\nseed = 1"), r#"{"cfg_scale":2.0,"seed":1}"#);
        assert!(parse("cfg-scale = 2\ncfg_scale = 3").unwrap_err().contains("twice"));
    }

    #[test]
    fn one_entry_of_a_list_stands_for_itself() {
        let file = "reference-path = \"a.png\"\nmask_strategy = [\"0\", \"\"]\nloop = 2";
        assert_eq!(text(file), r#"{"loop":2,"mask_strategy":["0",""],"reference_path":["a.png"]}"#);
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
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn frames_are_a_number_or_a_name() {
        assert_eq!(text("num_frames = 16"), r#"{"num_frames":"16"}"#);
        assert_eq!(text("num_frames = \"2s\""), r#"{"num_frames":"2s"}"#);
    }
}
