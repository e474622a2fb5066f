//! One plan bound to memory and weights, ready to run any number of times.
//!
//! Every address is fixed when the session is made, so a run is a walk over the steps. The arena is
//! exactly as large as the plan says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use compiler::{Place, Plan, Port, check_plan};
use kernels::{Launch, Pool};
use ops::{Role, ValueId};

use crate::Error;
use crate::arena::Arena;
use crate::weights::{Weight, WeightStore};

/// Time and work of one step, summed over runs.
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

/// A plan that can run.
#[derive(Debug)]
pub struct Session {
    plan: Arc<Plan>,
    pool: Arc<Pool>,
    arena: Arena,
    bound: Vec<Bound>,
    times: Vec<StepTime>,
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
            let in_arena = |buffer: compiler::BufferId| {
                let offset = plan.buffers[buffer.index()].offset;
                // SAFETY: the checked plan has every buffer inside the arena.
                unsafe { arena.ptr().add(offset) }
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
        Ok(Session { plan, pool, arena, bound, times, has_inputs: false, _weights: kept })
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
        let mut done = 0;
        for (index, (step, bound)) in self.plan.steps.iter().zip(&self.bound).enumerate() {
            if control.interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Err(Error::Interrupted);
            }
            before(index)?;
            let start = Instant::now();
            let launch = Launch {
                pool: &self.pool,
                operands: &bound.operands,
                result: bound.result,
                scratch: bound.scratch,
            };
            // SAFETY: the plan was checked: operands, result and scratch are distinct ranges of the
            // arena (or the aliases that the kernel allows) and large enough; weights are in the
            // form the kernel asked for; `&mut self` keeps everybody else out; an `Isa` is proof
            // that the CPU has the instructions.
            unsafe { step.kernel.def().run(&launch) };
            let time = &mut self.times[index];
            time.seconds += start.elapsed().as_secs_f64();
            time.runs += 1;
            after();
            done += bound.flops;
            if let Some(on_step) = &mut control.on_step {
                on_step(done);
            }
        }
        Ok(())
    }

    /// Dense little-endian bytes of output `index`, as the last run left them.
    pub fn output(&self, index: usize) -> &[u8] {
        let port = &self.plan.outputs[index];
        self.arena.slice(self.plan.buffers[port.buffer.index()].offset, port.ty.bytes())
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
        let error = |name: &str, reason: String| Error::Input { name: name.to_string(), reason };
        if let Some((name, _)) = inputs.iter().find(|(name, _)| self.port(name).is_none()) {
            let known: Vec<&str> = self.plan.inputs.iter().map(|port| &*port.name).collect();
            return Err(error(
                name,
                format!("unknown; the plan's inputs are {}", known.join(", ")),
            ));
        }
        for port in &self.plan.inputs {
            let (_, bytes) = inputs
                .iter()
                .find(|(name, _)| *name == &*port.name)
                .ok_or_else(|| error(&port.name, format!("missing, expected {}", port.ty)))?;
            if bytes.len() != port.ty.bytes() {
                let reason =
                    format!("{} bytes, expected {} for {}", bytes.len(), port.ty.bytes(), port.ty);
                return Err(error(&port.name, reason));
            }
            let offset = self.plan.buffers[port.buffer.index()].offset;
            self.arena.slice_mut(offset, bytes.len()).copy_from_slice(bytes);
        }
        self.has_inputs = true;
        Ok(())
    }

    fn port(&self, name: &str) -> Option<&Port> {
        self.plan.inputs.iter().find(|port| *port.name == *name)
    }
}
