//! What `--buckets` and `--aspect-ratio` name: sizes of videos, with how many of them are made at once.

use std::path::Path;

use ::data::{BucketFile, Buckets};

use crate::failure::{Failure, Outcome};

/// Videos of one size and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableBucket {
    /// Frames, height and width of each video.
    pub size: [usize; 3],
    /// Videos at once.
    pub batch_size: usize,
}

/// The buckets of a file that are used, by pixels, then by frames, in each of `aspects`: heights to widths
/// such as `9:16`, or `all`. Where a resolution has no such aspect, it is the one that upstream puts such
/// videos into: the nearest.
pub(crate) fn read(path: &Path, aspects: &[String]) -> Outcome<Vec<TableBucket>> {
    let buckets = BucketFile::read(path)?.buckets;
    of(&buckets, aspects).map_err(Failure::usage)
}

fn of(buckets: &Buckets, aspects: &[String]) -> Result<Vec<TableBucket>, String> {
    let mut found: Vec<TableBucket> = vec![];
    let mut lengths: Vec<_> =
        buckets.lengths().filter(|length| length.keep.probability > 0.0).collect();
    lengths.reverse();
    if lengths.is_empty() {
        return Err("no bucket has a share `keep` above 0".into());
    }
    for length in lengths {
        for aspect in aspects {
            let sizes = match aspect.as_str() {
                "all" => buckets.sizes(&length.resolution),
                _ => {
                    let [height, width] = sides(aspect)?;
                    vec![buckets.size_near(&length.resolution, height, width)]
                }
            };
            for [height, width] in sizes {
                let size = [length.num_frames, height, width];
                let bucket = TableBucket { size, batch_size: length.batch_size };
                if !found.contains(&bucket) {
                    found.push(bucket);
                }
            }
        }
    }
    Ok(found)
}

/// Height and width of `9:16`.
fn sides(aspect: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| {
        text.parse::<usize>().ok().filter(|side: &usize| (1..=1_000_000).contains(side))
    };
    let sides =
        aspect.split_once(':').and_then(|(height, width)| Some([side(height)?, side(width)?]));
    sides.ok_or_else(|| {
        format!("--aspect-ratio {aspect}; expected height to width, such as 9:16, or all")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, aspects: &[&str]) -> Result<Vec<TableBucket>, String> {
        let aspects: Vec<String> = aspects.iter().map(|&aspect| aspect.to_owned()).collect();
        of(&BucketFile::parse(text).unwrap().buckets, &aspects)
    }

    #[test]
    fn buckets_that_are_used_are_in_order() {
        let text = r#"buckets = [
            { resolution = "240p", frames = 16, keep = 0.3, batch = 2 },
            { resolution = "240p", frames = 1, keep = 1, batch = 8 },
            { resolution = "240p", frames = 32, keep = 0.0 },
            { resolution = "240p", frames = 64, keep = 0, batch = 3 },
            { resolution = "144p", frames = "2s", keep = [0.5, 0.33], batch = 4 },
        ]"#;
        let found = parse(text, &["9:16"]).unwrap();
        let found: Vec<_> = found.iter().map(|bucket| (bucket.size, bucket.batch_size)).collect();
        assert_eq!(found, [([51, 144, 256], 4), ([1, 240, 426], 8), ([16, 240, 426], 2)]);
    }

    #[test]
    fn recipes_are_tables() {
        for (recipe, n_buckets, n_videos) in [
            (include_str!("../../training/configs/opensora-1.1-stage1.toml"), 11, 104),
            (include_str!("../../training/configs/tiny-flare.toml"), 1, 16),
        ] {
            let buckets = parse(recipe, &["9:16"]).unwrap();
            let videos: usize = buckets.iter().map(|bucket| bucket.batch_size).sum();
            assert_eq!((buckets.len(), videos), (n_buckets, n_videos));
        }
    }

    #[test]
    fn sizes_are_upstreams() {
        let sizes = |resolution: &str, aspects: &[&str]| {
            let text = format!(
                "buckets = [{{ resolution = '{resolution}', frames = 16, keep = 1, batch = 1 }}]"
            );
            let found = parse(&text, aspects)?;
            Ok::<_, String>(found.iter().map(|b| [b.size[1], b.size[2]]).collect::<Vec<_>>())
        };
        assert_eq!(sizes("240p", &["9:16", "1:1", "9:16"]).unwrap(), [[240, 426], [320, 320]]);
        // Squarish tables have no 9:16; upstream puts such videos into the nearest.
        assert_eq!(sizes("256", &["9:16"]).unwrap(), [[192, 336]]);
        assert_eq!(sizes("256", &["all"]).unwrap().len(), 40);
        assert_eq!(sizes("240p", &["3:7"]).unwrap(), [[210, 490]]);
        assert_eq!(sizes("64x48", &["9:16", "all"]).unwrap(), [[64, 48]]);
        for wrong in ["", "9", "0:1", "9:x", "9:-1", "al"] {
            let error = sizes("240p", &[wrong]).unwrap_err();
            assert!(error.contains("expected height to width"), "{error}");
        }
    }

    #[test]
    fn a_table_that_keeps_nothing_is_refused() {
        let text = "buckets = [{ resolution = '240p', frames = 16, keep = 0, batch = 1 }]";
        assert!(parse(text, &["9:16"]).unwrap_err().contains("above 0"));
    }
}
