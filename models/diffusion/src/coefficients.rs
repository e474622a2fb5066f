//! A step's scalars as one graph input, and products with them.

use ops::{Builder, ValueId};

/// The coefficient vector `f32 [n]`, whose entries broadcast over a latent of some rank.
pub(crate) struct Coefficients {
    vector: ValueId,
    rank: usize,
}

impl Coefficients {
    /// Entries of `vector` will multiply values of the rank of `like`.
    pub(crate) fn new(b: &Builder, vector: ValueId, like: ValueId) -> Coefficients {
        Coefficients { vector, rank: b.shape(like).len() }
    }

    /// Entry `at` as `[1, 1, ..]`.
    pub(crate) fn get(&self, b: &mut Builder, at: usize) -> Result<ValueId, ops::Error> {
        let entry = b.slice_axis(self.vector, 0, at, at + 1)?;
        b.reshape(entry, &vec![1; self.rank])
    }

    /// `x` times entry `at`.
    pub(crate) fn scaled(
        &self,
        b: &mut Builder,
        at: usize,
        x: ValueId,
    ) -> Result<ValueId, ops::Error> {
        let entry = self.get(b, at)?;
        b.mul(x, entry)
    }
}
