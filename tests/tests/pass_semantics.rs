//! Passes keep the values of graphs, on random ones: the interpreter, without rounding, before and
//! after. A graph that fails is shrunk and printed with its seed.

use compiler::{PIPELINE, Pass, run_passes};
use ops::{Data, Graph, Rounding, Tensor, eval, parse, verify};
use tests::random_graph::{random_graph, random_values, shrink};

/// Graphs per pass: enough that each rule is met, and all passes together take seconds.
const N_GRAPHS: u64 = 200;

/// How far apart values may be.
#[derive(Clone, Copy)]
enum Closeness {
    /// The same bits: the pass moves and groups computations, and changes none.
    Bits,
    /// 1e-10 of the largest element: f64 rounds otherwise in what was rewritten, a few 1e-16 each,
    /// and norms and cancellation magnify that.
    Rounding,
}

fn closeness(pass: &str) -> Closeness {
    let rounds_otherwise = ["simplify-algebra", "order-products"].contains(&pass);
    if rounds_otherwise { Closeness::Rounding } else { Closeness::Bits }
}

/// What is wrong with `passes` on `graph`, if something is.
fn difference(graph: &Graph, passes: &[Pass], seed: u64, closeness: Closeness) -> Option<String> {
    let after = run_passes(graph.clone(), passes, &mut |_| {});
    let values = random_values(graph, seed);
    let expected = eval(graph, &values, Rounding::Exact).expect("the graph is valid");
    let found = match eval(&after, &values, Rounding::Exact) {
        Ok(found) => found,
        Err(error) => return Some(format!("{error}\nafter: {after}")),
    };
    let differ = expected.iter().zip(&found).position(|(e, f)| !is_close(e, f, closeness))?;
    Some(format!(
        "output {differ} was {:?}, is {:?}\nafter: {after}",
        expected[differ].data(),
        found[differ].data()
    ))
}

fn is_close(expected: &Tensor, found: &Tensor, closeness: Closeness) -> bool {
    if expected.ty() != found.ty() {
        return false;
    }
    let (Data::Float(e), Data::Float(f)) = (expected.data(), found.data()) else {
        return expected == found;
    };
    let largest = e.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
    e.iter().zip(f).all(|(e, f)| match closeness {
        // Zeros of either sign are equal.
        Closeness::Bits => e == f || e.is_nan() && f.is_nan(),
        Closeness::Rounding => (e - f).abs() <= 1e-10 * largest || e.is_nan() && f.is_nan(),
    })
}

fn check(passes: &[Pass], seed: u64, closeness: Closeness) {
    let graph = random_graph(seed);
    if difference(&graph, passes, seed, closeness).is_some() {
        let small = shrink(&graph, |g| difference(g, passes, seed, closeness).is_some());
        let what =
            difference(&small, passes, seed, closeness).expect("shrinking keeps the failure");
        let names: Vec<&str> = passes.iter().map(|pass| pass.name).collect();
        panic!("seed {seed}, {}: {what}\nbefore: {small:#}", names.join(", "));
    }
}

#[test]
fn each_pass_keeps_values() {
    for pass in PIPELINE {
        for seed in 0..N_GRAPHS {
            check(std::slice::from_ref(pass), seed, closeness(pass.name));
        }
    }
}

#[test]
fn the_pipeline_keeps_values() {
    for seed in 0..N_GRAPHS {
        check(PIPELINE, seed, Closeness::Rounding);
    }
}

#[test]
fn each_pass_has_something_to_do_in_random_graphs() {
    let mut n_changed = vec![0; PIPELINE.len()];
    for seed in 0..N_GRAPHS {
        let mut i = 0;
        run_passes(random_graph(seed), PIPELINE, &mut |stage| {
            n_changed[i] += usize::from(stage.changed);
            i += 1;
        });
    }
    // Random graphs are too small for `chunk-tokens`; `chunks.rs` cuts them finer.
    let passes = PIPELINE.iter().filter(|pass| pass.name != "chunk-tokens");
    for (pass, n) in passes.zip(n_changed) {
        assert!(n >= 5, "{} changed {n} of {N_GRAPHS} graphs", pass.name);
    }
}

#[test]
fn the_pipeline_is_deterministic() {
    for seed in 0..N_GRAPHS {
        let text = || format!("{:#}", run_passes(random_graph(seed), PIPELINE, &mut |_| {}));
        assert_eq!(text(), text(), "seed {seed}");
    }
}

#[test]
fn a_second_run_of_the_pipeline_changes_nothing() {
    for seed in 0..N_GRAPHS {
        let once = run_passes(random_graph(seed), PIPELINE, &mut |_| {});
        let twice = run_passes(once.clone(), PIPELINE, &mut |stage| {
            assert!(!stage.changed, "seed {seed}, {}:\n{once}{}", stage.pass.name, stage.graph);
        });
        assert_eq!(once, twice);
    }
}

#[test]
fn optimized_graphs_verify_and_parse_back() {
    for seed in 0..N_GRAPHS {
        let graph = run_passes(random_graph(seed), PIPELINE, &mut |_| {});
        assert_eq!(verify(&graph), Vec::<String>::new(), "seed {seed}");
        let text = format!("{graph:#}");
        let parsed = parse(&text).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
        assert_eq!(parsed, graph, "seed {seed}");
    }
}

#[test]
fn the_check_finds_a_wrong_pass_and_shrinks_its_graph() {
    // `-x` becomes `x`.
    const WRONG: Pass = Pass {
        name: "drop-neg",
        about: "wrong",
        run: |graph| parse(&format!("{graph:#}").replace("= neg ", "= abs ")).unwrap(),
    };
    let wrong = [WRONG];
    let fails = |graph: &Graph| difference(graph, &wrong, 1, Closeness::Bits).is_some();
    let failing = (0..N_GRAPHS).map(random_graph).find(|graph| fails(graph));
    let small = shrink(&failing.expect("some random graph has a neg"), fails);
    let n_ops = small.values().filter(|&value| small.op(value).is_some()).count();
    assert_eq!(n_ops, 1, "{small}");
}
