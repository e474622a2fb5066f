//! Repairs what copying and wrong decoding do to text: `ftfy.fix_text` with its default settings.
//!
//! Follows ftfy 6.3 (Robyn Speer, Apache-2.0): per line, until nothing changes, HTML references,
//! wrongly decoded UTF-8, ligatures, full-width forms, curly quotes, line ends, terminal escapes,
//! control characters, then NFC. Two limits that ftfy lacks keep hostile text cheap: at most
//! [`MAX_ROUNDS`] rounds, and damage nested in damage at most [`MAX_DEPTH`] deep.

use std::sync::LazyLock;

use regex::Regex;
use regex::bytes;
use unicode_normalization::UnicodeNormalization;

use crate::badness::is_bad;
use crate::codecs::{self, ENCODINGS};
use crate::entities;

const MAX_ROUNDS: usize = 32;
const MAX_DEPTH: usize = 8;

/// `ftfy.fix_text(text)`.
pub(crate) fn fix_text(text: &str) -> String {
    // References stay from the first line on that may hold real markup.
    let mut unescape = true;
    text.split_inclusive('\n')
        .map(|line| {
            unescape &= !line.contains('<');
            fix_line(line, unescape)
        })
        .collect()
}

fn fix_line(line: &str, unescape: bool) -> String {
    let mut text = line.to_string();
    for _ in 0..MAX_ROUNDS {
        let mut next = if unescape { unescape_references(&text) } else { text.clone() };
        next = fix_encoding(&next, 0);
        next = fix_characters(&next);
        if next == text {
            break;
        }
        text = next;
    }
    text
}

/// Replaces references that end in `;`, also all-caps ones such as `&EACUTE;`.
fn unescape_references(text: &str) -> String {
    static REFERENCE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"&#?[0-9A-Za-z]{1,24};").expect("a constant pattern"));
    REFERENCE
        .replace_all(text, |found: &regex::Captures<'_>| {
            let reference = &found[0];
            let name = &reference[1..reference.len() - 1];
            if name.starts_with('#') {
                let unescaped = entities::unescape(reference);
                // A reference that is only half read is none.
                return if unescaped.contains(';') { reference.to_string() } else { unescaped };
            }
            if let Some(characters) = entities::named(name) {
                return characters.to_string();
            }
            let lower = name.to_ascii_lowercase();
            match entities::named(&lower) {
                Some(characters)
                    if lower.to_ascii_uppercase() == name
                        && entities::unescape(reference) == reference =>
                {
                    characters.to_uppercase()
                }
                _ => reference.to_string(),
            }
        })
        .into_owned()
}

/// Decodes text again until that changes nothing.
fn fix_encoding(text: &str, depth: usize) -> String {
    let mut text = text.to_string();
    for _ in 0..MAX_ROUNDS {
        match fix_encoding_once(&text, depth) {
            Some(fixed) if fixed != text => text = fixed,
            _ => break,
        }
    }
    text
}

fn fix_encoding_once(text: &str, depth: usize) -> Option<String> {
    if !is_bad(text) {
        return None;
    }
    let mut fits_latin_1 = false;
    for (index, encoding) in ENCODINGS.iter().enumerate() {
        let Some(mut bytes) = encoding.encode(text) else { continue };
        fits_latin_1 |= index == 0;
        if !encoding.mac {
            bytes = restore_no_break_spaces(bytes);
        }
        if encoding.sloppy {
            bytes = mark_lost_bytes(&bytes);
        }
        if let Some(decoded) = decode(&bytes) {
            return Some(decoded);
        }
    }
    if let Some(fixed) = fix_embedded(text, depth) {
        return Some(fixed);
    }
    if fits_latin_1 || text.contains(is_c1) {
        // C1 control characters were Windows-1252. Its five free bytes stay.
        return Some(windows_1252(text));
    }
    None
}

fn is_c1(c: char) -> bool {
    ('\u{80}'..='\u{9f}').contains(&c)
}

fn windows_1252(text: &str) -> String {
    text.chars().map(|c| entities::windows_1252(c as u32).unwrap_or(c)).collect()
}

/// Turns byte 20 back into A0 where that makes a UTF-8 sequence.
fn restore_no_break_spaces(bytes: Vec<u8>) -> Vec<u8> {
    static ALTERED: LazyLock<bytes::Regex> = LazyLock::new(|| {
        bytes::Regex::new(concat!(
            r"(?-u)[\xc2\xc3\xc5\xce\xd0\xd9]\x20",
            r"|[\xe2\xe3]\x20[\x80-\x84\x86-\x9f\xa1-\xbf]",
            r"|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf]\x20",
            r"|\xf0\x20[\x80-\xbf][\x80-\xbf]",
            r"|\xf0[\x80-\xbf]\x20[\x80-\xbf]",
            r"|\xf0[\x80-\xbf][\x80-\xbf]\x20",
        ))
        .expect("a constant pattern")
    });
    if !ALTERED.is_match(&bytes) {
        return bytes;
    }
    // A lone "à" keeps the space after it, except where Portuguese joins it to the next word.
    let mut spaced = Vec::with_capacity(bytes.len() + 8);
    for (at, &byte) in bytes.iter().enumerate() {
        if byte == b' ' && at > 0 && bytes[at - 1] == 0xC3 {
            let rest = &bytes[at + 1..];
            let joined: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
            if !joined.iter().any(|word| rest.starts_with(word)) {
                spaced.push(0xA0);
            }
        }
        spaced.push(byte);
    }
    ALTERED
        .replace_all(&spaced, |found: &bytes::Captures<'_>| -> Vec<u8> {
            found[0].iter().map(|&byte| if byte == b' ' { 0xA0 } else { byte }).collect()
        })
        .into_owned()
}

/// Turns UTF-8 sequences with lost bytes (1A, or once `?`) into U+FFFD.
fn mark_lost_bytes(bytes: &[u8]) -> Vec<u8> {
    static LOST: LazyLock<bytes::Regex> = LazyLock::new(|| {
        bytes::Regex::new(concat!(
            r"(?-u)[\xc2-\xdf]\x1a",
            r"|[\xc2-\xc3]\?",
            r"|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]",
            r"|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]",
            r"|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]",
            r"|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]",
            r"|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]",
            r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]",
            r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]",
            r"|\x1a",
        ))
        .expect("a constant pattern")
    });
    LOST.replace_all(bytes, "\u{FFFD}".as_bytes()).into_owned()
}

/// Decodes UTF-8; also surrogate pairs in three bytes each, and C0 80 for U+0000.
fn decode(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut rest = bytes;
    loop {
        let special = rest.windows(2).position(|pair| {
            pair == [0xC0, 0x80] || (pair[0] == 0xED && (0xA0..=0xBF).contains(&pair[1]))
        });
        let Some(at) = special else {
            text.push_str(std::str::from_utf8(rest).ok()?);
            return Some(text);
        };
        text.push_str(std::str::from_utf8(&rest[..at]).ok()?);
        if rest[at] == 0xC0 {
            text.push('\0');
            rest = &rest[at + 2..];
            continue;
        }
        let [0xED, a @ 0xA0..=0xAF, b @ 0x80..=0xBF, 0xED, c @ 0xB0..=0xBF, d @ 0x80..=0xBF, ..] =
            rest[at..]
        else {
            return None;
        };
        let low = |byte: u8, bits: u8| u32::from(byte & ((1 << bits) - 1));
        let number = (low(a, 4) << 16) + (low(b, 6) << 10) + (low(c, 4) << 6) + low(d, 6);
        text.push(char::from_u32(number + 0x1_0000)?);
        rest = &rest[at + 6..];
    }
}

/// Characters that the bytes of UTF-8 sequences become in a single-byte encoding.
struct Clues {
    first_of_2: Vec<char>,
    first_of_3: Vec<char>,
    first_of_4: Vec<char>,
    continuation: Vec<char>,
}

static CLUES: LazyLock<Clues> = LazyLock::new(|| {
    let mut first_of_4 = codecs::characters_of(0xF0..=0xF0);
    first_of_4.extend(codecs::characters_of(0xF3..=0xF3));
    first_of_4.sort_unstable();
    Clues {
        first_of_2: codecs::characters_of(0xC2..=0xDF),
        first_of_3: codecs::characters_of(0xE0..=0xEF),
        first_of_4,
        continuation: codecs::characters_of(0x80..=0xBF),
    }
});

impl Clues {
    /// Length of the wrongly decoded sequence at the start of `chars`, or 0.
    fn sequence(&self, chars: &[char]) -> usize {
        let Some(first) = chars.first() else { return 0 };
        let has = |set: &[char], c: &char| set.binary_search(c).is_ok();
        let sizes = [(&self.first_of_2, 1), (&self.first_of_3, 2), (&self.first_of_4, 3)];
        for (firsts, count) in sizes {
            let follow = |c: &char| *c == ' ' || has(&self.continuation, c);
            if has(firsts, first) && chars.len() > count && chars[1..=count].iter().all(follow) {
                return 1 + count;
            }
        }
        0
    }

    /// Whether `c` is more likely the end of a sequence than the character before one.
    fn continues(&self, c: char) -> bool {
        !"–—―‘’‚“”„•…".contains(c) && self.continuation.binary_search(&c).is_ok()
    }
}

/// Repairs the sequences of `text` that look wrongly decoded on their own.
fn fix_embedded(text: &str, depth: usize) -> Option<String> {
    if depth == MAX_DEPTH {
        return None;
    }
    let chars: Vec<char> = text.chars().collect();
    let mut fixed = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let mut end = at;
        if at == 0 || !CLUES.continues(chars[at - 1]) {
            loop {
                let length = CLUES.sequence(&chars[end..]);
                if length == 0 {
                    break;
                }
                end += length;
            }
        }
        if end == at {
            fixed.push(chars[at]);
            at += 1;
            continue;
        }
        let part: String = chars[at..end].iter().collect();
        if end - at < chars.len() && is_bad(&part) {
            fixed.push_str(&fix_encoding(&part, depth + 1));
        } else {
            fixed.push_str(&part);
        }
        at = end;
    }
    (fixed != text).then_some(fixed)
}

fn fix_characters(text: &str) -> String {
    static TERMINAL: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\x1b\[(?:\d|;)*[a-zA-Z]").expect("a constant pattern"));
    let mut fixed = String::with_capacity(text.len());
    let mut before = ' ';
    for c in windows_1252(text).chars() {
        match c {
            // CR LF is one line end.
            '\n' if before == '\r' => {}
            '\r' | '\u{2028}' | '\u{2029}' => fixed.push('\n'),
            _ => push_standard(c, &mut fixed),
        }
        before = c;
    }
    TERMINAL.replace_all(&fixed, "").chars().filter(|&c| !is_unwanted(c)).nfc().collect()
}

/// Appends `c`, or what stands for it in plain text.
fn push_standard(c: char, out: &mut String) {
    match c {
        'Ĳ' | 'ĳ' | 'Ǳ'..='ǳ' | 'Ǆ'..='ǌ' | 'ﬀ'..='ﬄ' | 'ﬆ' => {
            out.extend(std::iter::once(c).nfkc());
        }
        // The quote of the letter, U+02BC, is straightened too.
        'ŉ' => out.push_str("'n"),
        'ﬅ' => out.push_str("ſt"),
        '\u{3000}' => out.push(' '),
        '\u{FF01}'..='\u{FFEF}' => out.extend(std::iter::once(c).nfkc()),
        '\u{201C}'..='\u{201F}' => out.push('"'),
        '\u{2BC}' | '\u{2018}'..='\u{201B}' => out.push('\''),
        _ => out.push(c),
    }
}

/// Control characters, and characters that only markup should express.
fn is_unwanted(c: char) -> bool {
    matches!(c,
        '\0'..='\u{8}' | '\u{B}' | '\u{E}'..='\u{1F}' | '\u{7F}'
        | '\u{206A}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFC}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_known_damage() {
        for (damaged, expected) in [
            ("schÃ¶n", "schön"),
            ("âœ” No problems", "✔ No problems"),
            ("voilÃ  le travail", "voilà le travail"),
            ("â€œlost â€\u{FFFD} end", "\"lost \u{FFFD} end"),
            ("l\u{92}humanitÃ©", "l'humanité"),
            ("ＬＯＵＤ　ﬂow\r\nĳ", "LOUD flow\nij"),
            ("\u{1b}[36;44mblue\u{1b}[0m\u{FEFF}", "blue"),
            ("P&EACUTE;REZ &amp; co", "PÉREZ & co"),
            ("<b> &amp;", "<b> &amp;"),
            ("e\u{301}", "é"),
        ] {
            assert_eq!(fix_text(damaged), expected, "{damaged}");
        }
    }
}
