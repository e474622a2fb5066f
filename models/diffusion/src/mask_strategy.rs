//! Which frames of a video are given, from which reference: the `mask_strategy` of Open-Sora 1.1.
//!
//! A strategy is a list of rules joined by `;`. A rule is up to six numbers joined by `,`: loop,
//! reference, first frame in the reference, first frame in the video, count of frames, edit ratio.
//! Numbers that are left out are `0,0,0,0,1,0`. A negative first frame counts from the end. Where
//! rules overlap, the last one holds.

use crate::Error;

/// The most rules of one strategy.
const MAX_RULES: usize = 4096;

/// Given frames of one video.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct MaskStrategy {
    rules: Vec<Rule>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Rule {
    loop_index: usize,
    reference: usize,
    reference_start: i64,
    start: i64,
    length: usize,
    edit_ratio: f32,
}

/// Where the content of a given frame comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct GivenFrame {
    /// Which of the references.
    pub reference: usize,
    /// Which frame of it.
    pub frame: usize,
    /// 0 keeps the frame; above, it is denoised from that part of the way on; 1 makes it anew.
    pub edit_ratio: f32,
}

impl MaskStrategy {
    /// Reads a strategy; an empty text gives no frame.
    ///
    /// # Errors
    /// [`Error::Mask`] for a rule that is none.
    pub fn parse(text: &str) -> Result<MaskStrategy, Error> {
        if text.trim().is_empty() {
            return Ok(MaskStrategy::default());
        }
        let rules: Vec<&str> = text.split(';').collect();
        if rules.len() > MAX_RULES {
            let found = rules.len();
            return Err(Error::Mask(format!("{found} rules, expected at most {MAX_RULES}")));
        }
        Ok(MaskStrategy { rules: rules.into_iter().map(Rule::parse).collect::<Result<_, _>>()? })
    }

    /// Whether no frame of any loop is given.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// For each of the `n_frames` frames of loop `loop_index`, what is given; `references` has the
    /// count of frames of each.
    ///
    /// # Errors
    /// [`Error::Mask`] for a rule that names a reference or frames that are not there.
    pub fn place(
        &self,
        loop_index: usize,
        n_frames: usize,
        references: &[usize],
    ) -> Result<Vec<Option<GivenFrame>>, Error> {
        let mut placed = vec![None; n_frames];
        for rule in self.rules.iter().filter(|rule| rule.loop_index == loop_index) {
            let fail = |reason: String| Err(Error::Mask(format!("rule `{rule}`: {reason}")));
            let Some(&n_reference) = references.get(rule.reference) else {
                let found = references.len();
                return fail(format!("there are {found} references, counted from 0"));
            };
            let Some(target) = span(rule.start, rule.length, n_frames) else {
                return fail(format!("the video has {n_frames} frames"));
            };
            let Some(source) = span(rule.reference_start, rule.length, n_reference) else {
                return fail(format!("reference {} has {n_reference} frames", rule.reference));
            };
            // A single frame, such as an image, is given wherever it is asked for.
            if source.len() != target.len() && source.len() != 1 {
                return fail(format!(
                    "{} frames of reference {} do not fill {} frames of the video; give a length \
                     that both have",
                    source.len(),
                    rule.reference,
                    target.len()
                ));
            }
            for (offset, frame) in target.enumerate() {
                placed[frame] = Some(GivenFrame {
                    reference: rule.reference,
                    frame: source.start + if source.len() == 1 { 0 } else { offset },
                    edit_ratio: rule.edit_ratio,
                });
            }
        }
        Ok(placed)
    }

    /// The greatest loop that a rule is for.
    pub fn last_loop(&self) -> Option<usize> {
        self.rules.iter().map(|rule| rule.loop_index).max()
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Rule, Error> {
        let fail = |reason: String| Error::Mask(format!("rule `{}`: {reason}", text.trim()));
        let mut numbers = ["0", "0", "0", "0", "1", "0"];
        let given: Vec<&str> = text.split(',').map(str::trim).collect();
        if given.len() > numbers.len() {
            return Err(fail(format!("{} numbers, expected at most 6", given.len())));
        }
        numbers[..given.len()].copy_from_slice(&given);
        let [loop_index, reference, reference_start, start, length, edit_ratio] = numbers;
        let count = |what: &str, text: &str| {
            let number = text.parse::<usize>();
            number.map_err(|_| fail(format!("{what} `{text}`, expected a whole number from 0 on")))
        };
        let place = |what: &str, text: &str| {
            let number = text.parse::<i64>();
            number.map_err(|_| fail(format!("{what} `{text}`, expected a whole number")))
        };
        let rule = Rule {
            loop_index: count("loop", loop_index)?,
            reference: count("reference", reference)?,
            reference_start: place("first frame in the reference", reference_start)?,
            start: place("first frame", start)?,
            length: count("count of frames", length)?,
            edit_ratio: match edit_ratio.parse::<f32>() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
                _ => return Err(fail(format!("edit ratio `{edit_ratio}`, expected 0 to 1"))),
            },
        };
        if rule.length == 0 {
            return Err(fail("count of frames 0, expected at least 1".into()));
        }
        Ok(rule)
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rule { loop_index, reference, reference_start, start, length, edit_ratio } = self;
        write!(f, "{loop_index},{reference},{reference_start},{start},{length},{edit_ratio}")
    }
}

/// Frames `start..start + length` of `n`, of which those past the end are left out. `None` if there
/// are none.
fn span(start: i64, length: usize, n: usize) -> Option<std::ops::Range<usize>> {
    let start = if start < 0 {
        n.checked_sub(usize::try_from(start.unsigned_abs()).ok()?)?
    } else {
        usize::try_from(start).ok()?
    };
    (start < n).then(|| start..n.min(start.saturating_add(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(strategy: &str, n_frames: usize, references: &[usize]) -> String {
        MaskStrategy::parse(strategy)
            .and_then(|strategy| strategy.place(0, n_frames, references))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_image_fills_as_many_frames_as_are_asked_for() {
        let strategy = MaskStrategy::parse("0,0,0,2,9,0.25").unwrap();
        let image = Some(GivenFrame { reference: 0, frame: 0, edit_ratio: 0.25 });
        assert_eq!(strategy.place(0, 4, &[1]).unwrap(), [None, None, image, image]);
    }

    #[test]
    fn the_last_rule_holds() {
        let placed = MaskStrategy::parse("0,0,0,0,3;0,1,1,1,1").unwrap().place(0, 3, &[3, 2]);
        let frames: Vec<_> =
            placed.unwrap().into_iter().flatten().map(|f| (f.reference, f.frame)).collect();
        assert_eq!(frames, [(0, 0), (1, 1), (0, 2)]);
    }

    #[test]
    fn nothing_is_given_by_an_empty_text() {
        let strategy = MaskStrategy::parse(" ").unwrap();
        assert!(strategy.is_empty() && strategy.last_loop().is_none());
        assert_eq!(strategy.place(0, 2, &[]).unwrap(), [None, None]);
    }

    #[test]
    fn says_what_is_wrong_with_a_rule() {
        for (strategy, expected) in [
            ("0,0,0,0,1,0,0", "7 numbers, expected at most 6"),
            ("x", "loop `x`, expected a whole number"),
            ("0,-1", "reference `-1`"),
            ("0,0,,0", "first frame in the reference ``"),
            ("0,0,0,0,0", "count of frames 0"),
            ("0,0,0,0,1,1.5", "edit ratio `1.5`, expected 0 to 1"),
            ("0,0,0,0,1,nan", "edit ratio `nan`"),
            ("0;", "loop ``"),
            ("0,2", "rule `0,2,0,0,1,0`: there are 2 references"),
            ("0,0,0,8", "the video has 8 frames"),
            ("0,0,0,-9", "the video has 8 frames"),
            ("0,0,4", "reference 0 has 4 frames"),
            ("0,0,-9223372036854775808", "reference 0 has 4 frames"),
            ("0,0,0,0,8", "4 frames of reference 0 do not fill 8 frames"),
        ] {
            let message = message(strategy, 8, &[4, 1]);
            assert!(message.contains(expected), "{strategy}: {message}");
        }
        assert!(message(&"0;".repeat(5000), 8, &[1]).contains("5001 rules"));
    }
}
