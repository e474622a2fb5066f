//! `fused {kind, body}`: the graph `body`, run as one op. `kind` is a label for kernels ("map",
//! "matmul", ...) without meaning here.
//!
//! The body's inputs are named `0`, `1`, ... in program order and are the operands, in order; it has
//! no parameters and one output. Composite: its decomposition is the body inlined, so its values are
//! the body's, not rounded in between, and so is its gradient.

use std::sync::Arc;

use crate::{
    Attr, AttrReader, Builder, DType, Error, Example, Graph, OpDef, Role, TensorType, ValueId,
};

/// `fused`.
#[derive(Clone, PartialEq, Debug)]
pub struct Fused {
    kind: String,
    body: Arc<Graph>,
}

impl Fused {
    /// A group of `body`, labeled `kind`. Whether the body has the right form is checked when the
    /// op is appended to a graph.
    pub fn new(kind: impl Into<String>, body: Graph) -> Fused {
        Fused { kind: kind.into(), body: Arc::new(body) }
    }

    /// The label.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What is run.
    pub fn body(&self) -> &Graph {
        &self.body
    }

    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Fused, Error> {
        let op = Fused::new(attrs.str("kind")?, attrs.graph("body")?);
        attrs.end().map(|()| op)
    }

    /// A chain, a product with an epilogue, a group inside a group.
    pub fn examples() -> Vec<Example> {
        let body = |shapes: &[&[usize]], build: Body| {
            let mut b = Builder::new("body");
            let input = |(i, shape): (usize, &&[usize])| {
                let ty = TensorType::new(DType::F32, *shape).expect("examples have small shapes");
                b.input(&i.to_string(), ty)
            };
            let args: Vec<ValueId> = shapes.iter().enumerate().map(input).collect();
            let out = build(&mut b, &args).expect("examples have valid bodies");
            b.finish(&[out])
        };
        let example = |kind, shapes: &[&[usize]], build: Body| {
            Example::f32(Fused::new(kind, body(shapes, build)), shapes)
        };
        vec![
            example("map", &[&[2, 4], &[1, 4]], |b, args| {
                let x = b.mul(args[0], args[1])?;
                let x = b.silu(x)?;
                b.add_scalar(x, 0.5)
            }),
            example("matmul", &[&[3, 5], &[7, 5], &[7]], |b, args| {
                let x = b.linear(args[0], args[1], Some(args[2]))?;
                b.gelu_tanh(x)
            }),
            example("norm", &[&[3, 9]], |b, args| {
                let x = b.layer_norm(args[0], 1e-6)?;
                let mut inner = Builder::new("inner");
                let y = inner.input("0", b.ty(x).clone());
                let table: Vec<f32> = (0..9).map(|i| i as f32 * 0.25).collect();
                let table = inner.constant(crate::Tensor::f32(&[1, 9], &table)?);
                let y = inner.mul(y, table)?;
                b.fused("map", inner.finish(&[y]), &[x])
            }),
        ]
    }

    fn output(&self) -> Result<ValueId, Error> {
        match self.body.outputs[..] {
            [output] if output.index() < self.body.nodes.len() => Ok(output),
            _ => Err(Error::attr("fused", "body must have one output")),
        }
    }
}

type Body = fn(&mut Builder, &[ValueId]) -> Result<ValueId, Error>;

impl OpDef for Fused {
    fn name(&self) -> &'static str {
        "fused"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("kind", Attr::Str(self.kind.clone())),
            ("body", Attr::Graph(Box::new(self.body().clone()))),
        ]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        let output = self.output()?;
        if let Some((_, name)) = self.body.params().next() {
            return Err(Error::attr("fused", format!("body must not have a parameter `{name}`")));
        }
        let inputs: Vec<(ValueId, &str)> = self.body.inputs().collect();
        if inputs.len() != args.len() || args.is_empty() {
            let expected = format!("{}, the inputs of its body,", inputs.len().max(1));
            return Err(Error::Arity { op: "fused", expected, found: args.len() });
        }
        for (i, (value, name)) in inputs.into_iter().enumerate() {
            if name != i.to_string() {
                let reason = format!("input {i} of the body must be named `{i}`, not `{name}`");
                return Err(Error::attr("fused", reason));
            }
            if self.body.ty(value) != args[i] {
                let expected = self.body.ty(value).to_string();
                return Err(Error::operand("fused", i, args[i], expected));
            }
        }
        Ok(self.body.ty(output).clone())
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<Result<ValueId, Error>> {
        Some(self.output().and_then(|output| b.inline(&self.body, args, output)))
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        self.body.flops()
    }
}

impl Builder {
    /// `body`, run as one op on `args`.
    pub fn fused(&mut self, kind: &str, body: Graph, args: &[ValueId]) -> Result<ValueId, Error> {
        self.op(Fused::new(kind, body), args)
    }

    /// Appends the nodes of `body` with `args` in place of its inputs, in program order, and returns
    /// what became of `output`.
    fn inline(
        &mut self,
        body: &Graph,
        args: &[ValueId],
        output: ValueId,
    ) -> Result<ValueId, Error> {
        let mut args = args.iter();
        let mut values: Vec<ValueId> = Vec::with_capacity(body.nodes.len());
        for node in &body.nodes {
            let value = match (&node.role, args.as_slice()) {
                (Role::Input(_), [arg, ..]) => {
                    args.next();
                    *arg
                }
                _ => {
                    let operands: Vec<ValueId> =
                        node.args.iter().map(|arg| values[arg.index()]).collect();
                    self.copy_node(node, &operands)?
                }
            };
            values.push(value);
        }
        Ok(values[output.index()])
    }
}
