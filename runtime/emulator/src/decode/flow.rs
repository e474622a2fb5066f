//! Where lanes that branched apart meet again: immediate postdominators.
//!
//! The algorithm is that of "A Simple, Fast Dominance Algorithm" (Cooper, Harvey, Kennedy) on the reversed graph
//! of basic blocks, with one node behind all exits.

use crate::ops::{Inst, Op};
use crate::registers::ALWAYS;

/// Sets the join of each branch; lanes that never meet again have a place behind the code.
pub(super) fn set_joins(code: &mut [Inst]) {
    let starts = block_starts(code);
    let n_blocks = starts.len();
    let block_of = |at: u32| starts.partition_point(|&start| start <= at) - 1;
    let exit = n_blocks;
    let mut successors = Vec::with_capacity(n_blocks);
    let mut predecessors = vec![vec![]; n_blocks + 1];
    for block in 0..n_blocks {
        let end = starts.get(block + 1).copied().unwrap_or(code.len() as u32);
        let mut to: Vec<usize> = leaves_to(code, end - 1)
            .into_iter()
            .map(|at| if at as usize >= code.len() { exit } else { block_of(at) })
            .collect();
        to.sort_unstable();
        to.dedup();
        for &next in &to {
            predecessors[next].push(block);
        }
        successors.push(to);
    }
    let joins = postdominators(&successors, &predecessors, exit);
    let end = code.len() as u32;
    for (block, join) in joins[..n_blocks].iter().enumerate() {
        let last = starts.get(block + 1).copied().unwrap_or(end) as usize - 1;
        let place = join.map_or(end, |join| starts.get(join).copied().unwrap_or(end));
        if let Op::Branch { join, .. } | Op::BranchIndex { join, .. } = &mut code[last].op {
            *join = place;
        }
    }
}

/// First instructions of basic blocks.
fn block_starts(code: &[Inst]) -> Vec<u32> {
    let mut starts = vec![0];
    for (i, inst) in code.iter().enumerate() {
        let next = i as u32 + 1;
        match &inst.op {
            Op::Branch { target, .. } => starts.extend([*target, next]),
            Op::BranchIndex { targets, .. } => {
                starts.extend(targets);
                starts.push(next);
            }
            Op::Exit | Op::Trap => starts.push(next),
            _ => {}
        }
    }
    starts.retain(|&start| (start as usize) < code.len());
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// Where control can go after the last instruction of a block; the length of the code is the exit.
fn leaves_to(code: &[Inst], last: u32) -> Vec<u32> {
    let inst = &code[last as usize];
    let is_guarded = inst.guard.reg != ALWAYS.reg || inst.guard.is_negated;
    let mut to = match &inst.op {
        Op::Branch { target, .. } => vec![*target],
        Op::BranchIndex { targets, .. } => targets.clone(),
        Op::Exit | Op::Trap => vec![code.len() as u32],
        _ => return vec![last + 1],
    };
    if is_guarded {
        to.push(last + 1);
    }
    to
}

/// The immediate postdominator of each node; none where no exit is reached.
fn postdominators(
    successors: &[Vec<usize>],
    predecessors: &[Vec<usize>],
    exit: usize,
) -> Vec<Option<usize>> {
    let order = reverse_postorder(predecessors, exit);
    let mut rank = vec![usize::MAX; exit + 1];
    for (i, &node) in order.iter().enumerate() {
        rank[node] = i;
    }
    let mut joins: Vec<Option<usize>> = vec![None; exit + 1];
    joins[exit] = Some(exit);
    let mut is_changed = true;
    while is_changed {
        is_changed = false;
        for &node in order.iter().skip(1) {
            let known = successors[node].iter().copied().filter(|&next| joins[next].is_some());
            let met = known.reduce(|a, b| meet(&joins, &rank, a, b));
            if met.is_some() && joins[node] != met {
                joins[node] = met;
                is_changed = true;
            }
        }
    }
    joins
}

/// The nearest node that postdominates both.
fn meet(joins: &[Option<usize>], rank: &[usize], a: usize, b: usize) -> usize {
    let (mut a, mut b) = (a, b);
    while a != b {
        // Nodes of a rank have postdominators of lower ranks.
        while rank[a] > rank[b] {
            a = joins[a].unwrap_or(b);
        }
        while rank[b] > rank[a] {
            b = joins[b].unwrap_or(a);
        }
    }
    a
}

/// Nodes from the exit backward, each after some node that it leads to.
fn reverse_postorder(predecessors: &[Vec<usize>], exit: usize) -> Vec<usize> {
    let mut order = vec![];
    let mut is_seen = vec![false; exit + 1];
    let mut stack = vec![(exit, 0)];
    is_seen[exit] = true;
    while let Some((node, i)) = stack.pop() {
        if let Some(&next) = predecessors[node].get(i) {
            stack.push((node, i + 1));
            if !is_seen[next] {
                is_seen[next] = true;
                stack.push((next, 0));
            }
        } else {
            order.push(node);
        }
    }
    order.reverse();
    order
}
