//! What can be wrong with text that comes from outside: tokenizer files, prompts, prompt files.

/// A tokenizer file, a prompt or a prompt list that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is no `tokenizer.json` that this program can run.
    #[error("tokenizer.json: {0}")]
    TokenizerJson(String),
    /// The file is no sentencepiece model that this program can run.
    #[error("spiece.model: {0}")]
    SentencePiece(String),
    /// The file's character map (`precompiled_charsmap`) would be read out of bounds.
    #[error("precompiled_charsmap: {0}; the tokenizer file is damaged, fetch it again")]
    Charsmap(String),
    /// The tokenizer refused a text.
    #[error("cannot tokenize the prompt: {0}")]
    Tokenize(String),
    /// No room for even the end token.
    #[error("max_length is 0, expected at least 1 (the end token `</s>`)")]
    NoRoom,
    /// The prompt has no text.
    #[error("the prompt is empty; describe what the video shows")]
    EmptyPrompt,
    /// The prompt is far longer than any text encoder reads.
    #[error(
        "the prompt has {bytes} bytes, expected at most {limit}; shorten it (the text encoder reads a few hundred tokens)"
    )]
    LongPrompt {
        /// Size of the prompt.
        bytes: usize,
        /// The most that is accepted.
        limit: usize,
    },
    /// The prompt file has no usable line.
    #[error("the prompt file has no prompt; write one prompt per line")]
    NoPrompts,
    /// The prompt file is too big.
    #[error("the prompt file has {bytes} bytes, expected at most {limit}; split it")]
    LongPromptFile {
        /// Size of the file.
        bytes: usize,
        /// The most that is accepted.
        limit: usize,
    },
    /// The prompt file is not UTF-8.
    #[error("the prompt file is not UTF-8 (first bad byte at offset {offset}); save it as UTF-8")]
    PromptFileEncoding {
        /// Offset of the first byte that is not UTF-8.
        offset: usize,
    },
    /// The text after a prompt is no conditioning suffix.
    #[error("the JSON after the prompt: {0}")]
    PromptSuffix(String),
    /// A prompt with loop markers does not fit the loops.
    #[error("prompt with loop markers: {0}")]
    PromptLoops(String),
}
