//! What a run is fed: the table, its buckets, and which of its rows make which batch.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use data::{
    Batch, BucketFile, BucketId, BucketShape, Buckets, Epoch, Replaced, SampleSettings,
    SamplerSettings, Survey, Table, VideoSize,
};
use media::Fit;
use training::Recipe;
use training::recipe::Transform;
use xxhash_rust::xxh3::Xxh3;

use crate::draws::Draws;
use crate::{Error, Result};

/// Rows whose files cannot be used for a shape, and why.
pub(crate) type BadRows = BTreeMap<(usize, [usize; 3]), String>;

/// A table with the buckets of a recipe.
#[derive(Debug)]
pub(crate) struct Samples {
    pub(crate) table: Table,
    root: PathBuf,
    pub(crate) buckets: Buckets,
    /// How files are read. Where a video is cut is drawn once for a run, so that its latents can be kept.
    pub(crate) settings: SampleSettings,
    /// Whether half of the videos are mirrored, in each epoch others.
    mirrors: bool,
    sampler: SamplerSettings,
    sizes: Vec<VideoSize>,
    /// Bytes of each row's file: other contents mostly have another size.
    n_bytes: Vec<u64>,
}

impl Samples {
    /// Reads the table, whose paths are below `root`, and groups it as `recipe` says, whose TOML is `text`.
    ///
    /// # Errors
    /// What is wrong with the table or the buckets, among them that no bucket has a batch.
    pub(crate) fn read(recipe: &Recipe, text: &str, table: &Path, root: &Path) -> Result<Samples> {
        let seed = recipe.run.seed;
        let BucketFile { buckets, frame_interval } = BucketFile::parse(text)?;
        let table = Table::read(table, Some(root))?;
        let sizes = table.sizes()?;
        let n_bytes = table.rows().iter().map(|row| n_bytes(&row.path)).collect();
        let fit = match recipe.data.transform {
            Transform::Center => Fit::Center,
            Transform::ResizeCrop => Fit::Cover,
        };
        let samples = Samples {
            settings: SampleSettings { release: buckets.release(), frame_interval, fit, seed },
            mirrors: recipe.data.horizontal_flip,
            sampler: SamplerSettings { seed, frame_interval, is_shuffled: true, drops_last: true },
            table,
            root: root.to_path_buf(),
            buckets,
            sizes,
            n_bytes,
        };
        let first = samples.epoch(0)?;
        let (found, needed) = (first.n_steps(1), recipe.optimizer.micro_batches);
        if found < needed {
            return Err(Error::Request(format!(
                "an epoch has {found} batches, an update takes {needed} (optimizer.micro_batches)\n{}",
                samples.survey(0)
            )));
        }
        Ok(samples)
    }

    /// The batches of an epoch.
    pub(crate) fn epoch(&self, index: u64) -> Result<Epoch> {
        Ok(Epoch::new(&self.buckets, &self.sizes, self.sampler, index)?)
    }

    /// What each bucket gets in an epoch, and why others get nothing.
    pub(crate) fn survey(&self, epoch: u64) -> Survey {
        let SamplerSettings { seed, frame_interval, .. } = self.sampler;
        Survey::new(&self.buckets, &self.sizes, frame_interval, [seed, epoch])
    }

    /// How batches are drawn.
    pub(crate) fn sampler(&self) -> SamplerSettings {
        self.sampler
    }

    /// The path of `row` as the table has it: the same wherever the data is.
    pub(crate) fn path(&self, row: usize) -> &Path {
        let path = &self.table.rows()[row].path;
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    /// Bytes of the file of `row`.
    pub(crate) fn n_bytes(&self, row: usize) -> u64 {
        self.n_bytes[row]
    }

    /// Whether the video of `row` is mirrored in `epoch`.
    pub(crate) fn is_mirrored(&self, epoch: u64, row: usize) -> bool {
        let draws = Draws { seed: self.sampler.seed, epoch, batch: row as u64 };
        self.mirrors && draws.is_mirrored()
    }

    /// The row that takes part in place of `row`, which is of `batch`: itself, or the next of its bucket that is
    /// not known to be bad.
    pub(crate) fn resolve(
        &self,
        batch: &Batch<'_>,
        row: u32,
        bad: &BadRows,
    ) -> Result<(usize, Option<Replaced>)> {
        let shape = extents(self.buckets.shape(batch.bucket));
        Ok(batch.read_or_replace(&self.buckets, row, |index| match bad.get(&(index, shape)) {
            None => Ok(index),
            Some(reason) => Err(data::Error::Setting(reason.clone())),
        })?)
    }

    /// A bucket's frames, height, width and rows of a batch: `8x64x64 x16`.
    pub(crate) fn name(&self, id: BucketId) -> String {
        let [frames, height, width] = extents(self.buckets.shape(id));
        format!("{frames}x{height}x{width} x{}", self.buckets.batch_size(id))
    }

    /// A hash of everything that is read of the table, and of the sizes of its files.
    pub(crate) fn hash(&self) -> String {
        let mut hash = Xxh3::new();
        let mut add = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (index, row) in self.table.rows().iter().enumerate() {
            add(self.path(index).as_os_str().as_encoded_bytes());
            add(row.text.as_bytes());
            let sizes = [row.num_frames, row.height, row.width].map(|n| n.unwrap_or(0) as u64);
            let numbers = sizes.iter().chain([&self.n_bytes[index]]);
            numbers.for_each(|number| add(&number.to_le_bytes()));
            add(&row.fps.unwrap_or(0.0).to_le_bytes());
        }
        format!("{:032x}", hash.digest128())
    }
}

/// Frames, height and width.
pub(crate) fn extents(shape: BucketShape) -> [usize; 3] {
    [shape.num_frames, shape.height, shape.width]
}

/// Bytes of a file, or of the files in a folder; 0 if there is none, which is found out when it is read.
fn n_bytes(path: &Path) -> u64 {
    let of_folder = || -> u64 {
        let Ok(entries) = fs::read_dir(path) else { return 0 };
        entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
    };
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => of_folder(),
        Ok(found) => found.len(),
        Err(_) => 0,
    }
}
