//! Equal ops on equal operands are one value, and so are equal constants. The first stays. Operands
//! of commutative ops keep the order of `canonicalize`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use ops::{Graph, Op, Role, Tensor, TensorType, ValueId};

use crate::pass::Pass;
use crate::passes::canonicalize;
use crate::rewrite::Rewriter;

pub(crate) const PASS: Pass =
    Pass { name: "eliminate-common-subexpressions", about: "compute equal values once", run };

fn run(graph: &Graph) -> Graph {
    let mut r = Rewriter::without_rule(graph);
    // Ops by their text, which shows every attribute, and by operands in the new graph.
    let mut computed: BTreeMap<(String, Vec<ValueId>), ValueId> = BTreeMap::new();
    // Constants by type; equal elements are found by comparison, which a first difference ends.
    let mut constants: BTreeMap<TensorType, Vec<(Arc<Tensor>, ValueId)>> = BTreeMap::new();
    for value in graph.values() {
        let node = graph.node(value);
        match &node.role {
            Role::Input(_) | Role::Param(_) => {
                r.keep(value);
            }
            Role::Constant(tensor) => {
                let same_type = constants.entry(node.ty.clone()).or_default();
                let known = same_type.iter().find(|(other, _)| is_same(tensor, other));
                if let Some(&(_, first)) = known {
                    r.replace(value, first);
                } else {
                    let new = r.keep(value);
                    same_type.push((Arc::clone(tensor), new));
                }
            }
            Role::Op(op) => {
                let mut args: Vec<ValueId> = node.args.iter().map(|&arg| r.new_of(arg)).collect();
                // An operand that became an earlier value may stand on the wrong side.
                if let (Op::Binary(op), [x, y]) = (op, &args[..])
                    && canonicalize::is_out_of_order(&r, *op, *x, *y)
                {
                    args.reverse();
                }
                let key = (text(op), args);
                let first = computed.get(&key).copied();
                let new = first.unwrap_or_else(|| r.append_for(value, op.clone(), &key.1));
                r.replace(value, new);
                computed.entry(key).or_insert(new);
            }
        }
    }
    r.finish()
}

/// Same bits: 0.0 and -0.0 are different constants.
fn is_same(a: &Arc<Tensor>, b: &Arc<Tensor>) -> bool {
    Arc::ptr_eq(a, b) || (a == b && a.to_bytes() == b.to_bytes())
}

fn text(op: &Op) -> String {
    let mut text = op.def().name().to_string();
    for (name, attr) in op.def().attrs() {
        write!(text, " {name} = {attr}").expect("writing to a string cannot fail");
    }
    text
}
