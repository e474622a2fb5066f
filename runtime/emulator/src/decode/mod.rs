//! [`Module`] to [`Program`]: names become rows, labels places, calls copies of what they call.
//!
//! An instruction that is not known, or has a modifier that is not, is an error here and never later. Calls are
//! inlined, each with registers of its own, so that execution knows neither frames nor a call stack.

mod arithmetic;
mod barriers;
mod calls;
mod control;
mod conversions;
mod data;
mod flow;
mod group_products;
mod matrices;
mod memory;
mod operands;
mod scopes;

use std::collections::BTreeMap;

use crate::Error;
use crate::ast::{Function, Initial, Instruction, Module, Space, Statement, Variable};
use crate::memory::global::Global;
use crate::memory::{SPACE_START, window};
use crate::ops::{Inst, Op, Slot};
use crate::program::{Entry, Param, Program, Special};
use crate::registers::{ALWAYS, LANES, PredUse, Reg, Registers};
use crate::stats::Class;
use scopes::{Frame, Symbol};

/// Most instructions of an entry, calls included.
const MAX_CODE: usize = 1 << 20;
/// Most statements of an entry, those of calls once for each.
const MAX_STATEMENTS: usize = 1 << 22;
/// Most registers of an entry.
const MAX_REGISTERS: usize = 1 << 16;
/// Most bytes of local memory of a thread, as on devices.
const MAX_LOCAL_BYTES: u64 = 512 << 10;
/// Most bytes of parameters, as of CUDA 12.
const MAX_PARAM_BYTES: u64 = 32_764;
/// Most bytes of global variables of a module.
const MAX_GLOBAL_BYTES: u64 = 128 << 20;
/// Bytes of constant memory.
const MAX_CONSTANT_BYTES: u64 = 64 << 10;

/// Addresses of the variables of a module.
struct Variables {
    names: BTreeMap<String, (Space, u64)>,
}

/// Loads a module: allocates its variables and decodes its entries.
pub(crate) fn load(module: &Module, global: &mut Global) -> Result<Program, Error> {
    let (variables, globals, constants) = place_variables(module, global)?;
    let entries = module
        .functions
        .iter()
        .filter(|f| f.is_entry && f.is_defined)
        .map(|f| Lowering::new(module, &variables).entry(f))
        .collect::<Result<_, Error>>()?;
    let version = module.target.trim_start_matches("sm_").trim_end_matches(['a', 'f']);
    // The most that a block may have, by compute capability.
    let max_shared_bytes = match version.parse::<u32>().unwrap_or(0) {
        86 | 89 | 120 => 99 << 10,
        80 | 87 => 163 << 10,
        90.. => 227 << 10,
        _ => 48 << 10,
    };
    Ok(Program { entries, globals, constants, lines: module.lines.clone(), max_shared_bytes })
}

type Placed = (Variables, BTreeMap<String, (u64, u64)>, Vec<u8>);

/// Gives global and constant variables addresses, and writes their initial values.
fn place_variables(module: &Module, global: &mut Global) -> Result<Placed, Error> {
    let mut names = BTreeMap::new();
    let mut globals = BTreeMap::new();
    let (mut n_constants, mut n_globals) = (0_u64, 0_u64);
    for variable in &module.variables {
        let place = match variable.space {
            Space::Global if variable.is_extern => {
                let what = format!("{}: variables of other modules are not linked", variable.name);
                return Err(Error::Invalid { line: variable.line, what });
            }
            Space::Global => {
                n_globals += variable.bytes();
                if n_globals > MAX_GLOBAL_BYTES {
                    let what = format!("global variables need more than {MAX_GLOBAL_BYTES} bytes");
                    return Err(Error::Invalid { line: variable.line, what });
                }
                let address = global.alloc(variable.bytes())?;
                globals.insert(variable.name.clone(), (address, variable.bytes()));
                address
            }
            Space::Const => {
                let offset = n_constants.next_multiple_of(variable.align);
                n_constants = offset + variable.bytes();
                if n_constants > MAX_CONSTANT_BYTES {
                    let what =
                        format!("constant variables need more than {MAX_CONSTANT_BYTES} bytes");
                    return Err(Error::Invalid { line: variable.line, what });
                }
                SPACE_START + offset
            }
            _ => continue,
        };
        names.insert(variable.name.clone(), (variable.space, place));
    }
    let mut constants = vec![0; n_constants as usize];
    for variable in &module.variables {
        let Some(&(space, place)) = names.get(&variable.name) else { continue };
        let bytes = initial_bytes(variable, &names)?;
        if space == Space::Global {
            global.upload(place, &bytes)?;
        } else {
            let start = (place - SPACE_START) as usize;
            constants[start..start + bytes.len()].copy_from_slice(&bytes);
        }
    }
    Ok((Variables { names }, globals, constants))
}

/// The bytes of a variable; what the initializer leaves out is zero.
fn initial_bytes(
    variable: &Variable,
    names: &BTreeMap<String, (Space, u64)>,
) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; variable.bytes() as usize];
    let n = (variable.element_bytes as usize).clamp(1, 8);
    let n_values = variable.initial.len();
    if n_values * n > bytes.len() {
        let what = format!("{}: {n_values} values for {} bytes", variable.name, bytes.len());
        return Err(Error::Invalid { line: variable.line, what });
    }
    for (value, to) in variable.initial.iter().zip(bytes.chunks_exact_mut(n)) {
        let bits = match value {
            Initial::Bits(bits) => *bits,
            Initial::Address { name, offset, is_generic } => {
                let Some(&(space, place)) = names.get(name) else {
                    let what = format!("{}: unknown variable {name}", variable.name);
                    return Err(Error::Invalid { line: variable.line, what });
                };
                let base = if *is_generic { window(space) } else { 0 };
                (base + place).wrapping_add_signed(*offset)
            }
        };
        to.copy_from_slice(&bits.to_le_bytes()[..n]);
    }
    Ok(bytes)
}

/// The state of lowering one entry.
struct Lowering<'m> {
    module: &'m Module,
    variables: &'m Variables,
    code: Vec<Inst>,
    /// Registers of up to 32 bits that each instruction of `code` names.
    named: Vec<Vec<Reg>>,
    /// Those named since the last one.
    names: Vec<Reg>,
    registers: Registers,
    narrow_constants: BTreeMap<u32, Reg>,
    wide_constants: BTreeMap<u64, Reg>,
    specials: BTreeMap<(Special, bool), Slot>,
    /// Functions being inlined, the innermost last.
    frames: Vec<Frame<'m>>,
    /// Place of each label that has been passed; branches hold indices of labels until the end.
    labels: Vec<Option<u32>>,
    /// Module-wide shared variables that the entry uses.
    shared: BTreeMap<String, u64>,
    shared_bytes: u64,
    /// Alignment of dynamic shared memory, which begins where the rest ends.
    dynamic_align: u64,
    local_bytes: u64,
    carry: Option<Reg>,
    has_global_atomics: bool,
    n_statements: usize,
    guard: PredUse,
    line: u32,
}

impl<'m> Lowering<'m> {
    fn new(module: &'m Module, variables: &'m Variables) -> Self {
        let registers = Registers { preds: vec![u32::MAX], ..Registers::default() };
        Self {
            module,
            variables,
            code: vec![],
            named: vec![],
            names: vec![],
            registers,
            narrow_constants: BTreeMap::new(),
            wide_constants: BTreeMap::new(),
            specials: BTreeMap::new(),
            frames: vec![],
            labels: vec![],
            shared: BTreeMap::new(),
            shared_bytes: 0,
            dynamic_align: 16,
            local_bytes: 0,
            carry: None,
            has_global_atomics: false,
            n_statements: 0,
            guard: ALWAYS,
            line: 0,
        }
    }

    fn entry(mut self, function: &'m Function) -> Result<Entry, Error> {
        self.line = function.line;
        self.place_shared(function)?;
        let mut params = vec![];
        let mut param_bytes = 0_u64;
        let mut frame = Frame::new(function, None);
        for param in &function.params {
            let offset = param_bytes.next_multiple_of(param.align.max(1));
            param_bytes = offset + param.bytes();
            if param_bytes > MAX_PARAM_BYTES {
                return self.invalid(format!("parameters of more than {MAX_PARAM_BYTES} bytes"));
            }
            params.push(Param { name: param.name.clone(), offset, bytes: param.bytes() });
            let address = SPACE_START + offset;
            frame.declare(&param.name, Symbol::Variable { space: Space::Param, address });
        }
        self.frames.push(frame);
        self.body(function)?;
        self.emit(Op::Exit, Class::Control)?;
        self.resolve_labels()?;
        flow::set_joins(&mut self.code);
        group_products::set_sums(&mut self.code, &self.named);
        let dynamic = self.shared_bytes.next_multiple_of(self.dynamic_align);
        Ok(Entry {
            name: function.name.clone(),
            line: function.line,
            code: self.code,
            registers: self.registers,
            specials: self
                .specials
                .into_iter()
                .map(|((special, _), slot)| (special, slot))
                .collect(),
            params,
            param_bytes,
            shared_bytes: dynamic,
            local_bytes: self.local_bytes.next_multiple_of(16),
            max_threads: function.max_threads,
            required_block: function.required_block,
            has_global_atomics: self.has_global_atomics,
        })
    }

    /// Statements of the function on top of `frames`.
    fn body(&mut self, function: &'m Function) -> Result<(), Error> {
        self.n_statements += function.body.len();
        if self.n_statements > MAX_STATEMENTS {
            return self.invalid(format!("more than {MAX_STATEMENTS} statements, calls included"));
        }
        let n_labels = self.labels.len();
        let n_new = self.frame().scan_labels(function, n_labels)?;
        self.labels.resize(n_labels + n_new, None);
        for statement in &function.body {
            match statement {
                Statement::Open => self.frame().open(),
                Statement::Close => self.frame().close(),
                Statement::Label(name, line) => {
                    self.line = *line;
                    let label = self.label(name)?;
                    self.labels[label as usize] = Some(self.code.len() as u32);
                }
                Statement::Targets { .. } => {}
                Statement::Registers(registers) => {
                    self.line = registers.line;
                    self.declare_registers(registers)?;
                }
                Statement::Variable(variable) => {
                    self.line = variable.line;
                    self.declare_variable(variable)?;
                }
                Statement::Instruction(instruction) => self.guarded(instruction)?,
            }
        }
        Ok(())
    }

    fn guarded(&mut self, inst: &'m Instruction) -> Result<(), Error> {
        self.line = inst.line;
        self.guard = ALWAYS;
        if let Some((name, is_negated)) = &inst.guard {
            let mut used = self.pred(name)?;
            used.is_negated = *is_negated;
            self.guard = used;
        }
        self.instruction(inst)
    }

    fn instruction(&mut self, inst: &'m Instruction) -> Result<(), Error> {
        match inst.opcode[0].as_str() {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "abs" | "neg" | "min"
            | "max" | "sad" | "addc" | "subc" | "mul24" | "mad24" | "sqrt" | "rsqrt" | "rcp"
            | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign" | "testp" | "dp4a" | "dp2a" => {
                self.arithmetic(inst)
            }
            "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "bfe" | "bfi" | "bfind"
            | "brev" | "popc" | "clz" | "shf" | "prmt" | "lop3" => self.bits(inst),
            "setp" | "set" | "selp" | "slct" | "mov" | "cvta" | "isspacep" => self.data(inst),
            "cvt" => self.conversion(inst),
            "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "discard"
            | "applypriority" | "createpolicy" => self.memory(inst),
            "cp" => self.copy(inst),
            "mbarrier" => self.mbarrier(inst),
            "bar" | "barrier" | "membar" | "fence" | "shfl" | "vote" | "match" | "redux"
            | "elect" | "activemask" => self.collective(inst),
            "ldmatrix" | "stmatrix" | "mma" | "wmma" => self.matrix(inst),
            "wgmma" => self.group_product(inst),
            "bra" | "brx" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "griddepcontrol"
            | "setmaxnreg" | "pmevent" => self.control(inst),
            "call" => self.call(inst),
            _ => self.unknown(inst, "no instruction of that name is known"),
        }
    }

    fn emit(&mut self, op: Op, class: Class) -> Result<(), Error> {
        if self.code.len() >= MAX_CODE {
            return self.invalid(format!("more than {MAX_CODE} instructions, calls included"));
        }
        let sums = Box::default();
        self.code.push(Inst { op, guard: self.guard, line: self.line, class, sums });
        self.named.push(std::mem::take(&mut self.names));
        Ok(())
    }

    fn invalid<T>(&self, what: String) -> Result<T, Error> {
        Err(Error::Invalid { line: self.line, what })
    }

    fn unknown<T>(&self, inst: &Instruction, reason: &str) -> Result<T, Error> {
        let (what, reason) = (format!("`{}`", inst.opcode_text()), reason.to_string());
        Err(Error::NotEmulated { line: self.line, what, reason })
    }

    /// Replaces indices of labels by places.
    fn resolve_labels(&mut self) -> Result<(), Error> {
        let labels = &self.labels;
        let place = |label: u32| {
            // Every label that a branch names was found by the scan, so it is passed by the end.
            labels.get(label as usize).copied().flatten().unwrap_or(0)
        };
        for inst in &mut self.code {
            match &mut inst.op {
                Op::Branch { target, .. } => *target = place(*target),
                Op::BranchIndex { targets, .. } => {
                    for target in targets {
                        *target = place(*target);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn new_narrow(&mut self) -> Result<Reg, Error> {
        self.check_registers()?;
        self.registers.narrow.push([0; LANES]);
        Ok(self.registers.narrow.len() as Reg - 1)
    }

    fn new_wide(&mut self) -> Result<Reg, Error> {
        self.check_registers()?;
        self.registers.wide.push([0; LANES]);
        Ok(self.registers.wide.len() as Reg - 1)
    }

    fn new_pred(&mut self) -> Result<Reg, Error> {
        self.check_registers()?;
        self.registers.preds.push(0);
        Ok(self.registers.preds.len() as Reg - 1)
    }

    fn check_registers(&self) -> Result<(), Error> {
        let Registers { narrow, wide, preds } = &self.registers;
        if narrow.len() + wide.len() + preds.len() < MAX_REGISTERS {
            return Ok(());
        }
        self.invalid(format!("more than {MAX_REGISTERS} registers and constants"))
    }
}
