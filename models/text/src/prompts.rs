//! The parts of a prompt: conditioning suffix, texts per loop, score sentences; and prompt files.
//!
//! Upstream's order is: split off the suffix, split into loops, append scores to each text, clean
//! each text, merge. Cleaning would destroy the `|0|` marks, so it comes after the split.

use serde::Deserialize;

use crate::Error;
use crate::python::strip;

/// The most bytes of one prompt. The longest text encoder input is 512 tokens, about 2,500 bytes.
pub const MAX_PROMPT_BYTES: usize = 16 << 10;
/// The most bytes of a prompt file.
const MAX_FILE_BYTES: usize = 16 << 20;

/// Values that models of 1.1 and 1.2 were trained with in `camera motion:`.
pub const CAMERA_MOTIONS: [&str; 7] =
    ["pan right", "pan left", "tilt up", "tilt down", "zoom in", "zoom out", "static"];

/// Accepts a prompt that a video can be made from.
///
/// # Errors
/// Refuses one without text, and one longer than [`MAX_PROMPT_BYTES`].
pub fn check_prompt(prompt: &str) -> Result<(), Error> {
    if strip(prompt).is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if prompt.len() > MAX_PROMPT_BYTES {
        return Err(Error::LongPrompt { bytes: prompt.len(), limit: MAX_PROMPT_BYTES });
    }
    Ok(())
}

/// The prompts of a file, one per line, without outer spaces. Blank lines are no prompts.
///
/// # Errors
/// Refuses a file that is no UTF-8, too big or without any prompt, and prompts that
/// [`check_prompt`] refuses.
pub fn read_prompts(bytes: &[u8]) -> Result<Vec<String>, Error> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(Error::LongPromptFile { bytes: bytes.len(), limit: MAX_FILE_BYTES });
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::PromptFileEncoding { offset: e.valid_up_to() })?;
    let lines = text.trim_start_matches('\u{FEFF}').split(['\n', '\r']).map(strip);
    let prompts: Vec<String> = lines.filter(|line| !line.is_empty()).map(String::from).collect();
    if prompts.is_empty() {
        return Err(Error::NoPrompts);
    }
    prompts.iter().try_for_each(|prompt| check_prompt(prompt))?;
    Ok(prompts)
}

/// A prompt and what its JSON suffix says about reference images and videos.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suffixed {
    /// The text before the suffix, as written.
    pub text: String,
    /// Paths or addresses joined by `;`; empty for none.
    pub reference_path: String,
    /// Which frames come from which reference; empty for none.
    pub mask_strategy: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suffix {
    #[serde(default)]
    reference_path: String,
    #[serde(default)]
    mask_strategy: String,
}

/// Splits `text {"reference_path": …, "mask_strategy": …}` at its only `{`.
///
/// # Errors
/// Refuses a second `{`, malformed JSON and other keys.
pub fn split_suffix(prompt: &str) -> Result<Suffixed, Error> {
    let Some((text, json)) = prompt.split_once('{') else {
        return Ok(Suffixed { text: prompt.to_string(), ..Suffixed::default() });
    };
    if json.contains('{') {
        return Err(Error::PromptSuffix("a second `{`, expected one object at the end".into()));
    }
    let suffix: Suffix = serde_json::from_str(&prompt[text.len()..])
        .map_err(|e| Error::PromptSuffix(e.to_string()))?;
    Ok(Suffixed {
        text: text.to_string(),
        reference_path: suffix.reference_path,
        mask_strategy: suffix.mask_strategy,
    })
}

/// The texts of a long video's loops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loops {
    /// (first loop, text); ascending, the first from loop 0.
    parts: Vec<(usize, String)>,
    marked: bool,
}

impl Loops {
    /// Splits `|0|text|2|text…`: each text holds from its loop until the next. A prompt that does
    /// not begin with `|0|` is one text for every loop.
    ///
    /// # Errors
    /// Refuses a mark without a number or text, and numbers that do not ascend.
    pub fn split(prompt: &str) -> Result<Loops, Error> {
        let Some(rest) = prompt.strip_prefix('|').filter(|_| prompt.starts_with("|0|")) else {
            return Ok(Loops { parts: vec![(0, prompt.to_string())], marked: false });
        };
        let words: Vec<&str> = rest.split('|').collect();
        let mut parts: Vec<(usize, String)> = Vec::with_capacity(words.len() / 2);
        for pair in words.chunks(2) {
            let &[mark, text] = pair else {
                return Err(Error::PromptLoops(format!(
                    "`|{}` has no text after it, expected `|loop|text`",
                    pair[0]
                )));
            };
            let first: usize = strip(mark).parse().map_err(|_| {
                Error::PromptLoops(format!("`|{mark}|`, expected the number of a loop"))
            })?;
            if parts.last().is_some_and(|(before, _)| *before >= first) {
                return Err(Error::PromptLoops(format!(
                    "`|{first}|` does not come after the loop before it"
                )));
            }
            parts.push((first, strip(text).to_string()));
        }
        Ok(Loops { parts, marked: true })
    }

    /// The text of loop `index`.
    pub fn text(&self, index: usize) -> &str {
        let begun = self.parts.partition_point(|(first, _)| *first <= index);
        &self.parts[begun.max(1) - 1].1
    }

    /// Every text in order.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(_, text)| text.as_str())
    }

    /// The loop from which on the last text holds.
    pub fn last_loop(&self) -> usize {
        self.parts.last().map_or(0, |(first, _)| *first)
    }

    /// The same loops with every text replaced, for scores and cleaning.
    #[must_use]
    pub fn map(&self, f: impl Fn(&str) -> String) -> Loops {
        let parts = self.parts.iter().map(|(first, text)| (*first, f(text))).collect();
        Loops { parts, marked: self.marked }
    }

    /// The prompt that splits into these loops.
    pub fn merge(&self) -> String {
        if !self.marked {
            return self.parts[0].1.clone();
        }
        self.parts.iter().map(|(first, text)| format!("|{first}|{text}")).collect()
    }
}

/// What models of 1.1 and 1.2 were told about a clip besides its caption.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Aesthetic score; 6.5 is good.
    pub aesthetic: Option<f64>,
    /// Strength of motion (optical flow).
    pub motion: Option<f64>,
    /// One of [`CAMERA_MOTIONS`].
    pub camera: Option<String>,
}

/// `text` with a sentence for each score that it does not have yet.
pub fn append_scores(text: &str, scores: &Scores) -> String {
    let mut out = text.to_string();
    let sentences = [
        ("aesthetic score:", scores.aesthetic.map(|score| format!("{score:.1}"))),
        ("motion score:", scores.motion.map(|score| format!("{score:.1}"))),
        ("camera motion:", scores.camera.clone()),
    ];
    for (phrase, value) in sentences {
        if let Some(value) = value
            && !text.contains(phrase)
        {
            out.push_str(&format!(" {phrase} {value}."));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_is_split_off() {
        let prompt = "A car {\"reference_path\": \"x.mp4\", \"mask_strategy\": \"0,0,0,0,1\"}";
        let split = split_suffix(prompt).unwrap();
        assert_eq!(split.text, "A car ");
        assert_eq!(split.reference_path, "x.mp4");
        assert_eq!(split.mask_strategy, "0,0,0,0,1");
        assert_eq!(split_suffix("plain [x]").unwrap().text, "plain [x]");
        for (prompt, expected) in [
            ("a {} {}", "a second `{`"),
            ("a {\"seed\": 1}", "unknown field `seed`"),
            ("a {\"reference_path\": 1}", "invalid type"),
            ("a {", "EOF"),
        ] {
            let error = split_suffix(prompt).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_text_holds_until_the_next_loop() {
        let loops = Loops::split("|0|a sunny day|2| A Rainy day |3|snow").unwrap();
        let texts: Vec<&str> = (0..5).map(|index| loops.text(index)).collect();
        assert_eq!(texts, ["a sunny day", "a sunny day", "A Rainy day", "snow", "snow"]);
        assert_eq!(loops.last_loop(), 3);
        assert!(loops.texts().eq(["a sunny day", "A Rainy day", "snow"]));
        assert_eq!(loops.merge(), "|0|a sunny day|2|A Rainy day|3|snow");
        let lower = loops.map(str::to_lowercase);
        assert_eq!(lower.text(2), "a rainy day");
        let plain = Loops::split("plain | prompt").unwrap();
        assert_eq!((plain.text(7), plain.merge()), ("plain | prompt", "plain | prompt".into()));
        for (prompt, expected) in [
            ("|0|a|1", "`|1` has no text"),
            ("|0|a|x|b", "`|x|`, expected the number"),
            ("|0|a|2|b|2|c", "does not come after"),
        ] {
            let error = Loops::split(prompt).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn scores_are_appended_once() {
        let scores = Scores {
            aesthetic: Some(6.5),
            motion: None,
            camera: Some(CAMERA_MOTIONS[0].to_string()),
        };
        assert_eq!(
            append_scores("a cat", &scores),
            "a cat aesthetic score: 6.5. camera motion: pan right."
        );
        let scores = Scores { aesthetic: Some(6.5), motion: Some(2.0), camera: None };
        assert_eq!(
            append_scores("a cat aesthetic score: 5.0.", &scores),
            "a cat aesthetic score: 5.0. motion score: 2.0."
        );
        assert_eq!(append_scores("a", &Scores::default()), "a");
    }

    #[test]
    fn a_prompt_file_has_one_prompt_a_line() {
        let prompts = read_prompts("\u{FEFF}a cat\r\n\n  a dog \n".as_bytes()).unwrap();
        assert_eq!(prompts, ["a cat", "a dog"]);
        let refused = |bytes: &[u8]| read_prompts(bytes).unwrap_err().to_string();
        assert!(refused(b"\n \n").contains("has no prompt"));
        assert!(refused(b"ok\n\xff").contains("offset 3"));
        assert!(refused(&vec![b'a'; MAX_PROMPT_BYTES + 1]).contains("expected at most 16384"));
        assert!(check_prompt(" \u{a0}").is_err());
        assert!(check_prompt(&"word ".repeat(10_000)).is_err());
    }
}
