//! Operands of instructions.

use super::Parser;
use super::lexer::Token;
use crate::Error;
use crate::ast::Operand;

/// Most operands of a list or vector; parameters of a call are the longest.
const MAX_LIST: usize = 1024;

impl Parser<'_> {
    /// `a, b, c` up to `;`, which is taken.
    pub(super) fn operands(&mut self) -> Result<Vec<Operand>, Error> {
        let mut operands = vec![];
        if self.take(';') {
            return Ok(operands);
        }
        loop {
            operands.push(self.operand()?);
            if self.take(';') {
                return Ok(operands);
            }
            if !self.take(',') {
                return self.expected("`,` or `;` after an operand");
            }
        }
    }

    fn operand(&mut self) -> Result<Operand, Error> {
        match self.peek() {
            Token::Symbol('{') => Ok(Operand::Vector(self.list('{', '}')?)),
            Token::Symbol('(') => Ok(Operand::List(self.list('(', ')')?)),
            Token::Symbol('[') => self.address(),
            _ => self.simple(),
        }
    }

    fn list(&mut self, open: char, close: char) -> Result<Vec<Operand>, Error> {
        self.symbol(open)?;
        let mut list = vec![];
        if self.take(close) {
            return Ok(list);
        }
        loop {
            list.push(self.simple()?);
            if self.take(close) {
                return Ok(list);
            }
            if !self.take(',') || list.len() == MAX_LIST {
                return self.expected(&format!("`,` or `{close}`"));
            }
        }
    }

    /// An operand without braces.
    fn simple(&mut self) -> Result<Operand, Error> {
        match self.peek() {
            Token::Word(word) => {
                self.at += 1;
                let name = word.to_string();
                if self.take('|') {
                    return Ok(Operand::Pair(
                        name,
                        self.word("a predicate after `|`")?.to_string(),
                    ));
                }
                if matches!(self.peek(), Token::Symbol('+' | '-')) {
                    self.take('+');
                    return Ok(Operand::NameOffset(name, self.signed("an offset")?));
                }
                Ok(Operand::Name(name))
            }
            Token::Symbol('!') => {
                self.at += 1;
                Ok(Operand::Not(self.word("a predicate after `!`")?.to_string()))
            }
            Token::Symbol('-') => {
                self.at += 1;
                match self.simple_number()? {
                    Operand::Int(value) => Ok(Operand::Int(value.wrapping_neg())),
                    Operand::F32(bits) => Ok(Operand::F32(bits ^ 1 << 31)),
                    Operand::F64(bits) => Ok(Operand::F64(bits ^ 1 << 63)),
                    _ => self.expected("a number after `-`"),
                }
            }
            _ => self.simple_number(),
        }
    }

    fn simple_number(&mut self) -> Result<Operand, Error> {
        let operand = match self.peek() {
            Token::Int(value) => Operand::Int(value),
            Token::F32(bits) => Operand::F32(bits),
            Token::F64(bits) => Operand::F64(bits),
            Token::Float(text) => match text.parse::<f64>() {
                Ok(value) => Operand::F64(value.to_bits()),
                Err(_) => return self.expected("a number"),
            },
            _ => return self.expected("an operand"),
        };
        self.at += 1;
        Ok(operand)
    }

    fn address(&mut self) -> Result<Operand, Error> {
        self.symbol('[')?;
        let (mut base, mut offset) = (None, 0);
        if let Token::Word(word) = self.peek() {
            self.at += 1;
            base = Some(word.to_string());
            if self.take('+') || self.peek() == Token::Symbol('-') {
                offset = self.signed("an offset in bytes")?;
            }
        } else {
            offset = self.signed("a register, variable or number")?;
        }
        if !self.take(']') {
            return self.expected("`]`");
        }
        Ok(Operand::Address { base, offset })
    }
}
