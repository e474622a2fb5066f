//! A PTX module as it is written: declarations and statements, names unresolved.
//!
//! Everything carries the line it is on. Scopes (`{ }` inside a body) stay in the list of statements as
//! [`Statement::Open`] and [`Statement::Close`], so that nothing here is recursive and no input can exhaust
//! the stack.

use std::sync::Arc;

/// A parsed PTX module.
#[derive(Clone, Debug)]
pub struct Module {
    /// Major and minor number of `.version`.
    pub version: (u32, u32),
    /// First name of `.target`, such as `sm_80`.
    pub target: String,
    /// Variables outside of functions.
    pub variables: Vec<Variable>,
    /// Entries and functions in order; a declaration without a body has an empty `body`.
    pub functions: Vec<Function>,
    /// Lines of the text, for messages.
    pub(crate) lines: Arc<[Box<str>]>,
}

/// An `.entry` or a `.func`.
#[derive(Clone, Debug)]
pub struct Function {
    /// Name.
    pub name: String,
    /// Line of the name.
    pub line: u32,
    /// Whether it can be launched.
    pub is_entry: bool,
    /// Whether it has a body.
    pub is_defined: bool,
    /// Return parameters of a `.func`.
    pub(crate) results: Vec<Variable>,
    /// Parameters.
    pub(crate) params: Vec<Variable>,
    /// `.maxntid`, its dims multiplied.
    pub(crate) max_threads: Option<u64>,
    /// `.reqntid`.
    pub(crate) required_block: Option<[u32; 3]>,
    /// Statements.
    pub(crate) body: Vec<Statement>,
}

/// One item of a body.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    Open,
    Close,
    Label(String, u32),
    Registers(Registers),
    Variable(Variable),
    /// `label: .branchtargets a, b;`
    Targets {
        name: String,
        labels: Vec<String>,
    },
    Instruction(Instruction),
}

/// `.reg .b32 %r<10>` or `.reg .b32 a, b`.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    pub(crate) kind: String,
    pub(crate) line: u32,
    /// Names; with a count if it is a range.
    pub(crate) names: Vec<(String, Option<u32>)>,
}

/// State space of a declaration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Space {
    Global,
    Shared,
    Const,
    Local,
    Param,
    Register,
}

/// A declared variable or parameter.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Name.
    pub name: String,
    pub(crate) line: u32,
    pub(crate) space: Space,
    pub(crate) is_extern: bool,
    /// Type of an element, without the dot.
    pub(crate) element: String,
    /// Bytes of an element; 0 for predicates.
    pub(crate) element_bytes: u64,
    /// Elements; `None` for `[]`.
    pub(crate) count: Option<u64>,
    pub(crate) align: u64,
    pub(crate) initial: Vec<Initial>,
}

impl Variable {
    /// Bytes; 0 for an extern array without a length.
    pub(crate) fn bytes(&self) -> u64 {
        self.element_bytes.saturating_mul(self.count.unwrap_or(0))
    }
}

/// One value of an initializer.
#[derive(Clone, Debug)]
pub(crate) enum Initial {
    Bits(u64),
    /// Address of a variable plus an offset; the generic one if `is_generic`.
    Address {
        name: String,
        offset: i64,
        is_generic: bool,
    },
}

/// An instruction: `@!p op.mods a, b, c;`.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub(crate) line: u32,
    /// Predicate and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    /// The opcode split at its dots.
    pub(crate) opcode: Vec<String>,
    pub(crate) operands: Vec<Operand>,
}

impl Instruction {
    pub(crate) fn has(&self, modifier: &str) -> bool {
        self.opcode.iter().skip(1).any(|part| part == modifier)
    }

    pub(crate) fn opcode_text(&self) -> String {
        self.opcode.join(".")
    }
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, special register, variable, label or function.
    Name(String),
    /// A variable plus a number.
    NameOffset(String, i64),
    /// An integer; negative ones sign-extended.
    Int(u64),
    /// `0f...`, as bits.
    F32(u32),
    /// `0d...` or a decimal number, as bits.
    F64(u64),
    /// `!p`
    Not(String),
    /// `a|b`
    Pair(String, String),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[base+offset]`; an absolute address without a base.
    Address { base: Option<String>, offset: i64 },
    /// `(a, b)` of a call.
    List(Vec<Operand>),
}
