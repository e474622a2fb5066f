//! A reader of Python pickles that never runs anything.
//!
//! A pickle is a program for a stack machine. This one builds plain values only: numbers, texts, lists,
//! dictionaries, and torch tensors as descriptions. A name from outside [`Global`]'s list ends the reading.
//! Values live in one arena and refer to each other by index, so sharing and cycles cost nothing, texts are
//! borrowed from the input, and the limits below bound memory whatever the input says.
//!
//! Protocols 0 to 5 are read, except what torch never writes: class instances by `INST` and `OBJ`, extension
//! codes and out-of-band buffers. Reference: `CPython`'s `pickletools`.

use std::collections::BTreeMap;

use crate::Error;
use crate::layout::MAX_RANK;
use crate::pickle_globals::{Global, TensorForm};

/// Most values one pickle may make. T5-XXL with its optimizer needs tens of thousands.
const MAX_OBJECTS: usize = 1 << 19;
/// Most values on the stack at one time.
const MAX_STACK: usize = 1 << 20;
/// Most instructions; bounds the growth of lists and dictionaries.
const MAX_STEPS: usize = 1 << 23;
/// Most items that calls may copy out of lists: a call is one instruction, its list may be long.
const MAX_COPIED: usize = 1 << 20;
/// Most arguments of a call; torch's longest has 7.
const MAX_ARGS: usize = 16;

/// Index of a value in [`Pickle::objects`].
pub(crate) type Id = u32;

/// A value. Containers hold indices.
#[derive(Clone, Debug)]
pub(crate) enum Object<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits.
    Long,
    Float,
    Text(&'a str),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// In order of insertion; the last of equal keys counts.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// What torch calls a persistent id: the description of a storage.
    Persistent(Id),
    Tensor(TensorParts),
    /// Something without meaning for weights: a namespace, a device, a numpy scalar.
    Inert,
}

/// The arguments of torch's tensor rebuild functions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorParts {
    pub(crate) storage: Id,
    pub(crate) offset: u64,
    /// A tuple of natural numbers; see [`Pickle::dims`].
    pub(crate) shape: Id,
    /// As `shape`.
    pub(crate) strides: Id,
}

impl Object<'_> {
    /// What it is, for error messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Object::None => "None",
            Object::Bool(_) => "a boolean",
            Object::Int(_) | Object::Long => "an integer",
            Object::Float => "a float",
            Object::Text(_) => "a text",
            Object::Bytes => "bytes",
            Object::Tuple(_) => "a tuple",
            Object::List(_) => "a list",
            Object::Dict(_) => "a dictionary",
            Object::Global(_) => "a class or function",
            Object::Persistent(_) => "a storage",
            Object::Tensor(_) => "a tensor",
            Object::Inert => "an opaque object",
        }
    }
}

/// A loaded pickle.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    /// The value that `STOP` left.
    pub(crate) root: Id,
    /// Bytes that were read; another pickle may follow.
    pub(crate) length: usize,
}

impl<'a> Pickle<'a> {
    pub(crate) fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id as usize]
    }

    pub(crate) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The numbers of a tensor's shape or strides.
    pub(crate) fn dims(&self, id: Id) -> Vec<u64> {
        let Object::Tuple(items) = self.get(id) else {
            unreachable!("the machine checked that it is a tuple")
        };
        let natural = |id: &Id| match self.get(*id) {
            Object::Int(value) => value.cast_unsigned(),
            other => unreachable!("the machine checked the tuple, it holds {}", other.kind()),
        };
        items.iter().map(natural).collect()
    }

    /// Every storage description, in order of appearance.
    pub(crate) fn persistent_ids(&self) -> impl Iterator<Item = Id> {
        let ids = (0..).zip(&self.objects);
        ids.filter(|(_, object)| matches!(object, Object::Persistent(_))).map(|(id, _)| id)
    }

    /// Loads the pickle that starts at the first byte.
    pub(crate) fn load(bytes: &'a [u8]) -> Result<Pickle<'a>, Error> {
        let mut machine = Machine {
            bytes,
            at: 0,
            opcode_at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
            copied: 0,
        };
        for _ in 0..MAX_STEPS {
            if let Some(root) = machine.step()? {
                return Ok(Pickle { objects: machine.objects, root, length: machine.at });
            }
        }
        Err(machine.too_many("instructions", MAX_STEPS))
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    opcode_at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
    /// Items copied by calls so far.
    copied: usize,
}

impl<'a> Machine<'a> {
    fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Pickle { at: self.opcode_at, problem: problem.into() }
    }

    fn too_many(&self, what: &str, limit: usize) -> Error {
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

    fn push(&mut self, id: Id) -> Result<(), Error> {
        if self.stack.len() == MAX_STACK {
            return Err(self.too_many("values on the stack", MAX_STACK));
        }
        self.stack.push(id);
        Ok(())
    }

    fn push_new(&mut self, object: Object<'a>) -> Result<(), Error> {
        if self.objects.len() == MAX_OBJECTS {
            return Err(self.too_many("values", MAX_OBJECTS));
        }
        let id = Id::try_from(self.objects.len()).expect("MAX_OBJECTS fits an Id");
        self.objects.push(object);
        self.push(id)
    }

    /// Pops one value; values below the innermost mark are out of reach.
    fn pop(&mut self) -> Result<Id, Error> {
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

    fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id as usize]
    }

    fn step(&mut self) -> Result<Option<Id>, Error> {
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

    fn new_inert(&mut self) -> Result<(), Error> {
        let class = self.pop()?;
        match self.get(class) {
            Object::Global(Global::Inert) => self.push_new(Object::Inert),
            other => Err(self.wrong(format!("instance of {}", other.kind()))),
        }
    }

    fn reduce(&mut self) -> Result<(), Error> {
        let args = self.pop()?;
        let callee = self.pop()?;
        let Object::Tuple(args) = self.get(args) else {
            return Err(self.wrong("call with arguments that are not a tuple"));
        };
        if args.len() > MAX_ARGS {
            return Err(self.too_many("arguments", MAX_ARGS));
        }
        let args = args.clone();
        let Object::Global(global) = *self.get(callee) else {
            let kind = self.get(callee).kind();
            return Err(self.wrong(format!("call of {kind}")));
        };
        match global {
            Global::OrderedDict => self.ordered_dict(&args),
            Global::Tensor(form) => self.tensor(form, &args),
            Global::Size => match args[..] {
                [dims] if matches!(self.get(dims), Object::Tuple(_)) => self.push(dims),
                _ => Err(self.wrong("torch.Size of something other than a tuple")),
            },
            Global::Inert => self.push_new(Object::Inert),
            Global::Storage(_) => Err(self.wrong("call of a storage type")),
        }
    }

    fn ordered_dict(&mut self, args: &[Id]) -> Result<(), Error> {
        let mut pairs = Vec::new();
        let mut copied = self.copied;
        if let Some(items) = args.first() {
            let Object::List(items) = self.get(*items) else {
                return Err(self.wrong("OrderedDict of something other than a list"));
            };
            copied += items.len();
            if copied > MAX_COPIED {
                return Err(self.too_many("items copied", MAX_COPIED));
            }
            for item in items {
                match self.get(*item) {
                    Object::Tuple(pair) | Object::List(pair) if pair.len() == 2 => {
                        pairs.push((pair[0], pair[1]));
                    }
                    _ => return Err(self.wrong("OrderedDict item is not a pair")),
                }
            }
        }
        self.copied = copied;
        self.push_new(Object::Dict(pairs))
    }

    fn tensor(&mut self, form: TensorForm, args: &[Id]) -> Result<(), Error> {
        if form == TensorForm::Parameter {
            return match args.first() {
                Some(data) if matches!(self.get(*data), Object::Tensor(_)) => self.push(*data),
                _ => Err(self.wrong("parameter of something other than a tensor")),
            };
        }
        let [storage, offset, shape, strides, ..] = args else {
            return Err(self.wrong("tensor with fewer than 4 arguments"));
        };
        if !matches!(self.get(*storage), Object::Persistent(_)) {
            return Err(self.wrong("tensor of something other than a storage"));
        }
        let parts = TensorParts {
            storage: *storage,
            offset: self.natural(*offset, "storage offset")?,
            shape: self.checked_dims(*shape, "shape")?,
            strides: self.checked_dims(*strides, "strides")?,
        };
        self.push_new(Object::Tensor(parts))
    }

    fn natural(&self, id: Id, what: &str) -> Result<u64, Error> {
        match self.get(id) {
            Object::Int(value) => u64::try_from(*value)
                .map_err(|_| self.wrong(format!("{what} has the negative number {value}"))),
            other => Err(self.wrong(format!("{what} holds {}, expected an integer", other.kind()))),
        }
    }

    /// Checks that a value is a short tuple of natural numbers. Tuples never change, so the check holds later.
    fn checked_dims(&self, id: Id, what: &str) -> Result<Id, Error> {
        let Object::Tuple(items) = self.get(id) else {
            let kind = self.get(id).kind();
            return Err(self.wrong(format!("{what} is {kind}, expected a tuple")));
        };
        if items.len() > MAX_RANK {
            return Err(self.wrong(format!("{what} has {} numbers", items.len())));
        }
        for item in items {
            self.natural(*item, what)?;
        }
        Ok(id)
    }
}
