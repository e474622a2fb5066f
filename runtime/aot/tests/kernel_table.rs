//! The committed table of kernels: every row keeps the rules, and a sample comes out the same today.

#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

mod published;

use std::collections::BTreeSet;

use aot::rules::{self, Rule};
use aot::table::{Row, Survey, Units, from_text, to_text};
use cuda_kernels::Nvrtc;
use kernels::cuda::Gpu;

/// The table.
const TABLE: &str = include_str!("../kernels.tsv");

/// What is planned again, and for which generation: every model, every generation, and ways to multiply of both
/// kinds. Larger sizes take long to plan without optimization.
const SAMPLE: [(&str, Gpu); 5] = [
    ("tiny-flare-1.1 denoise", Gpu(90)),
    ("stdit2-xl 144p:16f", Gpu(90)),
    ("stdit-xl 16x256x256", Gpu(80)),
    ("t5-xxl", Gpu(86)),
    ("sd-vae 512x512", Gpu(89)),
];

/// Kernels of each that are compiled again.
const RECOMPILED: usize = 3;

fn table() -> Vec<Row> {
    from_text(TABLE).unwrap_or_else(|error| panic!("kernels.tsv, {error}"))
}

#[test]
fn every_kernel_keeps_the_rules_or_has_a_reason() {
    let rows = table();
    let problems = rules::problems(&rows);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    for gpu in Gpu::ALL {
        let of_gpu = rows.iter().filter(|row| row.gpu == gpu).count();
        assert!(of_gpu > 100, "{of_gpu} kernels for {gpu}");
    }
    let programs: BTreeSet<&str> = rows.iter().map(|row| row.program.as_str()).collect();
    let models: BTreeSet<&str> =
        programs.iter().filter_map(|name| name.split(' ').next()).collect();
    let expected = ["sd-vae", "stdit-xl", "stdit2-xl", "t5-xxl", "tiny-flare-1.1"];
    assert_eq!(models.into_iter().collect::<Vec<_>>(), expected);
    // Groups of warps multiply where they can.
    let units = |gpu: Gpu, units: Units| {
        rows.iter().filter(|row| row.gpu == gpu && row.units == units).count()
    };
    assert!(units(Gpu(90), Units::Groups) > 10 && units(Gpu(80), Units::Warps) > 10);
    assert_eq!(units(Gpu(89), Units::Groups), 0);
}

#[test]
fn a_row_that_breaks_a_rule_is_told() {
    let after = |change: fn(&mut Row)| {
        let mut rows = table();
        let product = rows.iter_mut().find(|row| row.kind == "matmul" && row.needs.blocks > 1);
        change(product.unwrap());
        rules::problems(&rows)
    };
    type Change = fn(&mut Row);
    let cases: &[(Change, &str)] = &[
        (|row| row.needs.spill_bytes = 8, "spills registers"),
        (|row| row.needs.local_bytes = 8, "uses local memory"),
        (|row| row.needs.blocks = 0, "does not fit"),
        (
            |row| {
                row.way = "other".into();
                row.units = Units::Ordinary;
            },
            "no tensor-core instruction",
        ),
        (
            |row| {
                row.way = "warp bf16".into();
                row.needs.dynamic_bytes = 0;
                row.needs.blocks = 1;
            },
            "fewer than two blocks",
        ),
    ];
    for (change, expected) in cases {
        let problems = after(*change);
        assert!(problems.iter().any(|line| line.starts_with(expected)), "{expected}: {problems:?}");
    }
    let wide: Vec<Row> = table().into_iter().filter(|row| row.kind == "attention_wide").collect();
    assert!(rules::reason(Rule::TwoBlocks, &wide[0]).is_some());
    let others: Vec<Row> = table().into_iter().filter(|row| row.kind != "attention_wide").collect();
    let problems = rules::problems(&others);
    assert!(problems.iter().any(|line| line.contains("needs its exception")), "{problems:?}");
}

#[test]
fn a_table_is_read_as_it_was_written() {
    let rows = table();
    let text = to_text("about\nit", &rows);
    assert_eq!(from_text(&text).unwrap(), rows);
    assert!(rows.is_sorted(), "rows are in order");
    for (wrong, expected) in [
        ("", "no titles"),
        ("matmul\n", "line 1: `matmul`, expected titles"),
        (&format!("{text}matmul\t-\n"), "columns, expected 13"),
        (&text.replace("\tsm_90a\t", "\tsm_91\t"), "no target `sm_91`"),
        (&text.replace("\tmma\t", "\thmma\t"), "no units `hmma`"),
    ] {
        let error = from_text(wrong).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_function_has_one_text() {
    let graphs = published::graphs();
    // Its norms of groups have two parts of shared memory each.
    let (name, graph) = graphs.iter().find(|(name, _)| name == "tiny-flare-1.1 decode").unwrap();
    let ids = || {
        let mut survey = Survey::default();
        published::add(&mut survey, name, graph, Gpu(80)).unwrap();
        survey.ids()
    };
    let first = ids();
    for _ in 0..5 {
        assert_eq!(ids(), first);
    }
}

#[test]
fn a_sample_of_the_table_comes_out_the_same() {
    let nvrtc = Nvrtc::find().unwrap_or_else(|error| panic!("{error}"));
    let (committed, graphs) = (table(), published::graphs());
    for (name, gpu) in SAMPLE {
        let (_, graph) = graphs.iter().find(|(found, _)| found == name).unwrap();
        let mut survey = Survey::default();
        published::add(&mut survey, name, graph, gpu).unwrap();
        let ids = survey.ids();
        let row_of = |id: &str| committed.iter().find(|row| row.id == id && row.gpu == gpu);
        let missing: Vec<&String> = ids.iter().filter(|id| row_of(id).is_none()).collect();
        assert!(
            missing.is_empty(),
            "{name}, {gpu}: {} of {} kernels are not in kernels.tsv; after a change of kernels, write it again: \
             cargo run --release -p aot --example kernel_table -- --write",
            missing.len(),
            ids.len()
        );
        let every = ids.len().div_ceil(RECOMPILED);
        let chosen: Vec<&str> = ids.iter().step_by(every).map(String::as_str).collect();
        survey.retain(&chosen);
        let rows = survey.rows(&nvrtc, None, 2, &|_| {}).unwrap();
        assert_eq!(rows.len(), chosen.len());
        for row in rows {
            let expected = row_of(&row.id).unwrap();
            // A kernel has the row of the first program that launches it.
            let found = Row { program: expected.program.clone(), ..row };
            assert_eq!(*expected, found);
        }
    }
}
