//! Means of a loss over what counts.

use ops::{Builder, DType, Error, ValueId};

/// The mean of each row of `x` f32 `[rows, channels, frames, ..]` over all else, as f32 `[rows]`. With
/// `frame_mask` bool `[rows, frames]` only frames where it is true count; a row without any has mean 0.
pub(crate) fn row_means(
    b: &mut Builder,
    x: ValueId,
    frame_mask: Option<ValueId>,
) -> Result<ValueId, Error> {
    let shape = b.shape(x).to_vec();
    let rest: Vec<usize> = (1..shape.len()).collect();
    let Some(mask) = frame_mask else {
        let means = b.reduce_mean(x, &rest)?;
        return b.reshape(means, &shape[..1]);
    };
    let (rows, frames) = (shape[0], shape[2]);
    let per_frame: usize = shape[1..].iter().product::<usize>() / frames;
    let wide = frame_axis(b, mask, shape.len())?;
    let zero = b.splat_like(x, 0.0)?;
    let kept = b.select(wide, x, zero)?;
    let sums = b.reduce_sum(kept, &rest)?;
    let sums = b.reshape(sums, &[rows])?;
    let counts = b.cast(mask, DType::F32)?;
    let counts = b.reduce_sum(counts, &[1])?;
    let counts = b.reshape(counts, &[rows])?;
    // At least one frame, so that a row without any is 0 and not 0 / 0.
    let counts = b.max_scalar(counts, 1.0)?;
    let counts = b.mul_scalar(counts, per_frame as f64)?;
    b.div(sums, counts)
}

/// `[rows, frames]` as `[rows, 1, frames, 1, ..]` of rank `rank`.
pub(crate) fn frame_axis(b: &mut Builder, flags: ValueId, rank: usize) -> Result<ValueId, Error> {
    let mut shape = vec![1; rank];
    (shape[0], shape[2]) = (b.shape(flags)[0], b.shape(flags)[1]);
    b.reshape(flags, &shape)
}
