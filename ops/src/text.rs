//! The textual form. `parse(&format!("{graph:#}")) == Ok(graph)` for every graph.
//!
//! ```text
//! graph @block {
//!   %0 : f32[2, 4] = input "x"
//!   %1 : f32[4, 4] = param "w"
//!   %2 : f32[] = constant [0.5]
//!   %3 : f32[2, 4] = matmul %0, %1 {transpose_a = false, transpose_b = true}   // mlp
//!   return %3
//! }
//! ```
//!
//! One value a line; `%n` is dense in program order; operands, then every attribute in declared
//! order; floats in the shortest form that parses back. Constants of up to eight elements print by
//! value, larger ones as `constant #<hash>`; `{:#}` appends their elements after the graph as
//! `data #<hash> = [...]` lines. A trailing comment names the part of the model and is not parsed.

use std::fmt;
use std::sync::Arc;

use crate::{Attr, DType, Data, Graph, Role, Tensor, TensorType, ValueId};

/// Constants with more elements than this print as a hash.
pub(crate) const INLINE_ELEMENTS: usize = 8;

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype(), join(self.shape()))
    }
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_attr(f, self, 0)
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_graph(f, self, 0)?;
        writeln!(f)?;
        if f.alternate() {
            let mut large: Vec<Arc<Tensor>> = Vec::new();
            collect_large(self, &mut large);
            large.sort_by_key(|tensor| tensor.content_hash());
            large.dedup_by_key(|tensor| tensor.content_hash());
            for tensor in large {
                writeln!(f, "data #{:016x} = {}", tensor.content_hash(), elements(&tensor))?;
            }
        }
        Ok(())
    }
}

fn collect_large(graph: &Graph, large: &mut Vec<Arc<Tensor>>) {
    for node in &graph.nodes {
        match &node.role {
            Role::Constant(tensor) if tensor.ty().count() > INLINE_ELEMENTS => {
                large.push(tensor.clone());
            }
            Role::Op(op) => {
                for (_, attr) in op.def().attrs() {
                    if let Attr::Graph(body) = attr {
                        collect_large(&body, large);
                    }
                }
            }
            Role::Constant(_) | Role::Input(_) | Role::Param(_) => {}
        }
    }
}

fn write_graph(f: &mut fmt::Formatter<'_>, graph: &Graph, indent: usize) -> fmt::Result {
    let pad = " ".repeat(indent);
    writeln!(f, "graph @{} {{", graph.name)?;
    for value in graph.values() {
        let node = graph.node(value);
        write!(f, "{pad}  {value} : {} = ", node.ty)?;
        match &node.role {
            Role::Input(name) => write!(f, "input {}", quote(name))?,
            Role::Param(name) => write!(f, "param {}", quote(name))?,
            Role::Constant(tensor) if tensor.ty().count() <= INLINE_ELEMENTS => {
                write!(f, "constant {}", elements(tensor))?;
            }
            Role::Constant(tensor) => write!(f, "constant #{:016x}", tensor.content_hash())?,
            Role::Op(op) => {
                write!(f, "{} {}", op.def().name(), join(&node.args))?;
                let attrs = op.def().attrs();
                for (i, (key, attr)) in attrs.iter().enumerate() {
                    write!(f, "{}{key} = ", if i == 0 { " {" } else { ", " })?;
                    write_attr(f, attr, indent + 2)?;
                }
                if !attrs.is_empty() {
                    write!(f, "}}")?;
                }
            }
        }
        if !node.scope.is_empty() {
            write!(f, "   // {}", node.scope.replace(char::is_control, " "))?;
        }
        writeln!(f)?;
    }
    writeln!(f, "{pad}  return {}", join(&graph.outputs))?;
    write!(f, "{pad}}}")
}

fn write_attr(f: &mut fmt::Formatter<'_>, attr: &Attr, indent: usize) -> fmt::Result {
    match attr {
        Attr::Int(x) => write!(f, "{x}"),
        // `{:?}` is the shortest text that parses back to the same float.
        Attr::Float(x) => write!(f, "{x:?}"),
        Attr::Bool(x) => write!(f, "{x}"),
        Attr::Ints(xs) => write!(f, "[{}]", join(xs)),
        Attr::DType(x) => write!(f, "{x}"),
        Attr::Str(x) => f.write_str(&quote(x)),
        Attr::Graph(graph) => write_graph(f, graph, indent),
    }
}

/// Elements of a constant as `[1.0, 2.0]`.
fn elements(tensor: &Tensor) -> String {
    let list: Vec<String> = match tensor.data() {
        Data::Float(values) => values.iter().map(|x| format!("{x:?}")).collect(),
        Data::Int(values) => values.iter().map(i64::to_string).collect(),
    };
    format!("[{}]", list.join(", "))
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// A string literal: `"` and `\` are escaped, control characters as `\u{..}`.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
