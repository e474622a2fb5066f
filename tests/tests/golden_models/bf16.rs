//! The models in bf16: no further from f32 than upstream's own bf16 is.
//!
//! Upstream's error is in each case's `config.json`: its bf16 model against its f32 model, on inputs
//! rounded to bf16. Ours is measured in the same way, our f32 interpreter (which the f32 suite holds
//! to the goldens) standing for upstream's f32 model.

use ops::{Graph, Tensor};
use tests::golden::{EXECUTORS, Report, relative_l2};
use tests::model_cases::{HalfCase, half_cases};

/// Both sides round at every value, but not the same ones: fused code rounds less, and sums round in
/// another order.
const TIMES_UPSTREAM: f64 = 2.0;

#[test]
fn bf16_is_as_close_to_f32_as_upstream() {
    let mut report = Report::default();
    let cases = half_cases();
    for case in &cases {
        let expected = run(0, case, &case.wide);
        for (index, executor) in EXECUTORS.iter().enumerate() {
            let found = run(index, case, &case.half);
            let name = format!("{} [{}]", case.name, executor.name);
            let limit = TIMES_UPSTREAM * case.upstream_error;
            report.check(&name, "bf16", relative_l2(&found, &expected), limit);
        }
    }
    print!("{}", report.summary());
    let n_cases = cases.len();
    assert!(n_cases >= 10, "the goldens have {n_cases} cases with an error of bf16");
    let failures = report.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The first output of `graph`; everything is rounded to the type that the graph declares.
fn run(executor: usize, case: &HalfCase, graph: &Graph) -> Tensor {
    (EXECUTORS[executor].run)(graph, &case.typed(graph)).remove(0)
}
