//! The reference interpreter: slow and obvious.

use std::collections::BTreeMap;

use crate::{Builder, Error, Graph, OpDef, Role, Tensor, TensorType};

/// Whether results are rounded to their element type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    /// After every node.
    Stored,
    /// Never: all floats stay f64. Integers wrap.
    Exact,
}

/// Runs `graph`. `given` holds inputs and parameters by name. Returns the outputs.
pub fn eval(
    graph: &Graph,
    given: &BTreeMap<String, Tensor>,
    rounding: Rounding,
) -> Result<Vec<Tensor>, Error> {
    let values = eval_all(graph, given, rounding)?;
    Ok(graph.outputs.iter().map(|output| values[output.index()].clone()).collect())
}

/// Runs `graph` and returns every value, in program order.
pub fn eval_all(
    graph: &Graph,
    given: &BTreeMap<String, Tensor>,
    rounding: Rounding,
) -> Result<Vec<Tensor>, Error> {
    let mut values: Vec<Tensor> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let value = match &node.role {
            Role::Input(name) | Role::Param(name) => {
                let tensor = given.get(&**name).ok_or_else(|| {
                    Error::Shape(format!("no value is given for `{name}` : {}", node.ty))
                })?;
                if *tensor.ty() != node.ty {
                    return Err(Error::Shape(format!(
                        "`{name}` is given as {}, declared as {}",
                        tensor.ty(),
                        node.ty
                    )));
                }
                tensor.clone()
            }
            Role::Constant(tensor) => (**tensor).clone(),
            Role::Op(op) => {
                let args: Vec<&Tensor> = node.args.iter().map(|arg| &values[arg.index()]).collect();
                let value = eval_op(op.def(), &args, &node.ty)?;
                debug_assert_eq!(*value.ty(), node.ty, "{op:?}");
                match rounding {
                    Rounding::Stored => value.rounded(),
                    // Integers are what their type stores in either case.
                    Rounding::Exact if node.ty.dtype().is_float() => value,
                    Rounding::Exact => value.rounded(),
                }
            }
        };
        values.push(value);
    }
    Ok(values)
}

/// Evaluates one op without rounding: its `eval`, or its decomposition if it is a composite.
pub(crate) fn eval_op(
    def: &dyn OpDef,
    args: &[&Tensor],
    out: &TensorType,
) -> Result<Tensor, Error> {
    let mut b = Builder::new("decomposition");
    let names: Vec<String> = (0..args.len()).map(|i| i.to_string()).collect();
    let inputs: Vec<_> =
        names.iter().zip(args).map(|(name, arg)| b.input(name, arg.ty().clone())).collect();
    match def.decompose(&mut b, &inputs) {
        None => Ok(def.eval(args, out)),
        Some(value) => {
            let graph = b.finish(&[value?]);
            let given = names.into_iter().zip(args.iter().map(|&arg| arg.clone())).collect();
            let mut outputs = eval(&graph, &given, Rounding::Exact)?;
            Ok(outputs.remove(0))
        }
    }
}
