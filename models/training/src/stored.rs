//! Weights in the type that steps compute with: made together with new masters, where those are in cache anyway,
//! instead of in every run that reads them.
//!
//! A step's graph casts masters where it uses them, which says what is computed. Here it becomes one that reads cast
//! weights as inputs, and has new ones as outputs if it changes masters.

use std::collections::{BTreeMap, BTreeSet};

use compiler::Carry;
use ops::{Builder, DType, Op, Role, TensorType, ValueId};

use crate::{Error, Program, StateKind};

/// A master, cast to another type.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Stored {
    pub(crate) param: String,
    pub(crate) dtype: DType,
}

impl Stored {
    /// Name of the graph input that holds it.
    pub(crate) fn input(&self) -> String {
        format!("weight.{}.{}", self.dtype, self.param)
    }
}

/// A program that casts no master that it is given.
#[derive(Debug)]
pub(crate) struct WithStored {
    pub(crate) program: Program,
    /// What it reads.
    pub(crate) reads: BTreeSet<Stored>,
    /// What it makes of new masters.
    pub(crate) makes: BTreeSet<Stored>,
    /// What its plan carries, besides what its state is.
    pub(crate) carries: Vec<Carry>,
}

impl WithStored {
    /// `program` as it is, with casts.
    pub(crate) fn none(program: Program) -> WithStored {
        let (reads, makes) = (BTreeSet::new(), BTreeSet::new());
        WithStored { program, reads, makes, carries: vec![] }
    }

    /// `program` with stored weights for its casts of masters. If it changes masters, it makes those weights anew,
    /// and `also` those, which other programs read.
    pub(crate) fn new<'s>(
        program: Program,
        also: impl Iterator<Item = &'s Stored>,
    ) -> Result<WithStored, Error> {
        let graph = &program.graph;
        let masters: BTreeMap<String, &str> = program
            .trained
            .iter()
            .map(|(param, _)| (StateKind::Master.input(param), param.as_str()))
            .collect();
        let stored = |value: ValueId| {
            let (Some(Op::Cast(_)), &[from]) = (graph.op(value), &graph.node(value).args[..])
            else {
                return None;
            };
            let Role::Input(name) = &graph.node(from).role else { return None };
            let param = masters.get(&**name)?.to_string();
            Some(Stored { param, dtype: graph.ty(value).dtype() })
        };
        let reads: BTreeSet<Stored> = graph.values().filter_map(stored).collect();
        let mut dtypes: BTreeMap<&str, BTreeSet<DType>> = BTreeMap::new();
        let also: Vec<&Stored> = also.collect();
        for Stored { param, dtype } in reads.iter().chain(also) {
            dtypes.entry(param).or_default().insert(*dtype);
        }
        let new_masters: BTreeMap<ValueId, &str> = program
            .carries
            .iter()
            .filter(|carry| carry.kind == StateKind::Master)
            .map(|carry| (graph.outputs[carry.output], carry.param.as_str()))
            .collect();

        let mut b = Builder::new(graph.name.clone());
        let mut inputs: BTreeMap<Stored, ValueId> = BTreeMap::new();
        let mut input = |b: &mut Builder, stored: &Stored, ty: &TensorType| {
            let new = || b.input(&stored.input(), ty.with_dtype(stored.dtype));
            *inputs.entry(stored.clone()).or_insert_with(new)
        };
        let mut made: Vec<(Stored, ValueId)> = vec![];
        let mut values: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
        for value in graph.values() {
            let node = graph.node(value);
            let new = match stored(value) {
                Some(stored) => input(&mut b, &stored, &node.ty),
                None => {
                    let args: Vec<ValueId> =
                        node.args.iter().map(|arg| values[arg.index()]).collect();
                    b.copy_node(node, &args)?
                }
            };
            values.push(new);
            let Some(&param) = new_masters.get(&value) else { continue };
            for &dtype in dtypes.get(param).into_iter().flatten() {
                let stored = Stored { param: param.to_string(), dtype };
                input(&mut b, &stored, &node.ty);
                made.push((stored, b.scope("optimizer", |b| b.cast(new, dtype))?));
            }
        }
        let n_outputs = graph.outputs.len();
        let mut outputs: Vec<ValueId> =
            graph.outputs.iter().map(|output| values[output.index()]).collect();
        outputs.extend(made.iter().map(|(_, value)| *value));
        let place = |stored: &Stored| made.iter().position(|(made, _)| made == stored);
        let carries = inputs.keys().map(|stored| Carry {
            input: stored.input().into(),
            output: place(stored).map(|at| n_outputs + at),
        });
        let carries = carries.collect();
        let makes = made.into_iter().map(|(stored, _)| stored).collect();
        let program = Program { graph: b.finish(&outputs), ..program };
        Ok(WithStored { program, reads, makes, carries })
    }
}
