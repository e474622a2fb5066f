//! The arena over time as a page: `arena.html` with the plan's data in it, and nothing from outside.

use serde_json::{Value, json};

use crate::dump::ModelOptions;
use crate::plan::StagePlan;
use crate::plan_boxes::{self, KINDS};
use crate::plan_chart;

const PAGE: &str = include_str!("arena.html");

/// Stands in the page for the data.
const DATA: &str = "/*DATA*/null";

/// The page for every stage.
pub(crate) fn html(options: &ModelOptions, size: [usize; 3], stages: &[StagePlan]) -> String {
    let stages: Vec<Value> = stages
        .iter()
        .map(|stage| data(stage, &plan_chart::heading(options, size, stage)))
        .collect();
    let kinds: Vec<Value> =
        KINDS.iter().map(|(name, _, color)| json!({ "name": name, "color": color })).collect();
    let data = json!({ "kinds": kinds, "stages": stages }).to_string();
    // A name could otherwise end the script.
    PAGE.replacen(DATA, &data.replace('<', "\\u003c"), 1)
}

fn data(stage: &StagePlan, heading: &str) -> Value {
    let plan = &stage.plan;
    let boxes: Vec<Value> = plan_boxes::boxes(plan)
        .into_iter()
        .map(|boxed| {
            let [from, to] = boxed.steps;
            json!([
                from,
                to,
                boxed.offset,
                boxed.bytes,
                boxed.kind,
                boxed.label,
                boxed.title,
                u8::from(boxed.light)
            ])
        })
        .collect();
    let parts: Vec<Value> = plan_boxes::parts(plan)
        .into_iter()
        .map(|part| json!([part.steps[0], part.steps[1], part.name]))
        .collect();
    let steps: Vec<String> = plan
        .steps
        .iter()
        .map(|step| {
            let scope = &plan.graph.node(step.value).scope;
            format!("{} {}", step.kernel.def().name(), crate::plan::name_of(scope))
        })
        .collect();
    json!({
        "name": stage.stage.name(), "heading": heading, "summary": plan_chart::summary(stage),
        "arena": plan.arena_bytes, "bound": plan.lower_bound_bytes,
        "fullest": plan.fullest_step(), "live": plan.live_bytes(), "seconds": stage.seconds,
        "steps": steps, "parts": parts, "boxes": boxes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_place_for_its_data_and_nothing_from_outside() {
        assert_eq!(PAGE.matches(DATA).count(), 1);
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }
}
