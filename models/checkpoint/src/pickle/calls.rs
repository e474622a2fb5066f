//! What calls make: dictionaries, sizes, and tensors from torch's rebuild functions.

use crate::Error;
use crate::layout::MAX_RANK;
use crate::pickle_globals::{Global, TensorForm};

use super::machine::Machine;
use super::{Id, MAX_ARGS, MAX_COPIED, Object, TensorParts};

impl Machine<'_> {
    pub(super) fn new_inert(&mut self) -> Result<(), Error> {
        let class = self.pop()?;
        match self.get(class) {
            Object::Global(Global::Inert) => self.push_new(Object::Inert),
            other => Err(self.wrong(format!("instance of {}", other.kind()))),
        }
    }

    pub(super) fn reduce(&mut self) -> Result<(), Error> {
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
