//! A run as a trace that Perfetto and `chrome://tracing` show: Trace Event Format, in JSON.
//!
//! Steps run one after the other, so a slice begins where the one before ends. Each stage is a
//! thread; live bytes of its arena are a counter. Timestamps are in microseconds.

use serde_json::{Value, json};

use crate::plan::name_of;
use crate::profile_report::{StageProfile, shape_of};

/// The trace of all stages, one after the other.
pub(crate) fn trace(model: &str, stages: &[StageProfile]) -> String {
    let mut events = vec![json!({
        "name": "process_name", "ph": "M", "pid": 1, "args": { "name": format!("kino {model}") },
    })];
    let mut now = 0.0;
    for (number, stage) in stages.iter().enumerate() {
        let thread = number + 1;
        events.push(json!({
            "name": "thread_name", "ph": "M", "pid": 1, "tid": thread, "args": { "name": stage.name },
        }));
        let live = stage.plan.live_bytes();
        for (index, step) in stage.steps.iter().enumerate() {
            events.push(counter(stage.name, now, live[index]));
            let micros = step.seconds * 1e6;
            events.push(json!({
                "name": format!("{} {}", step.work.kernel, name_of(&step.scope)),
                "cat": step.work.kernel, "ph": "X", "pid": 1, "tid": thread, "ts": now, "dur": micros,
                "args": {
                    "step": index, "kernel": step.work.kernel, "scope": &*step.scope,
                    "shape": shape_of(&step.work), "operands": operands(stage, index),
                    "result": stage.plan.graph.ty(stage.plan.steps[index].value).to_string(),
                    "flops": step.work.flops(), "bytes": step.work.bytes(),
                    "gflop_per_s": step.work.flops() as f64 / step.seconds.max(1e-12) / 1e9,
                    "live_bytes": live[index], "expected_us": step.expected.map(|time| time * 1e6),
                },
            }));
            now += micros;
        }
        events.push(counter(stage.name, now, 0));
    }
    let document = json!({ "displayTimeUnit": "ms", "traceEvents": events });
    format!("{document}\n")
}

fn counter(stage: &str, now: f64, bytes: usize) -> Value {
    json!({
        "name": format!("{stage} arena"), "ph": "C", "pid": 1, "ts": now,
        "args": { "live bytes": bytes },
    })
}

/// What a step reads, as the plan prints it.
fn operands(stage: &StageProfile, index: usize) -> Vec<String> {
    stage.plan.steps[index].operands.iter().map(ToString::to_string).collect()
}
