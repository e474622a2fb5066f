//! Names of a function: registers, variables, labels, each in the scope that declares it.

use std::collections::BTreeMap;

use super::{Lowering, MAX_LOCAL_BYTES};
use crate::Error;
use crate::ast::{Function, Operand, Registers, Space, Statement, Variable};
use crate::memory::SPACE_START;
use crate::registers::{PredUse, Reg};

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Symbol {
    /// A register of 16 or 32 bits.
    Narrow {
        reg: Reg,
        bits: u32,
    },
    Wide(Reg),
    Pred(Reg),
    /// A variable, by its address in its space.
    Variable {
        space: Space,
        address: u64,
    },
}

/// Kind of the registers of a declaration.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Narrow(u32),
    Wide,
    Pred,
}

#[derive(Debug, Default)]
struct Scope<'m> {
    names: BTreeMap<String, Symbol>,
    /// `.reg .b32 %r<10>`: prefix to kind and count.
    ranges: BTreeMap<&'m str, (Kind, u32)>,
    labels: BTreeMap<&'m str, u32>,
    tables: BTreeMap<&'m str, &'m [String]>,
}

/// A function being lowered.
#[derive(Debug)]
pub(super) struct Frame<'m> {
    pub(super) function: &'m Function,
    /// Label behind an inlined function, to which it returns.
    pub(super) end: Option<u32>,
    /// Open scopes, the innermost last; labels are known when a scope opens.
    open: Vec<Scope<'m>>,
    /// Scopes that are still to be opened, in reverse order.
    next: Vec<Scope<'m>>,
}

impl<'m> Frame<'m> {
    pub(super) fn new(function: &'m Function, end: Option<u32>) -> Self {
        Self { function, end, open: vec![Scope::default()], next: vec![] }
    }

    pub(super) fn declare(&mut self, name: &str, symbol: Symbol) {
        if let Some(scope) = self.open.last_mut() {
            scope.names.insert(name.to_string(), symbol);
        }
    }

    pub(super) fn open(&mut self) {
        let scope = self.next.pop().unwrap_or_default();
        self.open.push(scope);
    }

    pub(super) fn close(&mut self) {
        self.open.pop();
    }

    /// Finds the labels of all scopes; they are numbered from `first` on. Returns how many there are.
    pub(super) fn scan_labels(
        &mut self,
        function: &'m Function,
        first: usize,
    ) -> Result<usize, Error> {
        let mut scopes: Vec<Scope<'m>> = vec![Scope::default()];
        let mut open = vec![0];
        let mut n_labels = 0;
        for statement in &function.body {
            let inside = open.last().copied().unwrap_or(0);
            match statement {
                Statement::Open => {
                    open.push(scopes.len());
                    scopes.push(Scope::default());
                }
                Statement::Close => {
                    open.pop();
                }
                Statement::Label(name, line) => {
                    let label = (first + n_labels) as u32;
                    if scopes[inside].labels.insert(name, label).is_some() {
                        let what = format!("label {name} is defined twice");
                        return Err(Error::Invalid { line: *line, what });
                    }
                    n_labels += 1;
                }
                Statement::Targets { name, labels, .. } => {
                    scopes[inside].tables.insert(name, labels);
                }
                Statement::Registers(_) | Statement::Variable(_) | Statement::Instruction(_) => {}
            }
        }
        let mut scopes = scopes.into_iter();
        if let (Some(root), Some(scope)) = (self.open.first_mut(), scopes.next()) {
            (root.labels, root.tables) = (scope.labels, scope.tables);
        }
        self.next = scopes.rev().collect();
        Ok(n_labels)
    }
}

/// The kind of registers of a type.
pub(super) fn kind_of(ty: &str) -> Option<Kind> {
    Some(match ty {
        "pred" => Kind::Pred,
        "b8" | "u8" | "s8" | "b16" | "u16" | "s16" | "f16" | "bf16" => Kind::Narrow(16),
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => Kind::Narrow(32),
        "b64" | "u64" | "s64" | "f64" => Kind::Wide,
        _ => return None,
    })
}

impl<'m> Lowering<'m> {
    /// The function being lowered.
    pub(super) fn frame(&mut self) -> &mut Frame<'m> {
        self.frames.last_mut().expect("a function is pushed before its body is lowered")
    }

    fn scopes(&self) -> impl Iterator<Item = &Scope<'m>> {
        self.frames.last().into_iter().flat_map(|frame| frame.open.iter().rev())
    }

    pub(super) fn new_register(&mut self, kind: Kind) -> Result<Symbol, Error> {
        Ok(match kind {
            Kind::Narrow(bits) => Symbol::Narrow { reg: self.new_narrow()?, bits },
            Kind::Wide => Symbol::Wide(self.new_wide()?),
            Kind::Pred => Symbol::Pred(self.new_pred()?),
        })
    }

    pub(super) fn declare_registers(&mut self, registers: &'m Registers) -> Result<(), Error> {
        let Some(kind) = kind_of(&registers.kind) else {
            return self.invalid(format!("registers of type .{} are not emulated", registers.kind));
        };
        for (name, count) in &registers.names {
            if let Some(count) = count {
                if let Some(scope) = self.frame().open.last_mut() {
                    scope.ranges.insert(name, (kind, *count));
                }
            } else {
                let symbol = self.new_register(kind)?;
                self.frame().declare(name, symbol);
            }
        }
        Ok(())
    }

    pub(super) fn declare_variable(&mut self, variable: &Variable) -> Result<(), Error> {
        let (space, address) = match variable.space {
            // Parameters of calls live where the caller's local variables are.
            Space::Local | Space::Param => (Space::Local, self.place_local(variable)?),
            Space::Shared if variable.is_extern => (Space::Shared, self.dynamic_shared(variable)),
            Space::Shared => (Space::Shared, self.place_shared_variable(variable)),
            Space::Global | Space::Const | Space::Register => {
                return self.invalid(format!(
                    "{}: variables of functions are local, shared or parameters of calls",
                    variable.name
                ));
            }
        };
        self.frame().declare(&variable.name, Symbol::Variable { space, address });
        Ok(())
    }

    pub(super) fn place_local(&mut self, variable: &Variable) -> Result<u64, Error> {
        let offset = self.local_bytes.next_multiple_of(variable.align);
        self.local_bytes = offset.saturating_add(variable.bytes());
        if self.local_bytes > MAX_LOCAL_BYTES {
            return self.invalid(format!(
                "{}: local memory of more than {MAX_LOCAL_BYTES} bytes a thread",
                variable.name
            ));
        }
        Ok(SPACE_START + offset)
    }

    fn place_shared_variable(&mut self, variable: &Variable) -> u64 {
        // A function that is inlined twice has its variable once.
        let function = self.frames.last().map_or("", |frame| frame.function.name.as_str());
        let key = format!("{function} {}", variable.name);
        if let Some(&address) = self.shared.get(&key) {
            return address;
        }
        let offset = self.shared_bytes.next_multiple_of(variable.align);
        self.shared_bytes = offset.saturating_add(variable.bytes());
        self.shared.insert(key, SPACE_START + offset);
        SPACE_START + offset
    }

    /// Dynamic shared memory begins behind everything that the scan of the entry has placed.
    fn dynamic_shared(&mut self, variable: &Variable) -> u64 {
        self.dynamic_align = self.dynamic_align.max(variable.align);
        SPACE_START + self.shared_bytes.next_multiple_of(self.dynamic_align)
    }

    /// Places the shared variables that `function` and what it calls may use, dynamic memory last.
    pub(super) fn place_shared(&mut self, function: &'m Function) -> Result<(), Error> {
        let reached = self.reached(function);
        let mut used = std::collections::BTreeSet::new();
        for function in &reached {
            self.frames.push(Frame::new(function, None));
            for statement in &function.body {
                match statement {
                    Statement::Variable(v) if v.space == Space::Shared && v.is_extern => {
                        self.dynamic_align = self.dynamic_align.max(v.align);
                    }
                    Statement::Variable(v) if v.space == Space::Shared => {
                        self.place_shared_variable(v);
                    }
                    Statement::Instruction(inst) => {
                        used.extend(inst.operands.iter().flat_map(names));
                    }
                    _ => {}
                }
            }
            self.frames.pop();
        }
        let is_used = |v: &&Variable| v.space == Space::Shared && used.contains(v.name.as_str());
        let variables: Vec<&Variable> = self.module.variables.iter().filter(is_used).collect();
        for variable in &variables {
            if variable.is_extern {
                self.dynamic_align = self.dynamic_align.max(variable.align);
            } else {
                let offset = self.shared_bytes.next_multiple_of(variable.align);
                self.shared_bytes = offset.saturating_add(variable.bytes());
                self.shared.insert(variable.name.clone(), SPACE_START + offset);
            }
        }
        let dynamic = SPACE_START + self.shared_bytes.next_multiple_of(self.dynamic_align);
        for variable in variables.iter().filter(|v| v.is_extern) {
            self.shared.insert(variable.name.clone(), dynamic);
        }
        Ok(())
    }

    /// `function` and all that it calls, directly or not.
    fn reached(&self, function: &'m Function) -> Vec<&'m Function> {
        let mut reached = vec![function];
        let mut next = 0;
        while let Some(function) = reached.get(next) {
            next += 1;
            let called = function.body.iter().filter_map(|statement| match statement {
                Statement::Instruction(inst) if inst.opcode[0] == "call" => {
                    Some(inst.operands.iter().flat_map(names))
                }
                _ => None,
            });
            for name in called.flatten() {
                let found = self.module.functions.iter().find(|f| f.name == name && f.is_defined);
                if let Some(found) = found
                    && !reached.iter().any(|f| std::ptr::eq(*f, found))
                {
                    reached.push(found);
                }
            }
        }
        reached
    }

    /// What `name` stands for here.
    pub(super) fn symbol(&mut self, name: &str) -> Result<Symbol, Error> {
        if let Some(symbol) = self.find_symbol(name)? {
            return Ok(symbol);
        }
        self.invalid(format!("unknown name {name}"))
    }

    /// What a name of an operand stands for; the instruction at hand names it from now on.
    pub(super) fn find_symbol(&mut self, name: &str) -> Result<Option<Symbol>, Error> {
        let found = self.look_up(name)?;
        if let Some(Symbol::Narrow { reg, .. }) = found {
            self.names.push(reg);
        }
        Ok(found)
    }

    fn look_up(&mut self, name: &str) -> Result<Option<Symbol>, Error> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: Option<u32> = name[prefix.len()..].parse().ok();
        let mut declared = None;
        for (depth, scope) in self.scopes().enumerate() {
            if let Some(symbol) = scope.names.get(name) {
                return Ok(Some(*symbol));
            }
            if let (Some(&(kind, count)), Some(number)) = (scope.ranges.get(prefix), number)
                && number < count
            {
                declared = Some((depth, kind));
                break;
            }
        }
        if let Some((depth, kind)) = declared {
            let symbol = self.new_register(kind)?;
            let open = &mut self.frame().open;
            let at = open.len() - 1 - depth;
            open[at].names.insert(name.to_string(), symbol);
            return Ok(Some(symbol));
        }
        if let Some(&address) = self.shared.get(name) {
            return Ok(Some(Symbol::Variable { space: Space::Shared, address }));
        }
        let found = self.variables.names.get(name);
        Ok(found.map(|&(space, address)| Symbol::Variable { space, address }))
    }

    pub(super) fn pred(&mut self, name: &str) -> Result<PredUse, Error> {
        match self.symbol(name)? {
            Symbol::Pred(reg) => Ok(PredUse { reg, is_negated: false }),
            _ => self.invalid(format!("{name} is no predicate")),
        }
    }

    /// The number of a label.
    pub(super) fn label(&self, name: &str) -> Result<u32, Error> {
        let found = self.scopes().find_map(|scope| scope.labels.get(name).copied());
        found.map_or_else(|| self.invalid(format!("unknown label {name}")), Ok)
    }

    pub(super) fn table(&self, name: &str) -> Result<&'m [String], Error> {
        let found = self.scopes().find_map(|scope| scope.tables.get(name).copied());
        found.map_or_else(|| self.invalid(format!("unknown table of branches {name}")), Ok)
    }
}

/// Names of variables that an operand may hold.
fn names(operand: &Operand) -> Vec<&str> {
    match operand {
        Operand::Name(name)
        | Operand::NameOffset(name, _)
        | Operand::Address { base: Some(name), .. } => vec![name],
        Operand::Vector(list) | Operand::List(list) => list
            .iter()
            .filter_map(|operand| match operand {
                Operand::Name(name) | Operand::NameOffset(name, _) => Some(name.as_str()),
                _ => None,
            })
            .collect(),
        _ => vec![],
    }
}
