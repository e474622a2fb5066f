//! Kernels made wrong in one place of their compiled text, a site for each kind: the device's checks or
//! the numbers notice.
//!
//! Of a kernel's barriers, waits, fences and addresses a sample is tried, each alone. It is noticed if in
//! some order the device stops the kernel, or results are further from the interpreter's than a test of
//! the kernel allows, or differ from order to order.
//!
//! Some mutations change nothing: a copy of 0 bytes reads from anywhere, rows that fill up a tile may have
//! any address, a wait behind the last step waits for nothing that is used, and a barrier between a warp's
//! own reads and writes orders what is in order already.
//! They are counted as missed.

use std::collections::{BTreeMap, BTreeSet};

use compiler::Plan;
use cuda_tests::Run;
use emulator::{Arrival, Module, Mutation, Options, Order};
use kernels::Kernel;
use kernels::cuda::gemm::{Method, Tile};
use kernels::cuda::{Gpu, Launch};
use ops::defs::conv::Window;
use ops::{Builder, DType, Error, Graph, Tensor, TensorType, ValueId};
use tests::{Rng, relative_l2};

/// Mutations of one kind that are tried in one launch.
const SAMPLE: usize = 12;
/// Steps of a block, many times what the sites need: a loop that a mutation has made endless stops.
const MAX_STEPS: u64 = 1 << 21;

/// A kind of kernel and a graph that it runs.
struct Kind {
    name: &'static str,
    graph: Graph,
    gpu: Gpu,
    /// How products are computed, where it is not chosen.
    method: Option<Method>,
    /// Largest distance from the interpreter.
    limit: f64,
}

/// A kind whose graph is a body over inputs of these types.
fn kind(
    name: &'static str,
    types: &[(&[usize], DType)],
    build: impl Fn(&mut Builder, &[ValueId]) -> Result<ValueId, Error>,
) -> Kind {
    let mut b = Builder::new(name);
    let mut args = vec![];
    for (i, (shape, dtype)) in types.iter().enumerate() {
        args.push(b.input(&i.to_string(), TensorType::new(*dtype, *shape).expect("a valid shape")));
    }
    let output = build(&mut b, &args).expect("shapes fit");
    let limit = match b.ty(output).dtype() {
        DType::F32 => 2e-6,
        DType::Bf16 => 8e-3,
        _ => 0.0,
    };
    Kind { name, graph: b.finish(&[output]), gpu: Gpu(80), method: None, limit }
}

fn kinds() -> Vec<Kind> {
    let (half, f32) = (DType::Bf16, DType::F32);
    let product = |name, [m, n, k]: [usize; 3], dtype| {
        kind(name, &[(&[m, k], dtype), (&[n, k], dtype), (&[1, n], dtype)], |b, args| {
            let y = b.matmul(args[0], args[1], false, true)?;
            b.add(y, args[2])
        })
    };
    let attention = |name, [batch, sq, sk, d]: [usize; 4], dtype| {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, 2, d], &[batch, sk, 2, d]);
        let rows = [(q, dtype), (k, dtype), (k, dtype)];
        kind(name, &rows, |b, args| b.attention([args[0], args[1], args[2]], None, None, 0.2))
    };
    let tensor =
        Tile { rows: 64, columns: 64, depth: 64, warp_rows: 2, warp_columns: 2, stages: 4 };
    assert!(Tile::ALL.contains(&tensor), "it is a tile that is chosen from");
    vec![
        kind("map", &[(&[20, 33], half), (&[1, 33], half)], |b, args| {
            let y = b.silu(args[0])?;
            b.mul(y, args[1])
        }),
        kind("rows", &[(&[5, 1152], f32), (&[1, 1152], f32)], |b, args| {
            let y = b.layer_norm(args[0], 1e-6)?;
            b.mul(y, args[1])
        }),
        Kind { method: Some(Method::Tensor(tensor)), ..product("tensor", [70, 72, 328], half) },
        Kind {
            method: Some(Method::Group(Tile::GROUPS[0])),
            gpu: Gpu(90),
            ..product("group", [130, 136, 328], half)
        },
        product("scalar", [70, 68, 40], f32),
        product("few", [3, 33, 264], half),
        kind("conv", &[(&[1, 16, 8, 64], half)], |b, args| {
            let weight = b.param("weight", TensorType::new(half, [64, 64, 3, 3])?);
            b.conv(args[0], weight, &Window::new(&[1, 1], &[1, 1], &[1, 1]))
        }),
        attention("attention", [1, 70, 200, 64], half),
        attention("attention of short sequences", [3, 16, 16, 72], half),
        attention("attention_fma", [1, 33, 70, 36], f32),
        attention("attention_wide", [1, 34, 66, 160], half),
        kind("heads", &[(&[1, 40, 2, 64], half), (&[20, 32], f32)], |b, args| {
            let [q, k] = [0, 20].map(|at| b.slice_axis(args[0], 1, at, at + 20));
            let (q, v) = (b.rms_norm(q?, 1e-6)?, k?);
            let q = b.rope(q, args[1])?;
            b.attention([q, v, v], None, None, 0.3)
        }),
        kind("group_norm", &[(&[2, 13, 7, 32], f32), (&[32], f32), (&[32], f32)], |b, args| {
            b.group_norm(args[0], args[1], args[2], 8, 1e-6)
        }),
        kind("gather", &[(&[9, 64], half), (&[11], DType::I32)], |b, args| {
            b.gather(args[0], args[1])
        }),
        kind("normal", &[(&[2, 3], DType::I64)], |b, args| b.normal(args[0], &[5, 7])),
        kind("concat", &[(&[3, 4, 16], half), (&[3, 5, 16], half)], |b, args| b.concat(args, 1)),
        kind("transposed", &[(&[33, 40], half)], |b, args| b.permute(args[0], &[1, 0])),
    ]
}

/// Orders and arrivals that together show each mutation.
fn modes() -> [Options; 2] {
    [(Order::Forward, Arrival::Late), (Order::Reverse, Arrival::Early)].map(|(order, arrival)| {
        let checks_block_races = true;
        Options { order, arrival, checks_block_races, max_steps: MAX_STEPS, ..Options::default() }
    })
}

/// A kind that is ready to run.
struct Subject {
    kind: Kind,
    plan: Plan,
    given: BTreeMap<String, Tensor>,
    expected: Tensor,
    /// The right module of each launch, its entry, and its text.
    modules: Vec<(Module, String, String)>,
}

impl Subject {
    fn new(kind: Kind) -> Self {
        let mut rng = Rng::named(kind.name);
        let declared = kind.graph.inputs().chain(kind.graph.params());
        let given = declared.map(|(value, name)| {
            let ty = kind.graph.ty(value);
            // Indices reach beyond the table of 9 rows.
            let range = if ty.dtype().is_float() { (-2.0, 2.0) } else { (-1.0, 10.0) };
            (name.to_string(), rng.tensor(ty, range))
        });
        let given = given.collect();
        let mut plan = compiler::compile(kind.graph.clone(), &cuda_tests::target(kind.gpu))
            .unwrap_or_else(|error| panic!("{}: {error}", kind.name));
        if let Some(method) = kind.method {
            plan = cuda_tests::tiles::with_method(&plan, method);
        }
        let module = |launch: &Launch| {
            let (source, compiled) = cuda_tests::compile(&launch.function, kind.gpu);
            let module = Module::parse(&compiled.ptx).unwrap_or_else(|error| panic!("{error}"));
            (module, source.entry, compiled.ptx)
        };
        let modules = launches(&plan).map(module).collect();
        let expected = cuda_tests::expected(&kind.graph, &given).remove(0);
        Self { kind, plan, given, expected, modules }
    }

    /// Lines that some order reaches, by launch.
    fn reached(&self) -> Vec<BTreeSet<u32>> {
        let mut reached = vec![BTreeSet::new(); self.modules.len()];
        for options in &modes() {
            let Self { plan, given, kind, .. } = self;
            let run = Run { plan, given, gpu: kind.gpu, options };
            let ran = run.run(|_, n| Ok(self.modules[n].0.clone()));
            let ran = ran.unwrap_or_else(|stopped| panic!("{}: {}", kind.name, stopped.error));
            let output = ran.outputs[0].as_ref().expect("all of an output is written");
            assert!(self.is_right(output), "{}: the kernel itself is wrong", kind.name);
            for (lines, stats) in reached.iter_mut().zip(ran.stats) {
                lines.extend(stats.reached_lines);
            }
        }
        reached
    }

    fn is_right(&self, found: &Tensor) -> bool {
        if self.kind.limit == 0.0 {
            return *found == self.expected;
        }
        relative_l2(found.as_floats(), self.expected.as_floats()) <= self.kind.limit
    }

    /// Whether nothing tells this module of a launch from the right one.
    fn is_missed(&self, launch: usize, mutated: &Module) -> bool {
        let Self { plan, given, kind, .. } = self;
        let mut first: Option<Tensor> = None;
        modes().iter().all(|options| {
            let run = Run { plan, given, gpu: kind.gpu, options };
            let module = |n: usize| if n == launch { mutated } else { &self.modules[n].0 };
            let Ok(mut ran) = run.run(|_, n| Ok(module(n).clone())) else { return false };
            let Some(found) = ran.outputs.remove(0) else { return false };
            let is_right = self.is_right(&found);
            let is_same = first.replace(found.clone()).is_none_or(|first| first == found);
            is_right && is_same
        })
    }
}

fn launches(plan: &Plan) -> impl Iterator<Item = &Launch> {
    plan.steps.iter().flat_map(|step| match &step.kernel {
        Kernel::Cuda(kernel) => &kernel.launches[..],
        _ => panic!("a CPU kernel in a GPU's plan"),
    })
}

/// The kind of a mutation.
fn class(mutation: Mutation) -> &'static str {
    match mutation {
        Mutation::RemoveBarrier(_) => "barriers",
        Mutation::RemoveWait(_) => "waits",
        Mutation::RemoveFence(_) => "fences",
        Mutation::ShiftAddress(_) => "addresses",
    }
}

/// The mutations to try of one launch: of each class at most [`SAMPLE`], drawn from a seed.
fn sample(mutations: Vec<Mutation>, rng: &mut Rng) -> Vec<Mutation> {
    let mut by_class: BTreeMap<&str, Vec<Mutation>> = BTreeMap::new();
    for mutation in mutations {
        by_class.entry(class(mutation)).or_default().push(mutation);
    }
    let draw = |mut of_class: Vec<Mutation>| {
        while of_class.len() > SAMPLE {
            of_class.remove(rng.below(of_class.len()));
        }
        of_class
    };
    by_class.into_values().flat_map(draw).collect()
}

#[test]
fn nineteen_of_twenty_mutations_are_noticed() {
    let (mut n_noticed, mut n_tried) = (0, 0);
    let mut missed = vec![];
    for kind in kinds() {
        let subject = Subject::new(kind);
        let name = subject.kind.name;
        let mut rng = Rng::named(name);
        let (before, before_missed) = (n_tried, missed.len());
        for (launch, lines) in subject.reached().iter().enumerate() {
            let (module, entry, text) = &subject.modules[launch];
            let line = |mutation: Mutation| module.mutation_line(entry, mutation).unwrap();
            let mut mutations = module.mutations(entry).unwrap();
            mutations.retain(|mutation| lines.contains(&line(*mutation)));
            for mutation in sample(mutations, &mut rng) {
                n_tried += 1;
                if subject.is_missed(launch, &module.mutated(entry, mutation).unwrap()) {
                    let line = line(mutation);
                    let what = text.lines().nth(line as usize - 1).unwrap_or("").trim();
                    missed.push(format!("{name}: {mutation:?} of {entry}, line {line}: {what}"));
                }
            }
        }
        let (tried, of_kind) = (n_tried - before, missed.len() - before_missed);
        n_noticed += tried - of_kind;
        println!("{name}: {} of {tried}", tried - of_kind);
    }
    println!("all: {n_noticed} of {n_tried}\n{}", missed.join("\n"));
    assert!(n_tried > 150, "{n_tried} mutations are no sample");
    assert!(100 * n_noticed >= 95 * n_tried, "{n_noticed} of {n_tried}:\n{}", missed.join("\n"));
}
