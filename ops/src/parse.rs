//! Reads the textual form that `text.rs` writes.
//!
//! Input may be hostile: nesting is bounded, shapes are checked before anything is sized by them,
//! and a declared type must be the inferred one, so a hand-edited file cannot lie.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::text::INLINE_ELEMENTS;
use crate::{Attr, Builder, DType, Error, Graph, Op, Tensor, TensorType, ValueId};

/// Graphs nest at most this deep (a fused group inside a graph is depth 2).
const MAX_DEPTH: usize = 4;

/// Constants by the hash under which they print.
pub type Constants = BTreeMap<u64, Arc<Tensor>>;

/// Parses one graph, with its `data` lines if it has large constants.
pub fn parse(text: &str) -> Result<Graph, Error> {
    parse_with_constants(text, &Constants::new())
}

/// Parses one graph whose large constants are in `constants` or in `data` lines of the text.
pub fn parse_with_constants(text: &str, constants: &Constants) -> Result<Graph, Error> {
    let mut parser = Parser::new(text, 1);
    parser.constants.clone_from(constants);
    parser.find_data()?;
    let graph = parser.graph(1)?;
    parser.end()?;
    Ok(graph)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    constants: Constants,
    /// Elements of `data` lines and the lines they are on, by hash; typed when a constant names
    /// them.
    data: BTreeMap<u64, (&'a str, usize)>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, line: usize) -> Parser<'a> {
        Parser { text, at: 0, line, constants: Constants::new(), data: BTreeMap::new() }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Parse { line: self.line, reason: reason.into() }
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let taken = &self.text[self.at..self.at + bytes];
        self.line += taken.bytes().filter(|&b| b == b'\n').count();
        self.at += bytes;
        taken
    }

    /// Skips white space and comments.
    fn space(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            self.advance(blank);
            if !self.rest().starts_with("//") {
                return;
            }
            let end = self.rest().find('\n').unwrap_or(self.rest().len());
            self.advance(end);
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        self.space();
        let found = self.rest().starts_with(token);
        if found {
            self.advance(token.len());
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), Error> {
        if self.eat(token) { Ok(()) } else { Err(self.error(format!("expected `{token}`"))) }
    }

    fn while_chars(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        self.space();
        let rest = self.rest();
        let end = rest.find(|c| !keep(c)).unwrap_or(rest.len());
        self.advance(end)
    }

    fn word(&mut self) -> Result<&'a str, Error> {
        let word = self.while_chars(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if word.is_empty() { Err(self.error("expected a name")) } else { Ok(word) }
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, Error> {
        let word = self.while_chars(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        word.parse().map_err(|_| self.error(format!("expected {what}, found `{word}`")))
    }

    fn list<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close) {
                return Ok(items);
            }
            self.expect(",")?;
        }
    }

    fn value(&mut self) -> Result<ValueId, Error> {
        self.expect("%")?;
        Ok(ValueId(self.number("a value number")?))
    }

    fn values(&mut self) -> Result<Vec<ValueId>, Error> {
        let mut values = vec![self.value()?];
        while self.eat(",") {
            values.push(self.value()?);
        }
        Ok(values)
    }

    fn dtype(&mut self) -> Result<DType, Error> {
        let name = self.word()?;
        DType::from_name(name).ok_or_else(|| self.error(format!("unknown element type `{name}`")))
    }

    fn ty(&mut self) -> Result<TensorType, Error> {
        let dtype = self.dtype()?;
        self.expect("[")?;
        let shape = self.list("]", |p| p.number("a dim"))?;
        TensorType::new(dtype, shape).map_err(|e| self.error(e.to_string()))
    }

    fn string(&mut self) -> Result<String, Error> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.advance(i + 1);
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, c @ ('"' | '\\'))) => out.push(c),
                    Some((_, 'u')) => {
                        let code: String =
                            chars.by_ref().map(|(_, c)| c).take_while(|&c| c != '}').collect();
                        let code = u32::from_str_radix(code.trim_start_matches('{'), 16).ok();
                        out.push(code.and_then(char::from_u32).ok_or_else(|| {
                            self.error("expected a character number after `\\u`")
                        })?);
                    }
                    _ => return Err(self.error("unknown escape in a string")),
                },
                '\n' => break,
                c => out.push(c),
            }
        }
        Err(self.error("the string does not end on its line"))
    }

    fn graph(&mut self, depth: usize) -> Result<Graph, Error> {
        if depth > MAX_DEPTH {
            return Err(self.error(format!("graphs nest deeper than {MAX_DEPTH}")));
        }
        self.expect("graph")?;
        self.expect("@")?;
        let name = self.while_chars(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        let mut b = Builder::new(name);
        self.expect("{")?;
        loop {
            self.space();
            if self.rest().starts_with('%') {
                self.node(&mut b, depth)?;
            } else {
                break;
            }
        }
        self.expect("return")?;
        let line = self.line;
        let outputs = self.values()?;
        if let Some(output) = outputs.iter().find(|o| o.index() >= b.graph().nodes.len()) {
            return Err(Error::Parse { line, reason: format!("{output} does not exist") });
        }
        self.expect("}")?;
        Ok(b.finish(&outputs))
    }

    fn node(&mut self, b: &mut Builder, depth: usize) -> Result<(), Error> {
        let name = self.value()?;
        self.expect(":")?;
        let ty = self.ty()?;
        self.expect("=")?;
        let line = self.line;
        let id = match self.word()? {
            "input" => {
                let name = self.string()?;
                b.input(&name, ty.clone())
            }
            "param" => {
                let name = self.string()?;
                b.param(&name, ty.clone())
            }
            "constant" => {
                let tensor = self.constant(&ty)?;
                b.shared_constant(tensor)
            }
            op => {
                let args = self.values()?;
                let attrs = if self.eat("{") { self.list("}", |p| p.attr(depth))? } else { vec![] };
                let at = |e: Error| Error::Parse { line, reason: e.to_string() };
                b.op(Op::parse(op, &attrs).map_err(at)?, &args).map_err(at)?
            }
        };
        if name != id {
            return Err(Error::Parse { line, reason: format!("expected the next value, {id}") });
        }
        if *b.ty(id) != ty {
            let reason = format!("declared {ty}, inferred {}", b.ty(id));
            return Err(Error::Parse { line, reason });
        }
        Ok(())
    }

    fn attr(&mut self, depth: usize) -> Result<(String, Attr), Error> {
        let key = self.word()?.to_string();
        self.expect("=")?;
        self.space();
        let rest = self.rest();
        let value = if rest.starts_with('"') {
            Attr::Str(self.string()?)
        } else if self.eat("[") {
            Attr::Ints(self.list("]", |p| p.number("an integer"))?)
        } else if rest.starts_with("graph ") {
            Attr::Graph(Box::new(self.graph(depth + 1)?))
        } else {
            let word = self.while_chars(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
            match word {
                "true" => Attr::Bool(true),
                "false" => Attr::Bool(false),
                _ => {
                    if let Some(dtype) = DType::from_name(word) {
                        Attr::DType(dtype)
                    } else if let Ok(x) = word.parse() {
                        Attr::Int(x)
                    } else if let Ok(x) = word.parse() {
                        Attr::Float(x)
                    } else {
                        return Err(self.error(format!("`{word}` is not an attribute value")));
                    }
                }
            }
        };
        Ok((key, value))
    }

    fn hash(&mut self) -> Result<u64, Error> {
        let word = self.while_chars(|c| c.is_ascii_hexdigit());
        u64::from_str_radix(word, 16).map_err(|_| self.error("expected a constant's hash"))
    }

    /// Shared, so that a text that names one large constant many times stays small in memory.
    fn constant(&mut self, ty: &TensorType) -> Result<Arc<Tensor>, Error> {
        if !self.eat("#") {
            if ty.count() > INLINE_ELEMENTS {
                return Err(self
                    .error(format!("constants above {INLINE_ELEMENTS} elements print as #hash")));
            }
            return self.elements(ty).map(Arc::new);
        }
        let hash = self.hash()?;
        if let Some(tensor) = self.constants.get(&hash) {
            if tensor.ty() != ty {
                return Err(self.error(format!("#{hash:016x} is {}, not {ty}", tensor.ty())));
            }
            return Ok(tensor.clone());
        }
        let Some(&(text, line)) = self.data.get(&hash) else {
            return Err(self.error(format!("no data line for constant #{hash:016x}")));
        };
        let mut elements = Parser::new(text, line);
        let tensor = Arc::new(elements.elements(ty)?);
        elements.space();
        if !elements.rest().is_empty() {
            return Err(elements.error("expected the end of the line"));
        }
        if tensor.content_hash() != hash {
            return Err(self.error(format!("data of #{hash:016x} has another hash")));
        }
        self.constants.insert(hash, tensor.clone());
        Ok(tensor)
    }

    fn elements(&mut self, ty: &TensorType) -> Result<Tensor, Error> {
        self.expect("[")?;
        let count = |found: usize, parser: &Self| {
            if found == ty.count() {
                return Ok(());
            }
            Err(parser.error(format!("{found} elements do not fill {ty}")))
        };
        let tensor = if ty.dtype().is_float() {
            let values: Vec<f64> = self.list("]", |p| p.number("a float"))?;
            count(values.len(), self)?;
            Tensor::floats(ty.clone(), values)
        } else {
            let values: Vec<i64> = self.list("]", |p| p.number("an integer"))?;
            count(values.len(), self)?;
            Tensor::ints(ty.clone(), values)
        };
        if tensor.clone().rounded() != tensor {
            return Err(self.error(format!("an element is not a value of {}", ty.dtype())));
        }
        Ok(tensor)
    }

    /// Fails unless only `data` lines follow.
    fn end(&mut self) -> Result<(), Error> {
        loop {
            self.space();
            if self.rest().is_empty() {
                return Ok(());
            }
            let starts_line = self.text[..self.at].ends_with('\n');
            if !starts_line || !self.rest().starts_with("data #") {
                return Err(self.error("expected the end of the text"));
            }
            let end = self.rest().find('\n').unwrap_or(self.rest().len());
            self.advance(end);
        }
    }

    /// Records where each `data` line's elements are, so constants above them can be read.
    fn find_data(&mut self) -> Result<(), Error> {
        for (i, line) in self.text.lines().enumerate() {
            let Some(rest) = line.strip_prefix("data #") else { continue };
            let bad = || Error::Parse { line: i + 1, reason: "expected `data #<hash> = [`".into() };
            let (hash, elements) = rest.split_once(" = ").ok_or_else(bad)?;
            let hash = u64::from_str_radix(hash, 16).map_err(|_| bad())?;
            self.data.insert(hash, (elements, i + 1));
        }
        Ok(())
    }
}
