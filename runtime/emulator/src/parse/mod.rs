//! Text to [`Module`]. Errors name the line, what was expected and what was found.
//!
//! No input can make it panic, recurse or take memory out of proportion to the text: nesting is counted, not
//! recursed into, and ranges of registers stay ranges.

mod body;
mod declaration;
mod lexer;
mod operand;

use crate::Error;
use crate::ast::{Function, Module};
use lexer::{Lexer, Token};

/// Tokens with a cursor.
struct Parser<'a> {
    tokens: Vec<(Token<'a>, u32)>,
    at: usize,
}

impl Module {
    /// The module that `text` says, such as NVRTC makes it; a final NUL is allowed.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim_end_matches('\0');
        let mut parser = Parser { tokens: Lexer::new(text).tokens()?, at: 0 };
        let mut module = Self {
            version: (0, 0),
            target: String::new(),
            variables: vec![],
            functions: vec![],
            lines: text.lines().map(|line| line.trim().into()).collect(),
        };
        parser.module(&mut module)?;
        Ok(module)
    }

    /// The entry called `name`.
    pub(crate) fn entry(&self, name: &str) -> Result<&Function, Error> {
        let entries = || self.functions.iter().filter(|f| f.is_entry && f.is_defined);
        entries().find(|f| f.name == name).ok_or_else(|| {
            let names: Vec<&str> = entries().map(|f| f.name.as_str()).collect();
            Error::Unknown(format!("no entry `{name}` in the module; it has {}", names.join(", ")))
        })
    }
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).map_or(Token::End, |t| t.0)
    }

    fn peek_after(&self) -> Token<'a> {
        self.tokens.get(self.at + 1).map_or(Token::End, |t| t.0)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.1)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn expected<T>(&self, expected: &str) -> Result<T, Error> {
        let (expected, found) = (expected.to_string(), self.peek().to_string());
        Err(Error::Syntax { line: self.line(), expected, found })
    }

    fn take(&mut self, symbol: char) -> bool {
        let is_there = self.peek() == Token::Symbol(symbol);
        self.at += usize::from(is_there);
        is_there
    }

    fn symbol(&mut self, symbol: char) -> Result<(), Error> {
        if self.take(symbol) { Ok(()) } else { self.expected(&format!("`{symbol}`")) }
    }

    fn word(&mut self, what: &str) -> Result<&'a str, Error> {
        if let Token::Word(word) = self.peek() {
            self.at += 1;
            return Ok(word);
        }
        self.expected(what)
    }

    fn integer(&mut self, what: &str) -> Result<u64, Error> {
        if let Token::Int(value) = self.peek() {
            self.at += 1;
            return Ok(value);
        }
        self.expected(what)
    }

    fn small(&mut self, what: &str) -> Result<u32, Error> {
        match u32::try_from(self.integer(what)?) {
            Ok(value) => Ok(value),
            Err(_) => {
                self.at -= 1;
                self.expected(&format!("{what} below 2^32"))
            }
        }
    }

    /// A number that may be negative.
    fn signed(&mut self, what: &str) -> Result<i64, Error> {
        let is_negative = self.take('-');
        let value = self.integer(what)?.cast_signed();
        Ok(if is_negative { value.wrapping_neg() } else { value })
    }

    fn module(&mut self, module: &mut Module) -> Result<(), Error> {
        loop {
            match self.peek() {
                Token::End => break,
                Token::Directive("version") => {
                    self.at += 1;
                    let Token::Float(text) = self.next() else {
                        self.at -= 1;
                        return self.expected("a version such as 8.8");
                    };
                    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
                    module.version = (major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
                }
                Token::Directive("target") => {
                    self.at += 1;
                    module.target = self.word("a target such as sm_80")?.to_string();
                    while self.take(',') {
                        self.word("a target option")?;
                    }
                }
                Token::Directive("address_size") => {
                    self.at += 1;
                    if self.small("64")? != 64 {
                        self.at -= 1;
                        return self.expected("64, the size of addresses of every target here");
                    }
                }
                Token::Directive("section") => self.section()?,
                Token::Directive(_) => self.declaration(module)?,
                Token::Symbol(';') => self.at += 1,
                _ => return self.expected("a directive"),
            }
        }
        if module.version == (0, 0) {
            return self.expected("a module that starts with .version");
        }
        Ok(())
    }

    /// `.section name { ... }`, which holds debugging information.
    fn section(&mut self) -> Result<(), Error> {
        while !matches!(self.peek(), Token::Symbol('{') | Token::End) {
            self.at += 1;
        }
        self.symbol('{')?;
        while !matches!(self.peek(), Token::Symbol('}') | Token::End) {
            self.at += 1;
        }
        self.symbol('}')
    }
}
