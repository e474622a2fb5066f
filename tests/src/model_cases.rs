//! Cases of whole models, as the goldens have them: inputs, weights, and how far upstream's own bf16 is
//! from its f32.

use models::config::{AutoencoderKl, Stdit, Stdit1, Stdit2, T5};
use models::t5::TextBucket;
use models::vae::FrameBucket;
use models::{Bucket, stdit1, stdit2, t5, vae};
use ops::{DType, Graph, Tensor};
use serde_json::Value as Json;

use crate::golden::{Folder, Tensors, as_type, folders, wide};

/// One model in f32 and in bf16, and what both are given: inputs rounded to bf16, weights as stored.
#[derive(Debug)]
pub struct HalfCase {
    /// Folder and case.
    pub name: String,
    /// The f32 model.
    pub wide: Graph,
    /// The bf16 model.
    pub half: Graph,
    /// Inputs and weights by name.
    pub given: Tensors,
    /// Relative distance of upstream's bf16 output from its f32 output.
    pub upstream_error: f64,
}

struct Models {
    wide: Graph,
    half: Graph,
    given: Tensors,
}

/// Every case for which the goldens say how far upstream's bf16 is from its f32.
pub fn half_cases() -> Vec<HalfCase> {
    let mut found = vec![];
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
            let Some(upstream_error) = error else { continue };
            let given = folder.tensors("weights");
            let Models { wide, half, given } = if source.contains("stdit.STDiT") {
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
            let name = format!("{}/{case}", folder.name);
            found.push(HalfCase { name, wide, half, given, upstream_error });
        }
    }
    found
}

impl HalfCase {
    /// Inputs and weights of `graph`, in the types that it declares.
    pub fn typed(&self, graph: &Graph) -> Tensors {
        let declared = graph.inputs().chain(graph.params());
        let typed = declared.map(|(value, name)| {
            (name.to_string(), as_type(&self.given[name], graph.ty(value).dtype()))
        });
        typed.collect()
    }
}

/// Weights, the case's tensors, and its inputs under the names and types of the graph's.
pub fn stdit_given(folder: &Folder, case: &str) -> Tensors {
    let mut given = folder.tensors("weights");
    let case = folder.tensors(case);
    for (name, tensor) in &case {
        let Some(input) = name.strip_prefix("in.") else { continue };
        let tensor = match input {
            "timestep" => as_type(tensor, DType::F32),
            "mask" => as_type(tensor, DType::Bool),
            _ => tensor.clone(),
        };
        given.insert(input.to_string(), tensor);
    }
    given.extend(case);
    given
}

/// The bucket whose inputs are those of a case.
pub fn stdit_bucket(config: &Stdit, given: &Tensors) -> Bucket {
    let rows = |name: &str| given.get(name).map(|tensor| tensor.shape()[0]);
    let &[latents, _, t, h, w] = given["x"].shape() else { panic!("x has rank 5") };
    let pixels = ["height", "width"].map(|name| given.get(name).map_or(1.0, |size| wide(size)[0]));
    let captions = rows("y").expect("y is given");
    Bucket {
        latents,
        conditions: rows("mask").or(rows("height")).unwrap_or(captions),
        caption_mask: given.contains_key("mask"),
        frame_mask: given.contains_key("x_mask"),
        ..Bucket::new(captions, [t, h, w], pixels, config.model_max_length)
    }
}

pub fn frame_bucket(x: &Tensor) -> FrameBucket {
    let &[frames, _, height, width] = x.shape() else { panic!("frames have rank 4") };
    FrameBucket { dtype: DType::F32, frames, height, width }
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
    let half = FrameBucket { dtype: DType::Bf16, ..wide };
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
