//! Training masks: which latent frames of a video are given, and which are learned.
//!
//! A mask is drawn for each sample: a kind by its share, then the kind's own numbers. Frames that are
//! given (`false`) are not noised and take no part in the loss. Kinds and the order of draws are
//! upstream's `MaskGenerator`.

use crate::{Error, PythonRandom, Result, TorchRandom};

/// How far shares may be from 1 in sum.
const SUM_TOLERANCE: f64 = 1e-6;

/// A way to choose the frames that are given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaskKind {
    /// None.
    Identity,
    /// Up to a quarter, anywhere.
    QuarterRandom,
    /// Up to a quarter, the first.
    QuarterHead,
    /// Up to a quarter, the last.
    QuarterTail,
    /// Up to a quarter at each end.
    QuarterHeadTail,
    /// One, anywhere.
    ImageRandom,
    /// The first.
    ImageHead,
    /// The last.
    ImageTail,
    /// The first and the last.
    ImageHeadTail,
    /// Each with one probability, from 0.1 to 0.9.
    Random,
    /// Every second one.
    Interpolate,
}

/// Upstream's names, those of 1.2; 1.1 puts `mask_` before, and says `mask_no` for `identity`.
const NAMES: [(&str, MaskKind); 11] = [
    ("identity", MaskKind::Identity),
    ("quarter_random", MaskKind::QuarterRandom),
    ("quarter_head", MaskKind::QuarterHead),
    ("quarter_tail", MaskKind::QuarterTail),
    ("quarter_head_tail", MaskKind::QuarterHeadTail),
    ("image_random", MaskKind::ImageRandom),
    ("image_head", MaskKind::ImageHead),
    ("image_tail", MaskKind::ImageTail),
    ("image_head_tail", MaskKind::ImageHeadTail),
    ("random", MaskKind::Random),
    // Spelled so.
    ("intepolate", MaskKind::Interpolate),
];

impl MaskKind {
    /// The kind that 1.1 or 1.2 calls `name`.
    ///
    /// # Errors
    /// [`Error::Masks`] lists the names.
    pub fn from_name(name: &str) -> Result<MaskKind> {
        let plain = match name.strip_prefix("mask_") {
            Some("no") => "identity",
            Some(rest) => rest,
            None if name == "interpolate" => "intepolate",
            None => name,
        };
        NAMES.iter().find(|(known, _)| *known == plain).map(|(_, kind)| *kind).ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
            Error::Masks(format!("`{name}` is unknown; expected one of {}", known.join(" ")))
        })
    }
}

/// Kinds with their shares of the samples.
#[derive(Clone, PartialEq, Debug)]
pub struct MaskRatios(Vec<(MaskKind, f64)>);

impl MaskRatios {
    /// Shares in the order in which they are walked; where `identity` is not among them it gets what is left.
    ///
    /// # Errors
    /// [`Error::Masks`] for an unknown name, a share outside 0..1, or a sum that is not 1.
    pub fn new<'a>(shares: impl IntoIterator<Item = (&'a str, f64)>) -> Result<MaskRatios> {
        let mut ratios = Vec::new();
        for (name, share) in shares {
            let kind = MaskKind::from_name(name)?;
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::Masks(format!("`{name}` has {share}; expected 0 to 1")));
            }
            if ratios.iter().any(|(other, _)| *other == kind) {
                return Err(Error::Masks(format!("`{name}` is there twice")));
            }
            ratios.push((kind, share));
        }
        let sum: f64 = ratios.iter().map(|(_, share)| share).sum();
        if !ratios.iter().any(|(kind, _)| *kind == MaskKind::Identity) && sum <= 1.0 + SUM_TOLERANCE
        {
            ratios.push((MaskKind::Identity, 1.0 - sum));
        } else if (sum - 1.0).abs() > SUM_TOLERANCE {
            return Err(Error::Masks(format!("the sum is {sum}; expected 1")));
        }
        Ok(MaskRatios(ratios))
    }

    /// The mask of one sample with `n_frames` latent frames: `true` for each that is learned.
    pub fn draw(
        &self,
        n_frames: usize,
        python: &mut PythonRandom,
        torch: &mut TorchRandom,
    ) -> Vec<bool> {
        let drawn = python.random();
        let mut sum = 0.0;
        let kind = self.0.iter().find(|(_, share)| {
            sum += share;
            drawn < sum
        });
        let kind = kind.map_or(MaskKind::Identity, |(kind, _)| *kind);
        let mut mask = vec![true; n_frames];
        if n_frames <= 1 {
            return mask;
        }
        let n = n_frames as u32;
        match kind {
            MaskKind::Identity => {}
            MaskKind::QuarterRandom => {
                let size = quarter(n, python);
                give(&mut mask, python.randint(0, n - size), size);
            }
            MaskKind::QuarterHead => give(&mut mask, 0, quarter(n, python)),
            MaskKind::QuarterTail => {
                let size = quarter(n, python);
                give(&mut mask, n - size, size);
            }
            MaskKind::QuarterHeadTail => {
                let size = quarter(n, python);
                give(&mut mask, 0, size);
                give(&mut mask, n - size, size);
            }
            MaskKind::ImageRandom => give(&mut mask, python.randint(0, n - 1), 1),
            MaskKind::ImageHead => give(&mut mask, 0, 1),
            MaskKind::ImageTail => give(&mut mask, n - 1, 1),
            MaskKind::ImageHeadTail => {
                give(&mut mask, 0, 1);
                give(&mut mask, n - 1, 1);
            }
            MaskKind::Random => {
                let given = python.uniform(0.1, 0.9) as f32;
                mask.fill_with(|| torch.uniform() > given);
            }
            MaskKind::Interpolate => {
                let first = python.randint(0, 1) as usize;
                mask.iter_mut().skip(first).step_by(2).for_each(|learned| *learned = false);
            }
        }
        // Something must be learned; both ends of two frames are all that there is.
        if !mask.contains(&true) {
            mask[n_frames - 1] = true;
        }
        mask
    }
}

/// One to a quarter of `n` frames; upstream fails for fewer than 4.
fn quarter(n: u32, python: &mut PythonRandom) -> u32 {
    python.randint(1, (n / 4).max(1))
}

/// Gives `size` frames from `first` on.
fn give(mask: &mut [bool], first: u32, size: u32) {
    mask[first as usize..(first + size) as usize].fill(false);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_that_cannot_be_are_refused() {
        for (shares, expected) in [
            (
                vec![("image_hed", 0.5)],
                "`image_hed` is unknown; expected one of identity quarter_random",
            ),
            (vec![("random", 1.5)], "`random` has 1.5"),
            (vec![("random", -0.5)], "expected 0 to 1"),
            (vec![("random", f64::NAN)], "expected 0 to 1"),
            (vec![("identity", 0.5)], "the sum is 0.5"),
            (vec![("random", 0.7), ("image_head", 0.7)], "the sum is 1.4"),
            (vec![("random", 0.1), ("mask_random", 0.1)], "there twice"),
        ] {
            let error = MaskRatios::new(shares).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(MaskRatios::new([("mask_no", 1.0)]).is_ok());
    }

    /// Counts of kinds within five standard errors of their shares; every short length is covered.
    #[test]
    fn shares_are_kept_at_every_length() {
        let (mut python, mut torch) = (PythonRandom::new(1), TorchRandom::new(1));
        for (name, _) in NAMES {
            let ratios = MaskRatios::new([(name, 0.25), ("mask_no", 0.75)]);
            let ratios = if name == "identity" { MaskRatios::new([]) } else { ratios }.unwrap();
            for n_frames in 2..=9 {
                let n = 400;
                let given = (0..n)
                    .filter(|_| ratios.draw(n_frames, &mut python, &mut torch).contains(&false))
                    .count() as f64;
                let share = if name == "identity" { 0.0 } else { 0.25 };
                let deviation = (share * (1.0 - share) * f64::from(n)).sqrt();
                // A random mask may give no frame: with a probability of 0.9 to the power of the length.
                let lower = if name == "random" { 0.0 } else { share * f64::from(n) };
                assert!(given >= lower - 5.0 * deviation, "{name} of {n_frames}: {given}");
                assert!(given <= share * f64::from(n) + 5.0 * deviation, "{name}: {given}");
            }
        }
    }

    #[test]
    fn something_is_always_learned() {
        let (mut python, mut torch) = (PythonRandom::new(2), TorchRandom::new(2));
        let ratios = MaskRatios::new(NAMES.map(|(name, _)| (name, 1.0 / 11.0))).unwrap();
        for n_frames in 1..=6 {
            for _ in 0..200 {
                assert!(ratios.draw(n_frames, &mut python, &mut torch).contains(&true));
            }
        }
    }
}
