//! A CUDA device without hardware: compiled PTX, executed on the CPU exactly as a driver would get it.
//!
//! It is there to prove kernels. Besides the numbers it finds what a device would not tell: accesses outside of
//! allocations or misaligned, reads of what nothing wrote, races, barriers and shuffles that not every lane
//! reaches, asynchronous copies that were not waited for. Warps may be run in any order, copies may land early
//! or late, and a module can be made wrong in one place to see that a test notices.
//!
//! [`Module::parse`] reads a text, [`Device::load`] decodes it, [`Device::launch`] runs an entry:
//!
//! ```
//! use emulator::{Device, Launch, Module, Options};
//!
//! let module = Module::parse(
//!     ".version 8.0
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry twice(.param .u64 x) {
//!          .reg .b32 %r<3>;
//!          .reg .b64 %rd<4>;
//!          ld.param.u64 %rd1, [x];
//!          mov.u32 %r1, %tid.x;
//!          mul.wide.u32 %rd2, %r1, 4;
//!          add.s64 %rd3, %rd1, %rd2;
//!          ld.global.u32 %r2, [%rd3];
//!          add.u32 %r2, %r2, %r2;
//!          st.global.u32 [%rd3], %r2;
//!          ret;
//!      }",
//! )?;
//! let mut device = Device::new();
//! let program = device.load(&module)?;
//! let x = device.alloc(8)?;
//! device.upload(x, &[1, 0, 0, 0, 20, 0, 0, 0])?;
//! let launch =
//!     Launch { grid: [1; 3], block: [2, 1, 1], shared_bytes: 0, params: &[&x.to_le_bytes()] };
//! device.launch(&program, "twice", &launch, &Options::default())?;
//! let mut bytes = [0; 8];
//! device.download(x, &mut bytes)?;
//! assert_eq!(bytes, [2, 0, 0, 0, 40, 0, 0, 0]);
//!
//! // A third thread would be outside of the allocation.
//! let launch = Launch { block: [3, 1, 1], ..launch };
//! let fault = device.launch(&program, "twice", &launch, &Options::default()).unwrap_err();
//! assert!(fault.to_string().contains("thread (2, 0, 0)"));
//! # Ok::<(), emulator::Error>(())
//! ```
//!
//! What it does not model: time, caches, weak memory order, registers and occupancy, clusters of more than one
//! block, tensor maps, `wgmma` with A in registers or operands that are transposed. Races between lanes of one warp are found within one instruction only.
//! Approximate functions are rounded correctly, and matrix products are summed in f32, one k after another;
//! a device differs in the last bits of both.

mod ast;
mod block;
mod decode;
mod error;
mod exec;
mod launch;
mod memory;
mod mutate;
mod ops;
mod parse;
mod program;
mod registers;
mod rounding;
mod stats;
mod types;

pub use ast::{Function, Module, Variable};
pub use error::{Error, Fault, FaultKind};
pub use launch::{Arrival, Device, Launch, Options, Order};
pub use mutate::Mutation;
pub use program::Program;
pub use stats::{Class, Stats};
