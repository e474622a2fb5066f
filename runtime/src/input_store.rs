//! Values of inputs that stay from run to run.
//!
//! What a plan carries lives here while no run is under way and during runs too: steps read and write this memory
//! itself. Several sessions may run on one store, one after the other; a store belongs to nobody but its owner.

use std::alloc::{Layout, handle_alloc_error};
use std::collections::BTreeMap;

use compiler::ALIGN_BYTES;

use crate::Error;
use crate::arena::Arena;

/// Inputs by name, as dense little-endian bytes in memory of their own.
#[derive(Debug, Default)]
pub struct InputStore {
    tensors: BTreeMap<String, Tensor>,
}

/// Memory as plans' buffers are: aligned, and padded to whole lines.
#[derive(Debug)]
struct Tensor {
    memory: Arena,
    bytes: usize,
}

impl Tensor {
    fn zeros(bytes: usize) -> Result<Tensor, Error> {
        let memory = Arena::new(bytes.next_multiple_of(ALIGN_BYTES), "input that stays")?;
        Ok(Tensor { memory, bytes })
    }
}

impl InputStore {
    /// A store without inputs.
    pub fn new() -> InputStore {
        InputStore::default()
    }

    /// Sets input `name` to `bytes`. Its memory stays the same as long as its size does.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        match self.get_mut(name) {
            Some(value) if value.len() == bytes.len() => value.copy_from_slice(bytes),
            _ => {
                let mut tensor = Tensor::zeros(bytes.len())?;
                tensor.memory.slice_mut(0, bytes.len()).copy_from_slice(bytes);
                self.tensors.insert(name.to_string(), tensor);
            }
        }
        Ok(())
    }

    /// Sets input `name` to `bytes` bytes of 0, in new memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn write_zeros(&mut self, name: &str, bytes: usize) -> Result<(), Error> {
        self.tensors.insert(name.to_string(), Tensor::zeros(bytes)?);
        Ok(())
    }

    /// The value of input `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.tensors.get(name).map(|tensor| tensor.memory.slice(0, tensor.bytes))
    }

    /// The value of input `name`, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        let tensor = self.tensors.get_mut(name)?;
        Some(tensor.memory.slice_mut(0, tensor.bytes))
    }

    /// All inputs, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let tensors = self.tensors.iter();
        tensors.map(|(name, tensor)| (name.as_str(), tensor.memory.slice(0, tensor.bytes)))
    }

    /// Where the value of input `name` is, if that has `bytes` bytes.
    pub(crate) fn address(&mut self, name: &str, bytes: usize) -> Result<*mut u8, Error> {
        let fail = |reason: String| Error::Input { name: name.to_string(), reason };
        let tensor = self.tensors.get_mut(name);
        let tensor =
            tensor.ok_or_else(|| fail("stays from run to run, but was never written".into()))?;
        if tensor.bytes != bytes {
            return Err(fail(format!("{} bytes, expected {bytes}", tensor.bytes)));
        }
        Ok(tensor.memory.ptr())
    }
}

impl Clone for InputStore {
    fn clone(&self) -> InputStore {
        let mut copy = InputStore::new();
        for (name, value) in self.iter() {
            // As for the collections of the standard library, memory is there or the program ends.
            copy.write(name, value)
                .unwrap_or_else(|_| handle_alloc_error(Layout::for_value(value)));
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_where_they_are_and_are_nobody_elses() {
        let mut store = InputStore::new();
        store.write("x", &[1; 70]).unwrap();
        store.write_zeros("y", 3).unwrap();
        let at = store.address("x", 70).unwrap();
        store.write("x", &[2; 70]).unwrap();
        assert_eq!(store.address("x", 70).unwrap(), at);
        assert_eq!(at.align_offset(ALIGN_BYTES), 0);
        let copy = store.clone();
        store.get_mut("x").unwrap()[0] = 9;
        let values: Vec<(&str, &[u8])> = copy.iter().collect();
        assert_eq!(values, [("x", &[2; 70][..]), ("y", &[0; 3])]);
        assert!(store.address("x", 71).unwrap_err().to_string().contains("70 bytes, expected 71"));
        assert!(store.address("z", 1).unwrap_err().to_string().contains("never written"));
    }
}
