//! Clipping by the global norm, as graph nodes.

use ops::{Builder, Error, ValueId};

/// Added to the norm before it divides, as upstream's.
const NORM_EPS: f64 = 1e-6;

/// Fewest elements of a row whose squares are summed first, where a gradient has more.
const ROW: usize = 256;

/// The L2 norm of all `gradients` (f32, at least one) together, f32 `[1]`. The sums of squares of the rows of each
/// are made first, because threads can share them, then their sum, then that of all in the order given, so the
/// result does not depend on the machine.
pub fn append_global_norm(b: &mut Builder, gradients: &[ValueId]) -> Result<ValueId, Error> {
    let mut squares = Vec::with_capacity(gradients.len());
    for &gradient in gradients {
        let mut sum = b.square(gradient)?;
        let shape = b.shape(gradient).to_vec();
        let axes: Vec<usize> = (0..shape.len()).collect();
        // A row is long enough to be summed in vectors: taps of a convolution alone are not.
        let is_row = |&axis: &usize| shape[axis..].iter().product::<usize>() >= ROW;
        let (others, row) =
            axes.split_at((1..axes.len()).rfind(is_row).unwrap_or(axes.len().min(1)));
        for axes in [row, others] {
            if !axes.is_empty() {
                sum = b.reduce_sum(sum, axes)?;
            }
        }
        squares.push(b.reshape(sum, &[1])?);
    }
    let squares = if let [one] = squares[..] { one } else { b.concat(&squares, 0)? };
    let sum = b.reduce_sum(squares, &[0])?;
    b.sqrt(sum)
}

/// What gradients of global norm `norm` (f32 `[1]`) are multiplied by so that their norm is at most
/// `max_norm`, f32 `[1]`: 1 where it is already.
pub fn append_clip_factor(b: &mut Builder, norm: ValueId, max_norm: f64) -> Result<ValueId, Error> {
    let norm = b.add_scalar(norm, NORM_EPS)?;
    let factor = b.recip(norm)?;
    let factor = b.mul_scalar(factor, max_norm)?;
    b.min_scalar(factor, 1.0)
}
