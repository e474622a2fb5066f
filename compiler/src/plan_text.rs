//! The textual form of a plan: its graph, then arena, buffers and steps.
//!
//! ```text
//! plan @block {isa = avx512, threads = 2, l1 = 49152, l2 = 1048576, l3 = 33554432} {
//!   arena 14376960 (lower bound 14376960)
//!   buffer b0 : 7188480 @ 0 live 0..1
//!   input "x" in b0
//!   step 0 matmul {…} (b0 f32[4096, 1152], param "w" packed … f32[…]) -> b1, scratch b2   // %4 blocks.0
//!   output "0" in b1
//! }
//! ```
//!
//! What is carried from run to run prints behind the outputs, as `carry "0" to "x" in place` (or `by copy`), or as
//! `keep "x"` where runs only read it; its buffer is `: 64 carried live …`. A step that runs together with the one
//! before it ends in `, with step 3`.
//!
//! A target with measured tiles prints each as a line, `tile sm_90a matmul …`, before the arena.
//! Steps and kernels follow from the graph and the target, so [`parse_plan`] derives them again,
//! takes buffers and offsets from the text, and requires that the result prints as the text did.

use std::fmt;
use std::sync::Arc;

use kernels::cuda::Gpu;
use kernels::{Isa, KernelDef, Layout, Target};

use crate::lower::lower;
use crate::plan::{Carry, Memory, Operand, Place, Plan};
use crate::plan_memory::plan_memory;
use crate::{BufferId, Error};

impl fmt::Display for BufferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0)
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Buffer(buffer) => write!(f, "{buffer} ")?,
            Place::Param { name, packing: None, .. } => write!(f, "param {name:?} ")?,
            Place::Param { name, packing: Some(packing), .. } => {
                write!(f, "param {name:?} as {} ", packing.name)?;
            }
            Place::Constant(value) => write!(f, "constant {value} ")?,
        }
        write!(f, "{}", self.layout)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            write!(f, "{:#}", self.graph)?;
        } else {
            write!(f, "{}", self.graph)?;
        }
        let t = &self.target;
        write!(
            f,
            "plan @{} {{isa = {}, threads = {}, l1 = {}, l2 = {}, l3 = {}",
            self.graph.name, t.isa, t.threads, t.l1_bytes, t.l2_bytes, t.l3_bytes
        )?;
        if let Some(gpu) = t.gpu {
            write!(f, ", gpu = {gpu}")?;
        }
        writeln!(f, "}} {{")?;
        let tiles = t.tiles.as_ref().map(ToString::to_string).unwrap_or_default();
        tiles.lines().try_for_each(|tile| writeln!(f, "  tile {tile}"))?;
        writeln!(f, "  arena {} (lower bound {})", self.arena_bytes, self.lower_bound_bytes)?;
        for (i, buffer) in self.buffers.iter().enumerate() {
            write!(f, "  buffer b{i} : {} ", buffer.bytes)?;
            match buffer.memory {
                Memory::Arena => write!(f, "@ {}", buffer.offset)?,
                Memory::Carried => write!(f, "carried")?,
            }
            writeln!(f, " live {}..{}", buffer.first_step, buffer.last_step)?;
        }
        for port in &self.inputs {
            writeln!(f, "  input {:?} in {}", port.name, port.buffer)?;
        }
        for (i, step) in self.steps.iter().enumerate() {
            write!(f, "  step {i} {}", describe(step.kernel.def()))?;
            let operands: Vec<String> = step.operands.iter().map(Operand::to_string).collect();
            write!(f, " ({}) -> {}", operands.join(", "), step.result)?;
            // A part of the buffer, where several steps write one value.
            if step.result_layout != Layout::dense(self.graph.ty(step.value)) {
                write!(f, " {}", step.result_layout)?;
            }
            if let Some(scratch) = step.scratch {
                write!(f, ", scratch {scratch}")?;
            }
            if step.joins {
                write!(f, ", with step {}", i - 1)?;
            }
            writeln!(f, "   // {} {}", step.value, self.graph.node(step.value).scope)?;
        }
        for port in &self.outputs {
            writeln!(f, "  output {:?} in {}", port.name, port.buffer)?;
        }
        for carry in &self.carries {
            let how = if self.is_in_place(carry) { "in place" } else { "by copy" };
            match carry.output {
                Some(output) => writeln!(f, "  carry \"{output}\" to {:?} {how}", carry.input)?,
                None => writeln!(f, "  keep {:?}", carry.input)?,
            }
        }
        writeln!(f, "}}")
    }
}

/// A kernel as it prints in a plan: `matmul {mc = 112}`.
pub fn describe(kernel: &dyn KernelDef) -> String {
    let tunables: Vec<String> =
        kernel.tunables().iter().map(|(key, value)| format!("{key} = {value}")).collect();
    if tunables.is_empty() {
        kernel.name().to_string()
    } else {
        format!("{} {{{}}}", kernel.name(), tunables.join(", "))
    }
}

/// Parses a plan that printed with its constants (`{:#}`). The CPU must have the plan's
/// instruction set.
pub fn parse_plan(text: &str) -> Result<Plan, Error> {
    let bad = |line: usize, reason: &str| Error::Parse { line, reason: reason.into() };
    let start = text.find("\nplan @").ok_or_else(|| bad(1, "expected `plan @`"))? + 1;
    let graph_text = &text[..start];
    let first_line = graph_text.lines().count() + 1;
    let graph = ops::parse(graph_text)?;
    let header = text[start..].lines().next().unwrap_or_default();
    let mut target =
        parse_target(header).ok_or_else(|| bad(first_line, "expected the target's fields"))?;
    let tiles = text[start..].lines().filter_map(|line| line.strip_prefix("  tile "));
    let tiles: Vec<&str> = tiles.collect();
    if !tiles.is_empty() {
        let tiles = tiles.join("\n").parse().map_err(|reason: String| bad(first_line, &reason))?;
        target.tiles = Some(Arc::new(tiles));
    }
    let carries = parse_carries(&text[start..], &graph);
    crate::check_carries(&graph, &carries)?;
    let lowered = lower(&graph, &target)?;
    let mut plan = plan_memory(lowered, &target, &carries);
    let mut buffer = 0;
    for (i, line) in text[start..].lines().enumerate() {
        let line_number = first_line + i;
        if let Some(rest) = line.strip_prefix("  arena ") {
            plan.arena_bytes = rest
                .split(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| bad(line_number, "expected the arena's bytes"))?;
        } else if line.starts_with("  buffer ") {
            let offset = line
                .split(" @ ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next())
                .and_then(|n| n.parse().ok());
            match (plan.buffers.get_mut(buffer), offset) {
                (Some(slot), _) if slot.memory == Memory::Carried => {}
                (Some(slot), Some(offset)) => slot.offset = offset,
                _ => return Err(bad(line_number, "expected a buffer of the plan's graph")),
            }
            buffer += 1;
        }
    }
    let printed = format!("{plan:#}");
    for (i, (found, expected)) in text.lines().zip(printed.lines()).enumerate() {
        if found != expected {
            return Err(bad(i + 1, &format!("the graph's plan has here: {}", expected.trim())));
        }
    }
    if text.lines().count() != printed.lines().count() {
        return Err(bad(text.lines().count(), "the plan is not complete"));
    }
    Ok(plan)
}

/// What the lines of a plan's text say of the inputs of its graph.
fn parse_carries(text: &str, graph: &ops::Graph) -> Vec<Carry> {
    let carry = |(_, name): (ops::ValueId, &str)| {
        let keep = format!("  keep {name:?}");
        let to = format!("\" to {name:?} ");
        text.lines().find_map(|line| {
            let output = match line.strip_prefix("  carry \"") {
                Some(rest) => Some(rest.split_once(&to)?.0.parse().ok()?),
                None if line == keep => None,
                None => return None,
            };
            Some(Carry { input: name.into(), output })
        })
    };
    graph.inputs().filter_map(carry).collect()
}

fn parse_target(header: &str) -> Option<Target> {
    let fields = header.split_once(" {")?.1.split_once('}')?.0;
    let field = |name: &str| {
        fields.split(", ").find_map(|field| {
            let (key, value) = field.split_once(" = ")?;
            (key == name).then_some(value)
        })
    };
    let number = |name: &str| field(name)?.parse().ok();
    Some(Target {
        isa: Isa::from_name(field("isa")?).ok()?,
        threads: number("threads")?,
        l1_bytes: number("l1")?,
        l2_bytes: number("l2")?,
        l3_bytes: number("l3")?,
        gpu: match field("gpu") {
            Some(name) => Some(Gpu::from_name(name)?),
            None => None,
        },
        tiles: None,
    })
}
