//! A reader of Python pickles that never runs anything.
//!
//! A pickle is a program for a stack machine. This one builds plain values only: numbers, texts, lists,
//! dictionaries, and torch tensors as descriptions. A name from outside [`Global`]'s list ends the reading.
//! Values live in one arena and refer to each other by index, so sharing and cycles cost nothing, texts are
//! borrowed from the input, and the limits below bound memory whatever the input says.
//!
//! Protocols 0 to 5 are read, except what torch never writes: class instances by `INST` and `OBJ`, extension
//! codes and out-of-band buffers. Reference: `CPython`'s `pickletools`.

mod calls;
mod machine;

use crate::Error;
use crate::pickle_globals::Global;

use machine::Machine;

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
        let mut machine = Machine::new(bytes);
        for _ in 0..MAX_STEPS {
            if let Some(root) = machine.step()? {
                let (objects, length) = machine.finish();
                return Ok(Pickle { objects, root, length });
            }
        }
        Err(machine.too_many("instructions", MAX_STEPS))
    }
}
