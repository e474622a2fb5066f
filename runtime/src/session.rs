//! One plan bound to memory and weights, ready to run any number of times.
//!
//! Every address in the arena is fixed when the session is made, so a run is a walk over the steps. The arena
//! is exactly as large as the plan says. What the plan carries is in an [`InputStore`], which each run is given.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use compiler::{BufferId, Memory, Place, Plan, Port, check_plan};
use kernels::{Launch, Pool};
use ops::{Role, ValueId};

use crate::arena::Arena;
use crate::weights::{Weight, WeightStore};
use crate::{Error, InputStore};

/// Elements that steps which run together make in turn: small enough for the second-level cache, with all that
/// they read and write, and large enough to hide what a turn costs.
const TOGETHER: usize = 4096;

/// Time and work of one step, summed over runs. Steps that make elements together share their time evenly.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct StepTime {
    /// Seconds.
    pub seconds: f64,
    /// How often it ran.
    pub runs: u32,
}

/// What a caller may watch and stop during a run.
#[derive(Default)]
pub struct Control<'a> {
    /// Checked before every step: `true` ends the run with [`Error::Interrupted`].
    pub interrupt: Option<&'a AtomicBool>,
    /// Called after every step with the FLOPs done so far in this run.
    pub on_step: Option<&'a mut dyn FnMut(u64)>,
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("interrupt", &self.interrupt).finish_non_exhaustive()
    }
}

/// Addresses of one step.
#[derive(Debug)]
struct Bound {
    operands: Box<[*const u8]>,
    result: *mut u8,
    scratch: *mut u8,
    flops: u64,
}

// SAFETY: only `run_together` shares it between threads, which follow the pointers to different elements.
unsafe impl Sync for Bound {}

/// An input in memory of its own.
#[derive(Debug)]
struct Carried {
    name: Arc<str>,
    bytes: usize,
    /// The steps that read it, by which operand, or that write it, by none.
    uses: Vec<(usize, Option<usize>)>,
    /// The output that is copied to it after a run.
    copied_from: Option<usize>,
}

/// A plan that can run.
#[derive(Debug)]
pub struct Session {
    plan: Arc<Plan>,
    pool: Arc<Pool>,
    arena: Arena,
    bound: Vec<Bound>,
    times: Vec<StepTime>,
    carried: Vec<Carried>,
    /// The first step that overwrites what is carried: from there on, a run is not interrupted.
    first_overwriting: usize,
    /// Whether the inputs were written since the last run, which may have overwritten them.
    has_inputs: bool,
    /// Keeps alive what `bound` points to.
    _weights: Vec<Arc<Weight>>,
}

// SAFETY: the raw pointers in `bound` point into `arena` and `_weights`, which move with the session
// (their memory does not move), and are only followed under `&mut self`.
unsafe impl Send for Session {}

impl Session {
    /// Allocates the arena and makes every weight the plan reads.
    ///
    /// # Errors
    /// [`Error::MissingWeight`], [`Error::WeightType`], [`Error::Source`], [`Error::OutOfMemory`].
    pub fn new(plan: Arc<Plan>, weights: &WeightStore, pool: Arc<Pool>) -> Result<Session, Error> {
        Session::bind(plan, weights, pool, &[])
    }

    /// [`Session::new`] with the addresses of some operands given: step, position, address.
    pub(crate) fn bind(
        plan: Arc<Plan>,
        weights: &WeightStore,
        pool: Arc<Pool>,
        given: &[(usize, usize, *const u8)],
    ) -> Result<Session, Error> {
        assert_eq!(pool.threads(), plan.target.threads, "a plan is made for its number of threads");
        // The unsafe calls of `run` rest on the plan being right, and checking is cheap.
        let problems = check_plan(&plan);
        assert!(problems.is_empty(), "the compiler made a wrong plan: {problems:?}");
        let arena = Arena::new(plan.arena_bytes, "arena")?;
        let mut kept = Vec::new();
        let mut bound = Vec::with_capacity(plan.steps.len());
        let mut params: Vec<(usize, usize, usize)> = Vec::new();
        let mut constants: BTreeMap<ValueId, *const u8> = BTreeMap::new();
        for (index, step) in plan.steps.iter().enumerate() {
            let in_arena = |buffer: BufferId| {
                let place = &plan.buffers[buffer.index()];
                match place.memory {
                    Memory::Arena => {
                        // SAFETY: the checked plan has every such buffer inside the arena.
                        unsafe { arena.ptr().add(place.offset) }
                    }
                    // Each run says where that is.
                    Memory::Carried => std::ptr::null_mut(),
                }
            };
            let mut operands = Vec::with_capacity(step.operands.len());
            for (position, operand) in step.operands.iter().enumerate() {
                operands.push(match &operand.place {
                    Place::Buffer(buffer) => in_arena(*buffer).cast_const(),
                    Place::Param { ty, .. } => {
                        params.push((ty.bytes(), index, position));
                        std::ptr::null()
                    }
                    Place::Constant(value) => {
                        if let Some(&known) = constants.get(value) {
                            known
                        } else {
                            let Role::Constant(tensor) = &plan.graph.node(*value).role else {
                                unreachable!("the plan was checked");
                            };
                            let weight = Arc::new(Weight::of(&tensor.to_bytes())?);
                            let ptr = weight.ptr();
                            kept.push(weight);
                            constants.insert(*value, ptr);
                            ptr
                        }
                    }
                });
            }
            bound.push(Bound {
                operands: operands.into(),
                result: in_arena(step.result),
                scratch: step.scratch.map_or(std::ptr::dangling_mut(), in_arena),
                flops: plan.graph.node_flops(step.value),
            });
        }
        // While a weight is put into its form, the source's copy is in memory too. Largest first,
        // that is never more than what is still to come, so loading needs no more than running.
        params.sort_by_key(|&(bytes, index, position)| (usize::MAX - bytes, index, position));
        let given: BTreeMap<(usize, usize), *const u8> =
            given.iter().map(|&(index, position, ptr)| ((index, position), ptr)).collect();
        for (_, index, position) in params {
            if let Some(&ptr) = given.get(&(index, position)) {
                bound[index].operands[position] = ptr;
                continue;
            }
            let step = &plan.steps[index];
            let Place::Param { name, ty, packing } = &step.operands[position].place else {
                unreachable!("only parameters are in the list");
            };
            let kernel = step.kernel.def();
            let weight = weights.get(name, ty, packing.as_ref(), kernel, position, &pool)?;
            bound[index].operands[position] = weight.ptr();
            kept.push(weight);
        }
        let times = vec![StepTime::default(); plan.steps.len()];
        let carried = carried(&plan);
        let overwrites =
            |step: &compiler::Step| plan.buffers[step.result.index()].memory == Memory::Carried;
        let first_overwriting = plan.steps.iter().position(overwrites).unwrap_or(plan.steps.len());
        Ok(Session {
            plan,
            pool,
            arena,
            bound,
            times,
            carried,
            first_overwriting,
            has_inputs: false,
            _weights: kept,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan, to be kept.
    pub fn shared_plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan)
    }

    /// Runs once. `inputs` gives every input of the plan by name, as dense little-endian bytes.
    ///
    /// # Errors
    /// [`Error::Input`] if one is missing, unknown or of another size.
    pub fn run(&mut self, inputs: &[(&str, &[u8])]) -> Result<(), Error> {
        self.run_with(inputs, Control::default())
    }

    /// Runs once and can be watched and interrupted between steps.
    ///
    /// # Errors
    /// As [`Session::run`], and [`Error::Interrupted`].
    pub fn run_with(
        &mut self,
        inputs: &[(&str, &[u8])],
        control: Control<'_>,
    ) -> Result<(), Error> {
        self.write_inputs(inputs)?;
        self.run_written(control)
    }

    /// Runs once on a store that has what the plan carries, and gets it back as the run leaves it: new values
    /// are there, nothing was copied but what [`Plan::is_in_place`] denies. Other inputs are those of `inputs`, else
    /// of the store. A run that has begun to replace what is carried is not interrupted.
    ///
    /// # Errors
    /// As [`Session::run_with`]; the store is as it was then.
    pub fn run_on(
        &mut self,
        store: &mut InputStore,
        inputs: &[(&str, &[u8])],
        control: Control<'_>,
    ) -> Result<(), Error> {
        for Carried { name, bytes, uses, .. } in &self.carried {
            let address = store.address(name, *bytes)?;
            for &(step, operand) in uses {
                match operand {
                    Some(operand) => self.bound[step].operands[operand] = address,
                    None => self.bound[step].result = address,
                }
            }
        }
        // Only now may steps run.
        self.write_to_arena(inputs, store)?;
        self.run_steps(control, |_| Ok(()), || ())?;
        for Carried { name, copied_from, .. } in &self.carried {
            if let Some(output) = *copied_from {
                self.copy_output(output, store, name);
            }
        }
        Ok(())
    }

    /// Copies output `output` to the input `name` of `store`, which has a value of that size.
    pub(crate) fn copy_output(&self, output: usize, store: &mut InputStore, name: &str) {
        let value = store.get_mut(name).expect("the run had every input");
        value.copy_from_slice(self.output(output));
    }

    /// Runs once on what [`Session::write_inputs`] wrote since the last run.
    ///
    /// # Errors
    /// [`Error::Input`] if nothing was written, and [`Error::Interrupted`].
    pub fn run_written(&mut self, control: Control<'_>) -> Result<(), Error> {
        self.run_steps(control, |_| Ok(()), || ())
    }

    /// Runs once on the inputs as they were written, with something to do before every step and
    /// after it.
    pub(crate) fn run_steps(
        &mut self,
        mut control: Control<'_>,
        mut before: impl FnMut(usize) -> Result<(), Error>,
        mut after: impl FnMut(),
    ) -> Result<(), Error> {
        if !std::mem::take(&mut self.has_inputs) {
            let name = self.plan.inputs.first().map_or(String::new(), |port| port.name.to_string());
            let reason = "not written since the last run; call `write_inputs` first".to_string();
            return Err(Error::Input { name, reason });
        }
        let (mut done, mut index) = (0, 0);
        while index < self.plan.steps.len() {
            let is_asked = control.interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed));
            if is_asked && index <= self.first_overwriting {
                return Err(Error::Interrupted);
            }
            let steps = index..self.plan.joined_end(index);
            steps.clone().try_for_each(&mut before)?;
            self.run_together(steps.clone());
            for step in steps.clone() {
                self.times[step].runs += 1;
                after();
                done += self.bound[step].flops;
            }
            if let Some(on_step) = &mut control.on_step {
                on_step(done);
            }
            index = steps.end;
        }
        Ok(())
    }

    /// Runs steps that run together, and counts their time.
    fn run_together(&mut self, steps: Range<usize>) {
        let start = Instant::now();
        let first = steps.start;
        let has_sums = steps.len() == 2 && self.plan.is_summed_before(first + 1);
        // SAFETY: the plan was checked: operands, result and scratch are distinct ranges of the arena or of what is
        // carried (or the aliases that the kernel allows) and large enough; weights are in the form the kernel asked
        // for; `&mut self` keeps everybody else out, and `run_on` holds the store; an `Isa` is proof that the CPU has
        // the instructions. Sums are of the columns that the step before them reads.
        unsafe {
            let launch = self.bound[first].launch(&self.pool);
            let kernel = &self.plan.steps[first].kernel;
            if has_sums {
                let sums = &self.plan.steps[first + 1].kernel;
                let sums_launch = self.bound[first + 1].launch(&self.pool);
                kernel.def().run_with_sums(&launch, (sums, &sums_launch));
                let seconds = start.elapsed().as_secs_f64();
                sums.def().finish_sums(&sums_launch);
                self.times[first].seconds += seconds;
                self.times[first + 1].seconds += start.elapsed().as_secs_f64() - seconds;
                return;
            }
            if steps.len() > 1 {
                self.run_elements(steps.clone());
            } else {
                kernel.def().run(&launch);
            }
        }
        let seconds = start.elapsed().as_secs_f64() / steps.len() as f64;
        for time in &mut self.times[steps] {
            time.seconds += seconds;
        }
    }

    /// Runs steps that make as many elements each, [`TOGETHER`] of them at a time.
    ///
    /// # Safety
    /// As [`KernelDef::run`](kernels::KernelDef::run), for each of the steps.
    unsafe fn run_elements(&self, steps: Range<usize>) {
        let (bound, steps) = (&self.bound[steps.clone()], &self.plan.steps[steps]);
        let pool = &*self.pool;
        let n = steps[0].kernel.def().elements().expect("the plan was checked");
        pool.run(n.div_ceil(TOGETHER), &|turn, worker| {
            let elements = turn * TOGETHER..n.min((turn + 1) * TOGETHER);
            for (step, bound) in steps.iter().zip(bound) {
                let launch = bound.launch(pool);
                // SAFETY: the caller's promise. The checked plan lets these steps meet in memory at the same elements
                // only, and each has a scratch of its own.
                unsafe { step.kernel.def().run_elements(&launch, elements.clone(), worker) };
            }
        });
    }

    /// Dense little-endian bytes of output `index`, as the last run left them. One that is carried in place is in
    /// the store of the run instead.
    pub fn output(&self, index: usize) -> &[u8] {
        let port = &self.plan.outputs[index];
        let place = &self.plan.buffers[port.buffer.index()];
        assert_eq!(place.memory, Memory::Arena, "output {index} is in the store of the run");
        self.arena.slice(place.offset, port.ty.bytes())
    }

    /// Output `index` as f32; the output must be f32.
    pub fn output_f32(&self, index: usize) -> &[f32] {
        assert_eq!(self.plan.outputs[index].ty.dtype(), ops::DType::F32, "output {index}");
        bytemuck::cast_slice(self.output(index))
    }

    /// Time of every step since the session was made, in plan order.
    pub fn times(&self) -> &[StepTime] {
        &self.times
    }

    /// Writes every input of the next run, by name, as dense little-endian bytes.
    ///
    /// # Errors
    /// [`Error::Input`] if one is missing, unknown or of another size.
    pub fn write_inputs(&mut self, inputs: &[(&str, &[u8])]) -> Result<(), Error> {
        if let Some(Carried { name, .. }) = self.carried.first() {
            let reason = "stays from run to run; run on a store, with `run_on`".to_string();
            return Err(Error::Input { name: name.to_string(), reason });
        }
        self.write_to_arena(inputs, &InputStore::new())
    }

    /// Writes the inputs that are in the arena, from `inputs` or else from `store`.
    fn write_to_arena(
        &mut self,
        inputs: &[(&str, &[u8])],
        store: &InputStore,
    ) -> Result<(), Error> {
        let error = |name: &str, reason: String| Error::Input { name: name.to_string(), reason };
        if let Some((name, _)) = inputs.iter().find(|(name, _)| self.port(name).is_none()) {
            let known: Vec<&str> = self.plan.inputs.iter().map(|port| &*port.name).collect();
            return Err(error(
                name,
                format!("unknown; the plan's inputs are {}", known.join(", ")),
            ));
        }
        for port in &self.plan.inputs {
            let place = &self.plan.buffers[port.buffer.index()];
            if place.memory == Memory::Carried {
                continue;
            }
            let given = inputs.iter().find(|(name, _)| *name == &*port.name);
            let bytes = given
                .map(|(_, bytes)| *bytes)
                .or_else(|| store.get(&port.name))
                .ok_or_else(|| error(&port.name, format!("missing, expected {}", port.ty)))?;
            if bytes.len() != port.ty.bytes() {
                let reason =
                    format!("{} bytes, expected {} for {}", bytes.len(), port.ty.bytes(), port.ty);
                return Err(error(&port.name, reason));
            }
            self.arena.slice_mut(place.offset, bytes.len()).copy_from_slice(bytes);
        }
        self.has_inputs = true;
        Ok(())
    }

    fn port(&self, name: &str) -> Option<&Port> {
        self.plan.inputs.iter().find(|port| *port.name == *name)
    }
}

impl Bound {
    fn launch<'a>(&'a self, pool: &'a Pool) -> Launch<'a> {
        let Bound { operands, result, scratch, .. } = self;
        Launch { pool, operands, result: *result, scratch: *scratch }
    }
}

/// What `plan` carries, and where it is used.
fn carried(plan: &Plan) -> Vec<Carried> {
    let mut uses: BTreeMap<BufferId, Vec<(usize, Option<usize>)>> = BTreeMap::new();
    let is_carried = |buffer: BufferId| plan.buffers[buffer.index()].memory == Memory::Carried;
    for (index, step) in plan.steps.iter().enumerate() {
        for (position, operand) in step.operands.iter().enumerate() {
            if let Place::Buffer(buffer) = operand.place
                && is_carried(buffer)
            {
                uses.entry(buffer).or_default().push((index, Some(position)));
            }
        }
        if is_carried(step.result) {
            uses.entry(step.result).or_default().push((index, None));
        }
    }
    let mut carried = Vec::with_capacity(plan.carries.len());
    // Both are in the order of the inputs.
    let mut carries = plan.carries.iter().peekable();
    for port in &plan.inputs {
        let Some(carry) = carries.next_if(|carry| carry.input == port.name) else { continue };
        let is_copied = |output: &usize| plan.outputs[*output].buffer != port.buffer;
        carried.push(Carried {
            name: Arc::clone(&port.name),
            bytes: port.ty.bytes(),
            uses: uses.remove(&port.buffer).unwrap_or_default(),
            copied_from: carry.output.filter(is_copied),
        });
    }
    carried
}
