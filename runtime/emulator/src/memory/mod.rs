//! The state spaces of a launch and where an address leads.
//!
//! Generic addresses are split into windows, as on a device: shared, local, constant and parameter memory have
//! one each, and everything from [`GLOBAL_START`] on is global. No variable of any space is at address 0.

pub(crate) mod clocks;
pub(crate) mod global;
pub(crate) mod races;
pub(crate) mod shared;

use crate::ast::Space;
use crate::error::FaultKind;
use global::Global;
use races::Races;
use shared::Shared;

/// Bytes of the largest access of a lane.
pub(crate) const MAX_ACCESS: usize = 16;
/// First address of variables in the shared, local, constant and parameter spaces.
pub(crate) const SPACE_START: u64 = 0x400;
/// First address of device memory.
pub(crate) const GLOBAL_START: u64 = 0x7f00_0000_0000;
/// Generic addresses of a window differ above this bit.
const WINDOW_BITS: u32 = 40;

/// The generic address of byte 0 of a space; 0 for global memory, whose addresses are generic.
pub(crate) fn window(space: Space) -> u64 {
    let index: u64 = match space {
        Space::Global | Space::Register => 0,
        Space::Shared => 1,
        Space::Local => 2,
        Space::Const => 3,
        Space::Param => 4,
    };
    index << WINDOW_BITS
}

/// The space of a generic address, and the address in it.
pub(crate) fn resolve(address: u64) -> (Space, u64) {
    let space = match address >> WINDOW_BITS {
        1 => Space::Shared,
        2 => Space::Local,
        3 => Space::Const,
        4 => Space::Param,
        _ => return (Space::Global, address),
    };
    (space, address - window(space))
}

pub(crate) fn space_name(space: Space) -> &'static str {
    match space {
        Space::Global => "global",
        Space::Shared => "shared",
        Space::Const => "constant",
        Space::Local => "local",
        Space::Param => "parameter",
        Space::Register => "register",
    }
}

/// What a lane did wrong. Boxed where it is returned: it is rare and long.
#[derive(Clone, Debug)]
pub(crate) struct Wrong {
    pub(crate) kind: FaultKind,
    pub(crate) lane: usize,
    pub(crate) address: Option<u64>,
    pub(crate) what: String,
}

impl Wrong {
    pub(crate) fn boxed(kind: FaultKind, what: impl Into<String>) -> Box<Self> {
        Box::new(Self { kind, lane: 0, address: None, what: what.into() })
    }

    pub(crate) fn at(kind: FaultKind, address: u64, what: impl Into<String>) -> Box<Self> {
        Box::new(Self { kind, lane: 0, address: Some(address), what: what.into() })
    }
}

/// Sets the lane of an error.
pub(crate) trait InLane<T> {
    fn in_lane(self, lane: usize) -> Result<T, Box<Wrong>>;
}

impl<T> InLane<T> for Result<T, Box<Wrong>> {
    fn in_lane(self, lane: usize) -> Self {
        self.map_err(|mut wrong| {
            wrong.lane = lane;
            wrong
        })
    }
}

/// Bytes of an access, of which the first `n` count.
pub(crate) type Bytes = [u8; MAX_ACCESS];

/// Who makes an access, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
    pub(crate) is_atomic: bool,
    pub(crate) bytes: usize,
}

/// Memory as a block sees it.
#[derive(Debug)]
pub(crate) struct Memory<'a> {
    pub(crate) global: &'a Global,
    pub(crate) races: Option<&'a Races>,
    /// The block's place among those of the launch, for [`Races`].
    pub(crate) block: u32,
    pub(crate) shared: Shared,
    /// Local memory of every thread of the block, one after another.
    pub(crate) local: Vec<u8>,
    /// Bytes of local memory of a thread.
    pub(crate) local_bytes: usize,
    pub(crate) constants: &'a [u8],
    pub(crate) params: &'a [u8],
    pub(crate) checks_never_written: bool,
}

fn check_alignment(address: u64, bytes: usize) -> Result<(), Box<Wrong>> {
    if address & (bytes as u64 - 1) == 0 {
        return Ok(());
    }
    let what = format!("access of {bytes} bytes at an address that is no multiple of {bytes}");
    Err(Wrong::at(FaultKind::Misaligned, address, what))
}

/// Where `bytes` at `address` are in a space of `size` bytes from [`SPACE_START`] on.
fn place(space: Space, address: u64, bytes: usize, size: usize) -> Result<usize, Box<Wrong>> {
    let is_inside = address >= SPACE_START
        && (address - SPACE_START).saturating_add(bytes as u64) <= size as u64;
    if !is_inside {
        let what = format!(
            "access of {bytes} bytes outside of {} memory, which is {size} bytes from {SPACE_START:#x}",
            space_name(space)
        );
        return Err(Wrong::at(FaultKind::OutOfBounds, address, what));
    }
    check_alignment(address, bytes)?;
    Ok((address - SPACE_START) as usize)
}

impl Memory<'_> {
    fn local_place(&self, address: u64, access: Access) -> Result<usize, Box<Wrong>> {
        let at = place(Space::Local, address, access.bytes, self.local_bytes)?;
        Ok((access.warp * 32 + access.lane) * self.local_bytes + at)
    }

    /// Reads; bytes beyond those of the access are zero.
    #[inline]
    pub(crate) fn read(
        &mut self,
        space: Option<Space>,
        address: u64,
        access: Access,
    ) -> Result<Bytes, Box<Wrong>> {
        let (space, at) = space.map_or_else(|| resolve(address), |space| (space, address));
        let n = access.bytes;
        let from_slice = |slice: &[u8]| {
            let mut bytes = [0; MAX_ACCESS];
            bytes[..n].copy_from_slice(slice);
            bytes
        };
        match space {
            Space::Global => {
                let bytes = self.global.read(at, n, self.checks_never_written)?;
                if let Some(races) = self.races {
                    races.access(self.block, at, n, access.is_atomic, false)?;
                }
                Ok(bytes)
            }
            Space::Shared => {
                let at = place(space, at, n, self.shared.len())?;
                let bytes = self.shared.read(at, access, self.checks_never_written)?;
                Ok(from_slice(bytes))
            }
            Space::Local => {
                let at = self.local_place(at, access)?;
                Ok(from_slice(&self.local[at..at + n]))
            }
            Space::Const => {
                let at = place(space, at, n, self.constants.len())?;
                Ok(from_slice(&self.constants[at..at + n]))
            }
            Space::Param | Space::Register => {
                let at = place(space, at, n, self.params.len())?;
                Ok(from_slice(&self.params[at..at + n]))
            }
        }
    }

    #[inline]
    pub(crate) fn write(
        &mut self,
        space: Option<Space>,
        address: u64,
        access: Access,
        bytes: &Bytes,
    ) -> Result<(), Box<Wrong>> {
        let (space, at) = space.map_or_else(|| resolve(address), |space| (space, address));
        let n = access.bytes;
        match space {
            Space::Global => {
                self.global.write(at, &bytes[..n])?;
                if let Some(races) = self.races {
                    races.access(self.block, at, n, access.is_atomic, true)?;
                }
                Ok(())
            }
            Space::Shared => {
                let at = place(space, at, n, self.shared.len())?;
                self.shared.write(at, &bytes[..n], access)
            }
            Space::Local => {
                let at = self.local_place(at, access)?;
                self.local[at..at + n].copy_from_slice(&bytes[..n]);
                Ok(())
            }
            Space::Const | Space::Param | Space::Register => {
                let what = format!("write to {} memory, which is read only", space_name(space));
                Err(Wrong::at(FaultKind::OutOfBounds, at, what))
            }
        }
    }

    /// Where `bytes` at a shared or generic address are in shared memory.
    pub(crate) fn shared_place(&self, address: u64, bytes: usize) -> Result<usize, Box<Wrong>> {
        let (space, at) = resolve(address);
        // Addresses below the windows are shared ones already.
        if space == Space::Shared || address < window(Space::Shared) {
            return place(Space::Shared, at, bytes, self.shared.len());
        }
        let what = format!(
            "address of {} memory where one of shared memory is expected",
            space_name(space)
        );
        Err(Wrong::at(FaultKind::OutOfBounds, address, what))
    }

    /// Reads shared memory at a shared or generic address.
    #[inline]
    pub(crate) fn read_shared(
        &mut self,
        address: u64,
        access: Access,
    ) -> Result<&[u8], Box<Wrong>> {
        let at = self.shared_place(address, access.bytes)?;
        self.shared.read(at, access, self.checks_never_written)
    }

    /// The same through the asynchronous proxy.
    #[inline]
    pub(crate) fn read_shared_by_proxy(
        &mut self,
        address: u64,
        access: Access,
    ) -> Result<&[u8], Box<Wrong>> {
        let at = self.shared_place(address, access.bytes)?;
        self.shared.read_by_proxy(at, access, self.checks_never_written)
    }
}
