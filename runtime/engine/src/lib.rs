//! The engine file: a model compiled for GPUs, ready to run, without its weights.
//!
//! An [`Engine`] is pure data: kernels as images for several architectures, programs (one per target and bucket)
//! as launches at byte offsets of one arena, the names of the weights that they read, constants. This crate knows
//! no device and no compiler; `compiler` output is put into an `Engine`, and `cuda` runs it.
//!
//! A *target* is an architecture that plans were made for: tiles and ways to multiply differ, so each target has
//! programs of its own. Kernels whose text is the same are shared, with machine code for each target that launches
//! them and PTX for the least of those. A device takes the programs of the best target that it runs
//! ([`Engine::target_for`]).
//!
//! The file ([`Engine::save`], [`Engine::open`]), little-endian throughout:
//!
//! ```text
//! 0   magic, 8 bytes          16  length of the file, u64
//! 8   format version, u32     24  XXH3-128 of all other bytes
//! 12  sections, u32           40  for each section: name of 8 bytes, offset u64, length u64
//! then the sections, each at a multiple of 64 bytes:
//!     about, kernels, weights, constant, programs    records: numbers, counted lists, counted UTF-8 texts
//!     blobs                                          images and constants, each at a multiple of 64 bytes
//!
//! about     made by, model, element type
//! kernel    kind, entry, block, shared bytes, pointers, info words, images: architecture, kind, registers, spills, blob
//! weight    name, type, order of axes, bytes
//! program   name, target, arena bytes, workspace bytes, lower bound, inputs, outputs (name, type, offset), steps
//! step      kind, scope, FLOPs, bytes, scratch bytes, launches: kernel, grid, pointers (space, offset), product or none
//! product   types, dims, left, right, result (pointer, transposed, strides), bias, residual, whether it is faster
//! ```
//!
//! - The same engine gives the same bytes, and every accepted file is the one that writing it again would give:
//!   sections and blobs have one order, and gaps are zero.
//! - A file is mapped, and images and constants are read in place.
//! - Nothing is used before everything was checked: the hash first, then each record against the length of
//!   the file, then each index, offset and size against what it refers to. A file that is right by its hash and
//!   wrong otherwise gives an error, never a panic or a large allocation.
//! - The hash finds damage. It does not protect from an author of bad will: a kernel can do to a GPU's memory
//!   whatever it likes. XXH3 is as fast as memory, so that checking does not delay a start.

mod arch;
mod blob;
mod codec;
mod cubin;
mod error;
mod file;
mod model;
mod records;
mod validate;

pub use arch::Arch;
pub use blob::Blob;
pub use error::Error;
pub use file::FORMAT_VERSION;
pub use model::{
    Arg, Engine, Image, ImageKind, Kernel, Launch, MAX_DYNAMIC_SHARED_BYTES, Matrix, Port, Product,
    Program, Space, Step, Weight,
};
