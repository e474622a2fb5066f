//! What a valid graph is, checked again after every pass.
//!
//! With `verify` passed, code behind it may rely on the invariants of [`crate::Graph`] and must not
//! panic on account of the graph.

use crate::{Graph, Op, Role, TensorType, ValueId};

/// All violations of the graph's invariants; empty for a valid graph.
pub fn verify(graph: &Graph) -> Vec<String> {
    let mut problems = Vec::new();
    let n = graph.nodes.len();
    for value in graph.values() {
        let node = graph.node(value);
        if let Some(arg) = node.args.iter().find(|&&arg| arg >= value) {
            problems.push(format!("{value} uses {arg}, which is not defined before it"));
            continue;
        }
        match &node.role {
            Role::Op(op) => {
                if let Op::Fused(group) = op {
                    let inside = verify(group.body()).into_iter();
                    problems.extend(inside.map(|problem| format!("body of {value}: {problem}")));
                }
                let types: Vec<&TensorType> = graph.arg_types(value);
                match op.def().infer(&types) {
                    Ok(ty) if ty == node.ty => {}
                    Ok(ty) => problems.push(format!(
                        "{value} is declared {}, {} gives {ty}",
                        node.ty,
                        op.def().name()
                    )),
                    Err(error) => problems.push(format!("{value}: {error}")),
                }
            }
            Role::Constant(tensor) if *tensor.ty() != node.ty => problems.push(format!(
                "{value} is declared {}, its constant is {}",
                node.ty,
                tensor.ty()
            )),
            Role::Constant(_) | Role::Input(_) | Role::Param(_) => {}
        }
        if node.op().is_none() && !node.args.is_empty() {
            problems.push(format!("{value} is not an op and has operands"));
        }
    }
    for output in &graph.outputs {
        if output.index() >= n {
            problems.push(format!("output {output} does not exist"));
        }
    }
    problems.extend(duplicate_names(graph));
    problems
}

fn duplicate_names(graph: &Graph) -> Vec<String> {
    let mut names: Vec<(&str, ValueId)> =
        graph.inputs().chain(graph.params()).map(|(value, name)| (name, value)).collect();
    names.sort_unstable();
    names
        .windows(2)
        .filter(|pair| pair[0].0 == pair[1].0)
        .map(|pair| format!("{} and {} are both called `{}`", pair[0].1, pair[1].1, pair[0].0))
        .collect()
}
