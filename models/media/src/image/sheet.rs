//! Contact sheet: a PNG with a grid of frames, in reading order, on a dark ground.
//!
//! Invariant: memory is one row of pixels, whatever the number of frames.

use std::io::{BufWriter, Write};

use super::png;
use crate::Metadata;
use crate::error::Fault;
use crate::part_file::PartFile;
use crate::spool::Spool;

/// Most frames on a sheet; a longer clip is sampled evenly, its first and last frames included.
const MAX_FRAMES: u64 = 36;

/// Pixels between frames and around the grid.
const GAP: u32 = 4;

/// Gray level of the ground.
const GROUND: u8 = 24;

/// Width over height that a sheet should have.
const ASPECT: f64 = 1.5;

/// Collects frames and lays them out at the end.
#[derive(Debug)]
pub(crate) struct SheetWriter {
    part: PartFile,
    spool: Spool,
    size: [u32; 2],
    metadata: Metadata,
}

impl SheetWriter {
    pub(crate) fn new(part: PartFile, spool: Spool, size: [u32; 2], metadata: &Metadata) -> Self {
        Self { part, spool, size, metadata: metadata.clone() }
    }

    pub(crate) fn push(&mut self, rgb: &[u8]) -> Result<(), Fault> {
        self.spool.push(rgb)
    }

    pub(crate) fn finish(self) -> Result<u64, Fault> {
        let mut frames = self.spool.into_frames()?;
        let chosen = choose_frames(frames.len());
        let [width, height] = self.size;
        let columns = columns(chosen.len() as u32, self.size);
        let rows = (chosen.len() as u32).div_ceil(columns);
        let extent = |cells: u32, dim: u32| cells * (dim + GAP) + GAP;
        let sheet = [extent(columns, width), extent(rows, height)];

        let mut out = BufWriter::new(self.part);
        let mut writer = png::start(&mut out, sheet, &self.metadata)?;
        let mut stream = writer.stream_writer()?;
        let mut line = vec![GROUND; sheet[0] as usize * 3];
        let row_bytes = width as usize * 3;
        for y in 0..sheet[1] {
            line.fill(GROUND);
            let (row, in_row) = (y / (height + GAP), y % (height + GAP));
            if in_row >= GAP {
                let first = (row * columns) as usize;
                for (column, &frame) in chosen.iter().skip(first).take(columns as usize).enumerate()
                {
                    let x = extent(column as u32, width) as usize * 3;
                    let offset = u64::from(in_row - GAP) * row_bytes as u64;
                    frames.read(frame, offset, &mut line[x..x + row_bytes])?;
                }
            }
            stream.write_all(&line)?;
        }
        stream.finish()?;
        writer.finish()?;
        Ok(out.into_inner().map_err(std::io::IntoInnerError::into_error)?.commit()?)
    }
}

/// Indices of the frames to show.
fn choose_frames(len: u64) -> Vec<u64> {
    if len <= MAX_FRAMES {
        return (0..len).collect();
    }
    (0..MAX_FRAMES).map(|i| (i * (len - 1) + (MAX_FRAMES - 1) / 2) / (MAX_FRAMES - 1)).collect()
}

/// The number of columns whose sheet is nearest to [`ASPECT`], where an empty cell counts as a flaw too.
fn columns(frames: u32, [width, height]: [u32; 2]) -> u32 {
    let flaw = |columns: u32| {
        let rows = frames.div_ceil(columns);
        let aspect = f64::from(columns * (width + GAP)) / f64::from(rows * (height + GAP));
        let stretch = if aspect > ASPECT { aspect / ASPECT } else { ASPECT / aspect };
        stretch * (f64::from(columns * rows) / f64::from(frames)).powi(2)
    };
    (1..=frames).min_by(|&a, &b| flaw(a).total_cmp(&flaw(b))).expect("a sheet has a frame")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_make_a_landscape_grid_without_holes() {
        assert_eq!(columns(1, [64, 64]), 1);
        assert_eq!(columns(8, [64, 64]), 4);
        assert_eq!(columns(16, [64, 64]), 4);
        assert_eq!(columns(16, [426, 240]), 4);
        assert_eq!(columns(16, [240, 426]), 8);
    }

    #[test]
    fn long_clips_are_sampled_with_both_ends() {
        assert_eq!(choose_frames(5), [0, 1, 2, 3, 4]);
        let chosen = choose_frames(100);
        assert_eq!((chosen.len(), chosen[0], chosen[35]), (36, 0, 99));
        assert!(chosen.windows(2).all(|pair| pair[1] - pair[0] <= 3 && pair[0] < pair[1]));
    }
}
