//! Random graphs of every op kind, values for them, and a shrinker for the ones that fail.
//!
//! The same seed gives the same graph. Values stay moderate and away from poles and jumps, so that
//! two ways to compute the same thing agree closely: comparisons and casts to integers read only
//! inputs, and ops on constants alone are exact in f32. Graphs have dead values, unused inputs,
//! values with several users, and parts of the forms that models have.

use std::collections::BTreeMap;

use ops::defs::conv::Window;
use ops::{Builder, DType, Error, Graph, Role, Tensor, TensorType, ValueId, verify};

/// A small generator of random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A number in `low..high`.
    pub fn float(&mut self, low: f64, high: f64) -> f64 {
        low + (self.next() >> 11) as f64 / (1u64 << 53) as f64 * (high - low)
    }
}

/// The graph of a seed.
pub fn random_graph(seed: u64) -> Graph {
    let b = Builder::new("random");
    let growth = Growth { random: Random::new(seed), b, pool: Vec::new(), n_named: 0 };
    growth.build().expect("the generator asks for ops that fit")
}

/// Values for the inputs and parameters of `graph`: multiples of 1/64 in [-2, 2], small integers.
pub fn random_values(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut random = Random::new(seed ^ 0x5eed);
    graph
        .inputs()
        .chain(graph.params())
        .map(|(value, name)| (name.to_string(), random_tensor(&mut random, graph.ty(value), 64.0)))
        .collect()
}

fn random_tensor(random: &mut Random, ty: &TensorType, steps: f64) -> Tensor {
    let n = 0..ty.count();
    match ty.dtype() {
        DType::F32 | DType::F16 | DType::Bf16 => {
            let value = |_| (random.float(-2.0, 2.0) * steps).round() / steps;
            Tensor::floats(ty.clone(), n.map(value).collect())
        }
        DType::I64 | DType::I32 | DType::U8 => {
            Tensor::ints(ty.clone(), n.map(|_| random.below(4) as i64).collect())
        }
        DType::Bool => Tensor::ints(ty.clone(), n.map(|_| random.below(2) as i64).collect()),
    }
}

/// A smaller graph for which `fails` holds too, found by trying parts of `graph` until none fails.
pub fn shrink(graph: &Graph, fails: impl Fn(&Graph) -> bool) -> Graph {
    let mut graph = graph.clone();
    loop {
        let smaller = parts(&graph).find(|part| fails(part));
        let Some(smaller) = smaller else { return graph };
        graph = smaller;
    }
}

/// Smaller graphs made from `graph`: with an inner value as the only output, or with one op's result
/// given as an input.
fn parts(graph: &Graph) -> impl Iterator<Item = Graph> {
    let size = |graph: &Graph| {
        let n_ops = graph.values().filter(|&value| graph.op(value).is_some()).count();
        (n_ops, graph.nodes.len())
    };
    let ops = || graph.values().filter(|&value| graph.op(value).is_some());
    let one_output = ops().map(|value| {
        let mut part = graph.clone();
        part.outputs = vec![value];
        part
    });
    let cut = ops().map(|value| {
        let mut part = graph.clone();
        let node = &mut part.nodes[value.index()];
        node.role = Role::Input(format!("cut{}", value.0).into());
        node.args.clear();
        part
    });
    let before = size(graph);
    one_output.chain(cut).map(|part| live_nodes(&part)).filter(move |part| size(part) < before)
}

/// `graph` without what its outputs do not need.
fn live_nodes(graph: &Graph) -> Graph {
    let mut is_live = vec![false; graph.nodes.len()];
    for output in &graph.outputs {
        is_live[output.index()] = true;
    }
    for value in graph.values().rev() {
        if is_live[value.index()] {
            for arg in &graph.node(value).args {
                is_live[arg.index()] = true;
            }
        }
    }
    let mut b = Builder::new(graph.name.clone());
    let mut new = vec![ValueId(0); graph.nodes.len()];
    for value in graph.values().filter(|value| is_live[value.index()]) {
        let args: Vec<ValueId> =
            graph.node(value).args.iter().map(|arg| new[arg.index()]).collect();
        new[value.index()] = b.copy_node(graph.node(value), &args).expect("the graph was valid");
    }
    let outputs: Vec<ValueId> = graph.outputs.iter().map(|output| new[output.index()]).collect();
    b.finish(&outputs)
}

/// A value that ops may use.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    value: ValueId,
    /// No element is larger; an estimate.
    bound: f64,
    /// Elements are those of inputs, moved.
    is_raw: bool,
    /// How many ops on constants alone lie above it; `None` if an input does.
    known: Option<usize>,
}

struct Growth {
    random: Random,
    b: Builder,
    pool: Vec<Candidate>,
    n_named: usize,
}

type Grown = Result<Candidate, Error>;

const DIMS: [usize; 5] = [1, 2, 3, 4, 6];

impl Growth {
    fn build(mut self) -> Result<Graph, Error> {
        for _ in 0..2 + self.random.below(2) {
            let rank = 2 + self.random.below(3);
            let shape = self.shape(rank);
            self.fresh(DType::F32, &shape);
        }
        for _ in 0..6 + self.random.below(14) {
            self.step()?;
        }
        let mut outputs = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            outputs.push(self.pick().value);
        }
        outputs.push(self.pool[self.pool.len() - 1].value);
        let graph = self.b.finish(&outputs);
        assert_eq!(verify(&graph), Vec::<String>::new(), "the generator builds valid graphs");
        Ok(graph)
    }

    fn step(&mut self) -> Result<(), Error> {
        let made = match self.random.below(30) {
            0..=3 => self.unary()?,
            4..=5 => self.scalar()?,
            6..=10 => self.binary()?,
            11 => self.select()?,
            12 => self.cast()?,
            13..=17 => self.movement()?,
            18 => self.join()?,
            19 => self.reduce()?,
            20 => self.norm()?,
            21 => self.linear()?,
            22 => self.product()?,
            23 => self.attention()?,
            24 => self.conv()?,
            25 => self.gather()?,
            26 => self.integers()?,
            27 => self.block()?,
            28 => self.head_attention()?,
            _ => self.identity()?,
        };
        self.pool.push(made);
        Ok(())
    }

    fn shape(&mut self, rank: usize) -> Vec<usize> {
        (0..rank).map(|_| DIMS[self.random.below(DIMS.len() - 1)]).collect()
    }

    /// A new input, parameter or constant, in the pool.
    fn fresh(&mut self, dtype: DType, shape: &[usize]) -> Candidate {
        let ty = TensorType::new(dtype, shape).expect("dims are small");
        let name = format!("x{}", self.n_named);
        self.n_named += 1;
        let (value, known) = match self.random.below(4) {
            0 | 1 => (self.b.input(&name, ty), None),
            2 => (self.b.param(&name, ty), None),
            _ => {
                // Eighths, and often one number: what canonicalization looks for.
                let tensor = if dtype.is_float() && self.random.one_in(2) {
                    let number = [0.0, 1.0, -1.0, 2.0, 0.5, 0.75][self.random.below(6)];
                    Tensor::floats(ty.clone(), vec![number; ty.count()])
                } else {
                    random_tensor(&mut self.random, &ty, 8.0)
                };
                (self.b.constant(tensor), Some(0))
            }
        };
        let made = Candidate { value, bound: 2.0, is_raw: true, known };
        self.pool.push(made);
        made
    }

    /// A float of the pool, mostly a late one.
    fn pick(&mut self) -> Candidate {
        for _ in 0..50 {
            let n = self.pool.len();
            let near = if self.random.one_in(3) { n } else { n.min(4) };
            let candidate = self.pool[n - 1 - self.random.below(near)];
            if self.b.ty(candidate.value).dtype().is_float() {
                return candidate;
            }
        }
        self.fresh(DType::F32, &[2, 3])
    }

    /// An f32 that does not depend on constants alone.
    fn pick_f32(&mut self) -> Candidate {
        for _ in 0..50 {
            let candidate = self.pick();
            if self.b.ty(candidate.value).dtype() == DType::F32 && candidate.known.is_none() {
                return candidate;
            }
        }
        let ty = TensorType::new(DType::F32, [2, 3, 4]).expect("dims are small");
        let name = format!("x{}", self.n_named);
        self.n_named += 1;
        let value = self.b.input(&name, ty);
        Candidate { value, bound: 2.0, is_raw: true, known: None }
    }

    /// An f32 of this rank or more, with moderate elements.
    fn pick_rank(&mut self, rank: usize) -> Grown {
        let mut x = self.pick_f32();
        while self.b.ty(x.value).rank() < rank {
            let shape = [&[1], self.b.shape(x.value)].concat();
            x.value = self.b.reshape(x.value, &shape)?;
        }
        self.tamed(x, 16.0)
    }

    /// `x`, or its hyperbolic tangent where elements may be larger than `bound`.
    fn tamed(&mut self, x: Candidate, bound: f64) -> Grown {
        if x.bound <= bound || x.known.is_some() {
            return Ok(x);
        }
        let value = self.b.tanh(x.value)?;
        Ok(Candidate { value, bound: 1.0, is_raw: false, known: None })
    }

    fn unary(&mut self) -> Grown {
        let x = self.pick();
        if x.known.is_some() || self.random.one_in(4) {
            let value = self.b.neg(x.value)?;
            return Ok(Candidate { value, is_raw: false, known: x.known.map(|n| n + 1), ..x });
        }
        let x = self.tamed(x, 3.0)?;
        // At least 1/2: inside the domain of everything.
        let positive = |b: &mut Builder| {
            let square = b.square(x.value)?;
            b.add_scalar(square, 0.5)
        };
        let b = &mut self.b;
        let (value, bound) = match self.random.below(12) {
            0 => (b.abs(x.value)?, x.bound),
            1 => (b.exp(x.value)?, x.bound.exp()),
            2 => {
                let p = positive(b)?;
                (b.log(p)?, 3.0)
            }
            3 => {
                let p = positive(b)?;
                (b.recip(p)?, 2.0)
            }
            4 => {
                let p = positive(b)?;
                (b.rsqrt(p)?, 2.0)
            }
            5 => (b.square(x.value)?, x.bound * x.bound),
            6 => {
                let p = positive(b)?;
                (b.sqrt(p)?, 4.0)
            }
            7 => (b.sin(x.value)?, 1.0),
            8 => (b.cos(x.value)?, 1.0),
            9 => (b.sigmoid(x.value)?, 1.0),
            10 => (b.silu(x.value)?, x.bound),
            _ => (b.gelu_tanh(x.value)?, x.bound),
        };
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    fn scalar(&mut self) -> Grown {
        let x = self.pick();
        let number = [0.0, 1.0, -1.0, 2.0, 0.5, -0.25, 3.0][self.random.below(7)];
        if x.known.is_some_and(|n| n >= 2) {
            return Ok(x);
        }
        let b = &mut self.b;
        let (value, bound) = match self.random.below(4) {
            0 => (b.add_scalar(x.value, number)?, x.bound + number.abs()),
            1 => (b.mul_scalar(x.value, number)?, x.bound * number.abs()),
            2 => (b.max_scalar(x.value, number)?, x.bound.max(number.abs())),
            _ => (b.min_scalar(x.value, number)?, x.bound.max(number.abs())),
        };
        Ok(Candidate { value, bound, is_raw: false, known: x.known.map(|n| n + 1) })
    }

    /// Something that `x` can be combined with: from the pool, or new with some dims of 1.
    fn partner(&mut self, x: Candidate) -> Candidate {
        let ty = self.b.ty(x.value).clone();
        let fits = |other: &TensorType| {
            other.dtype() == ty.dtype()
                && other.rank() == ty.rank()
                && other.shape().iter().zip(ty.shape()).all(|(&o, &t)| o == t || o == 1)
        };
        let fitting: Vec<Candidate> =
            self.pool.iter().copied().filter(|c| fits(self.b.ty(c.value))).collect();
        if !fitting.is_empty() && !self.random.one_in(3) {
            return fitting[self.random.below(fitting.len())];
        }
        let mut shape = ty.shape().to_vec();
        for dim in &mut shape {
            if self.random.one_in(2) {
                *dim = 1;
            }
        }
        self.fresh(ty.dtype(), &shape)
    }

    fn binary(&mut self) -> Grown {
        let x = self.pick();
        let y = self.partner(x);
        let both_known = x.known.zip(y.known).map(|(a, b)| a.max(b) + 1);
        if both_known.is_some_and(|n| n > 2) {
            return Ok(x);
        }
        let (x, y) = (self.tamed(x, 50.0)?, self.tamed(y, 50.0)?);
        let (p, q) = if self.random.one_in(2) { (x, y) } else { (y, x) };
        let (p, q) = (p.value, q.value);
        let (sum, product) = (x.bound + y.bound, x.bound * y.bound);
        let b = &mut self.b;
        let (value, bound) = match self.random.below(7) {
            0 | 1 => (b.add(p, q)?, sum),
            2 => (b.sub(p, q)?, sum),
            3 | 4 => (b.mul(p, q)?, product),
            5 if both_known.is_none() => {
                let square = b.square(q)?;
                let positive = b.add_scalar(square, 0.5)?;
                (b.div(p, positive)?, 2.0 * x.bound.max(y.bound))
            }
            _ if self.random.one_in(2) => (b.maximum(p, q)?, sum),
            _ => (b.minimum(p, q)?, sum),
        };
        Ok(Candidate { value, bound, is_raw: false, known: both_known })
    }

    fn select(&mut self) -> Grown {
        let raw: Vec<Candidate> = self
            .pool
            .iter()
            .copied()
            .filter(|c| c.is_raw && self.b.ty(c.value).dtype() == DType::F32)
            .collect();
        let a = raw[self.random.below(raw.len())];
        let shape = self.b.shape(a.value).to_vec();
        let other = self.fresh(DType::F32, &shape);
        let cond = if self.random.one_in(3) {
            self.b.equal(a.value, other.value)?
        } else {
            self.b.less(a.value, other.value)?
        };
        let x = self.partner(a);
        let y = self.partner(a);
        let value = self.b.select(cond, x.value, y.value)?;
        let known = a.known.and(other.known).and(x.known.zip(y.known).map(|(a, b)| a.max(b) + 1));
        Ok(Candidate { value, bound: x.bound.max(y.bound), is_raw: false, known })
    }

    fn cast(&mut self) -> Grown {
        let x = self.pick_f32();
        let dtype = [DType::Bf16, DType::F16, DType::F32][self.random.below(3)];
        let narrow = self.b.cast(x.value, dtype)?;
        let value = if self.random.one_in(2) { narrow } else { self.b.cast(narrow, DType::F32)? };
        Ok(Candidate { value, is_raw: false, ..x })
    }

    /// One op that moves elements, or two of a kind.
    fn movement(&mut self) -> Grown {
        let mut x = self.pick();
        let kind = self.random.below(6);
        for _ in 0..1 + self.random.below(2) {
            x.value = self.moved(x.value, kind)?;
        }
        Ok(x)
    }

    fn moved(&mut self, x: ValueId, kind: usize) -> Result<ValueId, Error> {
        let shape = self.b.shape(x).to_vec();
        let rank = shape.len();
        match kind {
            0 if rank >= 2 => {
                let axis = self.random.below(rank - 1);
                let mut merged = shape.clone();
                merged[axis] *= merged.remove(axis + 1);
                self.b.reshape(x, &merged)
            }
            0 | 1 if rank < 6 => {
                let axis = self.random.below(rank.max(1));
                let mut split = shape.clone();
                if split.is_empty() || split[axis] % 2 == 1 {
                    split.insert(axis.min(split.len()), 1);
                } else {
                    split[axis] /= 2;
                    split.insert(axis, 2);
                }
                self.b.reshape(x, &split)
            }
            2 if rank >= 2 => {
                let mut axes: Vec<usize> = (0..rank).collect();
                axes.swap(self.random.below(rank), self.random.below(rank));
                self.b.permute(x, &axes)
            }
            3 => {
                let start: Vec<usize> = shape.iter().map(|&d| self.random.below(d)).collect();
                let stop: Vec<usize> = (shape.iter().zip(&start))
                    .map(|(&d, &s)| s + 1 + self.random.below(d - s))
                    .collect();
                let step: Vec<usize> = shape.iter().map(|_| 1 + self.random.below(2)).collect();
                self.b.slice(x, &start, &stop, &step)
            }
            4 => {
                let mut wide = shape.clone();
                for dim in wide.iter_mut().filter(|dim| **dim == 1) {
                    *dim = 1 + self.random.below(3);
                }
                self.b.broadcast(x, &wide)
            }
            _ => {
                let low: Vec<usize> = shape.iter().map(|_| self.random.below(2)).collect();
                let high: Vec<usize> = shape.iter().map(|_| self.random.below(2)).collect();
                if shape.iter().product::<usize>() > 200 {
                    return Ok(x);
                }
                self.b.pad(x, &low, &high)
            }
        }
    }

    /// A concat, often with a slice behind it that one operand would do for.
    fn join(&mut self) -> Grown {
        let x = self.pick_f32();
        let rank = self.b.ty(x.value).rank();
        if rank == 0 {
            return Ok(x);
        }
        let axis = self.random.below(rank);
        let mut shape = self.b.shape(x.value).to_vec();
        shape[axis] = 1 + self.random.below(3);
        let y = self.fresh(DType::F32, &shape);
        let joined = self.b.concat(&[x.value, y.value], axis)?;
        let end = self.b.shape(joined)[axis];
        let value = match self.random.below(3) {
            0 => self.b.slice_axis(joined, axis, 0, end - shape[axis])?,
            1 => self.b.slice_axis(joined, axis, end - 1, end)?,
            _ => joined,
        };
        Ok(Candidate { value, bound: x.bound.max(2.0), is_raw: false, known: None })
    }

    fn reduce(&mut self) -> Grown {
        let x = self.pick_rank(1)?;
        let shape = self.b.shape(x.value).to_vec();
        let mut axes: Vec<usize> = (0..shape.len()).filter(|_| self.random.one_in(2)).collect();
        if axes.is_empty() {
            axes.push(shape.len() - 1);
        }
        let n: usize = axes.iter().map(|&axis| shape[axis]).product();
        let value = match self.random.below(3) {
            0 => self.b.reduce_sum(x.value, &axes)?,
            1 => self.b.reduce_mean(x.value, &axes)?,
            _ => self.b.reduce_max(x.value, &axes)?,
        };
        Ok(Candidate { value, bound: x.bound * n as f64, is_raw: false, known: None })
    }

    fn norm(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let shape = self.b.shape(x.value).to_vec();
        let last = shape.len() - 1;
        let value = match self.random.below(4) {
            0 => self.b.layer_norm(x.value, 1e-2)?,
            1 => {
                let normed = self.b.rms_norm(x.value, 1e-2)?;
                let mut dims = vec![1; shape.len()];
                dims[last] = shape[last];
                let weight = self.fresh(DType::F32, &dims);
                self.b.mul(normed, weight.value)?
            }
            2 => {
                let weight = self.fresh(DType::F32, &[shape[last]]);
                let bias = self.fresh(DType::F32, &[shape[last]]);
                let normed = self.b.group_norm(x.value, weight.value, bias.value, 1, 1e-2)?;
                self.b.silu(normed)?
            }
            _ => {
                let axis = self.random.below(shape.len());
                self.b.softmax(x.value, axis)?
            }
        };
        Ok(Candidate { value, bound: 10.0, is_raw: false, known: None })
    }

    fn linear(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let width = self.b.shape(x.value)[self.b.ty(x.value).rank() - 1];
        let out = 1 + self.random.below(4);
        let weight = self.fresh(DType::F32, &[out, width]);
        let bias = self.fresh(DType::F32, &[out]);
        let bias = (!self.random.one_in(3)).then_some(bias.value);
        let value = self.b.linear(x.value, weight.value, bias)?;
        let bound = x.bound * 2.0 * width as f64 + 2.0;
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    /// A product of two computed values, in any transposition.
    fn product(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let shape = self.b.shape(x.value).to_vec();
        let rank = shape.len();
        let (transpose_a, transpose_b) = (self.random.one_in(2), self.random.one_in(2));
        let k = shape[if transpose_a { rank - 2 } else { rank - 1 }];
        let n = 1 + self.random.below(3);
        let mut other = shape.clone();
        other[rank - 2] = if transpose_b { n } else { k };
        other[rank - 1] = if transpose_b { k } else { n };
        let y = self.fresh(DType::F32, &other);
        let (mut y, mut transpose_b) = (y.value, transpose_b);
        if self.random.one_in(2) {
            let mut axes: Vec<usize> = (0..rank).collect();
            axes.swap(rank - 1, rank - 2);
            y = self.b.permute(y, &axes)?;
            transpose_b = !transpose_b;
        }
        let value = self.b.matmul(x.value, y, transpose_a, transpose_b)?;
        Ok(Candidate { value, bound: x.bound * 2.0 * k as f64, is_raw: false, known: None })
    }

    fn attention(&mut self) -> Grown {
        let x = self.pick_rank(3)?;
        let q = self.b.shape(x.value).to_vec();
        let rank = q.len();
        let keys = 1 + self.random.below(3);
        let mut shape = q.clone();
        shape[rank - 3] = keys;
        let k = self.fresh(DType::F32, &shape);
        let v = self.fresh(DType::F32, &shape);
        let mask = if self.random.one_in(2) {
            let ty = TensorType::new(DType::Bool, [&q[..rank - 3], &[keys]].concat())?;
            self.n_named += 1;
            Some(self.b.input(&format!("mask{}", self.n_named), ty))
        } else {
            None
        };
        let value = self.b.attention([x.value, k.value, v.value], None, mask, 0.5)?;
        Ok(Candidate { value, bound: 2.0, is_raw: false, known: None })
    }

    fn conv(&mut self) -> Grown {
        let x = self.pick_rank(3)?;
        let shape = self.b.shape(x.value).to_vec();
        if shape.len() > 5 {
            return Ok(x);
        }
        let spatial = shape.len() - 2;
        let channels = shape[spatial + 1];
        let out = 1 + self.random.below(3);
        let weight =
            self.fresh(DType::F32, &[&[out, channels], vec![3; spatial].as_slice()].concat());
        let window = Window::new(&vec![1; spatial], &vec![1; spatial], &vec![1; spatial]);
        // On the way in what a decoder has there: an activation, every pixel twice.
        let mut input = x.value;
        if self.random.one_in(3) {
            input = self.b.silu(input)?;
        }
        if let (&[n, h, w, c], true) = (&shape[..], self.random.one_in(3)) {
            input = self.b.reshape(input, &[n, h, 1, w, 1, c])?;
            input = self.b.broadcast(input, &[n, h, 2, w, 2, c])?;
            input = self.b.reshape(input, &[n, 2 * h, 2 * w, c])?;
        }
        let is_same = input == x.value;
        let value = self.b.conv(input, weight.value, &window)?;
        let mut dims = vec![1; shape.len()];
        dims[spatial + 1] = out;
        let bias = self.fresh(DType::F32, &dims);
        let mut value = self.b.add(value, bias.value)?;
        if out == channels && is_same {
            value = self.b.add(value, x.value)?;
        }
        let bound = x.bound * 2.0 * (channels * 3usize.pow(spatial as u32)) as f64 + 18.0;
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    fn gather(&mut self) -> Grown {
        let ids = TensorType::new(DType::I64, [2, 2])?;
        self.n_named += 1;
        let ids = self.b.input(&format!("ids{}", self.n_named), ids);
        let table = self.pick_rank(1)?;
        if self.b.ty(table.value).rank() > 4 {
            return Ok(table);
        }
        let value = self.b.gather(table.value, ids)?;
        Ok(Candidate { value, is_raw: false, known: None, ..table })
    }

    /// Integer arithmetic, then back to floats.
    fn integers(&mut self) -> Grown {
        let shape = self.shape(2);
        let x = self.fresh(DType::I32, &shape);
        let y = self.fresh(DType::I32, &[shape[0], 1]);
        let number =
            Tensor::ints(TensorType::new(DType::I32, [1, 1])?, vec![self.random.below(2) as i64]);
        let number = self.b.constant(number);
        let sum = self.b.add(x.value, y.value)?;
        let product = self.b.mul(sum, number)?;
        let wide = self.b.cast(product, DType::I64)?;
        let value = self.b.cast(wide, DType::F32)?;
        let known = x.known.zip(y.known).map(|(a, b)| a.max(b) + 1);
        Ok(Candidate { value, bound: 6.0, is_raw: false, known })
    }

    /// The form of a transformer block: modulated norm, linear layer, activation, gate, residual,
    /// the modulation perhaps chosen per frame.
    fn block(&mut self) -> Grown {
        let x = self.pick_rank(3)?;
        let shape = self.b.shape(x.value).to_vec();
        let width = shape[shape.len() - 1];
        let mut row = vec![1; shape.len()];
        row[shape.len() - 1] = width;
        let shift = self.fresh(DType::F32, &row);
        let scale = self.fresh(DType::F32, &row);
        let gate = self.fresh(DType::F32, &row);
        let weight = self.fresh(DType::F32, &[width, width]);
        let bias = self.fresh(DType::F32, &[width]);
        let b = &mut self.b;
        let normed = b.layer_norm(x.value, 1e-2)?;
        let scale = b.add_scalar(scale.value, 1.0)?;
        let scaled = b.mul(normed, scale)?;
        let mut y = b.add(scaled, shift.value)?;
        if self.random.one_in(2) {
            let mut frames = vec![1; shape.len()];
            frames[0] = shape[0];
            self.n_named += 1;
            let ty = TensorType::new(DType::Bool, frames)?;
            let mask = b.input(&format!("mask{}", self.n_named), ty);
            let other = b.mul(normed, shift.value)?;
            y = b.select(mask, y, other)?;
        }
        let y = b.linear(y, weight.value, Some(bias.value))?;
        let y = b.gelu_tanh(y)?;
        let y = b.mul(gate.value, y)?;
        let value = b.add(x.value, y)?;
        let bound = x.bound + 100.0 * width as f64;
        Ok(Candidate { value, bound, is_raw: false, known: None })
    }

    /// Self attention from one projection, with norm and rotation of queries and keys in either order.
    fn head_attention(&mut self) -> Grown {
        let x = self.pick_rank(2)?;
        let width = self.b.shape(x.value)[self.b.ty(x.value).rank() - 1];
        let rows = self.b.ty(x.value).count() / width;
        let (heads, head) = (2, 4);
        let weight = self.fresh(DType::F32, &[3 * heads * head, width]);
        let norm = self.fresh(DType::F32, &[1, 1, head]);
        let angles = self.fresh(DType::F32, &[rows, head / 2]);
        let norm_first = self.random.one_in(2);
        let b = &mut self.b;
        let x = b.reshape(x.value, &[rows, width])?;
        let qkv = b.linear(x, weight.value, None)?;
        let qkv = b.reshape(qkv, &[rows, 3, heads, head])?;
        let mut parts = [qkv; 3];
        for (i, part) in parts.iter_mut().enumerate() {
            let slice = b.slice_axis(qkv, 1, i, i + 1)?;
            *part = b.reshape(slice, &[rows, heads, head])?;
            if i < 2 && !norm_first {
                *part = b.rope(*part, angles.value)?;
            }
            if i < 2 {
                let normed = b.rms_norm(*part, 1e-2)?;
                *part = b.mul(normed, norm.value)?;
            }
            if i < 2 && norm_first {
                *part = b.rope(*part, angles.value)?;
            }
        }
        let value = b.attention(parts, None, None, 0.5)?;
        Ok(Candidate { value, bound: 200.0, is_raw: false, known: None })
    }

    /// Something that simplification undoes.
    fn identity(&mut self) -> Grown {
        let x = self.pick_f32();
        let b = &mut self.b;
        let value = match self.random.below(6) {
            0 => {
                let y = b.neg(x.value)?;
                b.neg(y)?
            }
            1 => {
                let y = b.mul_scalar(x.value, 0.75)?;
                b.mul_scalar(y, 3.0)?
            }
            2 => {
                let y = b.add_scalar(x.value, 0.75)?;
                b.add_scalar(y, 0.5)?
            }
            3 => {
                let y = b.abs(x.value)?;
                b.abs(y)?
            }
            4 => {
                let y = b.neg(x.value)?;
                b.sub(x.value, y)?
            }
            _ => {
                let y = b.neg(x.value)?;
                b.add(y, x.value)?
            }
        };
        Ok(Candidate { value, bound: 3.0 * x.bound + 2.0, is_raw: false, known: None })
    }
}
