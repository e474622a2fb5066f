//! What a picture of the arena shows: a box for each buffer, and the parts of the model below.

use std::fmt::Write;

use compiler::{Plan, Purpose, Resident};

use crate::plan::name_of;
use crate::units;

/// What buffers are colored by: a kind's name, the kernels that make it, its color.
pub(crate) const KINDS: [(&str, &[&str], &str); 8] = [
    ("matmul", &["matmul"], "#4e79a7"),
    ("attention", &["attention"], "#e15759"),
    ("conv", &["conv"], "#499894"),
    ("norm", &["norm", "group_norm", "reduce"], "#59a14f"),
    ("elementwise", &["map", "normal"], "#f1ce63"),
    ("movement", &["concat", "gather", "pad", "rope"], "#d37295"),
    ("input", &["input"], "#9d7660"),
    ("scratch", &[], "#bab0ac"),
];

/// One buffer as it is drawn.
#[derive(Debug)]
pub(crate) struct Boxed {
    /// First step, and one past the last.
    pub steps: [usize; 2],
    /// First byte in the arena.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
    /// Index into [`KINDS`].
    pub kind: usize,
    /// Scope of its first value, shortened.
    pub label: String,
    /// Everything about it, in lines.
    pub title: String,
    /// Whether its part of the model is drawn in the lighter of two shades: neighbors differ.
    pub light: bool,
}

/// A run of steps from one part of the model.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its scope.
    pub name: String,
    /// First step, and one past the last.
    pub steps: [usize; 2],
}

/// Every buffer of a plan, in plan order.
pub(crate) fn boxes(plan: &Plan) -> Vec<Boxed> {
    let parts = parts(plan);
    let part_at = |step: usize| parts.iter().position(|part| step < part.steps[1]).unwrap_or(0);
    let boxed = |resident: &Resident| {
        let buffer = &plan.buffers[resident.buffer.index()];
        let first = resident.contents.first();
        let scope = first.map_or("", |content| &content.scope);
        Boxed {
            steps: [buffer.first_step, buffer.last_step + 1],
            offset: buffer.offset,
            bytes: buffer.bytes,
            kind: kind_of(resident),
            label: short(scope),
            title: title(plan, resident),
            light: part_at(buffer.first_step) % 2 == 1,
        }
    };
    plan.residents().iter().map(boxed).collect()
}

fn kind_of(resident: &Resident) -> usize {
    let scratch = KINDS.len() - 1;
    if resident.purpose == Purpose::Scratch {
        return scratch;
    }
    let origin = resident.contents.first().map_or("", |content| content.origin);
    KINDS.iter().position(|(_, kernels, _)| kernels.contains(&origin)).unwrap_or(scratch)
}

fn title(plan: &Plan, resident: &Resident) -> String {
    let buffer = &plan.buffers[resident.buffer.index()];
    let bytes = |count: usize| units::bytes(count as f64);
    let mut text = String::new();
    if let Some(first) = resident.contents.first() {
        let what = if resident.purpose == Purpose::Scratch { "scratch of " } else { "" };
        let _ = write!(text, "{what}{} {}", first.origin, name_of(&first.scope));
        if let Some(ty) = &first.ty {
            let _ = write!(text, "\n{ty}");
        }
    }
    let (size, offset) = (bytes(buffer.bytes), bytes(buffer.offset));
    let _ = write!(text, "\n{} of {size} at {offset}", resident.buffer);
    let last = if buffer.last_step >= plan.steps.len() {
        "the end".to_string()
    } else {
        format!("step {}", buffer.last_step)
    };
    let _ = write!(text, "\nstep {} to {last}", buffer.first_step);
    if let [_, .., last] = &resident.contents[..] {
        let n = resident.contents.len();
        let _ = write!(text, "\nwritten {n} times, last by {}", name_of(&last.scope));
    }
    text
}

/// The parts of the model in order of steps, neighbors of one scope joined.
pub(crate) fn parts(plan: &Plan) -> Vec<Part> {
    let mut parts: Vec<Part> = vec![];
    for (index, step) in plan.steps.iter().enumerate() {
        let name = part_name(&plan.graph.node(step.value).scope);
        match parts.last_mut() {
            Some(part) if part.name == name => part.steps[1] = index + 1,
            _ => parts.push(Part { name, steps: [index, index + 1] }),
        }
    }
    parts
}

/// The part of the model that a scope is in: up to its first number, as `blocks.3`.
fn part_name(scope: &str) -> String {
    let words: Vec<&str> = scope.split('.').collect();
    let is_number = |word: &&str| word.parse::<usize>().is_ok();
    let n = words.iter().position(is_number).map_or(1, |at| at + 1);
    words[..n.min(words.len())].join(".")
}

/// The last two words of a scope; three where the first of two would be a number.
fn short(scope: &str) -> String {
    let words: Vec<&str> = scope.split('.').collect();
    let is_number = |at: usize| words[at].parse::<usize>().is_ok();
    let mut start = words.len().saturating_sub(2);
    if start > 0 && is_number(start) {
        start -= 1;
    }
    words[start..].join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_shortened() {
        assert_eq!(part_name("blocks.3.attn.qkv"), "blocks.3");
        assert_eq!(part_name("decoder.up_blocks.0.resnets.1"), "decoder.up_blocks.0");
        assert_eq!(part_name("x_embedder.proj"), "x_embedder");
        assert_eq!(part_name(""), "");
        assert_eq!(short("blocks.3.attn.qkv"), "attn.qkv");
        assert_eq!(short("decoder.upsamplers.0.conv"), "upsamplers.0.conv");
        assert_eq!((short("3.x"), short("")), ("3.x".into(), String::new()));
    }
}
