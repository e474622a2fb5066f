//! What the code of each kernel needs, as a table: one row for each distinct kernel and generation.
//!
//! A row is of one text, compiled for one generation: registers, what did not fit into them, shared memory,
//! how many blocks a multiprocessor runs at once, and whether tensor cores multiply. The text form has tabs
//! between columns and the same rows always give the same bytes, so that two tables compare as files do.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use compiler::Plan;
use cuda_kernels::{Compiled, Nvrtc, Source};
use kernels::Kernel;
use kernels::cuda::gemm::{Gemm, Method, Tile};
use kernels::cuda::{BlockNeeds, Function, Gpu, Multiprocessor};
use xxhash_rust::xxh3::xxh3_128;

use crate::kernel_set::{Distinct, KernelSet, Progress, identity};
use crate::{Cache, Error};

/// What multiplies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Units {
    /// Tensor cores, fed by groups of four warps: `wgmma`.
    Groups,
    /// Tensor cores, fed by single warps: `mma.sync`.
    Warps,
    /// No tensor core.
    Ordinary,
}

/// One kernel of one generation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Row {
    /// Kind of kernel: `matmul`.
    pub kind: String,
    /// How it computes, where kernels of its kind differ in that: `group 128x256x64x4`.
    pub way: String,
    /// Which text: the first 48 bits of its hash, in hexadecimal digits.
    pub id: String,
    /// What it was compiled for.
    pub gpu: Gpu,
    /// What the code needs.
    pub needs: Needs,
    /// What multiplies.
    pub units: Units,
    /// The first program that launches it, of the order in which plans were added.
    pub program: String,
}

/// What the code of a kernel needs of a multiprocessor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Needs {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's registers that were put into memory.
    pub spill_bytes: u32,
    /// Bytes of a thread's local memory.
    pub local_bytes: u32,
    /// Bytes of static shared memory of a block.
    pub static_bytes: u32,
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_bytes: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that a multiprocessor runs at once.
    pub blocks: u32,
}

/// Collects the kernels of plans, for a table.
#[derive(Debug, Default)]
pub struct Survey {
    kernels: KernelSet,
    /// The first program that launches each, by position and generation.
    programs: BTreeMap<(usize, Gpu), String>,
}

impl Survey {
    /// Adds every function that `plan` launches. Its program is called `name`.
    ///
    /// # Errors
    /// [`Error::Target`] and [`Error::NotForGpu`] if the plan is not for a GPU, [`Error::Code`] if a
    /// function cannot be emitted.
    pub fn add(&mut self, name: &str, plan: &Plan) -> Result<(), Error> {
        let gpu = plan.target.gpu.ok_or_else(|| Error::Target { program: name.to_owned() })?;
        for (index, step) in plan.steps.iter().enumerate() {
            let Kernel::Cuda(kernel) = &step.kernel else {
                return Err(Error::NotForGpu {
                    program: name.to_owned(),
                    step: index,
                    kernel: step.kernel.def().name().to_owned(),
                });
            };
            for launch in &kernel.launches {
                let at = self.kernels.add(&launch.function, gpu)?;
                self.programs.entry((at, gpu)).or_insert_with(|| name.to_owned());
            }
        }
        Ok(())
    }

    /// Texts to compile, each counted once for each generation.
    pub fn compilations(&self) -> usize {
        self.kernels.compilations()
    }

    /// Which kernels there are, sorted.
    pub fn ids(&self) -> Vec<String> {
        let kernels = self.kernels.kernels().iter();
        let mut ids: Vec<String> =
            kernels.map(|kernel| id(&kernel.function, &kernel.source)).collect();
        ids.sort();
        ids
    }

    /// Forgets every kernel that is none of `ids`.
    pub fn retain(&mut self, ids: &[&str]) {
        let Survey { kernels, programs } = std::mem::take(self);
        for (at, Distinct { function, source, gpus }) in kernels.kernels().iter().enumerate() {
            if !ids.contains(&id(function, source).as_str()) {
                continue;
            }
            for &gpu in gpus {
                let at_now = self.kernels.add_emitted(function, source.clone(), gpu);
                self.programs.insert((at_now, gpu), programs[&(at, gpu)].clone());
            }
        }
    }

    /// Compiles everything on `threads` threads and returns the rows, sorted.
    ///
    /// # Errors
    /// [`Error::Code`] if a function does not compile.
    pub fn rows(
        &self,
        nvrtc: &Nvrtc,
        cache: Option<&Cache>,
        threads: usize,
        on_progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<Row>, Error> {
        let compiled = self.kernels.compile(nvrtc, cache, threads, on_progress)?;
        let mut rows = vec![];
        for (at, (kernel, compiled)) in self.kernels.kernels().iter().zip(compiled).enumerate() {
            for (gpu, compiled) in compiled {
                let program = self.programs[&(at, gpu)].clone();
                rows.push(Row::of(&kernel.function, &kernel.source, gpu, &compiled, program));
            }
        }
        rows.sort();
        Ok(rows)
    }
}

impl Row {
    fn of(
        function: &Function,
        source: &Source,
        gpu: Gpu,
        compiled: &Compiled,
        program: String,
    ) -> Row {
        let resources = compiled.resources;
        let threads = function.block().iter().product();
        let blocks = Multiprocessor::of(gpu).residents(&BlockNeeds {
            threads,
            registers: resources.registers,
            shared_bytes: resources.static_shared_bytes + source.shared_bytes,
        });
        Row {
            kind: function.name().to_owned(),
            way: way(function),
            id: id(function, source),
            gpu,
            needs: Needs {
                registers: resources.registers,
                spill_bytes: resources.spill_bytes,
                local_bytes: resources.stack_bytes,
                static_bytes: resources.static_shared_bytes,
                dynamic_bytes: source.shared_bytes,
                threads,
                blocks,
            },
            units: Units::of(&compiled.ptx),
            program,
        }
    }
}

/// The first 48 bits of a hash of everything that makes a kernel another one.
fn id(function: &Function, source: &Source) -> String {
    format!("{:012x}", xxh3_128(identity(function, source).as_bytes()) >> 80)
}

/// How a function computes, where functions of its kind differ in that.
fn way(function: &Function) -> String {
    match function {
        Function::Matmul(matmul) => way_of_product(&matmul.0),
        Function::Conv(conv) => way_of_product(&conv.0),
        Function::Attention(attention) => {
            let (dtype, d) = (attention.problem.q.dtype, attention.problem.d);
            format!("{dtype} {}x{} d {d}", attention.queries(), attention.tile.keys)
        }
        Function::AttentionWide(attention) => {
            let (dtype, d) = (attention.problem.q.dtype, attention.problem.d);
            format!("{dtype} keys {} d {d}", attention.keys)
        }
        Function::AttentionFma(attention) => {
            format!("{} d {}", attention.problem.q.dtype, attention.problem.d)
        }
        Function::Rows(rows) => format!("{} threads a row", rows.threads),
        Function::Columns(_)
        | Function::Gather(_)
        | Function::GroupScale(_)
        | Function::GroupSums(_)
        | Function::Heads(_)
        | Function::Map(_)
        | Function::Normal(_)
        | Function::Transpose(_) => "-".to_owned(),
    }
}

fn way_of_product(gemm: &Gemm) -> String {
    let dtype = gemm.product;
    let tile = |name: &str, tile: Tile| {
        let Tile { rows, columns, depth, warp_rows: _, warp_columns: _, stages } = tile;
        format!("{name} {dtype} {rows}x{columns}x{depth}x{stages}")
    };
    match gemm.method {
        Method::Tensor(of_warps) => tile("warp", of_warps),
        Method::Group(of_groups) => tile("group", of_groups),
        Method::Scalar => format!("scalar {dtype}"),
        Method::Few => format!("few {dtype}"),
    }
}

impl Units {
    /// By the instructions of a PTX text, which machine code has one for one.
    fn of(ptx: &str) -> Units {
        if ptx.contains("wgmma.mma_async") {
            Units::Groups
        } else if ptx.contains("mma.sync") {
            Units::Warps
        } else {
            Units::Ordinary
        }
    }

    const NAMES: [(Units, &str); 3] =
        [(Units::Groups, "wgmma"), (Units::Warps, "mma"), (Units::Ordinary, "-")];
}

/// Titles of the columns.
const COLUMNS: &str =
    "kind\tway\tid\ttarget\tregs\tspill\tlocal\tstatic\tdynamic\tthreads\tblocks\tunits\tprogram";

/// The text of a table: what `comment` says, a line each, then titles, then a line for each row.
pub fn to_text(comment: &str, rows: &[Row]) -> String {
    let mut text = String::new();
    for line in comment.lines() {
        let _ = writeln!(text, "# {line}");
    }
    let _ = writeln!(text, "{COLUMNS}");
    for row in rows {
        let _ = writeln!(text, "{row}");
    }
    text
}

/// The rows of a table's text.
///
/// # Errors
/// What is wrong with which line.
pub fn from_text(text: &str) -> Result<Vec<Row>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    let mut lines = lines.map(|(index, line)| (index + 1, line));
    match lines.next() {
        Some((_, COLUMNS)) => {}
        Some((number, line)) => return Err(format!("line {number}: `{line}`, expected titles")),
        None => return Err("no titles".into()),
    }
    lines.map(|(number, line)| line.parse().map_err(|e| format!("line {number}: {e}"))).collect()
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { kind, way, id, gpu, needs, units, program } = self;
        let Needs {
            registers,
            spill_bytes,
            local_bytes,
            static_bytes,
            dynamic_bytes,
            threads,
            blocks,
        } = needs;
        let units = Units::NAMES.iter().find(|(found, _)| found == units);
        let units = units.map_or("-", |(_, name)| name);
        write!(
            f,
            "{kind}\t{way}\t{id}\t{}\t{registers}\t{spill_bytes}\t{local_bytes}\t{static_bytes}\t\
             {dynamic_bytes}\t{threads}\t{blocks}\t{units}\t{program}",
            gpu.code_name()
        )
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(line: &str) -> Result<Row, String> {
        let cells: Vec<&str> = line.split('\t').collect();
        let &[kind, way, id, target, ref numbers @ .., units, program] = &cells[..] else {
            return Err(format!("{} columns, expected 13", cells.len()));
        };
        let gpu = Gpu::from_name(target).ok_or_else(|| format!("no target `{target}`"))?;
        let numbers: Result<Vec<u32>, String> = numbers
            .iter()
            .map(|cell| cell.parse().map_err(|_| format!("`{cell}`, expected a number")))
            .collect();
        let [registers, spill_bytes, local_bytes, static_bytes, dynamic_bytes, threads, blocks] =
            numbers?[..]
        else {
            return Err(format!("{} columns, expected 13", cells.len()));
        };
        let known = Units::NAMES.iter().find(|(_, name)| *name == units);
        let &(units, _) = known.ok_or_else(|| format!("no units `{units}`"))?;
        Ok(Row {
            kind: kind.to_owned(),
            way: way.to_owned(),
            id: id.to_owned(),
            gpu,
            needs: Needs {
                registers,
                spill_bytes,
                local_bytes,
                static_bytes,
                dynamic_bytes,
                threads,
                blocks,
            },
            units,
            program: program.to_owned(),
        })
    }
}

/// Lines of `expected` that `found` has not, and the other way round, each once: `-` and `+` before them.
pub fn differences(expected: &[Row], found: &[Row]) -> Vec<String> {
    let lines = |rows: &[Row]| rows.iter().map(Row::to_string).collect::<Vec<_>>();
    let (expected, found) = (lines(expected), lines(found));
    let gone = expected.iter().filter(|line| !found.contains(line)).map(|line| format!("- {line}"));
    let new = found.iter().filter(|line| !expected.contains(line)).map(|line| format!("+ {line}"));
    gone.chain(new).collect()
}
