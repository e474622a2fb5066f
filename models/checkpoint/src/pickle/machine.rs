//! The stack machine: reading, stack, memo, and what each instruction does.

use std::collections::BTreeMap;

use crate::Error;
use crate::pickle_globals::Global;

use super::{Id, MAX_OBJECTS, MAX_STACK, Object};

pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    opcode_at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
    /// Items copied by calls so far.
    pub(super) copied: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Machine<'a> {
        Machine {
            bytes,
            at: 0,
            opcode_at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
            copied: 0,
        }
    }

    /// The values that were made, and the bytes that were read.
    pub(super) fn finish(self) -> (Vec<Object<'a>>, usize) {
        (self.objects, self.at)
    }

    pub(super) fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Pickle { at: self.opcode_at, problem: problem.into() }
    }

    pub(super) fn too_many(&self, what: &str, limit: usize) -> Error {
        self.wrong(format!("more than {limit} {what}"))
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(n).ok().and_then(|n| rest.get(..n));
        let taken =
            taken.ok_or_else(|| Error::truncated("pickle instruction", n, rest.len() as u64))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// A little-endian unsigned number of `N` bytes.
    fn number<const N: usize>(&mut self) -> Result<u64, Error> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N as u64)?);
        Ok(u64::from_le_bytes(wide))
    }

    fn index<const N: usize>(&mut self) -> Result<u32, Error> {
        let index = self.number::<N>()?;
        Ok(u32::try_from(index).expect("at most 4 bytes are asked for"))
    }

    /// An argument that ends with a newline.
    fn line(&mut self) -> Result<&'a str, Error> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| self.wrong("argument without end of line"))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.wrong("argument is not UTF-8"))
    }

    fn decimal<T: std::str::FromStr>(&mut self) -> Result<T, Error> {
        let line = self.line()?;
        let digits = line.strip_suffix('L').unwrap_or(line);
        digits.parse().map_err(|_| self.wrong(format!("{line:?} is not a number of this size")))
    }

    fn text(&mut self, length: u64) -> Result<(), Error> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.wrong("text is not UTF-8"))?;
        self.push_new(Object::Text(text))
    }

    fn byte_text(&mut self, length: u64) -> Result<(), Error> {
        self.take(length)?;
        self.push_new(Object::Bytes)
    }

    pub(super) fn push(&mut self, id: Id) -> Result<(), Error> {
        if self.stack.len() == MAX_STACK {
            return Err(self.too_many("values on the stack", MAX_STACK));
        }
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn push_new(&mut self, object: Object<'a>) -> Result<(), Error> {
        if self.objects.len() == MAX_OBJECTS {
            return Err(self.too_many("values", MAX_OBJECTS));
        }
        let id = Id::try_from(self.objects.len()).expect("MAX_OBJECTS fits an Id");
        self.objects.push(object);
        self.push(id)
    }

    /// Pops one value; values below the innermost mark are out of reach.
    pub(super) fn pop(&mut self) -> Result<Id, Error> {
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err(self.wrong("stack underflow"));
        }
        self.stack.pop().ok_or_else(|| self.wrong("stack underflow"))
    }

    fn top(&self) -> Result<Id, Error> {
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err(self.wrong("stack underflow"));
        }
        self.stack.last().copied().ok_or_else(|| self.wrong("stack underflow"))
    }

    /// Pops everything above the innermost mark, and the mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, Error> {
        let mark = self.marks.pop().ok_or_else(|| self.wrong("no mark on the stack"))?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id as usize]
    }

    pub(super) fn step(&mut self) -> Result<Option<Id>, Error> {
        self.opcode_at = self.at;
        let opcode = self.take(1)?[0];
        match opcode {
            // Protocol number, frame length: nothing depends on them.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'.' => return self.pop().map(Some),
            b'(' => {
                if self.marks.len() == MAX_STACK {
                    return Err(self.too_many("marks", MAX_STACK));
                }
                self.marks.push(self.stack.len());
            }
            // POP removes a mark when one is on top.
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            b'N' => self.push_new(Object::None)?,
            0x88 => self.push_new(Object::Bool(true))?,
            0x89 => self.push_new(Object::Bool(false))?,
            b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b => self.integer(opcode)?,
            b'F' => {
                self.decimal::<f64>()?;
                self.push_new(Object::Float)?;
            }
            b'G' => {
                self.take(8)?;
                self.push_new(Object::Float)?;
            }
            b'V' | b'X' | 0x8c | 0x8d | b'S' | b'T' | b'U' | b'B' | b'C' | 0x8e | 0x96 => {
                self.string(opcode)?;
            }
            b']' => self.push_new(Object::List(Vec::new()))?,
            b')' => self.push_new(Object::Tuple(Vec::new()))?,
            b'}' => self.push_new(Object::Dict(Vec::new()))?,
            // Sets mean nothing for weights; their elements are dropped.
            0x8f => self.push_new(Object::Inert)?,
            b'l' => {
                let items = self.pop_mark()?;
                self.push_new(Object::List(items))?;
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push_new(Object::Tuple(items))?;
            }
            0x91 => {
                self.pop_mark()?;
                self.push_new(Object::Inert)?;
            }
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let mut items = Vec::with_capacity(n);
                for _ in 0..n {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push_new(Object::Tuple(items))?;
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push_new(Object::Dict(Vec::new()))?;
                self.set_items(&items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            0x90 => {
                self.pop_mark()?;
                self.top()?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            b'g' | b'h' | b'j' => {
                let index = match opcode {
                    b'g' => self.decimal()?,
                    b'h' => self.index::<1>()?,
                    _ => self.index::<4>()?,
                };
                let id = self.memo.get(&index).copied();
                let id = id.ok_or_else(|| self.wrong(format!("nothing at memo {index}")))?;
                self.push(id)?;
            }
            b'p' | b'q' | b'r' | 0x94 => {
                let index = match opcode {
                    b'p' => self.decimal()?,
                    b'q' => self.index::<1>()?,
                    b'r' => self.index::<4>()?,
                    _ => {
                        u32::try_from(self.memo.len()).expect("the memo is bounded by MAX_OBJECTS")
                    }
                };
                let top = self.top()?;
                self.memo.insert(index, top);
                if self.memo.len() > MAX_OBJECTS {
                    return Err(self.too_many("memo entries", MAX_OBJECTS));
                }
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.push_new(Object::Global(Global::find(module, name)?))?;
            }
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                let (Object::Text(module), Object::Text(name)) = (self.get(module), self.get(name))
                else {
                    return Err(self.wrong("the name of a global is not text"));
                };
                let global = Global::find(module, name)?;
                self.push_new(Object::Global(global))?;
            }
            b'R' => self.reduce()?,
            0x81 => {
                self.pop()?;
                self.new_inert()?;
            }
            0x92 => {
                self.pop()?;
                self.pop()?;
                self.new_inert()?;
            }
            b'b' => {
                self.pop()?;
                // State of an OrderedDict is its attributes (`_metadata`); of the inert kinds, nothing we read.
                match self.get(self.top()?) {
                    Object::Dict(_) | Object::Inert => {}
                    other => {
                        return Err(self.wrong(format!("state for {}", other.kind())));
                    }
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push_new(Object::Persistent(id))?;
            }
            _ => {
                return Err(self.wrong(format!("instruction 0x{opcode:02x} is not used by torch")));
            }
        }
        Ok(None)
    }

    fn integer(&mut self, opcode: u8) -> Result<(), Error> {
        let value = match opcode {
            b'I' => {
                let line = self.line()?;
                match line {
                    // Protocol 0 spells booleans as two-digit integers.
                    "00" => return self.push_new(Object::Bool(false)),
                    "01" => return self.push_new(Object::Bool(true)),
                    _ => line.parse().map_err(|_| self.wrong(format!("integer {line:?}")))?,
                }
            }
            b'J' => i64::from(self.index::<4>()?.cast_signed()),
            b'K' => i64::from(self.index::<1>()?),
            b'M' => i64::from(self.index::<2>()?),
            b'L' => self.decimal()?,
            _ => {
                let length = if opcode == 0x8a { self.number::<1>()? } else { self.number::<4>()? };
                let bytes = self.take(length)?;
                if bytes.len() > 8 {
                    return self.push_new(Object::Long);
                }
                let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                i64::from_le_bytes(wide)
            }
        };
        self.push_new(Object::Int(value))
    }

    fn string(&mut self, opcode: u8) -> Result<(), Error> {
        match opcode {
            b'V' => {
                let line = self.line()?;
                if line.contains('\\') {
                    return Err(self.wrong("escaped protocol 0 text"));
                }
                self.push_new(Object::Text(line))
            }
            b'S' => {
                let line = self.line()?;
                let quoted = ['\'', '"'].into_iter().find_map(|quote| {
                    line.strip_prefix(quote)?.strip_suffix(quote).filter(|s| !s.contains('\\'))
                });
                let text =
                    quoted.ok_or_else(|| self.wrong("unquoted or escaped protocol 0 text"))?;
                self.push_new(Object::Text(text))
            }
            b'X' => self.number::<4>().and_then(|length| self.text(length)),
            0x8c => self.number::<1>().and_then(|length| self.text(length)),
            0x8d => self.number::<8>().and_then(|length| self.text(length)),
            // Python 2 texts: keys of old checkpoints.
            b'T' => self.number::<4>().and_then(|length| self.text(length)),
            b'U' => self.number::<1>().and_then(|length| self.text(length)),
            b'B' => self.number::<4>().and_then(|length| self.byte_text(length)),
            b'C' => self.number::<1>().and_then(|length| self.byte_text(length)),
            _ => self.number::<8>().and_then(|length| self.byte_text(length)),
        }
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Error> {
        let list = self.top()?;
        match &mut self.objects[list as usize] {
            Object::List(list) => list.extend_from_slice(items),
            Object::Inert => {}
            other => {
                let problem = format!("append to {}", other.kind());
                return Err(self.wrong(problem));
            }
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Error> {
        let (pairs, odd) = items.as_chunks::<2>();
        if !odd.is_empty() {
            return Err(self.wrong("a key without a value"));
        }
        let dict = self.top()?;
        match &mut self.objects[dict as usize] {
            Object::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Object::Inert => {}
            other => {
                let problem = format!("set items of {}", other.kind());
                return Err(self.wrong(problem));
            }
        }
        Ok(())
    }
}
