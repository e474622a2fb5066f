//! Races between blocks on device memory: two blocks of a launch access a byte, one of them writes, and not
//! both by atomics. Blocks have no order, so which comes first does not matter.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Wrong;
use crate::error::FaultKind;

/// Who accessed a byte: 0 for nobody, 1 + block, or [`MANY`].
#[derive(Clone, Copy, Debug, Default)]
struct Accesses {
    reader: u32,
    writer: u32,
    atomic: u32,
}

const MANY: u32 = u32::MAX;

/// Bytes of a page of the table.
const PAGE: u64 = 4096;

#[derive(Debug, Default)]
pub(crate) struct Races {
    pages: Mutex<BTreeMap<u64, Vec<Accesses>>>,
}

fn by_another(found: u32, block: u32) -> bool {
    found != 0 && found != block + 1
}

impl Races {
    /// Notes an access of `block` that lies within an allocation.
    pub(crate) fn access(
        &self,
        block: u32,
        address: u64,
        bytes: usize,
        is_atomic: bool,
        is_write: bool,
    ) -> Result<(), Box<Wrong>> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        // Accesses are aligned, so they stay within a page.
        let page =
            pages.entry(address / PAGE).or_insert_with(|| vec![Accesses::default(); PAGE as usize]);
        for i in 0..bytes as u64 {
            let seen = &mut page[((address + i) % PAGE) as usize];
            let conflict = if by_another(seen.writer, block) {
                Some("written")
            } else if is_atomic && by_another(seen.reader, block)
                || is_write && !is_atomic && by_another(seen.reader, block)
            {
                Some("read")
            } else if !is_atomic && by_another(seen.atomic, block) {
                Some("changed by an atomic")
            } else {
                None
            };
            if let Some(how) = conflict {
                let verb = match (is_atomic, is_write) {
                    (true, _) => "atomic on",
                    (false, true) => "write of",
                    (false, false) => "read of",
                };
                let what = format!("{verb} a byte of global memory that another block has {how}");
                return Err(Wrong::at(FaultKind::Race, address + i, what));
            }
            let slot = match (is_atomic, is_write) {
                (true, _) => &mut seen.atomic,
                (false, true) => &mut seen.writer,
                (false, false) => &mut seen.reader,
            };
            *slot = if by_another(*slot, block) { MANY } else { block + 1 };
        }
        Ok(())
    }
}
