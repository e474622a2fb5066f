//! Gradients of models against those that the original code computed, for every `*grads` file of every
//! golden folder: of the mean square of the output, with respect to parameters and inputs.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use models::config::{AutoencoderKl, Stdit1, Stdit2};
use models::{stdit1, stdit2, vae};
use ops::{Builder, Graph, Tensor, ValueId, append_gradients};
use tests::golden::{EXECUTORS, Folder, Report, Tensors, folders, relative_l2, wide};
use tests::model_cases::{frame_bucket, stdit_bucket, stdit_given};

/// Folders of models that are not supported yet.
const NOT_YET_SUPPORTED: &[&str] = &["stdit3"];

/// f32 against f32; a gradient passes twice as many roundings as a value, and sums over all positions.
const LIMIT: f64 = 1e-5;

/// One `*grads` file: the model on the inputs of its case, and what it is given.
struct Case {
    name: String,
    graph: Graph,
    given: Tensors,
    gradients: Tensors,
}

fn cases(folder: &Folder) -> Vec<Case> {
    let files = folder.tensor_files();
    let of_gradients = files.iter().filter(|file| file.ends_with("grads"));
    of_gradients
        .map(|file| {
            let case = file.split('.').next().expect("names are not empty");
            let config = folder.config().expect("cases have a configuration");
            let source = config["source"].to_string();
            let mut given = stdit_given(folder, case);
            let graph = if source.contains("stdit.STDiT") {
                let config = Stdit1::from_json(&config["config"]).unwrap();
                let bucket = stdit_bucket(&config.common, &given);
                stdit1::graph(&config, &bucket).unwrap()
            } else if source.contains("stdit2.STDiT2") {
                let config = Stdit2::from_json(&config["config"]).unwrap();
                let bucket = stdit_bucket(&config.common, &given);
                stdit2::graph(&config, &bucket).unwrap()
            } else if source.contains("AutoencoderKL") {
                let config = AutoencoderKl::from_json(&config["config"]).unwrap();
                let z = given["in.z_random"].clone();
                let bucket = frame_bucket(&z);
                given.insert("z".into(), z);
                vae::decoder_graph(&config, &bucket).unwrap()
            } else {
                panic!("gradients of `{}` are of no known model", folder.name);
            };
            let name = format!("{}/{file}", folder.name);
            Case { name, graph, given, gradients: folder.tensors(file) }
        })
        .collect()
}

/// The gradients called `names` of the mean square of the graph's output.
fn backward(graph: Graph, names: &[&str]) -> Graph {
    let out = graph.outputs[0];
    let mut b = Builder::extend(graph);
    let square = b.square(out).unwrap();
    let axes: Vec<usize> = (0..b.ty(out).rank()).collect();
    let loss = b.reduce_mean(square, &axes).unwrap();
    let one = b.scalar_f32(1.0, axes.len()).unwrap();
    let value = |name: &&str| -> ValueId {
        let (_, name) = name.split_once('.').expect("`grad.` or `grad_input.`");
        let mut known = b.graph().params().chain(b.graph().inputs());
        let found = known.find(|(_, known)| *known == name);
        found.unwrap_or_else(|| panic!("the model has no `{name}`")).0
    };
    let wrt: Vec<ValueId> = names.iter().map(value).collect();
    let gradients = append_gradients(&mut b, loss, one, &wrt).unwrap();
    let gradients: Vec<ValueId> =
        gradients.into_iter().map(|gradient| gradient.expect("all have influence")).collect();
    b.finish(&gradients)
}

fn norm(tensor: &Tensor) -> f64 {
    wide(tensor).iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn gradients_are_upstreams() {
    let mut report = Report::default();
    for folder in folders() {
        if NOT_YET_SUPPORTED.contains(&folder.name.as_str()) {
            continue;
        }
        for case in cases(&folder) {
            let names: Vec<&str> =
                case.gradients.keys().map(String::as_str).filter(|k| k.contains("grad")).collect();
            assert!(names.len() > 30, "{}: {names:?}", case.name);
            let graph = backward(case.graph, &names);
            for executor in EXECUTORS {
                let name = format!("{} [{}]", case.name, executor.name);
                let found = (executor.run)(&graph, &case.given);
                for (key, found) in names.iter().zip(&found) {
                    // Keys that all move by the same vector leave a softmax as it is: what is not 0 is
                    // rounding.
                    if key.ends_with("to_k.bias") {
                        let weight = &case.gradients[&key.replace("bias", "weight")];
                        let most = 1e-6 * norm(weight);
                        assert!(norm(found) < most && norm(&case.gradients[*key]) < most, "{key}");
                        continue;
                    }
                    report.check(&name, key, relative_l2(found, &case.gradients[*key]), LIMIT);
                }
            }
        }
    }
    print!("{}", report.summary());
    let failures = report.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
