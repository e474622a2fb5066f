//! What can be wrong with sampler settings and video sizes.

/// A setting that no sampler or video can have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The step count or respacing text does not fit the process.
    #[error("sampling steps `{given}`: {reason}")]
    Steps {
        /// What was asked for.
        given: String,
        /// Why it cannot be.
        reason: String,
    },
    /// The schedule of the process is no noise schedule.
    #[error("noise schedule: {0}")]
    Schedule(String),
    /// A mask does not fit the video.
    #[error("frame mask: {0}")]
    Mask(String),
    /// The resolution is unknown.
    #[error("resolution `{given}` is unknown; expected one of {known}")]
    Resolution {
        /// What was asked for.
        given: String,
        /// Names that exist.
        known: String,
    },
    /// The aspect ratio is unknown, or the resolution's table lacks it.
    #[error("aspect ratio `{given}` is not defined for {resolution}; expected one of {known}")]
    Aspect {
        /// What was asked for.
        given: String,
        /// The resolution.
        resolution: String,
        /// Names that exist for it.
        known: String,
    },
    /// The frame count is no number and no known name.
    #[error(
        "number of frames `{0}`; expected a number above 0 or one of 1x 2x 4x 8x 16x 2s 4s 8s 16s 32s"
    )]
    Frames(String),
}
