//! A small captioned video data set, made of the art of the Flare game: creatures, each in every action,
//! direction and on every ground, 8 frames of 64x64.
//!
//! Poses are composed out of the game's atlases, scaled so that a creature fills its frame, and put on plain
//! grounds. Clips, captions and the split are those that the embedded model was trained with; the
//! same art gives the same bytes.

mod animation;
mod captions;
mod figure;
mod set;

pub use captions::{ACTIONS, CREATURES, DIRECTIONS, GROUNDS, Subject};
pub use set::{ClipFormat, SetSettings, WrittenSet, captions, find_art, render, write_set};

/// Frames of a clip.
pub const N_FRAMES: usize = 8;
/// Height and width of a clip in pixels.
pub const SIDE: usize = 64;
/// Frames per second of a clip.
pub const FPS: u32 = 8;
