//! Training data: tables of samples, buckets, batches in order, masks, frames ready for a model; and a small
//! data set to make.
//!
//! ```no_run
//! use std::sync::Arc;
//! use data::{Ahead, BucketFile, Epoch, Loader, Loading, SampleSettings, SamplerSettings, Table};
//! # fn main() -> data::Result<()> {
//! let root = std::path::Path::new("set");
//! let table = Table::read(&root.join("train.csv"), Some(root))?;
//! let BucketFile { buckets, frame_interval } = BucketFile::read(&root.join("buckets.toml"))?;
//! let sampler = SamplerSettings { seed: 42, frame_interval, is_shuffled: true, drops_last: true };
//! let epoch = Epoch::new(&buckets, &table.sizes()?, sampler, 0)?;
//! let release = buckets.release();
//! let settings = SampleSettings { release, frame_interval, fit: media::Fit::Cover, seed: 42 };
//! let (table, buckets, epoch) = (Arc::new(table), Arc::new(buckets), Arc::new(epoch));
//! let loading = Loading { table, buckets, epoch, settings, rank: 0, n_ranks: 1 };
//! for batch in Loader::start(loading, 0, Ahead { n_workers: 2, n_ready: 1 })? {
//!     let batch = batch?; // samples of one shape, and what could not be read
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Invariants: what an epoch holds, in which order, and where videos are cut is a function of table, buckets
//! and seeds, for any number of threads and on any rank; buckets, batches and masks draw the very numbers
//! that upstream draws ([`Pcg64`], [`TorchRandom`], [`PythonRandom`]). This crate knows no model.
//!
//! Start reading at `buckets.rs`, then `sampler.rs` and `loader.rs`.

mod bucket_file;
mod buckets;
mod cache;
mod check;
mod error;
pub mod flare;
mod loader;
mod masks;
mod mersenne_twister;
#[cfg(feature = "parquet")]
mod parquet_file;
mod pcg64;
mod python_random;
mod sample;
mod sampler;
mod survey;
mod table;
mod torch_random;

pub use bucket_file::BucketFile;
pub use buckets::{BucketEntry, BucketId, BucketLength, BucketShape, Buckets, Keep, Refusal};
pub use cache::{CacheReader, CacheWriter, CachedTensor, Key};
pub use check::{BadRow, check_files};
pub use error::{Error, Result};
pub use loader::{Ahead, LoadedBatch, Loader, Loading, Replaced};
pub use masks::{MaskKind, MaskRatios};
pub use pcg64::Pcg64;
pub use python_random::PythonRandom;
pub use sample::{Sample, SampleSettings};
pub use sampler::{Batch, Epoch, SamplerSettings, SamplerState};
pub use survey::{Occupancy, Survey};
pub use table::{Row, Table, VideoSize};
pub use torch_random::TorchRandom;
