//! Caption cleaning, as the text encoder's training captions were cleaned.
//!
//! [`clean_caption`] is Open-Sora's function of that name rule by rule, quirks
//! included: the rules' order decides what is left. Upstream applies it twice.

use std::sync::LazyLock;

use crate::python::{Rule, strip};
use crate::{entities, html, mojibake, urls};

/// What a text encoder reads for `caption`: cleaned twice, or lower case without outer spaces.
pub fn text_preprocessing(caption: &str, clean: bool) -> String {
    if clean {
        clean_caption(&clean_caption(caption))
    } else {
        strip(&caption.to_lowercase()).to_string()
    }
}

/// Rules between the HTML reader and the mojibake repair.
static BEFORE_REPAIR: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[
        // Nicknames.
        (r"@\w+\b", ""),
        // CJK strokes, phonetic extensions, enclosed letters, compatibility, ideographs.
        (r"[\u{31c0}-\u{31ef}\u{31f0}-\u{31ff}\u{3200}-\u{32ff}\u{3300}-\u{33ff}]+", ""),
        (r"[\u{3400}-\u{4dbf}\u{4dc0}-\u{4dff}\u{4e00}-\u{9fff}]+", ""),
        // Dashes.
        (
            r"[\-\u{58a}\u{5be}\u{1400}\u{1806}\u{2010}-\u{2015}\u{2e17}\u{2e1a}\u{2e3a}\u{2e3b}\u{2e40}\u{301c}\u{3030}\u{30a0}\u{fe31}\u{fe32}\u{fe58}\u{fe63}\u{ff0d}]+",
            "-",
        ),
        // Quotes.
        ("[`´«»“”¨]", "\""),
        ("[‘’]", "'"),
        // References that lost their meaning.
        ("&quot;?", ""),
        ("&amp", ""),
        // Addresses of machines, numbers of articles, written line ends.
        (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
        (r"\d:\d\d\s+$", ""),
        (r"\\n", " "),
        // Numbers: #123, #12345, 123456.
        (r"#\d{1,3}\b", ""),
        (r"#\d{5,}\b", ""),
        (r"\b\d{6,}\b", ""),
        // File names.
        (r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
        // Runs of quotes, dots and signs.
        (r#"["']{2,}"#, "\""),
        (r"\.{2,}", " "),
        (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
        (r"\s+\.\s+", " "),
    ])
});

/// Rules after the mojibake repair.
static AFTER_REPAIR: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[
        // Words of letters and digits: jc6640, jc6640vc, 6640vc231.
        (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
        (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
        (r"\b\d+[a-zA-Z]+\d+\b", ""),
        // Words of shops and galleries.
        (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
        (r"(?:free\s)?download(?:\sfree)?", ""),
        (r"\bclick\b\s(?:for|on)\s\w+", ""),
        (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(?:\simages?)?", ""),
        (r"\bpage\s+\d+\b", ""),
        // j2d1a2a.
        (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
        // Sizes; the second letter is Cyrillic.
        (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
        // Punctuation.
        (r"\b\s+:\s+", ": "),
        (r"(\D[,./])\b", "${1} "),
        (r"\s+", " "),
        // The ends of the caption.
        (r#"^["']((?s:.)+)["']$"#, "${1}"),
        (r"^['_,\-:;]", ""),
        (r"['_,\-:+]$", ""),
        (r"^\.\S+$", ""),
    ])
});

fn rules(list: &[(&str, &'static str)]) -> Vec<Rule> {
    list.iter().map(|&(pattern, with)| Rule::new(pattern, with)).collect()
}

/// One pass of cleaning.
pub fn clean_caption(caption: &str) -> String {
    let mut text = strip(&unquote(caption)).to_lowercase().replace("<person>", "person");
    for schemes in [&["https:", "http:"][..], &["www:"]] {
        text = urls::delete(&text, schemes);
    }
    text = html::text(&text);
    for rule in BEFORE_REPAIR.iter() {
        text = rule.apply(text);
    }
    if text.matches(['-', '_']).count() > 3 {
        text = text.replace(['-', '_'], " ");
    }
    text = mojibake::fix_text(&text);
    text = strip(&entities::unescape(&entities::unescape(&text))).to_string();
    for rule in AFTER_REPAIR.iter() {
        text = rule.apply(text);
    }
    strip(&text).to_string()
}

/// `urllib.parse.unquote_plus`: `+` is a space, `%41` is `A`; what is no UTF-8 becomes U+FFFD.
fn unquote(text: &str) -> String {
    if !text.contains(['+', '%']) {
        return text.to_string();
    }
    let mut out = String::with_capacity(text.len());
    // Runs of ASCII are decoded each on its own.
    let mut run: Vec<u8> = Vec::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if !c.is_ascii() {
            out.push_str(&String::from_utf8_lossy(&std::mem::take(&mut run)));
            out.push(c);
            continue;
        }
        let tail = rest.as_str().as_bytes();
        let digit = |at: usize| tail.get(at).and_then(|&b| char::from(b).to_digit(16));
        match (c, digit(0), digit(1)) {
            ('%', Some(high), Some(low)) => {
                run.push((high * 16 + low) as u8);
                rest.nth(1);
            }
            ('+', ..) => run.push(b' '),
            _ => run.push(c as u8),
        }
    }
    out.push_str(&String::from_utf8_lossy(&run));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unquotes_as_python_does() {
        for (text, expected) in [
            ("a+b%20c%2", "a b c%2"),
            ("caf%C3%A9 100% ok", "café 100% ok"),
            ("%ff%fe%E4%B8", "\u{FFFD}\u{FFFD}\u{FFFD}"),
            ("%C3é%A9", "\u{FFFD}é\u{FFFD}"),
        ] {
            assert_eq!(unquote(text), expected, "{text}");
        }
    }

    #[test]
    fn cleans_score_sentences_and_signs() {
        for (caption, expected) in [
            (
                "A Beautiful sunset over the city... aesthetic score: 6.5. motion score: 5.0.",
                "a beautiful sunset over the city aesthetic score: 6.5. motion score: 5.0.",
            ),
            (
                "a cat — walking, 4k 1920x1080 http://x.com/abc #12 @bob (hi) [x] camera motion: pan left.",
                "a cat - walking, 4k hi x camera motion: pan left.",
            ),
            (
                "It's 3.5 meters,tall/wide &amp; “nice” a_b_c_d_e",
                "it's 3.5 meters, tall wide \"nice\" a b c d e",
            ),
        ] {
            assert_eq!(text_preprocessing(caption, true), expected);
        }
    }

    #[test]
    fn a_caption_of_signs_is_empty() {
        assert_eq!(text_preprocessing("*** @bob /// 中文", true), "");
    }
}
