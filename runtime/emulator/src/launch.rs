//! A device without hardware: memory, loaded modules, launches.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::ast::Module;
use crate::block::{Block, BlockError};
use crate::error::{Error, Fault};
use crate::exec::Warp;
use crate::memory::clocks::MAX_WARPS;
use crate::memory::global::Global;
use crate::memory::races::Races;
use crate::memory::shared::Shared;
use crate::memory::{Memory, SPACE_START};
use crate::ops::Slot;
use crate::program::{Entry, Program, Special};
use crate::registers::{LANES, Row};
use crate::stats::Stats;

/// Most threads of a block.
const MAX_BLOCK_THREADS: u64 = 1024;
/// Most threads along each axis of a block.
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
/// Most blocks along each axis of a grid.
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Most bytes of local memory of a block here.
const MAX_BLOCK_LOCAL: u64 = 256 << 20;

/// Order in which warps of a block, and blocks of a launch, take turns. A correct kernel gives the same in each.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Order {
    /// Lowest first; a warp runs until it waits.
    #[default]
    Forward,
    /// Highest first.
    Reverse,
    /// Turns of a few instructions, drawn from a seed.
    Random(u64),
}

/// When asynchronous copies land.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Arrival {
    /// At the wait that guarantees them.
    #[default]
    Late,
    /// At once.
    Early,
}

/// What is checked beyond bounds and alignment, and how a launch goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Order of warps and blocks.
    pub order: Order,
    /// When asynchronous copies land.
    pub arrival: Arrival,
    /// Most instructions of a block, over all its warps.
    pub max_steps: u64,
    /// Host threads; one is used where the order of blocks matters.
    pub threads: NonZeroUsize,
    /// Whether reading global or shared bytes that nothing has written is an error.
    pub checks_never_written: bool,
    /// Whether accesses of warps of a block to shared memory that no barrier orders are errors.
    pub checks_shared_races: bool,
    /// Whether accesses of several blocks to a byte of global memory are errors. Takes one host thread.
    pub checks_block_races: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            order: Order::Forward,
            arrival: Arrival::Late,
            max_steps: 1 << 32,
            threads: NonZeroUsize::MIN,
            checks_never_written: true,
            checks_shared_races: true,
            checks_block_races: false,
        }
    }
}

/// What `cuLaunchKernel` is told.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// The bytes of each parameter, exactly as many as it has; pointers as 8 little-endian bytes.
    pub params: &'a [&'a [u8]],
}

/// Device memory and the modules that were loaded to it.
#[derive(Debug)]
pub struct Device {
    memory: Global,
}

impl Default for Device {
    fn default() -> Self {
        Self::new()
    }
}

impl Device {
    /// A device with nothing in it.
    pub fn new() -> Self {
        Self { memory: Global::new() }
    }

    /// Reserves `bytes` that nothing has written, and returns their address, a multiple of 256.
    pub fn alloc(&mut self, bytes: u64) -> Result<u64, Error> {
        self.memory.alloc(bytes)
    }

    /// Releases what [`Device::alloc`] returned; any later access is an error.
    pub fn free(&mut self, address: u64) -> Result<(), Error> {
        self.memory.free(address)
    }

    /// Writes bytes to a part of an allocation.
    pub fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.memory.upload(address, bytes)
    }

    /// Reads bytes of a part of an allocation; those that nothing has written are zero.
    pub fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.memory.download(address, bytes)
    }

    /// The first address of a range that nothing has written, or that is not allocated.
    pub fn first_unwritten(&self, address: u64, bytes: u64) -> Option<u64> {
        self.memory.first_unwritten(address, bytes)
    }

    /// The first address of the allocation that `address` is in or behind.
    pub fn base(&self, address: u64) -> Option<u64> {
        self.memory.base(address)
    }

    /// Places a module's variables and decodes its entries. What is not emulated is an error here.
    pub fn load(&mut self, module: &Module) -> Result<Program, Error> {
        crate::decode::load(module, &mut self.memory)
    }

    /// Runs every block of a grid, or ends at the first fault in the order of blocks.
    pub fn launch(
        &self,
        program: &Program,
        kernel: &str,
        launch: &Launch<'_>,
        options: &Options,
    ) -> Result<Stats, Error> {
        let Some(entry) = program.entries.iter().find(|entry| entry.name == kernel) else {
            let names: Vec<&str> = program.entries().collect();
            let what = format!("no entry `{kernel}`; the module has {}", names.join(", "));
            return Err(Error::Unknown(what));
        };
        let refuse = |what: String| Error::Launch { kernel: kernel.to_string(), what };
        let params = marshal(entry, launch.params).map_err(refuse)?;
        check(program, entry, launch).map_err(refuse)?;
        let races = options.checks_block_races.then(Races::default);
        let run =
            Run { device: self, program, entry, launch, options, params, races: races.as_ref() };
        run.blocks()
    }
}

/// Parameters as a kernel finds them.
fn marshal(entry: &Entry, params: &[&[u8]]) -> Result<Vec<u8>, String> {
    if params.len() != entry.params.len() {
        return Err(format!("{} parameters, expected {}", params.len(), entry.params.len()));
    }
    let mut bytes = vec![0; entry.param_bytes as usize];
    for (i, (given, param)) in params.iter().zip(&entry.params).enumerate() {
        if given.len() as u64 != param.bytes {
            let (n, name) = (given.len(), &param.name);
            return Err(format!("parameter {i} ({name}) of {n} bytes, expected {}", param.bytes));
        }
        let start = param.offset as usize;
        bytes[start..start + given.len()].copy_from_slice(given);
    }
    Ok(bytes)
}

/// What a driver refuses.
fn check(program: &Program, entry: &Entry, launch: &Launch<'_>) -> Result<(), String> {
    let Launch { grid, block, shared_bytes, params: _ } = launch;
    let n_threads: u64 = block.iter().map(|&dim| u64::from(dim)).product();
    let is_inside =
        |dims: &[u32; 3], most: &[u32; 3]| (0..3).all(|i| dims[i] >= 1 && dims[i] <= most[i]);
    if !is_inside(block, &MAX_BLOCK) || n_threads > MAX_BLOCK_THREADS {
        return Err(format!("block {block:?}, expected 1 to {MAX_BLOCK_THREADS} threads"));
    }
    if !is_inside(grid, &MAX_GRID) {
        return Err(format!("grid {grid:?}, expected 1 to {MAX_GRID:?} blocks"));
    }
    if let Some(most) = entry.max_threads.filter(|&most| n_threads > most) {
        return Err(format!("block of {n_threads} threads, the kernel is compiled for {most}"));
    }
    if let Some(required) = entry.required_block.filter(|required| required != block) {
        return Err(format!("block {block:?}, the kernel requires {required:?}"));
    }
    let shared = entry.shared_bytes + u64::from(*shared_bytes);
    if shared > program.max_shared_bytes {
        let most = program.max_shared_bytes;
        return Err(format!("{shared} bytes of shared memory, the target has {most}"));
    }
    if entry.local_bytes * n_threads.next_multiple_of(32) > MAX_BLOCK_LOCAL {
        return Err(format!("{} bytes of local memory a thread are too many", entry.local_bytes));
    }
    Ok(())
}

/// A launch under way.
struct Run<'a> {
    device: &'a Device,
    program: &'a Program,
    entry: &'a Entry,
    launch: &'a Launch<'a>,
    options: &'a Options,
    params: Vec<u8>,
    races: Option<&'a Races>,
}

impl Run<'_> {
    fn blocks(&self) -> Result<Stats, Error> {
        let n_blocks: u64 = self.launch.grid.iter().map(|&dim| u64::from(dim)).product();
        let is_ordered = self.entry.has_global_atomics || self.races.is_some();
        let n_threads = if is_ordered { 1 } else { self.options.threads.get() as u64 };
        let next = AtomicU64::new(0);
        // Turns from this one on need not be taken: an earlier one has failed.
        let end = AtomicU64::new(n_blocks);
        let outcome: Mutex<(Stats, Option<(u64, Error)>)> = Mutex::new((Stats::default(), None));
        let work = || {
            let mut sum = Stats::default();
            let mut is_reached = vec![false; self.entry.code.len()];
            loop {
                let turn = next.fetch_add(1, Relaxed);
                if turn >= end.load(Relaxed) {
                    break;
                }
                match self.block(self.place(turn, n_blocks), &mut is_reached) {
                    Ok(stats) => sum.add(&stats),
                    Err(error) => {
                        end.fetch_min(turn, Relaxed);
                        let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                        if outcome.1.as_ref().is_none_or(|(earliest, _)| turn < *earliest) {
                            outcome.1 = Some((turn, error));
                        }
                        break;
                    }
                }
            }
            let reached = self.entry.code.iter().zip(&is_reached).filter(|(_, reached)| **reached);
            sum.reached_lines = reached.map(|(inst, _)| inst.line).collect();
            outcome.lock().unwrap_or_else(PoisonError::into_inner).0.add(&sum);
        };
        if n_threads.min(n_blocks) <= 1 {
            work();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..n_threads.min(n_blocks) {
                    scope.spawn(work);
                }
            });
        }
        let (stats, error) = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
        error.map_or(Ok(stats), |(_, error)| Err(error))
    }

    /// The block whose turn it is, as a number.
    fn place(&self, turn: u64, n_blocks: u64) -> u64 {
        match self.options.order {
            Order::Forward => turn,
            Order::Reverse => n_blocks - 1 - turn,
            Order::Random(seed) => {
                // A multiplier without common factors visits every block once.
                let mut factor = (seed % n_blocks).max(1);
                while greatest_common_divisor(factor, n_blocks) != 1 {
                    factor += 1;
                }
                let product = u128::from(turn) * u128::from(factor) + u128::from(seed);
                (product % u128::from(n_blocks)) as u64
            }
        }
    }

    fn block(&self, index: u64, is_reached: &mut [bool]) -> Result<Stats, Error> {
        let (entry, Launch { grid, block: dims, .. }) = (self.entry, self.launch);
        let [nx, ny, _] = grid.map(u64::from);
        let id = [index % nx, index / nx % ny, index / nx / ny].map(|i| i as u32);
        let n_threads: u32 = dims.iter().product();
        let n_warps = n_threads.div_ceil(32) as usize;
        debug_assert!(n_warps <= MAX_WARPS, "a block has at most 1024 threads");
        let shared_bytes = (entry.shared_bytes + u64::from(self.launch.shared_bytes)) as usize;
        let local_bytes = entry.local_bytes as usize;
        let options = self.options;
        let memory = Memory {
            global: &self.device.memory,
            races: self.races,
            block: index as u32,
            shared: Shared::new(shared_bytes, n_warps, options.checks_shared_races),
            local: vec![0; local_bytes * n_warps * LANES],
            local_bytes,
            constants: &self.program.constants,
            params: &self.params,
            checks_never_written: options.checks_never_written,
        };
        let mut warps: Vec<Warp> = (0..n_warps)
            .map(|warp| {
                let n_lanes = (n_threads as usize - 32 * warp).min(32);
                let mask = u32::MAX >> (32 - n_lanes);
                let mut registers = entry.registers.clone();
                for &(special, slot) in &entry.specials {
                    let row = self.special(special, warp as u32, id, n_warps as u32);
                    match slot {
                        Slot::Narrow(reg) => registers.narrow[reg as usize] = row,
                        Slot::Wide(reg) => registers.wide[reg as usize] = row.map(u64::from),
                        Slot::Sink => {}
                    }
                }
                Warp::new(warp, registers, mask)
            })
            .collect();
        let seed = match options.order {
            Order::Random(seed) => seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            Order::Forward | Order::Reverse => 0,
        };
        let mut block = Block::new(memory, options, n_warps, is_reached);
        match block.run(&mut warps, &entry.code, seed) {
            Ok(()) => Ok(block.stats),
            Err(error) => Err(self.fault(id, error)),
        }
    }

    fn special(&self, special: Special, warp: u32, id: [u32; 3], n_warps: u32) -> Row<u32> {
        let [bx, by, _] = self.launch.block;
        let dynamic = self.launch.shared_bytes;
        std::array::from_fn(|lane| {
            let lane = lane as u32;
            let thread = warp * 32 + lane;
            match special {
                Special::Tid(0) => thread % bx,
                Special::Tid(1) => thread / bx % by,
                Special::Tid(_) => thread / bx / by,
                Special::Ntid(axis) => self.launch.block[axis],
                Special::Ctaid(axis) => id[axis],
                Special::Nctaid(axis) => self.launch.grid[axis],
                Special::Lane => lane,
                Special::Warp => warp,
                Special::Warps => n_warps,
                Special::LanesEq => 1 << lane,
                Special::LanesLt => (1 << lane) - 1,
                Special::LanesLe => (1 << lane) | ((1 << lane) - 1),
                Special::LanesGe => u32::MAX << lane,
                Special::LanesGt => u32::MAX << lane & !(1 << lane),
                Special::DynamicSharedBytes => dynamic,
                Special::TotalSharedBytes => {
                    self.entry.shared_bytes as u32 + dynamic + SPACE_START as u32
                }
                Special::Zero => 0,
                Special::One => 1,
            }
        })
    }

    fn fault(&self, block: [u32; 3], error: BlockError) -> Error {
        let BlockError { warp, at, wrong } = error;
        let line = self.entry.code.get(at).map_or(self.entry.line, |inst| inst.line);
        let text = self.program.lines.get(line as usize - 1).map_or("", |line| line);
        let [bx, by, _] = self.launch.block;
        let thread = (warp * 32 + wrong.lane) as u32;
        Error::Fault(Box::new(Fault {
            kind: wrong.kind,
            kernel: self.entry.name.clone(),
            line,
            instruction: text.trim_end_matches(';').to_string(),
            block,
            thread: [thread % bx, thread / bx % by, thread / bx / by],
            address: wrong.address,
            what: wrong.what,
        }))
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
