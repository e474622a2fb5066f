//! Prompts: what a user types, cleaned as upstream cleans it, as the token ids of a text encoder.
//!
//! [`prompts`] splits a prompt into its parts, [`text_preprocessing`] cleans one part,
//! [`Tokenizer`] turns it into ids. Cleaning is the Python code of Open-Sora, rule by rule, with
//! Python's notions of a word, a space and a digit; its helpers (HTML to text, mojibake repair)
//! are modules here. Patterns run in linear time; the HTML reader is quadratic in the number of
//! unclosed tags, which [`MAX_PROMPT_BYTES`] bounds for prompts.

mod badness;
mod charsmap;
mod clean;
mod codecs;
mod entities;
mod error;
mod html;
mod mojibake;
pub mod prompts;
mod python;
mod spiece;
mod tokenizer;
mod urls;

pub use clean::{clean_caption, text_preprocessing};
pub use error::Error;
pub use prompts::MAX_PROMPT_BYTES;
pub use tokenizer::{Encoded, Tokenizer};
