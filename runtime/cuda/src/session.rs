//! Programs of one engine bound to one device.
//!
//! Arena, inputs, weights and constants are allocated when a session is made; a run allocates nothing. All
//! programs of a session use the same arena, as large as the largest of them needs, one after the other, and
//! share the weights that several of them read. Each has its inputs for itself, beside the arena. Where a library
//! computes products in place of launches, one workspace serves all of them, since they run one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engine::{Arch, Engine, Kernel, Port, Program, Space};
use runtime::WeightStore;

use crate::device::{Device, GraphId, KernelId, ProductId};
use crate::error::Error;
use crate::inputs::{Inputs, Transfer};
use crate::products::{LibraryUse, Products};
use crate::weights;

/// Names one bound program of a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProgramId(usize);

/// A launch with its addresses, or what computes the same.
#[derive(Debug)]
enum BoundLaunch {
    Kernel { kernel: KernelId, grid: [u32; 3], pointers: Box<[u64]> },
    Product(ProductId),
}

/// A program with its addresses.
#[derive(Debug)]
struct Bound {
    /// Position in the engine.
    program: usize,
    inputs: Inputs,
    /// The launches of each step.
    steps: Box<[Box<[BoundLaunch]>]>,
    /// What a run ends with: outputs that the next one starts from.
    carries: Vec<Transfer>,
    graph: Option<GraphId>,
}

/// Engine programs that can run.
#[derive(Debug)]
pub struct Session {
    device: Box<dyn Device>,
    engine: Arc<Engine>,
    arena: u64,
    arena_bytes: u64,
    weight_bytes: u64,
    library: LibraryUse,
    bound: Vec<Bound>,
    /// The program whose outputs the arena holds.
    ran_last: Option<ProgramId>,
    /// The mark at the end of the run that was started last, if none was waited for since.
    started: Option<usize>,
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
        device: Box<dyn Device>,
        engine: Arc<Engine>,
        names: &[&str],
        store: &WeightStore,
    ) -> Result<Session, Error> {
        Session::with_products(device, engine, names, store, Products::Own)
    }

    /// As [`Session::new`]; `products` says who computes the products that a library can compute.
    ///
    /// # Errors
    /// As there; [`Error::NoProducts`] and [`Error::NoLibrary`] if [`Products::Library`] is asked for; what the library
    /// says.
    pub fn with_products(
        mut device: Box<dyn Device>,
        engine: Arc<Engine>,
        names: &[&str],
        store: &WeightStore,
        products: Products,
    ) -> Result<Session, Error> {
        let target = target_for(&engine, &*device)?;
        let chosen = choose(&engine, target, names)?;
        let launches = || {
            let steps = chosen.iter().flat_map(|&i| &engine.programs[i].steps);
            steps.flat_map(|step| &step.launches)
        };
        let mut library = LibraryUse::open(&mut *device, products, launches())?;
        let used: BTreeSet<u32> = launches().map(|launch| launch.kernel).collect();
        let mut kernels: BTreeMap<u32, KernelId> = BTreeMap::new();
        for index in used {
            kernels.insert(index, device.load(&engine.kernels[index as usize])?);
        }
        let arena_bytes = chosen.iter().map(|&i| engine.programs[i].arena_bytes).max();
        let arena_bytes = arena_bytes.unwrap_or_default();
        // A device gives no empty allocations.
        let arena = device.alloc("arena", arena_bytes.max(1))?;
        let workspace_bytes = chosen.iter().map(|&i| engine.programs[i].workspace_bytes).max();
        library.reserve(&mut *device, workspace_bytes.unwrap_or_default())?;
        let args = launches().flat_map(|launch| &launch.args);
        let used: BTreeSet<Space> = args.map(|arg| arg.space).collect();
        let mut bases: BTreeMap<Space, u64> = BTreeMap::from([(Space::Arena, arena)]);
        let (mut weight_bytes, mut read) = (0, vec![]);
        for space in used {
            let base = match space {
                Space::Arena => arena,
                Space::Weight(index) => {
                    let weight = &engine.weights[index as usize];
                    let base = device.alloc("weights", weight.bytes)?;
                    read.push((base, weight));
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
        let inputs = |&program: &usize| Inputs::new(&mut *device, &engine.programs[program], arena);
        let inputs = chosen.iter().map(inputs).collect::<Result<Vec<_>, _>>()?;
        // An allocation may wait for copies that are under way, so weights come after all of them.
        weights::upload(&mut *device, &read, store)?;
        let address = |arg: &engine::Arg| bases[&arg.space] + arg.offset;
        let mut bind = |launch: &engine::Launch| -> Result<BoundLaunch, Error> {
            let pointers: Box<[u64]> = launch.args.iter().map(address).collect();
            let product = library.bind(&mut *device, launch, &pointers)?;
            let (kernel, grid) = (kernels[&launch.kernel], launch.grid);
            Ok(product.map_or(BoundLaunch::Kernel { kernel, grid, pointers }, BoundLaunch::Product))
        };
        let mut bound = Vec::with_capacity(chosen.len());
        for (&program, inputs) in chosen.iter().zip(inputs) {
            let mut steps = Vec::with_capacity(engine.programs[program].steps.len());
            for step in &engine.programs[program].steps {
                let launches = step.launches.iter().map(&mut bind);
                steps.push(launches.collect::<Result<Box<[BoundLaunch]>, Error>>()?);
            }
            let steps = steps.into_boxed_slice();
            bound.push(Bound { program, inputs, steps, carries: vec![], graph: None });
        }
        device.synchronize()?;
        let (ran_last, started) = (None, None);
        Ok(Session {
            device,
            engine,
            arena,
            arena_bytes,
            weight_bytes,
            library,
            bound,
            ran_last,
            started,
        })
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

    /// Bytes that the library of products may use on the device; 0 where it is not used.
    pub fn workspace_bytes(&self) -> u64 {
        self.library.workspace_bytes()
    }

    /// What users should know of the library of products: that it does less than was asked for.
    pub fn note(&self) -> Option<String> {
        self.library.note()
    }

    /// Whether the library computes a product of step `step` of a program.
    pub fn uses_library(&self, id: ProgramId, step: usize) -> bool {
        let mut launches = self.bound[id.0].steps[step].iter();
        launches.any(|launch| matches!(launch, BoundLaunch::Product(_)))
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

    /// Writes an input of a program, as dense little-endian bytes: its value for every run from the next on,
    /// until it is written again. A run that was started before is not waited for.
    ///
    /// # Errors
    /// [`Error::Port`] if there is no such input or it has another size; what the device says.
    pub fn write_input(&mut self, id: ProgramId, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (index, port) = self.port(id, "input", &self.program(id).inputs, name)?;
        if bytes.len() != port.ty.bytes() {
            let (found, expected, ty) = (bytes.len(), port.ty.bytes(), &port.ty);
            let reason = format!("{found} bytes, expected {expected} for {ty}");
            return Err(self.wrong_port(id, "input", name, reason));
        }
        let inputs = &mut self.bound[id.0].inputs;
        self.device.upload(inputs.address(index), bytes)?;
        inputs.mark_written(index);
        Ok(())
    }

    /// From now on each run of a program ends by writing its output `output` to its input `input`, on the device.
    /// A recording of its launches ([`Session::capture`]) is given up.
    ///
    /// # Errors
    /// [`Error::Port`] if there is no such input or output, or they are of different types.
    pub fn carry(&mut self, id: ProgramId, output: &str, input: &str) -> Result<(), Error> {
        let program = self.program(id);
        let (_, from) = self.port(id, "output", &program.outputs, output)?;
        let (index, to) = self.port(id, "input", &program.inputs, input)?;
        if from.ty != to.ty {
            let reason =
                format!("{}, but output `{output}`, which it takes, is {}", to.ty, from.ty);
            return Err(self.wrong_port(id, "input", input, reason));
        }
        let (from, bytes) = (self.arena + from.offset, from.ty.bytes() as u64);
        let bound = &mut self.bound[id.0];
        bound.carries.push(Transfer { from, to: bound.inputs.address(index), bytes });
        bound.graph = None;
        Ok(())
    }

    /// Runs a program and waits for it. Returns the time that it took on the device.
    ///
    /// # Errors
    /// [`Error::Port`] for an input that was never written; what the device says.
    pub fn run(&mut self, id: ProgramId) -> Result<Duration, Error> {
        self.check_inputs(id)?;
        self.device.mark(0)?;
        self.enqueue(id)?;
        self.device.mark(1)?;
        self.finish(id)?;
        self.device.elapsed(0, 1)
    }

    /// Starts a run of a program, and waits for the one that was started before: one is under way and the next
    /// can be prepared. [`Session::read_output`] waits for it.
    ///
    /// # Errors
    /// As [`Session::run`]; what fails in the run itself is told by a later call.
    pub fn start(&mut self, id: ProgramId) -> Result<(), Error> {
        self.check_inputs(id)?;
        self.enqueue(id)?;
        let mark = self.started.map_or(0, |before| 1 - before);
        self.device.mark(mark)?;
        if let Some(before) = self.started.replace(mark) {
            self.device.wait(before)?;
        }
        self.ran_last = Some(id);
        Ok(())
    }

    /// As [`Session::run`], launch by launch, with the time of each step on the device. Marks between steps
    /// keep them from overlapping, so that their sum is a little more than the time of a run.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn profile(&mut self, id: ProgramId) -> Result<Vec<Duration>, Error> {
        self.check_inputs(id)?;
        self.transfer_inputs(id)?;
        self.device.mark(0)?;
        self.launch(id, |device, step| device.mark(step + 1))?;
        self.carry_outputs(id)?;
        self.finish(id)?;
        let n_steps = self.program(id).steps.len();
        (0..n_steps).map(|step| self.device.elapsed(step, step + 1)).collect()
    }

    /// As [`Session::run`], waiting after every step, so that a failure is told with the step that it is of.
    ///
    /// # Errors
    /// As [`Session::run`]; failures of kernels are [`Error::Step`].
    pub fn run_stepwise(&mut self, id: ProgramId) -> Result<(), Error> {
        self.check_inputs(id)?;
        self.transfer_inputs(id)?;
        self.launch(id, |device, _| device.synchronize())?;
        self.carry_outputs(id)?;
        self.finish(id)
    }

    /// Records the copies and launches of a program, so that from now on a run of it is one launch.
    ///
    /// # Errors
    /// [`Error::NoGraphs`]; what the device says. Runs go on as before then.
    pub fn capture(&mut self, id: ProgramId) -> Result<(), Error> {
        self.bound[id.0].graph = None;
        self.device.begin_capture()?;
        let launched = self.enqueue(id);
        let graph = self.device.end_capture();
        launched?;
        self.bound[id.0].graph = Some(graph?);
        Ok(())
    }

    /// Waits for the last run and returns the dense little-endian bytes of an output.
    ///
    /// # Errors
    /// [`Error::Port`] if there is no such output, or the program is not the one that ran last; what the device
    /// says, also of the run.
    pub fn read_output(&mut self, id: ProgramId, name: &str) -> Result<Vec<u8>, Error> {
        let (_, port) = self.port(id, "output", &self.program(id).outputs, name)?;
        let mut bytes = vec![0; port.ty.bytes()];
        self.read_output_into(id, name, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`Session::read_output`], to `bytes`, which has the size of the output.
    ///
    /// # Errors
    /// As there.
    pub fn read_output_into(
        &mut self,
        id: ProgramId,
        name: &str,
        bytes: &mut [u8],
    ) -> Result<(), Error> {
        let (_, port) = self.port(id, "output", &self.program(id).outputs, name)?;
        if self.ran_last != Some(id) {
            let reason = "the program has not run since the arena was last written; run it first";
            return Err(self.wrong_port(id, "output", name, reason.into()));
        }
        if bytes.len() != port.ty.bytes() {
            let reason = format!("room for {} bytes, expected {}", bytes.len(), port.ty.bytes());
            return Err(self.wrong_port(id, "output", name, reason));
        }
        let address = self.arena + port.offset;
        self.device.download(address, bytes)
    }

    /// Launches all of a run.
    fn enqueue(&mut self, id: ProgramId) -> Result<(), Error> {
        if let Some(graph) = self.bound[id.0].graph {
            return self.device.launch_graph(graph);
        }
        self.transfer_inputs(id)?;
        self.launch(id, |_, _| Ok(()))?;
        self.carry_outputs(id)
    }

    /// Copies the inputs to where the first steps read them.
    fn transfer_inputs(&mut self, id: ProgramId) -> Result<(), Error> {
        let transfers = self.bound[id.0].inputs.transfers();
        transfers.iter().try_for_each(|t| self.device.copy(t.from, t.to, t.bytes))
    }

    /// Copies outputs to the inputs that take them.
    fn carry_outputs(&mut self, id: ProgramId) -> Result<(), Error> {
        let carries = &self.bound[id.0].carries;
        carries.iter().try_for_each(|t| self.device.copy(t.from, t.to, t.bytes))
    }

    /// Waits for a run that was launched.
    fn finish(&mut self, id: ProgramId) -> Result<(), Error> {
        self.device.synchronize()?;
        (self.ran_last, self.started) = (Some(id), None);
        Ok(())
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
                for launch in step {
                    match launch {
                        BoundLaunch::Kernel { kernel, grid, pointers } => {
                            self.device.launch(*kernel, *grid, pointers)?;
                        }
                        BoundLaunch::Product(product) => self.device.multiply(*product)?,
                    }
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

    /// Checks that every input has a value. The outputs of the run before are lost from here on.
    fn check_inputs(&mut self, id: ProgramId) -> Result<(), Error> {
        if let Some(index) = self.bound[id.0].inputs.missing() {
            let name = &self.program(id).inputs[index].name;
            let reason = "never written; call `write_input` first".to_string();
            return Err(self.wrong_port(id, "input", name, reason));
        }
        self.ran_last = None;
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
