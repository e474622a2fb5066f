//! Random graphs of every op kind, values for them, and a shrinker for the ones that fail.
//!
//! The same seed gives the same graph. Values stay moderate and away from poles and jumps, so that
//! two ways to compute the same thing agree closely: comparisons and casts to integers read only
//! inputs, and ops on constants alone are exact in f32. Graphs have dead values, unused inputs,
//! values with several users, and parts of the forms that models have.

mod movement;
mod pointwise;
mod shrink;
mod sums;

use std::collections::BTreeMap;

use ops::{Builder, DType, Error, Graph, Tensor, TensorType, ValueId, verify};

pub use shrink::shrink;

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
        let made = match self.random.below(34) {
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
            29 => self.normal()?,
            30 => self.norm_gradient()?,
            31 => self.linear_gradient()?,
            32 => self.thin_products()?,
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
}
