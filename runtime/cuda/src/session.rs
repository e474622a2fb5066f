//! Programs of one engine bound to one device.
//!
//! Arena, weights and constants are allocated and written when a session is made; a run allocates nothing. All
//! programs of a session use the same arena, as large as the largest of them needs, one after the other, and
//! share the weights that several of them read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engine::{Arch, Engine, Kernel, Port, Program, Space};
use runtime::WeightStore;

use crate::device::{Device, GraphId, KernelId};
use crate::error::Error;
use crate::weights;

/// Names one bound program of a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProgramId(usize);

/// A launch with its addresses.
#[derive(Debug)]
struct BoundLaunch {
    kernel: KernelId,
    grid: [u32; 3],
    pointers: Box<[u64]>,
}

/// A program with its addresses.
#[derive(Debug)]
struct Bound {
    /// Position in the engine.
    program: usize,
    /// The launches of each step.
    steps: Box<[Box<[BoundLaunch]>]>,
    graph: Option<GraphId>,
}

/// What the arena holds.
#[derive(Debug, Default)]
struct Contents {
    /// The program whose inputs or outputs they are.
    program: Option<usize>,
    /// Which inputs were written since it ran.
    is_written: Vec<bool>,
    has_outputs: bool,
}

/// Engine programs that can run.
#[derive(Debug)]
pub struct Session {
    device: Box<dyn Device>,
    engine: Arc<Engine>,
    arena: u64,
    arena_bytes: u64,
    weight_bytes: u64,
    bound: Vec<Bound>,
    contents: Contents,
}

impl Session {
    /// Binds the programs called `names`, or all if there are none, of the target that suits the device best:
    /// loads their kernels, allocates an arena for the largest, and writes the weights and constants that they
    /// read.
    ///
    /// # Errors
    /// [`Error::NoTarget`] and [`Error::NoProgram`] before anything is allocated; [`Error::Weights`];
    /// [`Error::OutOfMemory`]; what the device says.
    pub fn new(
        mut device: Box<dyn Device>,
        engine: Arc<Engine>,
        names: &[&str],
        store: &WeightStore,
    ) -> Result<Session, Error> {
        let target = target_for(&engine, &*device)?;
        let chosen = choose(&engine, target, names)?;
        let launches = || {
            let steps = chosen.iter().flat_map(|&i| &engine.programs[i].steps);
            steps.flat_map(|step| &step.launches)
        };
        let used: BTreeSet<u32> = launches().map(|launch| launch.kernel).collect();
        let mut kernels: BTreeMap<u32, KernelId> = BTreeMap::new();
        for index in used {
            kernels.insert(index, device.load(&engine.kernels[index as usize])?);
        }
        let arena_bytes = chosen.iter().map(|&i| engine.programs[i].arena_bytes).max();
        let arena_bytes = arena_bytes.unwrap_or_default();
        // A device gives no empty allocations.
        let arena = device.alloc("arena", arena_bytes.max(1))?;
        let args = launches().flat_map(|launch| &launch.args);
        let used: BTreeSet<Space> = args.map(|arg| arg.space).collect();
        let mut bases: BTreeMap<Space, u64> = BTreeMap::from([(Space::Arena, arena)]);
        let mut weight_bytes = 0;
        for space in used {
            let base = match space {
                Space::Arena => arena,
                Space::Weight(index) => {
                    let weight = &engine.weights[index as usize];
                    let base = device.alloc("weights", weight.bytes)?;
                    weights::upload(&mut *device, base, weight, store)?;
                    weight_bytes += weight.bytes;
                    base
                }
                Space::Constant(index) => {
                    let bytes = &engine.constants[index as usize];
                    let base = device.alloc("constants", bytes.len() as u64)?;
                    device.upload(base, bytes)?;
                    weight_bytes += bytes.len() as u64;
                    base
                }
            };
            bases.insert(space, base);
        }
        device.synchronize()?;
        let address = |arg: &engine::Arg| bases[&arg.space] + arg.offset;
        let bind = |launch: &engine::Launch| BoundLaunch {
            kernel: kernels[&launch.kernel],
            grid: launch.grid,
            pointers: launch.args.iter().map(address).collect(),
        };
        let bound = chosen.iter().map(|&program| {
            let steps = &engine.programs[program].steps;
            let steps = steps.iter().map(|step| step.launches.iter().map(bind).collect());
            Bound { program, steps: steps.collect(), graph: None }
        });
        let bound = bound.collect();
        let contents = Contents::default();
        Ok(Session { device, engine, arena, arena_bytes, weight_bytes, bound, contents })
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Bytes of the arena on the device.
    pub fn arena_bytes(&self) -> u64 {
        self.arena_bytes
    }

    /// Bytes of weights and constants on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// The bound program called `name`.
    ///
    /// # Errors
    /// [`Error::NoProgram`].
    pub fn find(&self, name: &str) -> Result<ProgramId, Error> {
        let found = self.bound.iter().position(|b| self.engine.programs[b.program].name == name);
        let known = || self.bound.iter().map(|bound| bound.program);
        found.map(ProgramId).ok_or_else(|| no_program(&self.engine, known(), name))
    }

    /// What a bound program is.
    pub fn program(&self, id: ProgramId) -> &Program {
        &self.engine.programs[self.bound[id.0].program]
    }

    /// Writes an input of the next run of a program, as dense little-endian bytes. What another program left
    /// in the arena is lost.
    ///
    /// # Errors
    /// [`Error::Port`] if there is no such input or it has another size; what the device says.
    pub fn write_input(&mut self, id: ProgramId, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let ports = &self.program(id).inputs;
        let (index, port) = self.port(id, "input", ports, name)?;
        if bytes.len() != port.ty.bytes() {
            let (found, expected, ty) = (bytes.len(), port.ty.bytes(), &port.ty);
            let reason = format!("{found} bytes, expected {expected} for {ty}");
            return Err(self.wrong_port(id, "input", name, reason));
        }
        let (n_inputs, address) = (ports.len(), self.arena + port.offset);
        if self.contents.program != Some(id.0) {
            let is_written = vec![false; n_inputs];
            self.contents = Contents { program: Some(id.0), is_written, has_outputs: false };
        }
        // An input may lie where an output of the last run is.
        self.contents.has_outputs = false;
        self.device.upload(address, bytes)?;
        self.contents.is_written[index] = true;
        Ok(())
    }

    /// Runs a program and waits for it. Every input must have been written since it ran last: a run may
    /// overwrite them. Returns the time that it took on the device.
    ///
    /// # Errors
    /// [`Error::Port`] for an input that was not written; what the device says.
    pub fn run(&mut self, id: ProgramId) -> Result<Duration, Error> {
        self.take_inputs(id)?;
        self.device.mark(0)?;
        match self.bound[id.0].graph {
            Some(graph) => self.device.launch_graph(graph)?,
            None => self.launch(id, |_, _| Ok(()))?,
        }
        self.device.mark(1)?;
        self.device.synchronize()?;
        self.contents.has_outputs = true;
        self.device.elapsed(0, 1)
    }

    /// As [`Session::run`], launch by launch, with the time of each step on the device. Marks between steps
    /// keep them from overlapping, so that their sum is a little more than the time of a run.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn profile(&mut self, id: ProgramId) -> Result<Vec<Duration>, Error> {
        self.take_inputs(id)?;
        self.device.mark(0)?;
        self.launch(id, |device, step| device.mark(step + 1))?;
        self.device.synchronize()?;
        self.contents.has_outputs = true;
        let n_steps = self.program(id).steps.len();
        (0..n_steps).map(|step| self.device.elapsed(step, step + 1)).collect()
    }

    /// As [`Session::run`], waiting after every step, so that a failure is told with the step that it is of.
    ///
    /// # Errors
    /// As [`Session::run`]; failures of kernels are [`Error::Step`].
    pub fn run_stepwise(&mut self, id: ProgramId) -> Result<(), Error> {
        self.take_inputs(id)?;
        self.launch(id, |device, _| device.synchronize())?;
        self.contents.has_outputs = true;
        Ok(())
    }

    /// Records the launches of a program, so that from now on a run of it is one launch.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the device has no graphs; what the device says. Runs go on as before then.
    pub fn capture(&mut self, id: ProgramId) -> Result<(), Error> {
        self.device.begin_capture()?;
        let launched = self.launch(id, |_, _| Ok(()));
        let graph = self.device.end_capture();
        launched?;
        self.bound[id.0].graph = Some(graph?);
        Ok(())
    }

    /// Dense little-endian bytes of an output of the last run.
    ///
    /// # Errors
    /// [`Error::Port`] if there is no such output, or the program was not the last thing that was done with the
    /// arena; what the device says.
    pub fn read_output(&mut self, id: ProgramId, name: &str) -> Result<Vec<u8>, Error> {
        let (_, port) = self.port(id, "output", &self.program(id).outputs, name)?;
        if self.contents.program != Some(id.0) || !self.contents.has_outputs {
            let reason = "the program has not run since the arena was last written; run it first";
            return Err(self.wrong_port(id, "output", name, reason.into()));
        }
        let mut bytes = vec![0; port.ty.bytes()];
        let address = self.arena + port.offset;
        self.device.download(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Launches every step, with something to do after each.
    fn launch(
        &mut self,
        id: ProgramId,
        mut after: impl FnMut(&mut dyn Device, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let bound = &self.bound[id.0];
        for (index, step) in bound.steps.iter().enumerate() {
            let mut run = || {
                for BoundLaunch { kernel, grid, pointers } in step {
                    self.device.launch(*kernel, *grid, pointers)?;
                }
                after(&mut *self.device, index)
            };
            if let Err(reason) = run() {
                let program = &self.engine.programs[bound.program];
                let step = &program.steps[index];
                return Err(Error::Step {
                    program: program.name.clone(),
                    index,
                    label: step.label.clone(),
                    scope: step.scope.clone(),
                    reason: Box::new(reason),
                });
            }
        }
        Ok(())
    }

    /// Checks that every input of the next run was written, and that it can be only once.
    fn take_inputs(&mut self, id: ProgramId) -> Result<(), Error> {
        let inputs = &self.program(id).inputs;
        let is_written =
            |index: usize| self.contents.program == Some(id.0) && self.contents.is_written[index];
        if let Some(index) = (0..inputs.len()).find(|&index| !is_written(index)) {
            let reason = "not written since the last run; call `write_input` first".to_string();
            return Err(self.wrong_port(id, "input", &inputs[index].name, reason));
        }
        let is_written = vec![false; inputs.len()];
        self.contents = Contents { program: Some(id.0), is_written, has_outputs: false };
        Ok(())
    }

    fn port<'a>(
        &self,
        id: ProgramId,
        what: &'static str,
        ports: &'a [Port],
        name: &str,
    ) -> Result<(usize, &'a Port), Error> {
        let found = ports.iter().enumerate().find(|(_, port)| port.name == name);
        found.ok_or_else(|| {
            let known: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            let reason = format!("unknown; the program's {what}s are {}", known.join(", "));
            self.wrong_port(id, what, name, reason)
        })
    }

    fn wrong_port(&self, id: ProgramId, what: &'static str, name: &str, reason: String) -> Error {
        let (name, program) = (name.to_string(), self.program(id).name.clone());
        Error::Port { what, name, program, reason }
    }
}

fn no_program(engine: &Engine, known: impl Iterator<Item = usize>, name: &str) -> Error {
    let known: Vec<String> =
        known.map(|index| format!("`{}`", engine.programs[index].name)).collect();
    Error::NoProgram { name: name.to_string(), known: known.join(", ") }
}

/// The target whose programs `device` takes.
///
/// # Errors
/// [`Error::NoTarget`].
pub fn target_for(engine: &Engine, device: &dyn Device) -> Result<Arch, Error> {
    let runs = |kernel: &Kernel| device.refusal(kernel).is_none();
    let found = engine.target_for(device.arch(), &runs);
    found.ok_or_else(|| Error::no_target(engine, device))
}

/// Positions of the programs for `target` that are called `names`, or of all.
fn choose(engine: &Engine, target: Arch, names: &[&str]) -> Result<Vec<usize>, Error> {
    let is_for = |index: &usize| engine.programs[*index].target == target;
    let all: Vec<usize> = (0..engine.programs.len()).filter(is_for).collect();
    if names.is_empty() {
        return Ok(all);
    }
    let find = |name: &&str| {
        let found = all.iter().copied().find(|&index| engine.programs[index].name == *name);
        found.ok_or_else(|| no_program(engine, all.iter().copied(), name))
    };
    names.iter().map(find).collect()
}
