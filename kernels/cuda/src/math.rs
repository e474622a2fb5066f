//! Functions that CUDA's own library computes with branches.

use cubecl::prelude::*;

use crate::ptx::reciprocal;

/// `1 / (1 + exp(-x))`, within a few units in the last place.
#[cube]
pub(crate) fn sigmoid(x: f32) -> f32 {
    reciprocal(1.0f32 + (-x).exp())
}
