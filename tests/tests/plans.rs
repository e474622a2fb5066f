//! Plans of random graphs: the checker accepts them, rejects damaged ones, the text says all, and
//! running them gives what the interpreter gives, for every instruction set and number of threads.

use kernels::Isa;
use ops::{DType, Data, Graph, Rounding, Tensor, eval};
use tests::compiled;
use tests::random_graph::{random_graph, random_values};

const N_GRAPHS: u64 = 150;

fn plan(graph: &Graph, isa: Isa, threads: usize) -> compiler::Plan {
    let target = compiled::target(isa, threads);
    compiler::compile(graph.clone(), &target).unwrap_or_else(|error| panic!("{error}\n{graph}"))
}

#[test]
fn the_checker_accepts_every_plan() {
    let mut gap: f64 = 1.0;
    for seed in 0..N_GRAPHS {
        let plan = plan(&random_graph(seed), Isa::detect(), 2);
        let problems = compiler::check_plan(&plan);
        assert!(problems.is_empty(), "seed {seed}: {problems:?}\n{plan}");
        gap = gap.max(plan.arena_bytes as f64 / plan.lower_bound_bytes.max(1) as f64);
    }
    println!("largest arena over lower bound: {gap:.3}");
}

#[test]
fn the_checker_rejects_damaged_plans() {
    let mut n_damaged = 0;
    for seed in 0..N_GRAPHS {
        let good = plan(&random_graph(seed), Isa::detect(), 2);
        // Move a live buffer over another that is live at the same step, all of it: a part may be what
        // nobody reads any more.
        let overlapping = (0..good.buffers.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let pair = overlapping.into_iter().find_map(|(i, j)| {
            let (a, b) = (&good.buffers[i], &good.buffers[j]);
            let meet = a.first_step < b.last_step && b.first_step < a.last_step;
            let (later, earlier) = if a.first_step > b.first_step { (i, j) } else { (j, i) };
            let covers = good.buffers[later].bytes >= good.buffers[earlier].bytes;
            (meet && covers && a.bytes > 0 && b.bytes > 0).then_some((later, earlier))
        });
        if let Some((i, j)) = pair {
            let mut bad = good.clone();
            bad.buffers[i].offset = bad.buffers[j].offset;
            bad.arena_bytes *= 2;
            assert!(!compiler::check_plan(&bad).is_empty(), "seed {seed}: b{i} over b{j}\n{good}");
            n_damaged += 1;
        }
        // A step that runs before what it reads.
        if good.steps.len() >= 2 {
            let last = good.steps.len() - 1;
            let reads_previous = good.steps[last].operands.iter().any(|operand| {
                operand.place == compiler::Place::Buffer(good.steps[last - 1].result)
            });
            if reads_previous {
                let mut bad = good.clone();
                bad.steps.swap(last - 1, last);
                assert!(!compiler::check_plan(&bad).is_empty(), "seed {seed}: swapped\n{good}");
                n_damaged += 1;
            }
        }
        let mut bad = good.clone();
        bad.arena_bytes = bad.arena_bytes.saturating_sub(1);
        if good.arena_bytes > 0 {
            assert!(!compiler::check_plan(&bad).is_empty(), "seed {seed}: short arena\n{good}");
        }
    }
    assert!(n_damaged > N_GRAPHS / 2, "only {n_damaged} plans could be damaged");
}

#[test]
fn text_parses_back_to_the_same_plan() {
    for seed in 0..N_GRAPHS {
        let text = format!("{:#}", plan(&random_graph(seed), Isa::detect(), 2));
        let parsed =
            compiler::parse_plan(&text).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{text}"));
        assert_eq!(format!("{parsed:#}"), text, "seed {seed}");
    }
}

#[test]
fn damaged_text_is_refused() {
    let text = format!("{:#}", plan(&random_graph(3), Isa::detect(), 2));
    let line = text.lines().find(|line| line.starts_with("  step 0 ")).unwrap();
    for damaged in [
        text.replace(line, &line.replace("step 0 ", "step 0 x")),
        text.replace(line, ""),
        text.replacen("  buffer b0 : ", "  buffer b0 : 1", 1),
        text.replace("\nplan @", "\nplam @"),
        text.replacen("threads = 2", "threads = two", 1),
    ] {
        assert!(damaged != text, "the damage changes the text");
        assert!(compiler::parse_plan(&damaged).is_err(), "{damaged}");
    }
}

/// Largest relative error over the outputs, integers exact.
fn error(found: &[Tensor], expected: &[Tensor]) -> f64 {
    let worst = found.iter().zip(expected).map(|(f, e)| {
        if let (Data::Float(f), Data::Float(e)) = (f.data(), e.data()) {
            let close = |(f, e): (&f64, &f64)| f == e || f.is_nan() && e.is_nan();
            if f.iter().zip(e).all(close) {
                return 0.0;
            }
            let largest = e.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
            return f.iter().zip(e).map(|(f, e)| (f - e).abs() / largest).fold(0.0, f64::max);
        }
        f64::from(u8::from(f != e))
    });
    worst.fold(0.0, f64::max)
}

#[test]
fn running_a_plan_gives_what_the_interpreter_gives() {
    for seed in 0..N_GRAPHS {
        let graph = random_graph(seed);
        let values = random_values(&graph, seed);
        let expected = eval(&graph, &values, Rounding::Stored).unwrap();
        // A value on the border between two half-precision numbers may fall to either side. Else
        // norms and cancellation magnify what f32 rounds on the way.
        let is_half = |node: &ops::Node| matches!(node.ty.dtype(), DType::Bf16 | DType::F16);
        let limit = if graph.nodes.iter().any(is_half) { 2e-2 } else { 2e-5 };
        for isa in Isa::available() {
            let found = compiled::run(&graph, &values, &compiled::target(isa, 2));
            let error = error(&found, &expected);
            assert!(error < limit, "seed {seed}, {isa}: {error:e}\n{graph}");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for seed in 0..N_GRAPHS / 3 {
        let graph = random_graph(seed);
        let values = random_values(&graph, seed);
        for isa in Isa::available() {
            let one = compiled::run(&graph, &values, &compiled::target(isa, 1));
            for threads in [2, 3] {
                let other = compiled::run(&graph, &values, &compiled::target(isa, threads));
                assert!(one == other, "seed {seed}, {isa}, {threads} threads\n{graph}");
            }
        }
    }
}
