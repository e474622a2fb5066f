//! Checkpoints: opening, reading, identifying, fitting to a model, and writing them.
//!
//! [`Checkpoint::open`] takes a file or folder in any form that Open-Sora's weights are published in; see
//! [`Format`]. Files are mapped, and a tensor's bytes are borrowed from the map wherever they are contiguous.
//! [`identify`] tells which model a checkpoint holds, [`names::fit`] matches its tensors with a model's
//! parameters, [`Pipeline`] reads a folder of several models, [`write_safetensors`] writes a file and
//! [`SafetensorsWriter`] one that does not fit in memory.
//!
//! *Invariant:* outside data never runs code, never panics, and never makes the reader allocate more than a small
//! multiple of the file's size (plus a fixed bound for a pickle's values). Every offset is checked when the
//! checkpoint is opened; reading a tensor afterwards cannot fail.
//!
//! *Invariant, the user's part:* while a checkpoint is open its files must not be truncated or rewritten in place;
//! the mapping would then fault. Replacing a file by a rename, as [`write_safetensors`] does, is safe.

mod blob;
mod checkpoint;
mod dtype;
mod error;
mod identify;
mod index;
mod layout;
mod locate;
pub mod names;
mod pickle;
mod pickle_globals;
mod pipeline;
mod safetensors;
mod safetensors_writer;
mod shapes;
mod shard;
mod state_dict;
mod torch_legacy;
mod torch_zip;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use dtype::{DType, TensorView};
pub use error::Error;
pub use identify::{DTypeTotal, Evidence, Identity, Kind, identify};
pub use index::ShardIndex;
pub use pipeline::{Component, Pipeline};
pub use safetensors_writer::{SafetensorsWriter, TensorSpec, safetensors_bytes, write_safetensors};
pub use shard::Format;
