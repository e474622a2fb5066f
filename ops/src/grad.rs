//! Reverse mode over a graph under construction.

use crate::{Builder, Error, Op, OpDef, Role, ValueId};

/// Appends the gradient of `sum(cotangent * output)` with respect to each value of `wrt`; `None`
/// where the output does not depend on it. Gradients that meet are added in a fixed order
/// (descending user id), so the appended text is deterministic.
///
/// A composite op without a gradient of its own is replaced by its decomposition, which is appended
/// again: common-subexpression elimination joins what the forward pass had already computed.
pub fn append_gradients(
    b: &mut Builder,
    output: ValueId,
    cotangent: ValueId,
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>, Error> {
    if let Some(value) =
        [output, cotangent].into_iter().find(|v| v.index() >= b.graph().nodes.len())
    {
        return Err(Error::UnknownValue(value.0));
    }
    if b.ty(cotangent) != b.ty(output) {
        let (found, expected) = (b.ty(cotangent), b.ty(output));
        return Err(Error::Shape(format!("the cotangent is {found}, the output is {expected}")));
    }
    backpropagate(b, output, cotangent, wrt, 0)
}

/// [`append_gradients`] through the nodes from `first` on. What comes before them is given: the
/// gradient of a value of `wrt` there has no share that passes through another one.
fn backpropagate(
    b: &mut Builder,
    output: ValueId,
    cotangent: ValueId,
    wrt: &[ValueId],
    first: usize,
) -> Result<Vec<Option<ValueId>>, Error> {
    let mut needed = vec![false; output.index() + 1];
    for value in wrt {
        if let Some(flag) = needed.get_mut(value.index()) {
            *flag = true;
        }
    }
    for i in first..needed.len() {
        let node = &b.graph().nodes[i];
        needed[i] |= node.ty.dtype().is_float() && node.args.iter().any(|arg| needed[arg.index()]);
    }
    let mut grads: Vec<Option<ValueId>> = vec![None; output.index() + 1];
    grads[output.index()] = Some(cotangent);
    for i in (first..=output.index()).rev() {
        let Some(grad) = grads[i] else { continue };
        let node = b.graph().nodes[i].clone();
        // A value of `wrt` may be needed itself without any of its operands being so.
        let passes = node.args.iter().any(|arg| needed[arg.index()]);
        let (true, Role::Op(op)) = (passes, &node.role) else { continue };
        let arg_grads = vjp(b, op, &node.args, ValueId(i as u32), grad)?;
        for (arg, arg_grad) in node.args.iter().zip(arg_grads) {
            if let (Some(new), true) = (arg_grad, needed[arg.index()]) {
                grads[arg.index()] = Some(match grads[arg.index()] {
                    None => new,
                    Some(sum) => b.add(sum, new)?,
                });
            }
        }
    }
    Ok(wrt.iter().map(|value| grads.get(value.index()).copied().flatten()).collect())
}

fn vjp(
    b: &mut Builder,
    op: &Op,
    args: &[ValueId],
    out: ValueId,
    grad: ValueId,
) -> Result<Vec<Option<ValueId>>, Error> {
    let def: &dyn OpDef = op.def();
    match def.vjp(b, args, out, grad) {
        Err(Error::NoGradient(name)) => {
            let first = b.graph().nodes.len();
            match def.decompose(b, args) {
                None => Err(Error::NoGradient(name)),
                Some(value) => decomposition_vjp(b, args, value?, grad, first),
            }
        }
        grads => grads,
    }
}

/// Differentiates the nodes from `first` to `out`, a decomposition; each operand position gets its
/// own share, so an op may take the same value twice, or one that depends on another of its operands.
fn decomposition_vjp(
    b: &mut Builder,
    args: &[ValueId],
    out: ValueId,
    grad: ValueId,
    first: usize,
) -> Result<Vec<Option<ValueId>>, Error> {
    let mut unique: Vec<ValueId> = args.to_vec();
    unique.sort_unstable();
    unique.dedup();
    let grads = backpropagate(b, out, grad, &unique, first)?;
    let mut result = vec![None; args.len()];
    for (value, grad) in unique.into_iter().zip(grads) {
        let position = args.iter().position(|&arg| arg == value);
        result[position.expect("unique values come from args")] = grad;
    }
    Ok(result)
}
