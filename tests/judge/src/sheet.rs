//! A contact sheet: clips frame by frame, what was asked for above, what they show below.

use std::path::Path;

use anyhow::Result;
use media::{Clip as Picture, Format, Fps, Metadata};

use crate::classifier::Verdict;
use crate::clips::{Clip, N_FRAMES, SIDE, frame_rgb};
use crate::font;
use crate::labels::HEADS;

/// How often every pixel of clips and letters is there along an axis.
const SCALE: usize = 2;
/// White space around everything.
const MARGIN: usize = 8;
/// Height of a line of text.
const LINE: usize = (font::LETTER[1] + 3) * SCALE;
/// Height of a clip with its lines.
const ENTRY: usize = SIDE * SCALE + 2 * LINE + MARGIN;

const WHITE: [u8; 3] = [255; 3];
const BLACK: [u8; 3] = [20; 3];
/// A verdict that agrees with the prompt, and one that does not.
const AGREES: [u8; 3] = [0, 120, 50];
const DIFFERS: [u8; 3] = [190, 20, 20];

/// Clips of one model under its name.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// What is above them.
    pub title: &'a str,
    /// The clips with their verdicts.
    pub clips: &'a [(Clip, Verdict)],
}

/// Writes a sheet of sections, one below the other, as a PNG.
///
/// # Errors
/// The system's.
pub fn write(path: &Path, sections: &[Section<'_>]) -> Result<()> {
    let heights = sections.iter().map(|section| LINE + MARGIN + section.clips.len() * ENTRY);
    let height = heights.sum::<usize>() + 2 * MARGIN;
    let mut canvas = Canvas::new(N_FRAMES * SIDE * SCALE + 2 * MARGIN, height);
    let mut top = MARGIN;
    for section in sections {
        canvas.text([MARGIN, top], section.title, BLACK);
        top += LINE + MARGIN;
        for (clip, verdict) in section.clips {
            canvas.clip(top, clip, verdict);
            top += ENTRY;
        }
    }
    let picture = Picture::new(1, canvas.height, canvas.width, &canvas.rgb, Fps::new(1, 1)?)?;
    media::write(path, &picture, &Metadata::new(), Format::Png)?;
    Ok(())
}

/// RGB `[height, width, 3]`.
struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Canvas {
        Canvas { width, height, rgb: vec![WHITE[0]; width * height * 3] }
    }

    /// Paints a square of one pixel of a clip or letter; what is outside is left out.
    fn paint(&mut self, [left, top]: [usize; 2], color: [u8; 3]) {
        for y in top..(top + SCALE).min(self.height) {
            for x in left..(left + SCALE).min(self.width) {
                self.rgb[(y * self.width + x) * 3..][..3].copy_from_slice(&color);
            }
        }
    }

    /// Writes text; where it ends.
    fn text(&mut self, [left, top]: [usize; 2], text: &str, color: [u8; 3]) -> usize {
        for [x, y] in font::pixels(text) {
            self.paint([left + x * SCALE, top + y * SCALE], color);
        }
        left + text.chars().count() * font::ADVANCE * SCALE
    }

    fn clip(&mut self, top: usize, clip: &Clip, verdict: &Verdict) {
        let [caption, ..] = clip.subject.captions();
        self.text([MARGIN, top], &caption, BLACK);
        for t in 0..N_FRAMES {
            let rgb = frame_rgb(&clip.pixels, t);
            for (at, color) in rgb.as_chunks::<3>().0.iter().enumerate() {
                let left = MARGIN + (t * SIDE + at % SIDE) * SCALE;
                self.paint([left, top + LINE + at / SIDE * SCALE], *color);
            }
        }
        let below = top + LINE + SIDE * SCALE + SCALE;
        let mut left = MARGIN;
        for head in HEADS {
            let class = verdict.class(head);
            let percent = 100.0 * verdict.probabilities(head)[class];
            let agrees = verdict.agrees(head, clip.subject);
            let text = format!("{} {percent:.0}%   ", head.class_name(class));
            left = self.text([left, below], &text, if agrees { AGREES } else { DIFFERS });
        }
    }
}
