//! Graphs of a model and of its gradients, as a step of training has them.

use models::config::Stdit2;
use models::{Bucket, stdit2};
use ops::{Builder, Graph, ValueId, append_gradients};
use serde_json::json;

/// `graph`, which has one output, with the gradients of `sum(cotangent * output)` by each of its parameters as outputs too.
///
/// # Panics
///
/// Where an op has no gradient.
#[must_use]
pub fn with_gradients(graph: Graph) -> Graph {
    let params: Vec<ValueId> = graph.params().map(|(value, _)| value).collect();
    let outputs = graph.outputs.clone();
    let ty = graph.ty(outputs[0]).clone();
    let mut b = Builder::extend(graph);
    let cotangent = b.input("cotangent", ty);
    let grads =
        append_gradients(&mut b, outputs[0], cotangent, &params).expect("ops have gradients");
    let outputs: Vec<ValueId> = outputs.into_iter().chain(grads.into_iter().flatten()).collect();
    b.finish(&outputs)
}

/// The last position of the forward part: that of the cotangent, which is declared after it.
///
/// # Panics
///
/// Where the graph is not one of [`with_gradients`].
#[must_use]
pub fn forward_end(graph: &Graph) -> usize {
    let cotangent = graph.inputs().find(|(_, name)| *name == "cotangent");
    cotangent.expect("the graph has a cotangent").0.index()
}

/// STDiT-2 XL/2 of `depth` blocks and its gradients, fused, for `[frames, height, width]` in pixels.
///
/// # Panics
///
/// Where the sizes are none that the model takes.
#[must_use]
pub fn stdit2_xl(depth: usize, [frames, height, width]: [usize; 3]) -> Graph {
    let config = json!({
        "depth": depth, "input_sq_size": 512, "qk_norm": true, "model_max_length": 200,
    });
    let config = Stdit2::from_json(&config).expect("the configuration is complete");
    let latent = [frames, height / 8, width / 8];
    let bucket = Bucket::new(1, latent, [height as f64, width as f64], 200);
    let bucket = Bucket { guided: false, ..bucket };
    let graph = stdit2::graph(&config, &bucket).expect("the model takes these sizes");
    let passes = compiler::pipeline_through("fuse-elementwise").expect("the pass exists");
    compiler::run_passes(with_gradients(graph), passes, &mut |_| {})
}
