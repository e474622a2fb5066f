//! The inputs of a program beside the arena, where they keep their values from run to run.
//!
//! A run may overwrite what it was given, since other values take over the places of inputs in the arena. So each
//! run begins by copying them there, on the device: what changes is uploaded, what does not stays, and an output
//! can be carried into an input without passing through the host.

use engine::Program;

use crate::device::Device;
use crate::error::Error;

/// Inputs at most so many bytes apart in the arena are copied as one, with what lies between: a copy of a few
/// bytes takes as long as one of a few thousand, and nothing else of the arena matters before the first step.
const SEAM_BYTES: u64 = 256;

/// A copy within the device's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Transfer {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes: u64,
}

/// Where the inputs of one program are kept.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// Address of each, by position.
    addresses: Box<[u64]>,
    is_written: Box<[bool]>,
    transfers: Box<[Transfer]>,
}

impl Inputs {
    /// Allocates room for the inputs of `program`, whose arena begins at `arena`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what the device says.
    pub(crate) fn new(
        device: &mut dyn Device,
        program: &Program,
        arena: u64,
    ) -> Result<Inputs, Error> {
        let ports = &program.inputs;
        let (places, bytes) = places(&ports.iter().map(span).collect::<Vec<_>>());
        // A device gives no empty allocations.
        let base = device.alloc("inputs", bytes.max(1))?;
        // What lies between inputs that are copied as one is copied too.
        device.zero(base, bytes.max(1))?;
        let is_written = vec![false; ports.len()].into();
        let addresses = places.of_inputs.iter().map(|place| base + place).collect();
        let transfer = |&Transfer { from, to, bytes }: &Transfer| Transfer {
            from: base + from,
            to: arena + to,
            bytes,
        };
        let transfers = places.transfers.iter().map(transfer).collect();
        Ok(Inputs { addresses, is_written, transfers })
    }

    /// Where input `index` is kept.
    pub(crate) fn address(&self, index: usize) -> u64 {
        self.addresses[index]
    }

    /// Notes that input `index` has a value.
    pub(crate) fn mark_written(&mut self, index: usize) {
        self.is_written[index] = true;
    }

    /// The first input without a value.
    pub(crate) fn missing(&self) -> Option<usize> {
        self.is_written.iter().position(|is_written| !is_written)
    }

    /// What a run begins with.
    pub(crate) fn transfers(&self) -> &[Transfer] {
        &self.transfers
    }
}

/// First byte in the arena, and bytes.
fn span(port: &engine::Port) -> (u64, u64) {
    (port.offset, port.ty.bytes() as u64)
}

/// Offsets within the room for inputs.
#[derive(Debug)]
struct Places {
    /// By position.
    of_inputs: Vec<u64>,
    /// From offsets of the room to those of the arena.
    transfers: Vec<Transfer>,
}

/// Places of inputs that have these spans of the arena, and the bytes of them all.
fn places(spans: &[(u64, u64)]) -> (Places, u64) {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|&index| spans[index]);
    let mut of_inputs = vec![0; spans.len()];
    let mut transfers: Vec<Transfer> = vec![];
    let mut end = 0;
    for index in order {
        let (offset, bytes) = spans[index];
        match transfers.last_mut() {
            Some(last) if offset - (last.to + last.bytes) <= SEAM_BYTES => {
                last.bytes = offset + bytes - last.to;
            }
            _ => {
                let from = u64::next_multiple_of(end, SEAM_BYTES);
                transfers.push(Transfer { from, to: offset, bytes });
            }
        }
        let last = transfers.last().expect("one was pushed or extended");
        of_inputs[index] = last.from + (offset - last.to);
        end = last.from + last.bytes;
    }
    (Places { of_inputs, transfers }, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_are_copied_as_one() {
        // The second lies 60 bytes behind the first, the third far from both, the last in its place's order.
        let (found, bytes) = places(&[(4096, 40), (64, 4), (128, 256), (9000, 8)]);
        let expected = [
            Transfer { from: 0, to: 64, bytes: 320 },
            Transfer { from: 512, to: 4096, bytes: 40 },
            Transfer { from: 768, to: 9000, bytes: 8 },
        ];
        assert_eq!(found.transfers, expected);
        assert_eq!((found.of_inputs, bytes), (vec![512, 0, 64, 768], 776));
    }

    #[test]
    fn no_inputs_are_no_copies() {
        let (found, bytes) = places(&[]);
        assert!(found.transfers.is_empty() && bytes == 0);
    }
}
