//! Features on disk: what the autoencoder makes of each video, and the text encoder of each caption.
//!
//! A video's record is its posterior (`mean`, `deviation`, f32 `[channels, T, h, w]` as samplers take latents) and
//! `conditions`, f32 `[2]`: frames per second and aspect ratio. A caption's is `values`, f32 `[tokens, channels]`,
//! and `mask`, bool `[tokens]`; where the text encoder is trained, `values` are its tokens, i64 `[tokens]`. Keys are of
//! all that a record depends on but the encoders, which the cache's identity names.

use std::path::{Path, PathBuf};

use bytemuck::cast_slice;
use data::{BucketShape, CacheReader, CacheWriter, CachedTensor, Key};
use media::Fit;
use ops::DType;

use crate::Result;
use crate::samples::Samples;

/// Version of records and keys.
const FORMAT: u32 = 1;

/// Bytes that wait in memory until they are written as one file.
const SHARD_BYTES: usize = 64 << 20;

/// Names of tensors.
const MEAN: &str = "mean";
const DEVIATION: &str = "deviation";
const CONDITIONS: &str = "conditions";
const VALUES: &str = "values";
const MASK: &str = "mask";

/// Where features are, and what makes them.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    pub(crate) folder: PathBuf,
    /// The encoders: the same features always.
    identity: String,
    /// Of a caption.
    pub(crate) tokens: usize,
    /// Whether captions are kept as tokens.
    pub(crate) as_tokens: bool,
}

/// A video, cut, in a size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Clip {
    /// Its row in the table.
    pub(crate) row: usize,
    /// Frames, height and width.
    pub(crate) extents: [usize; 3],
    pub(crate) is_mirrored: bool,
}

/// What a model is given of a video.
#[derive(Debug)]
pub(crate) struct Latents {
    pub(crate) mean: Vec<f32>,
    pub(crate) deviation: Vec<f32>,
    pub(crate) fps: f32,
    pub(crate) aspect_ratio: f32,
}

/// What a model is given of a caption.
#[derive(Debug)]
pub(crate) struct Caption {
    /// f32 `[tokens, channels]` or i64 `[tokens]`, as bytes.
    pub(crate) values: Vec<u8>,
    pub(crate) mask: Vec<u8>,
}

impl Clip {
    pub(crate) fn shape(self) -> BucketShape {
        let [num_frames, height, width] = self.extents;
        BucketShape { num_frames, height, width }
    }
}

/// What of the text encoder's reading decides a caption's features: training reads what sampling reads.
pub(crate) fn cleaned(caption: &str) -> String {
    text::text_preprocessing(caption, true)
}

impl Features {
    /// The cache in `folder` of captions of `tokens` tokens, which encoders that `encoders` tells apart make.
    pub(crate) fn new(folder: &Path, encoders: &str, tokens: usize, as_tokens: bool) -> Features {
        let identity = format!("features {FORMAT} of {encoders}");
        Features { folder: folder.to_path_buf(), identity, tokens, as_tokens }
    }

    /// Opens the cache to write; files of this process get names that no other's have.
    pub(crate) fn writer(&self) -> Result<CacheWriter> {
        if let Some(parent) = self.folder.parent() {
            std::fs::create_dir_all(parent)
                .map_err(crate::Error::io(parent, "create the folder"))?;
        }
        let name = format!("features{}", std::process::id());
        Ok(CacheWriter::open(&self.folder, &self.identity, &name, SHARD_BYTES)?)
    }

    /// Opens the cache to read.
    pub(crate) fn reader(&self) -> Result<CacheReader> {
        Ok(CacheReader::open(&self.folder, &self.identity)?)
    }

    /// The key of a video's record.
    pub(crate) fn clip_key(&self, samples: &Samples, clip: Clip) -> Key {
        let settings = &samples.settings;
        let fit = match settings.fit {
            Fit::Cover => 0u64,
            Fit::Center => 1,
        };
        let row = &samples.table.rows()[clip.row];
        let [frames, height, width] = clip.extents.map(|extent| extent as u64);
        // Where a video is cut depends on seed and row; what models are told, on its rate.
        let numbers = [
            samples.n_bytes(clip.row),
            frames,
            height,
            width,
            u64::from(clip.is_mirrored),
            settings.frame_interval as u64,
            fit,
            settings.seed,
            clip.row as u64,
            row.num_frames.unwrap_or(0) as u64,
            row.fps.unwrap_or(0.0).to_bits(),
        ];
        let path = samples.path(clip.row).as_os_str().as_encoded_bytes();
        Key::of(&[b"clip", path, cast_slice(&numbers.map(u64::to_le))])
    }

    /// The key of the record of a caption, cleaned.
    pub(crate) fn caption_key(&self, cleaned: &str) -> Key {
        let tokens = (self.tokens as u64).to_le_bytes();
        let kind: &[u8] = if self.as_tokens { b"tokens" } else { b"caption" };
        Key::of(&[kind, cleaned.as_bytes(), &tokens])
    }

    /// The record of a video, its latents of `shape`.
    pub(crate) fn clip_record(latents: &Latents, shape: [usize; 4]) -> Vec<CachedTensor> {
        let conditions = [latents.fps, latents.aspect_ratio];
        vec![
            floats(MEAN, &latents.mean, &shape),
            floats(DEVIATION, &latents.deviation, &shape),
            floats(CONDITIONS, &conditions, &[2]),
        ]
    }

    /// The record of a caption: its features f32 `[tokens, channels]`, and its mask.
    pub(crate) fn caption_record(&self, values: &[f32], mask: Vec<u8>) -> Vec<CachedTensor> {
        let shape = [self.tokens, values.len() / self.tokens];
        vec![floats(VALUES, values, &shape), self.mask(mask)]
    }

    /// The record of a caption that is kept as tokens.
    pub(crate) fn token_record(&self, ids: &[i64], mask: Vec<u8>) -> Vec<CachedTensor> {
        let (name, shape) = (VALUES.into(), vec![self.tokens]);
        let bytes = cast_slice(ids).to_vec();
        vec![CachedTensor { name, dtype: DType::I64, shape, bytes }, self.mask(mask)]
    }

    fn mask(&self, bytes: Vec<u8>) -> CachedTensor {
        CachedTensor { name: MASK.into(), dtype: DType::Bool, shape: vec![self.tokens], bytes }
    }

    /// The latents of a video, if its record is there.
    pub(crate) fn latents(&self, reader: &CacheReader, key: Key) -> Result<Latents> {
        let mut record = self.record(reader, key)?;
        let mut floats = |name| take(&mut record, name).map(|bytes| to_floats(&bytes));
        match (floats(MEAN), floats(DEVIATION), floats(CONDITIONS)) {
            (Some(mean), Some(deviation), Some(conditions)) => {
                let &[fps, aspect_ratio] = &conditions[..] else { return Err(self.missing()) };
                Ok(Latents { mean, deviation, fps, aspect_ratio })
            }
            _ => Err(self.missing()),
        }
    }

    /// The features of a caption, if its record is there.
    pub(crate) fn caption(&self, reader: &CacheReader, key: Key) -> Result<Caption> {
        let mut record = self.record(reader, key)?;
        match (take(&mut record, VALUES), take(&mut record, MASK)) {
            (Some(values), Some(mask)) => Ok(Caption { values, mask }),
            _ => Err(self.missing()),
        }
    }

    fn record(&self, reader: &CacheReader, key: Key) -> Result<Vec<CachedTensor>> {
        reader.get(key)?.ok_or_else(|| self.missing())
    }

    fn missing(&self) -> crate::Error {
        let reason = "a record that was there is gone, or is another's: resume the run, which makes it again";
        crate::Error::folder(&self.folder, reason)
    }
}

/// Takes the bytes of a tensor out of a record.
fn take(record: &mut Vec<CachedTensor>, name: &str) -> Option<Vec<u8>> {
    let place = record.iter().position(|tensor| tensor.name == name)?;
    Some(record.swap_remove(place).bytes)
}

fn floats(name: &str, values: &[f32], shape: &[usize]) -> CachedTensor {
    let bytes = cast_slice(values).to_vec();
    CachedTensor { name: name.into(), dtype: DType::F32, shape: shape.to_vec(), bytes }
}

fn to_floats(bytes: &[u8]) -> Vec<f32> {
    let (elements, _) = bytes.as_chunks::<4>();
    elements.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
