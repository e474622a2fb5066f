//! The op contract ([`OpDef`]) and the one list of all ops ([`Op`]).

use std::fmt;

use crate::defs;
use crate::{Builder, DType, Error, Graph, Tensor, TensorType, ValueId};

/// One attribute value, as it prints.
#[derive(Clone, PartialEq, Debug)]
pub enum Attr {
    /// `3`
    Int(i64),
    /// `1e-6`; always with a point or an exponent.
    Float(f64),
    /// `true`
    Bool(bool),
    /// `[1, 2]`
    Ints(Vec<i64>),
    /// `bf16`
    DType(DType),
    /// `"map"`
    Str(String),
    /// `graph @body { … }`: the body of a fused group.
    Graph(Box<Graph>),
}

/// Attributes as parsed: names and values in text order.
pub type Attrs = [(String, Attr)];

/// An op with operand types that every suite runs it on.
#[derive(Clone, Debug)]
pub struct Example {
    /// The op.
    pub op: Op,
    /// Types of its operands.
    pub args: Vec<TensorType>,
    /// Values of the operands are drawn from this range (floats) or from its integers; both ends
    /// are possible. Chosen inside the op's domain and away from kinks.
    pub range: (f64, f64),
}

impl Example {
    /// An example on f32 operands of these shapes, with values in [-2, 2].
    pub fn f32(op: impl Into<Op>, shapes: &[&[usize]]) -> Example {
        let ty = |shape: &&[usize]| {
            TensorType::new(DType::F32, *shape).expect("examples have small shapes")
        };
        Example { op: op.into(), args: shapes.iter().map(ty).collect(), range: (-2.0, 2.0) }
    }

    /// The same with other values.
    #[must_use]
    pub fn in_range(mut self, low: f64, high: f64) -> Example {
        self.range = (low, high);
        self
    }

    /// The same with every operand of element type `dtype`.
    #[must_use]
    pub fn of(mut self, dtype: DType) -> Example {
        for arg in &mut self.args {
            *arg = arg.with_dtype(dtype);
        }
        self
    }

    /// The same with operand `arg` of type `ty`.
    #[must_use]
    pub fn with_arg(mut self, arg: usize, ty: TensorType) -> Example {
        self.args[arg] = ty;
        self
    }
}

/// How an op relates result elements to operand elements: what fusion and views rest on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Result element `i` depends on element `i` of each operand (dims of 1 are broadcast).
    Elementwise,
    /// Every result element is one operand element or zero; nothing is computed.
    Movement,
    /// One operand; whole axes are folded.
    Reduction,
    /// Anything else: products, convolutions, attention, norms.
    Structured,
}

/// How close a kernel's result must be to the reference on the op's examples.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Tolerance {
    /// Same bits.
    Exact,
    /// Relative L2 error in f32 at most this.
    Relative(f64),
}

/// Everything the system knows about one op.
pub trait OpDef: fmt::Debug {
    /// The printed name.
    fn name(&self) -> &'static str;

    /// Attributes in print order; all of them, always.
    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![]
    }

    /// The result's type, or why these operands do not fit.
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error>;

    /// How result elements relate to operand elements.
    fn class(&self) -> Class {
        Class::Structured
    }

    /// Appends the same value built from simpler ops. A composite op has this instead of `eval`
    /// and, mostly, `vjp`; `None` marks a primitive. A composite of half types computes in f32, so
    /// its decomposition casts on the way in and out.
    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<Result<ValueId, Error>> {
        let _ = (b, args);
        None
    }

    /// Reference semantics: slow, obvious, in f64 without intermediate rounding. `out` is the
    /// inferred type. Composites leave this to the interpreter, which evaluates `decompose`.
    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let _ = (args, out);
        unreachable!("{} is a composite: the interpreter evaluates its decomposition", self.name())
    }

    /// Appends the vector-Jacobian product: for each operand the gradient of `sum(grad * out)`, or
    /// `None` where it is zero or the operand is not a float. Composites leave this to
    /// [`crate::append_gradients`], which differentiates `decompose`, unless they know better.
    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        out: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let _ = (b, args, out, grad);
        Err(Error::NoGradient(self.name()))
    }

    /// Floating-point operations: one per add, multiply or function call; a fused multiply-add is
    /// two.
    fn flops(&self, args: &[&TensorType], out: &TensorType) -> u64;

    /// Bytes that must be read and written at least: operands and result once each.
    fn bytes(&self, args: &[&TensorType], out: &TensorType) -> u64 {
        (args.iter().map(|ty| ty.bytes()).sum::<usize>() + out.bytes()) as u64
    }

    /// How close kernels must come to `eval`.
    fn tolerance(&self) -> Tolerance {
        Tolerance::Relative(1e-6)
    }
}

/// Lists every op once. Expands to the enum and lookups, no semantics. A row that names a table
/// (`table`) stands for all ops of the table, which answers by name.
macro_rules! ops {
    (
        tables { $($table_module:ident :: $table:ident),* $(,)? }
        ops { $($name:literal => $module:ident :: $op:ident),* $(,)? }
    ) => {
        /// Any op. The variant holds the op's attributes.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Op {
            $(
                #[doc = concat!("A row of the `", stringify!($table_module), "` table.")]
                $table(defs::$table_module::$table),
            )*
            $(
                #[doc = concat!("`", $name, "`.")]
                $op(defs::$module::$op),
            )*
        }

        $(impl From<defs::$table_module::$table> for Op {
            fn from(op: defs::$table_module::$table) -> Op { Op::$table(op) }
        })*
        $(impl From<defs::$module::$op> for Op {
            fn from(op: defs::$module::$op) -> Op { Op::$op(op) }
        })*

        impl Op {
            /// The op's contract.
            pub fn def(&self) -> &dyn OpDef {
                match self { $(Op::$table(op) => op,)* $(Op::$op(op) => op),* }
            }

            /// The op called `name` with these attributes.
            pub fn parse(name: &str, attrs: &Attrs) -> Result<Op, Error> {
                $(if let Some(op) = defs::$table_module::$table::parse(name, attrs) {
                    return op.map(Op::$table);
                })*
                match name {
                    $($name => defs::$module::$op::parse(AttrReader::new($name, attrs)).map(Op::$op),)*
                    _ => Err(Error::UnknownOp(name.to_string())),
                }
            }

            /// Every op's examples.
            pub fn examples() -> Vec<Example> {
                let mut all = Vec::new();
                $(all.extend(defs::$table_module::$table::examples());)*
                $(all.extend(defs::$module::$op::examples());)*
                all
            }

            /// Printed names of all ops, in list order.
            pub fn names() -> Vec<&'static str> {
                let mut all = Vec::new();
                $(all.extend(defs::$table_module::$table::names());)*
                $(all.push($name);)*
                all
            }
        }
    };
}

ops! {
    tables {
        unary::Unary,
        binary::Binary,
        scalar::Scalar,
    }
    ops {
        "attention" => attention::Attention,
        "attention_grad" => attention_grad::AttentionGrad,
        "broadcast" => broadcast::Broadcast,
        "cast" => cast::Cast,
        "concat" => concat::Concat,
        "conv" => conv::Conv,
        "conv_input_grad" => conv_input_grad::ConvInputGrad,
        "conv_weight_grad" => conv_weight_grad::ConvWeightGrad,
        "fused" => fused::Fused,
        "gather" => gather::Gather,
        "group_norm" => group_norm::GroupNorm,
        "layer_norm" => layer_norm::LayerNorm,
        "matmul" => matmul::Matmul,
        "norm_grad" => norm_grad::NormGrad,
        "normal" => normal::Normal,
        "pad" => pad::Pad,
        "permute" => permute::Permute,
        "reduce_max" => reduce_max::ReduceMax,
        "reduce_sum" => reduce_sum::ReduceSum,
        "reshape" => reshape::Reshape,
        "rms_norm" => rms_norm::RmsNorm,
        "rope" => rope::Rope,
        "scatter_add" => scatter_add::ScatterAdd,
        "select" => select::Select,
        "slice" => slice::Slice,
        "softmax" => softmax::Softmax,
        "stop_gradient" => stop_gradient::StopGradient,
    }
}

/// Reads the attributes of one op from text: each exactly once, in any order, none left over.
#[derive(Debug)]
pub struct AttrReader<'a> {
    op: &'static str,
    attrs: &'a Attrs,
    taken: Vec<bool>,
}

impl<'a> AttrReader<'a> {
    /// A reader of `attrs` for the op printed as `op`.
    pub fn new(op: &'static str, attrs: &'a Attrs) -> AttrReader<'a> {
        AttrReader { op, attrs, taken: vec![false; attrs.len()] }
    }

    fn take(&mut self, name: &str, expected: &str) -> Result<&'a Attr, Error> {
        let position = self.attrs.iter().position(|(key, _)| key == name);
        match position {
            Some(i) if !self.taken[i] => {
                self.taken[i] = true;
                Ok(&self.attrs[i].1)
            }
            _ => Err(Error::attr(self.op, format!("expected {{{name} = <{expected}>}}"))),
        }
    }

    fn wrong(&self, name: &str, expected: &str) -> Error {
        Error::attr(self.op, format!("{name}: expected {expected}"))
    }

    /// An integer attribute.
    pub fn int(&mut self, name: &str) -> Result<i64, Error> {
        match self.take(name, "integer")? {
            Attr::Int(value) => Ok(*value),
            _ => Err(self.wrong(name, "an integer")),
        }
    }

    /// A non-negative integer attribute.
    pub fn index(&mut self, name: &str) -> Result<usize, Error> {
        usize::try_from(self.int(name)?).map_err(|_| self.wrong(name, "a non-negative integer"))
    }

    /// A float attribute.
    pub fn float(&mut self, name: &str) -> Result<f64, Error> {
        match self.take(name, "float")? {
            Attr::Float(value) => Ok(*value),
            Attr::Int(value) => Ok(*value as f64),
            _ => Err(self.wrong(name, "a float")),
        }
    }

    /// A boolean attribute.
    pub fn bool(&mut self, name: &str) -> Result<bool, Error> {
        match self.take(name, "bool")? {
            Attr::Bool(value) => Ok(*value),
            _ => Err(self.wrong(name, "true or false")),
        }
    }

    /// A list of non-negative integers.
    pub fn indices(&mut self, name: &str) -> Result<Vec<usize>, Error> {
        match self.take(name, "integers")? {
            Attr::Ints(values) => values
                .iter()
                .map(|&x| usize::try_from(x))
                .collect::<Result<_, _>>()
                .map_err(|_| self.wrong(name, "non-negative integers")),
            _ => Err(self.wrong(name, "a list of integers")),
        }
    }

    /// An element type.
    pub fn dtype(&mut self, name: &str) -> Result<DType, Error> {
        match self.take(name, "dtype")? {
            Attr::DType(value) => Ok(*value),
            _ => Err(self.wrong(name, "an element type")),
        }
    }

    /// A string.
    pub fn str(&mut self, name: &str) -> Result<&'a str, Error> {
        match self.take(name, "string")? {
            Attr::Str(value) => Ok(value),
            _ => Err(self.wrong(name, "a string")),
        }
    }

    /// A nested graph.
    pub fn graph(&mut self, name: &str) -> Result<Graph, Error> {
        match self.take(name, "graph")? {
            Attr::Graph(value) => Ok((**value).clone()),
            _ => Err(self.wrong(name, "a graph")),
        }
    }

    /// Fails if the text has an attribute that was not asked for.
    pub fn end(self) -> Result<(), Error> {
        match self.taken.iter().position(|taken| !taken) {
            None => Ok(()),
            Some(i) => {
                Err(Error::attr(self.op, format!("unknown attribute `{}`", self.attrs[i].0)))
            }
        }
    }
}

/// A list of dims or axes as an attribute.
pub(crate) fn ints(values: &[usize]) -> Attr {
    Attr::Ints(values.iter().map(|&x| x as i64).collect())
}

/// Fails unless `args` has `expected` entries.
pub(crate) fn arity(op: &'static str, args: &[&TensorType], expected: usize) -> Result<(), Error> {
    if args.len() == expected {
        return Ok(());
    }
    Err(Error::Arity { op, expected: expected.to_string(), found: args.len() })
}

/// Fails unless operand `operand` is a float tensor.
pub(crate) fn float(op: &'static str, args: &[&TensorType], operand: usize) -> Result<(), Error> {
    if args[operand].dtype().is_float() {
        return Ok(());
    }
    Err(Error::operand(op, operand, args[operand], "a float type"))
}

/// Fails unless all operands are floats of the first one's element type.
pub(crate) fn same_float(op: &'static str, args: &[&TensorType]) -> Result<(), Error> {
    float(op, args, 0)?;
    let dtype = args[0].dtype();
    match args.iter().position(|arg| arg.dtype() != dtype) {
        None => Ok(()),
        Some(i) => Err(Error::operand(op, i, args[i], format!("{dtype}, as operand 0"))),
    }
}

/// Fails unless operand `operand` is f32 or has the first operand's element type: the rule for
/// norm weights, rope angles and attention biases, which checkpoints keep in f32.
pub(crate) fn float_or_f32(
    op: &'static str,
    args: &[&TensorType],
    operand: usize,
) -> Result<(), Error> {
    let dtype = args[0].dtype();
    if args[operand].dtype() == dtype || args[operand].dtype() == DType::F32 {
        return Ok(());
    }
    Err(Error::operand(op, operand, args[operand], format!("f32 or {dtype}, as operand 0")))
}

/// Fails unless operand `operand` has this shape.
pub(crate) fn shaped(
    op: &'static str,
    args: &[&TensorType],
    operand: usize,
    shape: &[usize],
) -> Result<(), Error> {
    if args[operand].shape() == shape {
        return Ok(());
    }
    Err(Error::operand(op, operand, args[operand], format!("shape {shape:?}")))
}

/// Fails unless `axes` are ascending, distinct, at least one, and below the rank of `ty`.
pub(crate) fn check_axes(op: &'static str, axes: &[usize], ty: &TensorType) -> Result<(), Error> {
    let ascending = axes.windows(2).all(|pair| pair[0] < pair[1]);
    if ascending && axes.last().is_some_and(|&last| last < ty.rank()) {
        return Ok(());
    }
    Err(Error::attr(op, format!("axes {axes:?} must be ascending, distinct axes of {ty}")))
}

/// Fails unless `axis` is an axis of `ty`.
pub(crate) fn check_axis(op: &'static str, axis: usize, ty: &TensorType) -> Result<(), Error> {
    if axis < ty.rank() {
        return Ok(());
    }
    Err(Error::attr(op, format!("axis {axis} is not an axis of {ty}")))
}

/// Fails unless `eps` can be added to a variance.
pub(crate) fn check_eps(op: &'static str, eps: f64) -> Result<(), Error> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::attr(op, format!("eps {eps} must be finite and not negative")))
}

/// Fails unless a per-axis attribute has one entry for each of `expected` axes.
pub(crate) fn check_per_axis(
    op: &'static str,
    name: &str,
    found: usize,
    expected: usize,
) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::attr(op, format!("{name} has {found} entries for {expected} axes")))
}
