//! Text to tokens. Comments, `.loc` and `.file` lines are dropped here.

use std::fmt;

use crate::Error;

/// A token; texts are borrowed from the module's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// An identifier or opcode, with its dots: `%tid.x`, `ld.global.v4.f32`, `$L__BB0_1`.
    Word(&'a str),
    /// A word with a leading dot, without it: `reg`, `b32`.
    Directive(&'a str),
    Int(u64),
    /// A decimal number with a point.
    Float(&'a str),
    /// `0f3F800000`
    F32(u32),
    /// `0d3FF0000000000000`
    F64(u64),
    Text(&'a str),
    Symbol(char),
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{word}`"),
            Self::Directive(word) => write!(f, "`.{word}`"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(text) => write!(f, "{text}"),
            Self::F32(bits) => write!(f, "0f{bits:08X}"),
            Self::F64(bits) => write!(f, "0d{bits:016X}"),
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Symbol(symbol) => write!(f, "`{symbol}`"),
            Self::End => write!(f, "the end of the text"),
        }
    }
}

pub(super) struct Lexer<'a> {
    rest: &'a str,
    line: u32,
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, line: 1 }
    }

    pub(super) fn tokens(mut self) -> Result<Vec<(Token<'a>, u32)>, Error> {
        let mut tokens = vec![];
        loop {
            self.skip_blanks()?;
            let line = self.line;
            let Some(first) = self.rest.chars().next() else { return Ok(tokens) };
            let token = match first {
                '"' => self.text()?,
                '.' => {
                    self.rest = &self.rest[1..];
                    let word = self.take_while(is_word);
                    if matches!(word, "loc" | "file") {
                        self.take_while(|c| c != '\n');
                        continue;
                    }
                    if word.is_empty() {
                        return self.unexpected("a name after `.`");
                    }
                    Token::Directive(word)
                }
                '0'..='9' => self.number()?,
                c if is_word(c) => Token::Word(self.dotted()),
                c if ",;:()[]{}<>+-*=|!@".contains(c) => {
                    self.rest = &self.rest[1..];
                    Token::Symbol(c)
                }
                _ => return self.unexpected("a token of PTX"),
            };
            tokens.push((token, line));
        }
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T, Error> {
        let found = self.rest.chars().next().map_or("the end".to_string(), |c| format!("{c:?}"));
        Err(Error::Syntax { line: self.line, expected: expected.to_string(), found })
    }

    fn take_while(&mut self, is_part: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn skip_blanks(&mut self) -> Result<(), Error> {
        loop {
            let blanks = self.take_while(|c| c.is_ascii_whitespace());
            self.count_lines(blanks);
            if self.rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if let Some(comment) = self.rest.strip_prefix("/*") {
                let Some(end) = comment.find("*/") else { return self.unexpected("`*/`") };
                self.count_lines(&comment[..end]);
                self.rest = &comment[end + 2..];
            } else {
                return Ok(());
            }
        }
    }

    fn count_lines(&mut self, text: &str) {
        let n_lines = text.bytes().filter(|&b| b == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(n_lines).unwrap_or(u32::MAX));
    }

    fn text(&mut self) -> Result<Token<'a>, Error> {
        let body = &self.rest[1..];
        match body.find('"') {
            Some(end) if !body[..end].contains('\n') => {
                self.rest = &body[end + 1..];
                Ok(Token::Text(&body[..end]))
            }
            _ => self.unexpected("a text that ends on its line"),
        }
    }

    /// A word with its dotted parts; `::` joins the parts of modifiers such as `L2::128B`.
    fn dotted(&mut self) -> &'a str {
        let start = self.rest;
        self.take_while(is_word);
        loop {
            let n_skipped = match self.rest.as_bytes() {
                [b'.', next, ..] if is_word(char::from(*next)) => 1,
                [b':', b':', next, ..] if is_word(char::from(*next)) => 2,
                _ => break,
            };
            self.rest = &self.rest[n_skipped..];
            self.take_while(is_word);
        }
        &start[..start.len() - self.rest.len()]
    }

    fn number(&mut self) -> Result<Token<'a>, Error> {
        let start = self.rest;
        let digits = self.take_while(|c| c.is_ascii_alphanumeric());
        let hex = |at: usize, length: usize| {
            let text = digits.get(at..).filter(|text| text.len() == length)?;
            u64::from_str_radix(text, 16).ok()
        };
        let token = match digits.as_bytes() {
            [b'0', b'f' | b'F', ..] => hex(2, 8).map(|bits| Token::F32(bits as u32)),
            [b'0', b'd' | b'D', ..] => hex(2, 16).map(Token::F64),
            [b'0', b'x' | b'X', ..] => {
                u64::from_str_radix(digits[2..].trim_end_matches('U'), 16).ok().map(Token::Int)
            }
            [b'0', b'b' | b'B', ..] => {
                u64::from_str_radix(digits[2..].trim_end_matches('U'), 2).ok().map(Token::Int)
            }
            _ if self.rest.starts_with('.')
                && self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) =>
            {
                self.rest = &self.rest[1..];
                self.take_while(|c| c.is_ascii_alphanumeric());
                Some(Token::Float(&start[..start.len() - self.rest.len()]))
            }
            [b'0', _, ..] if digits.bytes().all(|b| b.is_ascii_digit()) => {
                u64::from_str_radix(digits, 8).ok().map(Token::Int)
            }
            _ => digits.trim_end_matches('U').parse().ok().map(Token::Int),
        };
        token.map_or_else(
            || {
                let (expected, found) = ("a number".to_string(), format!("`{digits}`"));
                Err(Error::Syntax { line: self.line, expected, found })
            },
            Ok,
        )
    }
}
