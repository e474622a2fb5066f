//! What can be wrong with a configuration or a bucket.

/// Why no graph can be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `config.json` is not a JSON object. The file's fault.
    #[error("{model}: config.json: {reason}")]
    NotAConfig {
        /// The model that was asked for.
        model: &'static str,
        /// What the JSON reader says.
        reason: String,
    },
    /// A key of `config.json` has a value the model cannot have. The file's fault.
    #[error("{model}: config key `{key}`: {reason}")]
    Key {
        /// The model that was asked for.
        model: &'static str,
        /// The key.
        key: String,
        /// What was expected and found.
        reason: String,
    },
    /// The tensors of a checkpoint do not tell the configuration. The checkpoint's fault.
    #[error("{model}: cannot tell the configuration from the tensors: {reason}")]
    Shapes {
        /// The model that was asked for.
        model: &'static str,
        /// Which tensor was expected, and what was found.
        reason: String,
    },
    /// The model has no graph for this bucket. The caller's fault.
    #[error("{model}: {reason}")]
    Bucket {
        /// The model that was asked for.
        model: &'static str,
        /// What was expected and found.
        reason: String,
    },
    /// An operand does not fit, for instance an input of a shape that is not the bucket's.
    #[error(transparent)]
    Op(#[from] ops::Error),
}
