//! Products of three matrices in the order that takes fewer FLOPs: `(A B) C` as `A (B C)`, and `C (A B)` as `(C A) B`.
//!
//! Gradients ask for it: those of the thin factors of a low-rank adaptation go by way of the gradient of the whole
//! weight, `G' X`, each element of which is a sum over all tokens; multiplied by a factor first, `G` and `X` become as
//! thin as the factor. A product goes only if all that is made of it is cheaper without it. Scales and casts between
//! products come after both: what is cast to fewer bits then is a factor instead of the product.

use std::collections::{BTreeMap, BTreeSet};

use ops::defs::cast::Cast;
use ops::defs::matmul::Matmul;
use ops::defs::scalar::ScalarFn;
use ops::{Graph, Op, ValueId};

use crate::pass::Pass;
use crate::passes::{eliminate_common_subexpressions, eliminate_dead_values, simplify_algebra};
use crate::rewrite::Rewriter;

pub(crate) const PASS: Pass = Pass {
    name: "order-products",
    about: "multiply three matrices in the order that takes fewer FLOPs",
    run,
};

/// How much less work it has to be: thin products do not run as fast as others.
const LESS: u64 = 2;

fn run(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    // What is ordered anew may be a product of three for others. Each round takes off work, so they end.
    loop {
        let users = cheaper(&graph);
        if users.is_empty() {
            return graph;
        }
        // Scales and casts meet others behind the products.
        let mut r = Rewriter::new(&graph, simplify_algebra::simplest);
        for value in graph.values() {
            match users.get(&value) {
                Some(product) => {
                    let new = product.append(&graph, &mut r, value);
                    r.replace(value, new);
                }
                None => {
                    r.keep(value);
                }
            }
        }
        let ordered = (eliminate_common_subexpressions::PASS.run)(&r.finish());
        graph = eliminate_dead_values::run(&ordered);
    }
}

/// A matrix of the given graph, and whether it is multiplied transposed.
type Factor = (ValueId, bool);

fn turned((value, is_transposed): Factor) -> Factor {
    (value, !is_transposed)
}

/// A product of `first` and `second` with a third matrix.
struct Product {
    first: Factor,
    second: Factor,
    third: Factor,
    /// Whether the third comes behind the others, or before them.
    is_last: bool,
    /// What is done to the product of the two before the third is multiplied, in order.
    between: Vec<ValueId>,
}

impl Product {
    /// FLOPs of multiplying the third with its neighbor first.
    fn flops(&self, graph: &Graph) -> u64 {
        let dims = |(value, transposed): Factor| {
            let &[rows, columns] = graph.ty(value).shape() else { unreachable!("it is a matrix") };
            if transposed { [columns, rows] } else { [rows, columns] }
        };
        let [[rows, depth], [_, columns], third] = [self.first, self.second, self.third].map(dims);
        let own = third[usize::from(self.is_last)];
        let sizes = [rows + columns, depth, own].map(|size| size as u64);
        sizes.iter().fold(2, |flops, &size| flops.saturating_mul(size))
    }

    /// Appends it for `value`.
    fn append(&self, graph: &Graph, r: &mut Rewriter<'_>, value: ValueId) -> ValueId {
        let [first, second, mut third] =
            [self.first, self.second, self.third].map(|(value, is)| (r.new_of(value), is));
        let dtype = r.ty(first.0).dtype();
        if r.ty(third.0).dtype() != dtype {
            third.0 = r.append_for(value, Cast { dtype }, &[third.0]);
        }
        let mut multiply = |(a, transpose_a): Factor, (b, transpose_b): Factor| {
            r.append_for(value, Matmul { transpose_a, transpose_b }, &[a, b])
        };
        let mut product = if self.is_last {
            let behind = multiply(second, third);
            multiply(first, (behind, false))
        } else {
            // Turned, because the third is the thin one: a few columns are packed, all rows of the other are only read.
            let before = multiply(turned(first), turned(third));
            multiply((before, true), second)
        };
        for &between in &self.between {
            let op = graph.op(between).expect("inputs are no users").clone();
            product = r.append_for(between, op, &[product]);
        }
        product
    }
}

/// The products of three that are cheaper in the other order, by the value that each makes. None makes another's
/// factors.
fn cheaper(graph: &Graph) -> BTreeMap<ValueId, Product> {
    let users = graph.users();
    let mut taken: BTreeSet<ValueId> = BTreeSet::new();
    let mut cheaper = BTreeMap::new();
    for inner in graph.values().filter(|&value| factors(graph, value).is_some()) {
        let mut products = vec![];
        let search = Search { graph, users: &users, inner };
        if !search.collect(inner, &mut vec![], &mut products) || products.is_empty() {
            continue;
        }
        let ends = || products.iter().map(|(value, _)| *value);
        let given: u64 = ends().chain([inner]).map(|value| graph.node_flops(value)).sum();
        let ordered: u64 = products.iter().map(|(_, product)| product.flops(graph)).sum();
        let is_apart = !ends().chain([inner]).any(|value| taken.contains(&value));
        if is_apart && ordered.saturating_mul(LESS) <= given {
            taken.extend(ends().chain([inner]));
            cheaper.extend(products);
        }
    }
    cheaper
}

/// Whether it may as well be done to the product of three as to that of two.
fn may_be_between(op: &Op) -> bool {
    match op {
        Op::Cast(cast) => cast.dtype.is_float(),
        Op::Scalar(scalar) => scalar.op == ScalarFn::Mul,
        _ => false,
    }
}

/// The factors of a product of two matrices.
fn factors(graph: &Graph, value: ValueId) -> Option<[Factor; 2]> {
    let Op::Matmul(op) = graph.op(value)? else { return None };
    let [a, b] = graph.node(value).args[..] else { return None };
    let are_matrices = graph.ty(a).rank() == 2 && graph.ty(b).rank() == 2;
    are_matrices.then_some([(a, op.transpose_a), (b, op.transpose_b)])
}

/// What is made of a product of two matrices.
struct Search<'a> {
    graph: &'a Graph,
    users: &'a [Vec<ValueId>],
    inner: ValueId,
}

impl Search<'_> {
    /// Collects the products that are made of `value`, which the ops `between` make of the inner one; `false` if
    /// anything else is made of it.
    fn collect(
        &self,
        value: ValueId,
        between: &mut Vec<ValueId>,
        products: &mut Vec<(ValueId, Product)>,
    ) -> bool {
        let graph = self.graph;
        if graph.outputs.contains(&value) {
            return false;
        }
        self.users[value.index()].iter().all(|&user| match graph.op(user) {
            Some(op) if may_be_between(op) => {
                between.push(user);
                let all = self.collect(user, between, products);
                between.pop();
                all
            }
            _ => {
                let product = self.product(value, user, between);
                let found = product.is_some();
                products.extend(product.map(|product| (user, product)));
                found
            }
        })
    }

    /// `user` as a product of three, of which `value` has two.
    fn product(&self, value: ValueId, user: ValueId, between: &[ValueId]) -> Option<Product> {
        let [left, right] = factors(self.graph, user)?;
        let [a, b] = factors(self.graph, self.inner)?;
        let is_last = left.0 == value;
        let (transposed, third) = if is_last { (left.1, right) } else { (right.1, left) };
        let (first, second) = if transposed { (turned(b), turned(a)) } else { (a, b) };
        let between = between.to_vec();
        (third.0 != value).then_some(Product { first, second, third, is_last, between })
    }
}
