//! A loaded module: entries as they are executed, and the addresses of its variables.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ops::{Inst, Slot};
use crate::registers::Registers;

/// A module on a [`Device`](crate::Device), ready to be launched.
#[derive(Clone, Debug)]
pub struct Program {
    pub(crate) entries: Vec<Entry>,
    pub(crate) globals: BTreeMap<String, (u64, u64)>,
    /// Constant memory.
    pub(crate) constants: Vec<u8>,
    pub(crate) lines: Arc<[Box<str>]>,
    /// Most bytes of shared memory of a block.
    pub(crate) max_shared_bytes: u64,
}

impl Program {
    /// Names of the entries, in the order of the module.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Device address and bytes of a `.global` variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.globals.get(name).copied()
    }
}

/// A kernel.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) line: u32,
    pub(crate) code: Vec<Inst>,
    /// Registers of a warp before it starts, constants filled in.
    pub(crate) registers: Registers,
    pub(crate) specials: Vec<(Special, Slot)>,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: u64,
    /// Shared memory of declared variables; dynamic shared memory begins here.
    pub(crate) shared_bytes: u64,
    pub(crate) local_bytes: u64,
    pub(crate) max_threads: Option<u64>,
    pub(crate) required_block: Option<[u32; 3]>,
    /// Whether blocks meet in atomics, which makes their order matter.
    pub(crate) has_global_atomics: bool,
}

/// A kernel parameter.
#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A special register whose value a warp keeps.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Warps,
    LanesEq,
    LanesLe,
    LanesLt,
    LanesGe,
    LanesGt,
    DynamicSharedBytes,
    TotalSharedBytes,
    /// One that is zero here: `%smid`, `%gridid`, `%clusterid.x`, ...
    Zero,
    /// One that is one here: `%nsmid`, `%nclusterid.x`, ...
    One,
}

impl Special {
    /// The register of a name, and whether it has 64 bits.
    pub(crate) fn parse(name: &str) -> Option<(Self, bool)> {
        let axis = |suffix: &str| ["x", "y", "z"].iter().position(|axis| *axis == suffix);
        if let Some((base, suffix)) = name.split_once('.') {
            let axis = axis(suffix)?;
            let special = match base {
                "%tid" => Self::Tid(axis),
                "%ntid" => Self::Ntid(axis),
                "%ctaid" => Self::Ctaid(axis),
                "%nctaid" => Self::Nctaid(axis),
                "%clusterid" => Self::Ctaid(axis),
                "%nclusterid" => Self::Nctaid(axis),
                "%cluster_ctaid" => Self::Zero,
                "%cluster_nctaid" => Self::One,
                _ => return None,
            };
            return Some((special, false));
        }
        let special = match name {
            "%laneid" => Self::Lane,
            "%warpid" => Self::Warp,
            "%nwarpid" => Self::Warps,
            "%lanemask_eq" => Self::LanesEq,
            "%lanemask_le" => Self::LanesLe,
            "%lanemask_lt" => Self::LanesLt,
            "%lanemask_ge" => Self::LanesGe,
            "%lanemask_gt" => Self::LanesGt,
            "%dynamic_smem_size" => Self::DynamicSharedBytes,
            "%total_smem_size" | "%aggr_smem_size" => Self::TotalSharedBytes,
            "%smid" | "%cluster_ctarank" => Self::Zero,
            "%nsmid" | "%cluster_nctarank" => Self::One,
            "%gridid" => return Some((Self::Zero, true)),
            _ => return None,
        };
        Some((special, false))
    }
}
