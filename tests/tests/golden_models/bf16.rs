//! The models in bf16: no further from f32 than upstream's own bf16 is.
//!
//! Upstream's error is in each case's `config.json`: its bf16 model against its f32 model, on inputs
//! rounded to bf16. Ours is measured in the same way, our f32 interpreter (which the f32 suite holds
//! to the goldens) standing for upstream's f32 model.

use models::config::{AutoencoderKl, Stdit, Stdit1, Stdit2, T5};
use models::t5::TextBucket;
use models::{Bucket, stdit1, stdit2, t5, vae};
use ops::{DType, Graph, Tensor};
use serde_json::Value as Json;
use tests::golden::{EXECUTORS, Folder, Report, Tensors, as_type, folders, relative_l2};

use super::{frame_bucket, stdit_bucket, stdit_given};

/// Both sides round at every value, but not the same ones: fused code rounds less, and sums round in
/// another order.
const TIMES_UPSTREAM: f64 = 2.0;

#[test]
fn bf16_is_as_close_to_f32_as_upstream() {
    let mut report = Report::default();
    let mut n_cases = 0;
    for folder in folders() {
        let Some(config) = folder.config() else { continue };
        let source = config["source"].to_string();
        let Some(cases) = config["cases"].as_object() else { continue };
        for (case, entry) in cases {
            let error = [
                "bf16_vs_f32_at_bf16_rounded_inputs",
                "bf16_vs_f32_decode_at_bf16_rounded_z",
                "bf16_vs_f32",
            ]
            .iter()
            .find_map(|key| entry[key]["rel_l2"].as_f64());
            let Some(upstream) = error else { continue };
            let given = folder.tensors("weights");
            let models = if source.contains("stdit.STDiT") {
                stdit1_case(&config["config"], &folder, case)
            } else if source.contains("stdit2.STDiT2") {
                stdit2_case(&config["config"], &folder, case)
            } else if source.contains("AutoencoderKL") {
                vae_case(&config["config"], &folder, case, given)
            } else if source.contains("T5EncoderModel") {
                t5_case(&config["config"], &folder, case, given)
            } else {
                continue;
            };
            n_cases += 1;
            let expected = run(0, &models.wide, &models.given);
            for (index, executor) in EXECUTORS.iter().enumerate() {
                let found = run(index, &models.half, &models.given);
                let case = format!("{}/{case} [{}]", folder.name, executor.name);
                let limit = TIMES_UPSTREAM * upstream;
                report.check(&case, "bf16", relative_l2(&found, &expected), limit);
            }
        }
    }
    print!("{}", report.summary());
    assert!(n_cases >= 10, "the goldens have {n_cases} cases with an error of bf16");
    let failures = report.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// One model in f32 and in bf16, and what both are given: inputs rounded to bf16, weights as stored.
struct Models {
    wide: Graph,
    half: Graph,
    given: Tensors,
}

/// The first output of `graph`; everything is rounded to the type that the graph declares.
fn run(executor: usize, graph: &Graph, given: &Tensors) -> Tensor {
    let declared = graph.inputs().chain(graph.params());
    let typed = declared
        .map(|(value, name)| (name.to_string(), as_type(&given[name], graph.ty(value).dtype())));
    (EXECUTORS[executor].run)(graph, &typed.collect()).remove(0)
}

fn rounded(tensor: &Tensor) -> Tensor {
    as_type(&as_type(tensor, DType::Bf16), DType::F32)
}

/// A transformer's case with every floating input rounded.
fn stdit_inputs(folder: &Folder, case: &str) -> Tensors {
    let mut given = stdit_given(folder, case);
    let inputs = ["x", "timestep", "y", "num_frames", "height", "width", "ar", "fps"];
    for name in inputs {
        if let Some(tensor) = given.get_mut(name) {
            *tensor = rounded(tensor);
        }
    }
    given
}

fn stdit_case(
    common: &Stdit,
    given: Tensors,
    graph: impl Fn(&Bucket) -> Result<Graph, models::Error>,
) -> Models {
    let wide = stdit_bucket(common, &given);
    let half = Bucket { dtype: DType::Bf16, ..wide.clone() };
    Models {
        wide: graph(&wide).expect("the case's shapes fit"),
        half: graph(&half).expect("the case's shapes fit"),
        given,
    }
}

fn stdit1_case(config: &Json, folder: &Folder, case: &str) -> Models {
    let config = Stdit1::from_json(config).expect("a supported configuration");
    let given = stdit_inputs(folder, case);
    stdit_case(&config.common, given, |bucket| stdit1::graph(&config, bucket))
}

fn stdit2_case(config: &Json, folder: &Folder, case: &str) -> Models {
    let config = Stdit2::from_json(config).expect("a supported configuration");
    let given = stdit_inputs(folder, case);
    stdit_case(&config.common, given, |bucket| stdit2::graph(&config, bucket))
}

fn vae_case(config: &Json, folder: &Folder, case: &str, mut given: Tensors) -> Models {
    let config = AutoencoderKl::from_json(config).expect("a supported configuration");
    let z = rounded(&folder.tensors(case)["in.z_random"]);
    let wide = frame_bucket(&z);
    let half = vae::FrameBucket { dtype: DType::Bf16, ..wide };
    given.insert("z".into(), z);
    let graph = |bucket| vae::decoder_graph(&config, bucket).expect("the case's shapes fit");
    Models { wide: graph(&wide), half: graph(&half), given }
}

fn t5_case(config: &Json, folder: &Folder, case: &str, mut given: Tensors) -> Models {
    let config = T5::from_json(config).expect("a supported configuration");
    let case = folder.tensors(case);
    given.insert("input_ids".into(), case["in.input_ids"].clone());
    given.insert("attention_mask".into(), as_type(&case["in.attention_mask"], DType::Bool));
    let &[rows, tokens] = given["input_ids"].shape() else { panic!("ids of rank 2") };
    let graph = |dtype| {
        let bucket = TextBucket { dtype, rows, tokens, mask: true };
        t5::graph(&config, &bucket).expect("the case's shapes fit")
    };
    Models { wide: graph(DType::F32), half: graph(DType::Bf16), given }
}
