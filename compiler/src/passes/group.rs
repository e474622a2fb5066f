//! Groups of ops that become one `fused` op, and how they grow.
//!
//! A group has one result: every other member is used by members only. That alone keeps fusion from
//! making a cycle. The group stands where its result stood; what it reads from outside stands before
//! some member, so before the result; and nothing outside reads a member before the result exists.
//!
//! Growing forward takes the next value through which everything made from the result must pass (its
//! immediate post-dominator) with all ops in between. Growing backward takes operands that nobody
//! else uses. Members that are cheap to compute again may be in several groups.

use std::collections::BTreeSet;

use ops::defs::binary::Binary;
use ops::defs::fused::Fused;
use ops::{Builder, Class, Graph, Op, Role, ValueId};

use crate::passes::eliminate_dead_values;
use crate::rewrite::Rewriter;

/// Most operands of a group: a kernel keeps a pointer to each in registers.
pub(super) const MAX_OPERANDS: usize = 12;
/// Most ops of a group.
pub(super) const MAX_OPS: usize = 32;

/// Ops that are going to be one.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// What kernels know it by.
    pub(super) kind: &'static str,
    /// The op that the group is made around; it gives the group its scope.
    pub(super) anchor: ValueId,
    /// All ops of the group.
    pub(super) members: BTreeSet<ValueId>,
    /// The member whose value the group gives.
    pub(super) result: ValueId,
}

impl Group {
    pub(super) fn around(kind: &'static str, anchor: ValueId) -> Group {
        Group { kind, anchor, members: BTreeSet::from([anchor]), result: anchor }
    }
}

/// What may be done with an operand while growing backward.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Take {
    /// It stays outside.
    No,
    /// It becomes a member; its operands stay outside.
    Only,
    /// It becomes a member; its operands are looked at next.
    AndOperands,
}

/// A graph whose ops are being sorted into groups.
#[derive(Debug)]
pub(super) struct Grouping<'a> {
    pub(super) graph: &'a Graph,
    pub(super) users: Vec<Vec<ValueId>>,
    is_output: Vec<bool>,
    /// The first value that everything made from a value passes through; the number of values
    /// where there is none.
    post_dominator: Vec<usize>,
    is_taken: Vec<bool>,
    groups: Vec<Group>,
}

impl<'a> Grouping<'a> {
    /// No groups yet. Dead values must be gone: a dead user is a user.
    pub(super) fn new(graph: &'a Graph) -> Grouping<'a> {
        let users = graph.users();
        let mut is_output = vec![false; graph.nodes.len()];
        for output in &graph.outputs {
            is_output[output.index()] = true;
        }
        Grouping {
            graph,
            post_dominator: post_dominators(&users, &is_output),
            users,
            is_output,
            is_taken: vec![false; graph.nodes.len()],
            groups: Vec::new(),
        }
    }

    /// Whether `value` is an op that belongs to no group.
    pub(super) fn is_free(&self, value: ValueId) -> bool {
        !self.is_taken[value.index()] && self.graph.op(value).is_some()
    }

    /// Whether `value` is a free elementwise op.
    pub(super) fn is_elementwise(&self, value: ValueId) -> bool {
        self.is_free(value)
            && self.graph.op(value).is_some_and(|op| op.def().class() == Class::Elementwise)
    }

    /// Whether `value` is an output of the graph.
    pub(super) fn is_output(&self, value: ValueId) -> bool {
        self.is_output[value.index()]
    }

    /// Whether `value` is a free elementwise op on floats that has as many elements as `like`.
    pub(super) fn is_epilogue_of(&self, like: ValueId, value: ValueId) -> bool {
        self.is_elementwise(value)
            && self.graph.ty(value).dtype().is_float()
            && self.graph.ty(value).shape() == self.graph.ty(like).shape()
    }

    /// Whether an operand of a group with results like `like` is better computed inside it: as many
    /// elements, or so cheap that computing it for every element costs less than storing it.
    pub(super) fn is_better_inside(&self, like: ValueId, value: ValueId) -> bool {
        self.is_elementwise(value)
            && (self.graph.ty(value).count() == self.graph.ty(like).count() || self.is_cheap(value))
    }

    /// Whether an elementwise op takes about as long as a load.
    pub(super) fn is_cheap(&self, value: ValueId) -> bool {
        match self.graph.op(value) {
            Some(Op::Binary(op)) => *op != Binary::Div,
            Some(Op::Cast(_) | Op::Select(_)) => true,
            Some(op) if op.def().class() == Class::Elementwise => {
                let node = self.graph.node(value);
                op.def().flops(&self.graph.arg_types(value), &node.ty) <= node.ty.count() as u64
                    && !is_function(op)
            }
            _ => false,
        }
    }

    /// What the members read from outside, in the order of their first use. A constant of one
    /// element that an elementwise op reads is not an operand: it is copied into the body.
    pub(super) fn operands(&self, members: &BTreeSet<ValueId>) -> Vec<ValueId> {
        let mut operands = Vec::new();
        for &member in members {
            for &arg in &self.graph.node(member).args {
                let is_outside = !members.contains(&arg) && !self.is_number_in(member, arg);
                if is_outside && !operands.contains(&arg) {
                    operands.push(arg);
                }
            }
        }
        operands
    }

    fn is_number_in(&self, user: ValueId, arg: ValueId) -> bool {
        let node = self.graph.node(arg);
        matches!(node.role, Role::Constant(_))
            && node.ty.count() == 1
            && self.graph.op(user).is_some_and(|op| op.def().class() == Class::Elementwise)
    }

    /// Whether a group of these members is within the limits. One without operands is not a group.
    pub(super) fn fits(&self, members: &BTreeSet<ValueId>) -> bool {
        members.len() <= MAX_OPS && (1..=MAX_OPERANDS).contains(&self.operands(members).len())
    }

    /// Moves the result of `group` down as far as everything on the way is accepted.
    pub(super) fn grow_forward(&self, group: &mut Group, accept: impl Fn(ValueId) -> bool) {
        while let Some(next) = self.joined_at(group.result) {
            let Some(region) = self.region(group.result, next) else { return };
            if !region.iter().all(|&value| accept(value)) {
                return;
            }
            let members: BTreeSet<ValueId> = group.members.union(&region).copied().collect();
            if !self.fits(&members) {
                return;
            }
            group.members = members;
            group.result = next;
        }
    }

    fn joined_at(&self, value: ValueId) -> Option<ValueId> {
        let next = self.post_dominator[value.index()];
        (next < self.graph.nodes.len()).then_some(ValueId(next as u32))
    }

    /// What lies between `from` and its post-dominator `to`, with `to`; `None` if that is too much.
    fn region(&self, from: ValueId, to: ValueId) -> Option<BTreeSet<ValueId>> {
        let mut region = BTreeSet::from([to]);
        let mut open: Vec<ValueId> = self.users[from.index()].clone();
        while let Some(value) = open.pop() {
            if value != to && region.insert(value) {
                open.extend(&self.users[value.index()]);
            }
            if region.len() > MAX_OPS {
                return None;
            }
        }
        Some(region)
    }

    /// Operands of `members` that only members need, with theirs, later values first, starting from
    /// `from`. Every prefix of the list can be added to the members. `again` says which values may
    /// be computed here and elsewhere too.
    pub(super) fn cone(
        &self,
        members: &BTreeSet<ValueId>,
        from: impl IntoIterator<Item = ValueId>,
        again: impl Fn(ValueId) -> bool,
        take: impl Fn(ValueId) -> Take,
    ) -> Vec<ValueId> {
        let mut inside = members.clone();
        // Members that are computed elsewhere too: they do not make their operands ours.
        let mut is_shared = BTreeSet::new();
        let mut cone = Vec::new();
        let mut open: BTreeSet<ValueId> = from.into_iter().collect();
        // From the last value up: all users of a value have been decided on before it.
        while let Some(value) = open.pop_last() {
            if inside.contains(&value) || !self.is_free(value) || cone.len() == MAX_OPS {
                continue;
            }
            let is_ours = !self.is_output(value)
                && self.users[value.index()]
                    .iter()
                    .all(|user| inside.contains(user) && !is_shared.contains(user));
            if !is_ours && !again(value) {
                continue;
            }
            let take = take(value);
            if take == Take::No {
                continue;
            }
            inside.insert(value);
            if !is_ours {
                is_shared.insert(value);
            }
            cone.push(value);
            if take == Take::AndOperands {
                open.extend(&self.graph.node(value).args);
            }
        }
        cone
    }

    /// Adds as much of `cone` to `group` as keeps it within the limits and `is_valid`, which is
    /// asked about what is added.
    pub(super) fn grow_backward(
        &self,
        group: &mut Group,
        cone: &[ValueId],
        is_valid: impl Fn(&BTreeSet<ValueId>) -> bool,
    ) {
        for n in (1..=cone.len()).rev() {
            let added: BTreeSet<ValueId> = cone[..n].iter().copied().collect();
            let members: BTreeSet<ValueId> = group.members.union(&added).copied().collect();
            if self.fits(&members) && is_valid(&added) {
                group.members = members;
                return;
            }
        }
    }

    /// Takes into `group` what only its elementwise members need and is better computed inside.
    /// `like` has the dims in which the group works; operands of the anchor stay outside.
    pub(super) fn grow_sides(&self, group: &mut Group, like: ValueId) {
        let args = group
            .members
            .iter()
            .filter(|&&member| member != group.anchor)
            .flat_map(|&member| self.graph.node(member).args.iter().copied());
        let args: Vec<ValueId> = args.collect();
        let cone = self.cone(
            &group.members,
            args,
            |_| false,
            |value| {
                let is_float = self.graph.ty(value).dtype().is_float();
                if is_float && self.is_better_inside(like, value) {
                    Take::AndOperands
                } else {
                    Take::No
                }
            },
        );
        self.grow_backward(group, &cone, |_| true);
    }

    /// The members of `group` are no longer free, but for those that may be computed `again`.
    pub(super) fn claim(&mut self, group: &Group, again: impl Fn(ValueId) -> bool) {
        for &member in &group.members {
            self.is_taken[member.index()] |= !again(member) || member == group.result;
        }
    }

    /// Keeps `group`, whose members have been claimed. A group of one op stays that op.
    pub(super) fn commit(&mut self, group: Group) {
        if group.members.len() > 1 {
            self.groups.push(group);
        }
    }

    /// The graph with every group as one op.
    pub(super) fn into_graph(mut self) -> Graph {
        if self.groups.is_empty() {
            return self.graph.clone();
        }
        self.groups.sort_by_key(|group| group.result);
        let mut groups = self.groups.iter().peekable();
        let mut r = Rewriter::without_rule(self.graph);
        for value in self.graph.values() {
            match groups.next_if(|group| group.result == value) {
                Some(group) => {
                    let (op, operands) = self.outline(group);
                    let args: Vec<ValueId> = operands.iter().map(|&arg| r.new_of(arg)).collect();
                    let fused = r.append_for(group.anchor, op, &args);
                    r.replace(value, fused);
                }
                None => {
                    r.keep(value);
                }
            }
        }
        // The members stand there still, without users.
        eliminate_dead_values::run(&r.finish())
    }

    /// The fused op of `group`, and its operands.
    fn outline(&self, group: &Group) -> (Fused, Vec<ValueId>) {
        let operands = self.operands(&group.members);
        let mut body = Builder::new(group.kind);
        let mut inside: Vec<(ValueId, ValueId)> = Vec::new();
        for (i, &operand) in operands.iter().enumerate() {
            inside.push((operand, body.input(&i.to_string(), self.graph.ty(operand).clone())));
        }
        let new_of = |inside: &[(ValueId, ValueId)], old: ValueId| {
            inside.iter().find(|(from, _)| *from == old).map(|(_, to)| *to)
        };
        for &member in &group.members {
            let node = self.graph.node(member);
            let mut args = Vec::with_capacity(node.args.len());
            for &arg in &node.args {
                let new = new_of(&inside, arg).unwrap_or_else(|| {
                    let number = body.copy_node(self.graph.node(arg), &[]);
                    let number = number.expect("a constant fits any graph");
                    inside.push((arg, number));
                    number
                });
                args.push(new);
            }
            let new = body.copy_node(node, &args).expect("the member type-checked in its graph");
            inside.push((member, new));
        }
        let result = new_of(&inside, group.result).expect("the result is a member");
        (Fused::new(group.kind, body.finish(&[result])), operands)
    }
}

/// Functions that a table counts as one FLOP but that take many instructions.
fn is_function(op: &Op) -> bool {
    use ops::defs::scalar::ScalarFn;
    use ops::defs::unary::Unary;
    match op {
        Op::Unary(op) => !matches!(op, Unary::Neg | Unary::Abs | Unary::Square),
        Op::Scalar(scalar) => scalar.op == ScalarFn::Pow,
        _ => false,
    }
}

/// For each value its immediate post-dominator; `users.len()` stands for the end of the graph. One
/// sweep is exact, because users come later than what they use.
fn post_dominators(users: &[Vec<ValueId>], is_output: &[bool]) -> Vec<usize> {
    let end = users.len();
    let mut parent = vec![end; end];
    for i in (0..end).rev() {
        if is_output[i] || users[i].is_empty() {
            continue;
        }
        let mut users = users[i].iter().map(|user| user.index());
        let first = users.next().expect("a value without users was left out above");
        parent[i] = users.fold(first, |mut a, mut b| {
            // The nearest common ancestor: ancestors come later, so the earlier one moves.
            while a != b {
                if a < b {
                    a = parent[a];
                } else {
                    b = parent[b];
                }
            }
            a
        });
    }
    parent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn post_dominators_join_branches_and_end_at_outputs() {
        // 0 -> 1 -> {2, 3} -> 4 -> 5, and 3 -> 6; outputs 5 and 6.
        let edges: [&[u32]; 7] = [&[1], &[2, 3], &[4], &[4, 6], &[5], &[], &[]];
        let users: Vec<Vec<ValueId>> =
            edges.iter().map(|to| to.iter().map(|&i| ValueId(i)).collect()).collect();
        let mut is_output = vec![false; 7];
        is_output[5] = true;
        is_output[6] = true;
        assert_eq!(post_dominators(&users, &is_output), [1, 7, 4, 7, 5, 7, 7]);
        let no_side_exit: Vec<Vec<ValueId>> =
            users.iter().map(|to| to.iter().copied().filter(|to| to.0 != 6).collect()).collect();
        assert_eq!(post_dominators(&no_side_exit, &is_output), [1, 4, 4, 4, 5, 7, 7]);
    }
}
