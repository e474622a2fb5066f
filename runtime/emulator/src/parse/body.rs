//! Bodies of functions.

use super::Parser;
use super::lexer::Token;
use crate::Error;
use crate::ast::{Instruction, Registers, Statement};

/// Deepest nesting of scopes; inline assembly nests once.
const MAX_DEPTH: usize = 64;
/// Most registers of one range; what a function uses is far below.
const MAX_RANGE: u32 = 1 << 24;

impl Parser<'_> {
    /// `{ ... }`
    pub(super) fn body(&mut self) -> Result<Vec<Statement>, Error> {
        self.symbol('{')?;
        let mut body = vec![];
        let mut depth = 0;
        loop {
            let line = self.line();
            match self.peek() {
                Token::Symbol('{') => {
                    if depth == MAX_DEPTH {
                        return self.expected("scopes less deep");
                    }
                    depth += 1;
                    self.at += 1;
                    body.push(Statement::Open);
                }
                Token::Symbol('}') if depth == 0 => {
                    self.at += 1;
                    return Ok(body);
                }
                Token::Symbol('}') => {
                    depth -= 1;
                    self.at += 1;
                    body.push(Statement::Close);
                }
                Token::Symbol(';') => self.at += 1,
                Token::Symbol('@') | Token::Word(_) => {
                    if self.peek_after() == Token::Symbol(':') {
                        let name = self.word("a label")?.to_string();
                        self.symbol(':')?;
                        body.push(self.labeled(name, line)?);
                    } else {
                        body.push(Statement::Instruction(self.instruction()?));
                    }
                }
                Token::Directive("reg") => body.push(Statement::Registers(self.registers()?)),
                Token::Directive("pragma") => {
                    self.at += 1;
                    while !matches!(self.peek(), Token::Symbol(';') | Token::End) {
                        self.at += 1;
                    }
                    self.symbol(';')?;
                }
                Token::Directive("local" | "shared" | "param" | "global" | "const" | "extern") => {
                    for variable in self.variables()? {
                        body.push(Statement::Variable(variable));
                    }
                }
                _ => return self.expected("an instruction, a declaration or `}`"),
            }
        }
    }

    /// What follows a label: a table of branch targets, or whatever else, which the label then points to.
    fn labeled(&mut self, name: String, line: u32) -> Result<Statement, Error> {
        if self.peek() != Token::Directive("branchtargets") {
            return Ok(Statement::Label(name, line));
        }
        self.at += 1;
        let mut labels = vec![self.word("a label")?.to_string()];
        while self.take(',') {
            labels.push(self.word("a label")?.to_string());
        }
        self.symbol(';')?;
        Ok(Statement::Targets { name, labels })
    }

    fn instruction(&mut self) -> Result<Instruction, Error> {
        let mut guard = None;
        if self.take('@') {
            let is_negated = self.take('!');
            guard = Some((self.word("a predicate")?.to_string(), is_negated));
        }
        let line = self.line();
        let opcode = self.word("an instruction")?.split('.').map(str::to_string).collect();
        Ok(Instruction { line, guard, opcode, operands: self.operands()? })
    }

    fn registers(&mut self) -> Result<Registers, Error> {
        self.at += 1;
        let line = self.line();
        let Token::Directive(kind) = self.next() else {
            self.at -= 1;
            return self.expected("a type of registers such as .b32");
        };
        let mut names = vec![];
        loop {
            let name = self.word("a register")?.to_string();
            let mut count = None;
            if self.take('<') {
                let n = self.small("a number of registers")?;
                if n > MAX_RANGE {
                    self.at -= 1;
                    return self.expected(&format!("at most {MAX_RANGE} registers"));
                }
                count = Some(n);
                self.symbol('>')?;
            }
            names.push((name, count));
            if self.take(';') {
                return Ok(Registers { kind: kind.to_string(), line, names });
            }
            if !self.take(',') {
                return self.expected("`,` or `;`");
            }
        }
    }
}
