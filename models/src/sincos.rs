//! Sine-cosine tables, computed on the host when a graph is built.
//!
//! Upstream has two generations that differ in rounding: 1.0 makes its tables in numpy with f64
//! frequencies, 1.1 and later in torch with f32 throughout and frequencies rounded to the model's
//! element type. Both are reproduced step by step; the tables themselves are stored as f32 and
//! rounded to the model's type by the caller.

use ops::{DType, Error, Tensor, TensorType};

/// Frequencies of the timestep embedding of width `2 * half`: `exp(-ln(10000) i / half)`, in f32.
pub fn timestep_frequencies(half: usize) -> Result<Tensor, Error> {
    let log_period = 10000f64.ln() as f32;
    let values: Vec<f32> = (0..half)
        .map(|i| round_f32(f64::from(-log_period * i as f32 / half as f32).exp()))
        .collect();
    Tensor::f32(&[1, half], &values)
}

/// A grid of token positions.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Grid {
    /// Tokens from top to bottom.
    pub height: usize,
    /// Tokens from left to right.
    pub width: usize,
    /// Positions are divided by this.
    pub scale: f64,
    /// If given, positions are multiplied by this over the grid's dim.
    pub base_size: Option<usize>,
}

impl Grid {
    /// Positions along one axis of `len` tokens, in f32.
    fn positions(&self, len: usize) -> Vec<f32> {
        let stretch = self.base_size.map_or(1.0, |base| base as f64 / len as f64) as f32;
        (0..len).map(|i| i as f32 / self.scale as f32 * stretch).collect()
    }

    /// For every token, row by row, the embedding of its x position, then of its y position.
    fn table(&self, embed: impl Fn(f32) -> Vec<f32>) -> Vec<f32> {
        let rows: Vec<Vec<f32>> = self.positions(self.height).into_iter().map(&embed).collect();
        let columns: Vec<Vec<f32>> = self.positions(self.width).into_iter().map(&embed).collect();
        let mut table = Vec::new();
        for row in &rows {
            for column in &columns {
                table.extend(column);
                table.extend(row);
            }
        }
        table
    }
}

/// The spatial table of 1.1 and later, `[1, height * width, width_out]`, for a model stored in `dtype`.
pub fn grid_table(grid: &Grid, width_out: usize, dtype: DType) -> Result<Tensor, Error> {
    let half = width_out / 2;
    let frequencies: Vec<f32> = (0..half / 2)
        .map(|i| {
            let power = round_f32(10000f64.powf(f64::from((2 * i) as f32 / half as f32)));
            dtype.round(f64::from(1.0 / power)) as f32
        })
        .collect();
    let table = grid.table(|position| {
        let angles = frequencies.iter().map(|frequency| f64::from(position * frequency));
        sines_then_cosines(angles)
    });
    Tensor::f32(&[1, grid.height * grid.width, width_out], &table)
}

/// The spatial table of 1.0, `[1, height * width, width_out]`.
pub fn grid_table_f64(grid: &Grid, width_out: usize) -> Result<Tensor, Error> {
    let frequencies = frequencies_f64(width_out / 2);
    let table = grid.table(|position| {
        sines_then_cosines(frequencies.iter().map(|frequency| f64::from(position) * frequency))
    });
    Tensor::f32(&[1, grid.height * grid.width, width_out], &table)
}

/// The temporal table of 1.0, `[1, len, width_out]`: positions `0..len` divided by `scale`.
pub fn line_table_f64(len: usize, scale: f64, width_out: usize) -> Result<Tensor, Error> {
    let frequencies = frequencies_f64(width_out);
    let mut table = Vec::new();
    for position in 0..len {
        let position = position as f64 / scale;
        table.extend(sines_then_cosines(frequencies.iter().map(|frequency| position * frequency)));
    }
    Tensor::f32(&[1, len, width_out], &table)
}

/// `0, 1, .. len`, as a column `[len, 1]` of `dtype`.
pub fn positions(len: usize, dtype: DType) -> Result<Tensor, Error> {
    let ty = TensorType::new(dtype, [len, 1])?;
    Ok(Tensor::floats(ty, (0..len).map(|i| i as f64).collect()).rounded())
}

/// `table` under another shape, rounded to `dtype`.
pub fn shaped(table: &Tensor, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
    let ty = TensorType::new(dtype, shape)?;
    Ok(Tensor::floats(ty, table.as_floats().to_vec()).rounded())
}

fn frequencies_f64(width_out: usize) -> Vec<f64> {
    let half = width_out / 2;
    (0..half).map(|i| 1.0 / 10000f64.powf(i as f64 / (width_out as f64 / 2.0))).collect()
}

fn sines_then_cosines(angles: impl Iterator<Item = f64> + Clone) -> Vec<f32> {
    angles.clone().map(f64::sin).chain(angles.map(f64::cos)).map(round_f32).collect()
}

fn round_f32(x: f64) -> f32 {
    x as f32
}
