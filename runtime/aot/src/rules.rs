//! What the code of every kernel is held to, and who may break a rule for which reason.
//!
//! No register is kept in memory, products and attention run on tensor cores, and a multiprocessor runs at
//! least two blocks at once, so that one works while another waits. [`EXCEPTIONS`] is the one list of
//! kernels for which the last two do not hold by design; one that no kernel needs any more is refused.

use kernels::cuda::{BlockNeeds, Gpu, Multiprocessor, WARP};

use crate::table::{Row, Units};

/// Kinds of kernels that multiply matrices.
const PRODUCTS: [&str; 5] = ["attention", "attention_fma", "attention_wide", "conv", "matmul"];

/// A rule that has exceptions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Products and attention have tensor-core instructions.
    TensorCores,
    /// Two blocks fit on a multiprocessor.
    TwoBlocks,
}

/// Kernels that break a rule by design. Of those with one block, it covers what shared memory limits to one,
/// never registers or threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// The rule.
    pub rule: Rule,
    /// Their kind.
    pub kind: &'static str,
    /// How the way in which they compute begins.
    pub way: &'static str,
    /// The generations.
    pub gpus: &'static [Gpu],
    /// Why.
    pub reason: &'static str,
}

/// Every generation.
const ALL: &[Gpu] = &Gpu::ALL;
/// Those with the least shared memory.
const SMALL: &[Gpu] = &[Gpu(86), Gpu(89)];

const fn exception(
    rule: Rule,
    kind: &'static str,
    way: &'static str,
    gpus: &'static [Gpu],
    reason: &'static str,
) -> Exception {
    Exception { rule, kind, way, gpus, reason }
}

/// Why a tile of single warps may fill the shared memory.
const STEPS: &str = "three or four steps of a block in shared memory are more than half of it; copies for later \
                     steps overlap with the products of this one inside of the block";

/// All of them.
pub const EXCEPTIONS: &[Exception] = &[
    exception(
        Rule::TensorCores,
        "matmul",
        "few",
        ALL,
        "up to 8 rows: the time is that of reading the weights, each once, by a warp for each column",
    ),
    exception(
        Rule::TensorCores,
        "attention_fma",
        "bf16 d 512",
        SMALL,
        "a head of 512: 64 queries with 32 keys and values need 103 KiB of shared memory, a block has 99",
    ),
    exception(Rule::TwoBlocks, "matmul", "warp bf16 128x128x64x3", &[Gpu(80)], STEPS),
    exception(Rule::TwoBlocks, "conv", "warp bf16 128x128x64x3", &[Gpu(80)], STEPS),
    exception(Rule::TwoBlocks, "matmul", "warp bf16", SMALL, STEPS),
    exception(Rule::TwoBlocks, "conv", "warp bf16", SMALL, STEPS),
    exception(
        Rule::TwoBlocks,
        "attention_wide",
        "bf16",
        &[Gpu(80), Gpu(90)],
        "queries, keys and values of one wide head fill the shared memory; eight warps work on them",
    ),
];

impl Exception {
    fn covers(&self, rule: Rule, row: &Row) -> bool {
        self.rule == rule
            && self.kind == row.kind
            && row.way.starts_with(self.way)
            && self.gpus.contains(&row.gpu)
            && (rule != Rule::TwoBlocks || is_one_by_memory(row))
    }
}

/// Whether shared memory alone leaves room for one block.
fn is_one_by_memory(row: &Row) -> bool {
    let shared_bytes = row.needs.static_bytes + row.needs.dynamic_bytes;
    let needs = BlockNeeds { threads: WARP, registers: 1, shared_bytes };
    Multiprocessor::of(row.gpu).residents(&needs) == 1
}

impl Rule {
    fn is_broken_by(self, row: &Row) -> bool {
        match self {
            Rule::TensorCores => {
                PRODUCTS.contains(&row.kind.as_str()) && row.units == Units::Ordinary
            }
            Rule::TwoBlocks => row.needs.blocks < 2,
        }
    }
}

/// Why a row breaks `rule`, if it does and may.
pub fn reason(rule: Rule, row: &Row) -> Option<&'static str> {
    let covers = |exception: &&Exception| exception.covers(rule, row);
    EXCEPTIONS.iter().filter(|_| rule.is_broken_by(row)).find(covers).map(|found| found.reason)
}

/// What is wrong with `rows`, a line each; nothing of a right table.
pub fn problems(rows: &[Row]) -> Vec<String> {
    let mut problems = vec![];
    for row in rows {
        let mut tell = |what: &str| problems.push(format!("{what}: {row}"));
        if row.needs.spill_bytes > 0 {
            tell("spills registers");
        }
        if row.needs.local_bytes > 0 {
            tell("uses local memory");
        }
        if row.needs.blocks == 0 {
            tell("does not fit on a multiprocessor");
        }
        for (rule, what) in [
            (Rule::TensorCores, "no tensor-core instruction, and no reason"),
            (Rule::TwoBlocks, "fewer than two blocks on a multiprocessor, and no reason"),
        ] {
            if rule.is_broken_by(row) && reason(rule, row).is_none() {
                tell(what);
            }
        }
    }
    for exception in EXCEPTIONS {
        let Exception { rule, kind, way, gpus, reason: _ } = exception;
        for gpu in *gpus {
            let is_needed = rows.iter().any(|row| {
                row.gpu == *gpu && rule.is_broken_by(row) && exception.covers(*rule, row)
            });
            if !is_needed {
                problems.push(format!("no {kind} `{way}` of {gpu} needs its exception: {rule:?}"));
            }
        }
    }
    problems
}
