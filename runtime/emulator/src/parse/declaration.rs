//! Functions, variables, parameters and initializers.

use super::Parser;
use super::lexer::Token;
use crate::Error;
use crate::ast::{Function, Initial, Module, Space, Variable};

/// Largest variable. A limit of this reader; real ones are far smaller.
const MAX_VARIABLE_BYTES: u64 = 64 << 20;
/// Largest alignment that PTX allows in practice.
const MAX_ALIGN: u64 = 1024;

/// Bytes of an element of a variable type; 0 for predicates.
fn element_bytes(kind: &str) -> Option<u64> {
    Some(match kind {
        "pred" => 0,
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        _ => return None,
    })
}

fn space_of(directive: &str) -> Option<Space> {
    Some(match directive {
        "global" => Space::Global,
        "shared" => Space::Shared,
        "const" => Space::Const,
        "local" => Space::Local,
        "param" => Space::Param,
        "reg" => Space::Register,
        _ => return None,
    })
}

impl Parser<'_> {
    /// A variable or function of the module.
    pub(super) fn declaration(&mut self, module: &mut Module) -> Result<(), Error> {
        let start = self.at;
        while let Token::Directive("visible" | "extern" | "weak" | "common") = self.peek() {
            self.at += 1;
        }
        match self.peek() {
            Token::Directive("entry") => {
                self.at += 1;
                let function = self.function(true)?;
                module.functions.push(function);
            }
            Token::Directive("func") => {
                self.at += 1;
                let function = self.function(false)?;
                module.functions.push(function);
            }
            Token::Directive(word) if space_of(word).is_some() => {
                self.at = start;
                let variables = self.variables()?;
                module.variables.extend(variables);
            }
            _ => return self.expected("`.entry`, `.func` or a variable"),
        }
        Ok(())
    }

    fn function(&mut self, is_entry: bool) -> Result<Function, Error> {
        while matches!(self.peek(), Token::Directive("noreturn")) {
            self.at += 1;
        }
        let results = if self.peek() == Token::Symbol('(') { self.params()? } else { vec![] };
        let line = self.line();
        let name = self.word("the name of a function")?.to_string();
        let params = if self.peek() == Token::Symbol('(') { self.params()? } else { vec![] };
        let (mut max_threads, mut required_block) = (None, None);
        while let Token::Directive(directive) = self.peek() {
            self.at += 1;
            match directive {
                "maxntid" => {
                    max_threads = Some(self.dims()?.iter().map(|&dim| u64::from(dim)).product());
                }
                "reqntid" => required_block = Some(self.dims()?),
                "minnctapersm" | "maxnreg" | "maxnctapersm" | "maxclusterrank" => {
                    self.small("a number")?;
                }
                "reqnctapercluster" | "explicitcluster" | "blocksareclusters" => {
                    self.at -= 1;
                    return self.expected("a function without clusters, which are not emulated");
                }
                "noreturn" => {}
                "pragma" => {
                    while !matches!(self.peek(), Token::Symbol(';') | Token::End) {
                        self.at += 1;
                    }
                    self.symbol(';')?;
                }
                _ => {
                    self.at -= 1;
                    return self.expected("a directive of a function or its body");
                }
            }
        }
        let is_defined = !self.take(';');
        let body = if is_defined { self.body()? } else { vec![] };
        Ok(Function {
            name,
            line,
            is_entry,
            is_defined,
            results,
            params,
            max_threads,
            required_block,
            body,
        })
    }

    fn dims(&mut self) -> Result<[u32; 3], Error> {
        let mut dims = [self.small("a number of threads")?, 1, 1];
        for dim in &mut dims[1..] {
            if self.take(',') {
                *dim = self.small("a number of threads")?;
            }
        }
        Ok(dims)
    }

    fn params(&mut self) -> Result<Vec<Variable>, Error> {
        self.symbol('(')?;
        let mut params = vec![];
        if self.take(')') {
            return Ok(params);
        }
        loop {
            let Token::Directive(space @ ("param" | "reg")) = self.peek() else {
                return self.expected("`.param` or `.reg`");
            };
            self.at += 1;
            let (kind, align, bytes) = self.kind()?;
            let space = space_of(space).unwrap_or(Space::Param);
            params.push(self.variable(space, false, &kind, align, bytes)?);
            if self.take(')') {
                return Ok(params);
            }
            if !self.take(',') {
                return self.expected("`,` or `)`");
            }
        }
    }

    /// `.align 4 .b8`, in any order, with what pointers point to: element type, alignment and size.
    fn kind(&mut self) -> Result<(String, Option<u64>, u64), Error> {
        let (mut kind, mut align, mut factor) = (None, None, 1);
        loop {
            match self.peek() {
                Token::Directive("align") => {
                    self.at += 1;
                    let value = self.integer("an alignment")?;
                    if !value.is_power_of_two() || value > MAX_ALIGN {
                        self.at -= 1;
                        return self.expected(&format!("a power of two up to {MAX_ALIGN}"));
                    }
                    // After `.ptr` it is what the pointer points to that is aligned.
                    if kind.is_none() || align.is_none() && factor != 0 {
                        align = Some(value);
                    }
                }
                Token::Directive("ptr") => {
                    self.at += 1;
                    while let Token::Directive(word) = self.peek() {
                        self.at += 1;
                        if word == "align" {
                            self.integer("an alignment")?;
                        }
                    }
                }
                Token::Directive("attribute") => {
                    self.at += 1;
                    while !matches!(self.peek(), Token::Symbol(')') | Token::End) {
                        self.at += 1;
                    }
                    self.symbol(')')?;
                }
                Token::Directive("v2") => {
                    (self.at, factor) = (self.at + 1, 2);
                }
                Token::Directive("v4") => {
                    (self.at, factor) = (self.at + 1, 4);
                }
                Token::Directive(word) if element_bytes(word).is_some() => {
                    self.at += 1;
                    kind = Some((word.to_string(), element_bytes(word).unwrap_or(0)));
                }
                _ => break,
            }
        }
        match kind {
            Some((kind, bytes)) => Ok((kind, align, bytes * factor)),
            None => self.expected("a type such as .b32"),
        }
    }

    /// `.shared .align 4 .b8 a[16], b = 3;`
    pub(super) fn variables(&mut self) -> Result<Vec<Variable>, Error> {
        let (mut is_extern, mut space) = (false, None);
        while let Token::Directive(word) = self.peek() {
            match word {
                "extern" => is_extern = true,
                "visible" | "weak" | "common" => {}
                _ if space.is_none() && space_of(word).is_some() => space = space_of(word),
                _ => break,
            }
            self.at += 1;
        }
        let Some(space) = space else { return self.expected("a state space") };
        let (kind, align, bytes) = self.kind()?;
        let mut variables = vec![];
        loop {
            variables.push(self.variable(space, is_extern, &kind, align, bytes)?);
            if self.take(';') {
                return Ok(variables);
            }
            if !self.take(',') {
                return self.expected("`,` or `;`");
            }
        }
    }

    fn variable(
        &mut self,
        space: Space,
        is_extern: bool,
        kind: &str,
        align: Option<u64>,
        element_bytes: u64,
    ) -> Result<Variable, Error> {
        let line = self.line();
        let name = self.word("a name")?.to_string();
        let mut count = Some(1_u64);
        while self.take('[') {
            if self.take(']') {
                count = None;
                continue;
            }
            let dim = self.integer("a length")?;
            count = count.and_then(|count| count.checked_mul(dim));
            if count.is_none_or(|count| count.saturating_mul(element_bytes) > MAX_VARIABLE_BYTES) {
                self.at -= 1;
                return self.expected(&format!("a variable of at most {MAX_VARIABLE_BYTES} bytes"));
            }
            self.symbol(']')?;
        }
        let mut initial = vec![];
        if self.take('=') {
            self.initializer(&mut initial)?;
            count = count.or(Some(initial.len() as u64));
        }
        let element = kind.to_string();
        let align = align.unwrap_or(element_bytes.max(1));
        Ok(Variable { name, line, space, is_extern, element, element_bytes, count, align, initial })
    }

    /// A value, or values in braces; nested braces are read as one list.
    fn initializer(&mut self, initial: &mut Vec<Initial>) -> Result<(), Error> {
        let mut depth = 0_usize;
        loop {
            while self.take('{') {
                depth += 1;
            }
            if !(depth > 0 && self.peek() == Token::Symbol('}')) {
                initial.push(self.initial()?);
            }
            while depth > 0 && self.take('}') {
                depth -= 1;
            }
            if depth == 0 {
                return Ok(());
            }
            self.symbol(',')?;
        }
    }

    fn initial(&mut self) -> Result<Initial, Error> {
        let mut is_generic = false;
        if self.peek() == Token::Word("generic") && self.peek_after() == Token::Symbol('(') {
            self.at += 2;
            is_generic = true;
        }
        let is_negative = self.take('-');
        let value = match self.peek() {
            Token::Int(value) => {
                Initial::Bits(if is_negative { value.wrapping_neg() } else { value })
            }
            Token::F32(bits) => Initial::Bits(u64::from(bits ^ u32::from(is_negative) << 31)),
            Token::F64(bits) => Initial::Bits(bits ^ u64::from(is_negative) << 63),
            Token::Word(name) => Initial::Address { name: name.to_string(), offset: 0, is_generic },
            _ => return self.expected("a value"),
        };
        self.at += 1;
        if is_generic {
            self.symbol(')')?;
        }
        match value {
            Initial::Address { name, is_generic, .. } => {
                let is_moved = self.take('+') || self.peek() == Token::Symbol('-');
                let offset = if is_moved { self.signed("an offset")? } else { 0 };
                Ok(Initial::Address { name, offset, is_generic })
            }
            Initial::Bits(_) => Ok(value),
        }
    }
}
