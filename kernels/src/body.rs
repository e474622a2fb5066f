//! From nodes of a body graph to code: [`compile_elementwise`] turns a connected set of elementwise
//! nodes into a [`Program`] and says what its slots read.
//!
//! A slot reads a [`Leaf`]: an operand of the site, a constant of the body, or a *frontier* value,
//! which the kernel computes itself (the product, the normalized row). Movement ops between an
//! operand and its elementwise user cost nothing: they only change the leaf's layout. Elementwise
//! results inside a body are not rounded to their element type, as the interpreter does not either.

use std::sync::Arc;

use ops::defs::binary::Binary;
use ops::defs::scalar::{Scalar, ScalarFn};
use ops::defs::unary::Unary;
use ops::{Class, DType, Data, Graph, Op, Role, Tensor, ValueId};

use crate::Layout;
use crate::program::{Program, ProgramBuilder, Value};

/// What a slot of a program reads.
#[derive(Clone, PartialEq, Debug)]
pub enum Source {
    /// Operand of the site, by number.
    Operand(usize),
    /// A constant of the body, as dense bytes.
    Constant(Arc<[u8]>),
    /// A value that the kernel computes, by its position in the frontier; f32.
    Frontier(usize),
}

/// A source, and where the element that belongs to each result element lies in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Leaf {
    /// Whose buffer.
    pub source: Source,
    /// Shape of what is computed; strides of the source, 0 where it is repeated.
    pub layout: Layout,
}

/// A compiled set of elementwise nodes: slot `i` of the program reads `leaves[i]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Elementwise {
    /// The code.
    pub program: Program,
    /// What it reads.
    pub leaves: Vec<Leaf>,
}

impl Elementwise {
    /// Whether the result may be written where operand `operand` lies: it is read only at the very
    /// address that is written.
    pub fn may_alias(&self, operand: usize, result: &Layout) -> bool {
        let mut reads = self
            .leaves
            .iter()
            .filter(|leaf| leaf.source == Source::Operand(operand))
            .map(|leaf| &leaf.layout)
            .peekable();
        reads.peek().is_some()
            && reads.all(|layout| {
                layout.shape == result.shape
                    && layout.strides == result.strides
                    && layout.offset == result.offset
                    && layout.dtype.size() == result.dtype.size()
            })
    }

    /// The same, with an f32 result.
    #[must_use]
    pub fn widened(self) -> Elementwise {
        self.stored_as(DType::F32)
    }

    /// The same, with a result of type `dtype`.
    #[must_use]
    pub fn stored_as(self, dtype: DType) -> Elementwise {
        let Elementwise { program, leaves } = self;
        let instrs = program.instrs().to_vec();
        let program = Program::new(program.slots().to_vec(), instrs, dtype)
            .expect("only the type of the result changes");
        Elementwise { program, leaves }
    }

    /// Whether it does nothing but pass frontier value 0 on, to memory of type `dtype`.
    pub fn is_frontier_copy(&self) -> bool {
        self.program.is_copy() && self.leaves[0].source == Source::Frontier(0)
    }
}

/// The number of the operand that an input node stands for.
pub fn operand_index(graph: &Graph, value: ValueId) -> Option<usize> {
    match &graph.node(value).role {
        Role::Input(name) => name.parse().ok(),
        Role::Param(_) | Role::Constant(_) | Role::Op(_) => None,
    }
}

/// `value` as a view of an operand or of a constant: an input or a constant, behind any number of
/// movement ops that strides can express.
pub fn leaf(body: &Graph, value: ValueId, operands: &[Layout]) -> Option<Leaf> {
    let node = body.node(value);
    let op = match &node.role {
        Role::Input(_) => {
            let operand = operand_index(body, value)?;
            let layout = operands.get(operand)?.clone();
            return Some(Leaf { source: Source::Operand(operand), layout });
        }
        Role::Constant(tensor) => {
            let source = Source::Constant(tensor.to_bytes().into());
            return Some(Leaf { source, layout: Layout::dense(&node.ty) });
        }
        Role::Param(_) => return None,
        Role::Op(op) => op,
    };
    if op.def().class() != Class::Movement || node.args.len() != 1 {
        return None;
    }
    let Leaf { source, layout } = leaf(body, node.args[0], operands)?;
    let layout = if let Op::Permute(permute) = op {
        layout.permuted(&permute.axes)
    } else if let Op::Slice(slice) = op {
        layout.sliced(&slice.start, node.ty.shape(), &slice.step)
    } else if let Op::Reshape(_) = op {
        layout.reshaped(node.ty.shape())?
    } else if let Op::Broadcast(_) = op {
        layout.broadcast(node.ty.shape())
    } else if let Op::StopGradient(_) = op {
        layout
    } else {
        return None;
    };
    Some(Leaf { source, layout })
}

/// As [`leaf`], but only operands: their number and layout.
pub fn operand_view(body: &Graph, value: ValueId, operands: &[Layout]) -> Option<(usize, Layout)> {
    match leaf(body, value, operands)? {
        Leaf { source: Source::Operand(operand), layout } => Some((operand, layout)),
        Leaf { source: Source::Constant(_) | Source::Frontier(_), layout: _ } => None,
    }
}

/// The code that computes `root` from operands, constants and the `frontier` values. `None` if
/// something between is not elementwise, is integer arithmetic, or is too long.
///
/// The leaves' layouts have `root`'s shape; those of the frontier are dense f32 before they are
/// broadcast. A cast of an integer leaf to float is compiled; `root` itself may be a cast to an
/// integer type.
pub fn compile_elementwise(
    body: &Graph,
    root: ValueId,
    frontier: &[ValueId],
    operands: &[Layout],
) -> Option<Elementwise> {
    let mut compiler = Compiler {
        body,
        frontier,
        operands,
        root,
        builder: ProgramBuilder::new(),
        leaves: vec![],
        done: vec![None; body.nodes.len()],
    };
    let result = compiler.value(root)?;
    let program = compiler.builder.finish(result, body.ty(root).dtype()).ok()?;
    Some(Elementwise { program, leaves: compiler.leaves })
}

struct Compiler<'a> {
    body: &'a Graph,
    frontier: &'a [ValueId],
    operands: &'a [Layout],
    root: ValueId,
    builder: ProgramBuilder,
    leaves: Vec<Leaf>,
    done: Vec<Option<Value>>,
}

impl Compiler<'_> {
    fn value(&mut self, value: ValueId) -> Option<Value> {
        if let Some(done) = self.done[value.index()] {
            return Some(done);
        }
        let node = self.body.node(value);
        let result = if let Some(index) = self.frontier.iter().position(|&v| v == value) {
            let layout = Layout::dense(&node.ty.with_dtype(DType::F32));
            self.slot(Leaf { source: Source::Frontier(index), layout })?
        } else if let Role::Constant(tensor) = &node.role
            && let Some(number) = uniform(tensor)
        {
            self.builder.constant(number)
        } else if let Role::Op(op) = &node.role
            && op.def().class() == Class::Elementwise
        {
            self.op(value, op, &node.args)?
        } else if let Role::Op(Op::Broadcast(_)) = &node.role
            && leaf(self.body, value, self.operands).is_none()
        {
            self.value(node.args[0])?
        } else {
            let leaf = leaf(self.body, value, self.operands)?;
            self.slot(leaf)?
        };
        self.done[value.index()] = Some(result);
        Some(result)
    }

    fn slot(&mut self, leaf: Leaf) -> Option<Value> {
        let shape = self.body.ty(self.root).shape();
        if leaf.layout.rank() != shape.len() {
            return None;
        }
        let layout = leaf.layout.broadcast(shape);
        let dtype = layout.dtype;
        self.leaves.push(Leaf { source: leaf.source, layout });
        Some(self.builder.slot(dtype))
    }

    fn op(&mut self, value: ValueId, op: &Op, args: &[ValueId]) -> Option<Value> {
        let dtype = |value: ValueId| self.body.ty(value).dtype();
        let real = |value: ValueId| dtype(value).is_float() || dtype(value) == DType::Bool;
        if let Op::Cast(cast) = op {
            let from = dtype(args[0]);
            // Integers pass through f32 only where nothing but the cast sees them.
            let direct = real(args[0])
                || (cast.dtype.is_float() && leaf(self.body, args[0], self.operands).is_some());
            if !direct || (!real(value) && value != self.root) {
                return None;
            }
            let x = self.value(args[0])?;
            if cast.dtype != DType::Bool || from == DType::Bool {
                return Some(x);
            }
            let (zero, one) = (self.builder.constant(0.0), self.builder.constant(1.0));
            let is_zero = self.builder.binary(Binary::Equal, x, zero);
            return Some(self.builder.select(is_zero, zero, one));
        }
        if !args.iter().all(|&arg| real(arg)) || !real(value) {
            return None;
        }
        match op {
            Op::Unary(op) => {
                let x = self.value(args[0])?;
                Some(self.builder.unary(*op, x))
            }
            Op::Scalar(scalar) => {
                let x = self.value(args[0])?;
                Some(self.scalar(*scalar, x))
            }
            Op::Binary(op) => {
                let wraps = matches!(op, Binary::Add | Binary::Sub | Binary::Div);
                if wraps && dtype(value) == DType::Bool {
                    return None;
                }
                let (x, y) = (self.value(args[0])?, self.value(args[1])?);
                Some(self.builder.binary(*op, x, y))
            }
            Op::Select(_) => {
                let condition = self.value(args[0])?;
                let (x, y) = (self.value(args[1])?, self.value(args[2])?);
                Some(self.builder.select(condition, x, y))
            }
            _ => None,
        }
    }

    fn scalar(&mut self, scalar: Scalar, x: Value) -> Value {
        let number = scalar.value as f32;
        let op = match scalar.op {
            ScalarFn::Add => Binary::Add,
            ScalarFn::Mul => Binary::Mul,
            ScalarFn::Max => Binary::Max,
            ScalarFn::Min => Binary::Min,
            ScalarFn::Pow => return self.power(x, scalar.value),
        };
        let y = self.builder.constant(number);
        self.builder.binary(op, x, y)
    }

    /// `x ^ exponent`: products for small integers and halves of them, else by logarithm.
    fn power(&mut self, x: Value, exponent: f64) -> Value {
        let doubled = 2.0 * exponent.abs();
        if doubled.fract() != 0.0 || doubled > 32.0 {
            let log = self.builder.unary(Unary::Log, x);
            let exponent = self.builder.constant(exponent as f32);
            let log = self.builder.binary(Binary::Mul, log, exponent);
            return self.builder.unary(Unary::Exp, log);
        }
        let halves = doubled as u32;
        let mut result = None;
        let mut multiply = |builder: &mut ProgramBuilder, factor: Value| {
            let product = result.map_or(factor, |x| builder.binary(Binary::Mul, x, factor));
            result = Some(product);
        };
        if halves % 2 == 1 {
            let root = self.builder.unary(Unary::Sqrt, x);
            multiply(&mut self.builder, root);
        }
        let mut square = x;
        let mut whole = halves / 2;
        while whole > 0 {
            if whole % 2 == 1 {
                multiply(&mut self.builder, square);
            }
            whole /= 2;
            if whole > 0 {
                square = self.builder.unary(Unary::Square, square);
            }
        }
        match result {
            None => self.builder.constant(1.0),
            Some(product) if exponent < 0.0 => self.builder.unary(Unary::Recip, product),
            Some(product) => product,
        }
    }
}

/// The number that every element of a small float or bool constant is.
fn uniform(tensor: &Tensor) -> Option<f32> {
    match tensor.data() {
        Data::Float(values) => {
            let first = *values.first()?;
            values.iter().all(|&x| x == first).then_some(first as f32)
        }
        Data::Int(values) if tensor.ty().dtype() == DType::Bool => {
            let first = *values.first()?;
            values.iter().all(|&x| x == first).then_some(first as f32)
        }
        Data::Int(_) => None,
    }
}
