//! Python's notions of a word, a space and a pattern, where Rust's differ.
//!
//! Upstream cleans captions with `re` and `str.strip`. A word character is a letter, a number or
//! `_` there, so combining marks and joiners are none and `½` is one; the `regex` crate says the
//! opposite of both. U+001C to U+001F are spaces in Python only. Everything else agrees.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// A space by `str.isspace`.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Word characters of the `regex` crate that are none in Python.
static NOT_WORDS: LazyLock<Regex> = LazyLock::new(|| compile(r"[\w--[\p{L}\p{N}_]]"));
/// Word characters of Python that are none in the `regex` crate.
static WORDS: LazyLock<Regex> = LazyLock::new(|| compile(r"[\p{N}--\w]"));
/// A word character by `re`'s `\w`.
static WORD: LazyLock<Regex> = LazyLock::new(|| compile(r"[\p{L}\p{N}_]"));

/// Whether `c` is a word character of `re`.
pub(crate) fn is_word(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    WORD.is_match(c.encode_utf8(&mut [0; 4]))
}

fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("patterns are constants that the tests compile")
}

/// A substitution of `re`: a pattern and what replaces each match.
pub(crate) struct Rule {
    regex: Regex,
    with: &'static str,
    reads_words: bool,
}

impl Rule {
    /// `re.sub(pattern, with)`. In `with`, `${1}` is the first group.
    pub(crate) fn new(pattern: &str, with: &'static str) -> Rule {
        let reads_words = [r"\w", r"\b"].iter().any(|class| pattern.contains(class));
        let pattern = pattern.replace(r"\s", r"[\s\x1c-\x1f]").replace(r"\S", r"[^\s\x1c-\x1f]");
        Rule { regex: compile(&pattern), with, reads_words }
    }

    /// `text` with every match replaced.
    pub(crate) fn apply(&self, text: String) -> String {
        if self.reads_words && !text.is_ascii() {
            let standins = Standins::of(&text);
            if !standins.pairs.is_empty() {
                let replaced = self.sub(standins.hide(&text));
                return standins.show(&replaced);
            }
        }
        self.sub(text)
    }

    fn sub(&self, text: String) -> String {
        match self.regex.replace_all(&text, self.with) {
            Cow::Borrowed(_) => text,
            Cow::Owned(replaced) => replaced,
        }
    }
}

/// Characters on which Python and Rust disagree, each with one that no pattern names, that the
/// text does not hold, and that Rust takes as Python takes the original.
struct Standins {
    /// (original, stand-in), sorted by original.
    pairs: Vec<(char, char)>,
}

impl Standins {
    fn of(text: &str) -> Standins {
        let mut pairs: Vec<(char, char)> = Vec::new();
        // Private-use characters are no words; ideographs of extension B are letters.
        for (disagree, first, last) in
            [(&*NOT_WORDS, '\u{F0000}', '\u{FFFFD}'), (&*WORDS, '\u{20000}', '\u{2A6DF}')]
        {
            let mut found: Vec<char> =
                disagree.find_iter(text).filter_map(|m| m.as_str().chars().next()).collect();
            found.sort_unstable();
            found.dedup();
            let mut taken: Vec<char> =
                text.chars().filter(|c| (first..=last).contains(c)).collect();
            taken.sort_unstable();
            let free = (first..=last).filter(|c| taken.binary_search(c).is_err());
            pairs.extend(found.into_iter().zip(free));
        }
        pairs.sort_unstable();
        Standins { pairs }
    }

    fn hide(&self, text: &str) -> String {
        let standin = |c: char| match self.pairs.binary_search_by_key(&c, |pair| pair.0) {
            Ok(at) if !c.is_ascii() => self.pairs[at].1,
            _ => c,
        };
        text.chars().map(standin).collect()
    }

    fn show(&self, text: &str) -> String {
        let original = |c: char| match self.pairs.iter().find(|pair| pair.1 == c) {
            Some(pair) if c >= '\u{20000}' => pair.0,
            _ => c,
        };
        text.chars().map(original).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_pythons() {
        for (c, word) in [('a', true), ('é', true), ('½', true), ('²', true), ('中', true)] {
            assert_eq!(is_word(c), word, "{c}");
        }
        for c in ['\u{301}', '\u{200d}', '‿', 'Ⓐ', '-', ' '] {
            assert!(!is_word(c), "{c:?}");
        }
    }

    #[test]
    fn a_combining_mark_ends_a_word_and_survives() {
        let rule = Rule::new(r"@\w+\b", "");
        assert_eq!(rule.apply("@ab\u{301}c \u{F0000}".into()), "\u{301}c \u{F0000}");
        assert_eq!(rule.apply("@ab½c d".into()), " d");
    }

    #[test]
    fn information_separators_are_spaces() {
        assert_eq!(Rule::new(r"\s+", " ").apply("a\u{1c}\u{a0}\u{85}b".into()), "a b");
        assert_eq!(strip("\u{1f} a\u{3000}"), "a");
    }
}
