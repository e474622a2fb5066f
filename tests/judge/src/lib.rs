//! What generated clips of the Flare set show, counted by a classifier.
//!
//! ```text
//! cargo run --release -p judge -- --weights judge.safetensors --model FOLDER --sheet clips.png
//! ```
//!
//! trains the classifier (or reads it, where the file is there already), states how often it is right on real clips
//! that it has not seen, samples clips for balanced prompts, and prints for each head (creature, action, ground,
//! direction) how many of them show what their prompt says, with 95 % intervals. `--model` may be given several
//! times. The art of the game is needed: the package `flare-game`, or `--flare FOLDER`.
//!
//! The classifier is a small transformer of the models' own layers ([`network`]), trained by one graph of the
//! `training` crate's parts ([`classifier`]) on clips that are drawn in memory ([`clips`]), augmented ([`augment`])
//! by what generated clips differ in: where the figure is, colors, blur, noise, and what an autoencoder leaves of a
//! clip. Whole poses are held out, a creature's action in one direction on every ground, so that the stated accuracy
//! is on figures that the classifier has never seen so.
//!
//! Every number is a function of the seed and of the instruction set; threads do not change it.

pub mod augment;
pub mod classifier;
pub mod clips;
pub mod draws;
pub mod font;
pub mod generator;
pub mod labels;
pub mod network;
pub mod report;
pub mod sheet;
