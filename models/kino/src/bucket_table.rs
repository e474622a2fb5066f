//! Buckets from a TOML file, as training configurations have them: for each resolution, frames with the
//! probability that a sample is kept and the batch size.
//!
//! ```toml
//! [bucket_config.144p]
//! 1 = [1.0, 48]
//! 16 = [[0.5, 0.3], 6]   # of samples that are long enough, this part may be cut to it
//! 32 = [0.0]             # never used, and without a batch size
//! ```
//!
//! Other keys of the file are left alone. A file is outside data: whatever it holds gives buckets or one
//! message that names the key, what was expected and what was found.

use diffusion::{Release, Resolution};
use toml::{Table, Value};

/// The table with the buckets.
const KEY: &str = "bucket_config";

/// Videos of one resolution and length.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TableBucket {
    /// Upstream's resolution, such as `240p`.
    pub resolution: &'static Resolution,
    /// Frames of each video.
    pub frames: usize,
    /// Videos at once; 0 for what is never used.
    pub batch_size: usize,
    /// Probability that a sample which fits is kept, above 0.
    pub keep: f64,
}

/// The buckets that are used, by pixels, then by frames.
pub(crate) fn parse(text: &str) -> Result<Vec<TableBucket>, String> {
    let file: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })?;
    let config = match file.get(KEY) {
        Some(Value::Table(config)) => config,
        Some(other) => return Err(wrong(KEY, "a table of resolutions", other)),
        None => {
            let keys: Vec<&str> = file.keys().map(String::as_str).collect();
            let found = if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
            return Err(format!("expected tables such as [{KEY}.240p], found {found}"));
        }
    };
    let mut buckets: Vec<TableBucket> = vec![];
    for (name, lengths) in config {
        let key = format!("{KEY}.{name}");
        let resolution = diffusion::resolution(name, Release::V1_2)
            .map_err(|error| format!("{key}: {error}"))?;
        let Value::Table(lengths) = lengths else {
            return Err(wrong(&key, "a table of frames", lengths));
        };
        let first = buckets.len();
        for (frames, entry) in lengths {
            let key = format!("{key}.{frames}");
            let frames =
                diffusion::num_frames(frames).map_err(|error| format!("{key}: {error}"))?;
            let (keep, batch_size) = entry_of(&key, entry)?;
            let bucket = TableBucket { resolution, frames, batch_size, keep };
            if buckets[first..].iter().any(|other| other.frames == frames) {
                return Err(format!("{key}: {frames} frames are there twice"));
            }
            buckets.push(bucket);
        }
    }
    buckets.retain(|bucket| bucket.keep > 0.0);
    buckets.sort_by_key(|bucket| (bucket.resolution.pixels, bucket.resolution.name, bucket.frames));
    if buckets.is_empty() {
        return Err(format!(
            "{KEY}: expected a bucket with a keep probability above 0, found none"
        ));
    }
    Ok(buckets)
}

impl TableBucket {
    /// Height and width for each of `aspects`, `9:16` or `all`, each once. Where upstream's table of the
    /// resolution has no such aspect, it is the one that upstream puts such videos into: the nearest.
    pub(crate) fn sizes(&self, aspects: &[String]) -> Result<Vec<[usize; 2]>, String> {
        let mut sizes = vec![];
        for aspect in aspects {
            let of_aspect = match aspect.as_str() {
                "all" => self.resolution.sizes.iter().map(|&(_, h, w)| [h, w]).collect(),
                _ => vec![self.size(aspect)?],
            };
            for size in of_aspect {
                if !sizes.contains(&size) {
                    sizes.push(size);
                }
            }
        }
        Ok(sizes)
    }

    fn size(&self, aspect: &str) -> Result<[usize; 2], String> {
        if let Ok((h, w)) = diffusion::image_size(self.resolution.name, aspect, Release::V1_2) {
            return Ok([h, w]);
        }
        let sides = aspect.split_once(':').and_then(|(height, width)| {
            let is_side = |side: &usize| (1..=1_000_000).contains(side);
            let side = |text: &str| text.parse::<usize>().ok().filter(is_side);
            Some((side(height)?, side(width)?))
        });
        let (height, width) = sides.ok_or_else(|| {
            format!("--aspect-ratio {aspect}; expected height to width, such as 9:16, or all")
        })?;
        let key = diffusion::closest_aspect(self.resolution, height, width);
        let row = self.resolution.sizes.iter().find(|(found, ..)| *found == key);
        let &(_, h, w) = row.expect("the closest aspect is one of the table's");
        Ok([h, w])
    }
}

/// Keep probability and batch size; 0 videos where none are kept and no size is given.
fn entry_of(key: &str, entry: &Value) -> Result<(f64, usize), String> {
    const EXPECTED: &str = "[keep probability, batch size], such as [1.0, 6]";
    let Value::Array(parts) = entry else { return Err(wrong(key, EXPECTED, entry)) };
    let (keep, batch_size) = match &parts[..] {
        [keep] => (keep, None),
        [keep, batch_size] => (keep, Some(batch_size)),
        _ => return Err(wrong(key, EXPECTED, entry)),
    };
    // A pair says how many are kept, and how many of those that are long enough may be cut to this length.
    let keep = match keep {
        Value::Array(pair) if pair.len() == 2 => {
            probability(key, &pair[1])?;
            probability(key, &pair[0])?
        }
        keep => probability(key, keep)?,
    };
    match batch_size {
        None if keep == 0.0 => Ok((keep, 0)),
        None => Err(wrong(key, EXPECTED, entry)),
        Some(Value::Integer(size)) if *size > 0 => {
            let size = usize::try_from(*size).map_err(|_| wrong(key, EXPECTED, entry))?;
            Ok((keep, size))
        }
        Some(other) => Err(wrong(key, "a batch size of at least 1", other)),
    }
}

fn probability(key: &str, value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Float(number) => Some(*number),
        Value::Integer(number) => Some(*number as f64),
        _ => None,
    };
    let number = number.filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| wrong(key, "a probability of 0 to 1", value))
}

fn wrong(key: &str, expected: &str, found: &Value) -> String {
    format!("{key}: expected {expected}, found {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_that_are_used_are_read_in_order() {
        let text = "
            dtype = 'bf16'
            [bucket_config.240p]
            16 = [0.3, 2]
            1 = [1, 8]
            32 = [0.0]
            64 = [0, 3]
            [bucket_config.144p]
            '2s' = [[0.5, 0.33], 4]
        ";
        let found: Vec<(&str, usize, usize, f64)> = parse(text)
            .unwrap()
            .iter()
            .map(|bucket| (bucket.resolution.name, bucket.frames, bucket.batch_size, bucket.keep))
            .collect();
        assert_eq!(found, [("144p", 51, 4, 0.5), ("240p", 1, 8, 1.0), ("240p", 16, 2, 0.3)]);
    }

    #[test]
    fn the_example_is_a_table() {
        let buckets = parse(include_str!("../examples/buckets.toml")).unwrap();
        let videos: usize = buckets.iter().map(|bucket| bucket.batch_size).sum();
        assert_eq!((buckets.len(), videos), (11, 104));
    }

    #[test]
    fn sizes_are_upstreams() {
        let size = |resolution: &str, aspects: &[&str]| {
            let text = format!("[bucket_config.{resolution}]\n16 = [1.0, 1]");
            let aspects: Vec<String> = aspects.iter().map(|aspect| (*aspect).to_owned()).collect();
            parse(&text).unwrap()[0].sizes(&aspects)
        };
        assert_eq!(size("240p", &["9:16", "1:1", "9:16"]).unwrap(), [[240, 426], [320, 320]]);
        // Squarish tables have no 9:16; upstream puts such videos into the nearest.
        assert_eq!(size("256", &["9:16"]).unwrap(), [[192, 336]]);
        assert_eq!(size("256", &["all"]).unwrap().len(), 40);
        assert_eq!(size("240p", &["3:7"]).unwrap(), [[210, 490]]);
        for wrong in ["", "9", "0:1", "9:x", "9:-1", "al"] {
            let error = size("240p", &[wrong]).unwrap_err();
            assert!(error.contains("expected height to width"), "{error}");
        }
    }

    #[test]
    fn a_bad_table_is_told_by_key_and_value() {
        for (text, expected) in [
            ("", "expected tables such as [bucket_config.240p], found nothing"),
            ("bucket_confg = 1\nseed = 2", "found bucket_confg, seed"),
            ("bucket_config = 3", "bucket_config: expected a table of resolutions, found 3"),
            ("[bucket_config.240]\n1 = [1, 1]", "bucket_config.240: resolution `240` is unknown"),
            (
                "[bucket_config]\n240p = 1",
                "bucket_config.240p: expected a table of frames, found 1",
            ),
            ("[bucket_config.240p]\nx = [1, 1]", "bucket_config.240p.x: number of frames `x`"),
            ("[bucket_config.240p]\n0 = [1, 1]", "bucket_config.240p.0: number of frames `0`"),
            (
                "[bucket_config.240p]\n16 = 6",
                "bucket_config.240p.16: expected [keep probability, batch size], such as [1.0, 6], found 6",
            ),
            ("[bucket_config.240p]\n16 = [1.0]", "such as [1.0, 6], found [1.0]"),
            ("[bucket_config.240p]\n16 = [1.5, 6]", "expected a probability of 0 to 1, found 1.5"),
            ("[bucket_config.240p]\n16 = [nan, 6]", "expected a probability of 0 to 1, found nan"),
            ("[bucket_config.240p]\n16 = [[1, 2], 6]", "a probability of 0 to 1, found 2"),
            ("[bucket_config.240p]\n16 = [1, 0]", "expected a batch size of at least 1, found 0"),
            ("[bucket_config.240p]\n16 = [1, 'six']", "a batch size of at least 1, found \"six\""),
            ("[bucket_config.240p]\n51 = [1, 1]\n2s = [1, 1]", "51 frames are there twice"),
            ("[bucket_config.240p]\n16 = [0, 6]", "a keep probability above 0, found none"),
            ("[bucket_config.240p\n16 = [0, 6]", "line 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}; expected {expected}");
        }
    }
}
