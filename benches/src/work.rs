//! What is measured: the rows of the table, each a graph with its weights and inputs.
//!
//! A piece of work is the same for every side: ours builds the graph, a peer the same computation from what
//! [`Work::request`] says, and both read one file of weights and one of inputs.

use models::config::{AutoencoderKl, Stdit2, T5};
use models::published::{self, Architecture};
use models::vae::{self, FrameBucket};
use models::{Bucket, Net, stdit2, t5};
use ops::{Builder, DType, Graph, TensorType, ValueId, append_gradients};
use serde_json::{Value as Json, json};

use crate::Error;
use crate::synth::{SHARD_BYTES, Synthetic};

/// Tokens of a caption.
const TOKENS: usize = 120;

/// Attention of STDiT-XL/2.
const HEADS: usize = 16;
const HEAD_WIDTH: usize = 72;

/// Heads times their width.
const WIDTH: usize = HEADS * HEAD_WIDTH;

/// Seed of made-up weights.
const SEED: u64 = 1;

/// A row of the table.
#[derive(Clone, PartialEq, Debug)]
pub struct Work {
    /// What `--only` takes.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Whether it takes minutes, so that only `--full` runs it.
    pub is_slow: bool,
    kind: Kind,
}

#[derive(Clone, PartialEq, Debug)]
enum Kind {
    /// The first `depth` blocks between embedders and final layer; `latent` is frames, height, width.
    Stdit2 { depth: usize, rows: usize, latent: [usize; 3], pixels: [usize; 2] },
    /// The same of one block and one row, and back: the gradients of what is trained and of the latents.
    TrainStdit2 { latent: [usize; 3], pixels: [usize; 2] },
    /// Latent to frame, in pixels.
    Decode { height: usize, width: usize },
    /// Frame to latent, in pixels.
    Encode { height: usize, width: usize },
    /// The first `layers` of the encoder of a published size.
    T5 { model: &'static str, layers: usize },
    /// Queries and keys per sequence.
    Attention { sequences: usize, queries: usize, keys: usize },
    /// `x [rows, depth]` times `weight [columns, depth]` transposed.
    Linear { rows: usize, columns: usize, depth: usize },
}

/// A peer: how users know it, and what `serve.py` calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Name in the table.
    pub name: &'static str,
    /// Key of `ENGINES` in `peers/engines.py`.
    pub engine: &'static str,
    /// Whether it runs the exported graph.
    pub needs_onnx: bool,
    /// How many copies of the weights it has in memory at once: what it reads, and its own form.
    pub copies: u64,
}

const fn peer(name: &'static str, engine: &'static str, needs_onnx: bool) -> Peer {
    Peer { name, engine, needs_onnx, copies: if needs_onnx { 2 } else { 1 } }
}

/// Plain `PyTorch`, which in f32 is also what all results are compared with.
pub const TORCH: Peer = peer("PyTorch", "torch", false);
const COMPILE: Peer = Peer { copies: 2, ..peer("torch.compile", "torch-compile", false) };
const CHANNELS_LAST: Peer = peer("PyTorch channels-last", "torch-channels-last", false);
const NAIVE: Peer = peer("PyTorch naive", "torch-naive", false);
const ONE_DNN: Peer = peer("oneDNN (PyTorch)", "torch-onednn", false);
const OPEN_BLAS: Peer = peer("OpenBLAS (numpy)", "numpy", false);
const ONNX_RUNTIME: Peer = peer("ONNX Runtime", "onnxruntime", true);
const OPEN_VINO: Peer = peer("OpenVINO", "openvino", true);
/// f32 parameters, and products in bf16.
const AUTOCAST: Peer = Peer { copies: 3, ..peer("PyTorch autocast", "torch-autocast", false) };
const COMPILE_AUTOCAST: Peer =
    Peer { copies: 3, ..peer("torch.compile autocast", "torch-compile-autocast", false) };

/// Name of the input that holds the gradient of the result, of which all others are made.
const COTANGENT: &str = "cotangent";

/// Every row of this build, in the order of the table.
pub fn all() -> Vec<Work> {
    let square = |side: usize| [16, side / 8, side / 8];
    let stdit2 = |depth, rows, latent, pixels| Kind::Stdit2 { depth, rows, latent, pixels };
    let small = |depth, rows| stdit2(depth, rows, square(256), [256, 256]);
    let attention = |sequences, queries, keys| Kind::Attention { sequences, queries, keys };
    let linear = |rows, columns, depth| Kind::Linear { rows, columns, depth };
    let decode = |height, width| Kind::Decode { height, width };
    let encode = |height, width| Kind::Encode { height, width };
    let t5 = |model, layers| Kind::T5 { model, layers };
    let row = |name, kind, about| Work { name, about, is_slow: false, kind };
    let slow = |name, kind, about| Work { name, about, is_slow: true, kind };
    let mut rows = vec![
        row("stdit2-block", small(1, 1), "STDiT2-XL/2, one block and the embedders, 16x256x256"),
        row("stdit2-two", small(2, 1), "STDiT2-XL/2, two blocks from end to end, 16x256x256"),
        slow("stdit2-step", small(28, 2), "STDiT2-XL/2, a guided step (batch 2), 16x256x256"),
        slow(
            "stdit2-step-240p",
            stdit2(28, 2, [16, 30, 53], [240, 426]),
            "STDiT2-XL/2, a guided step (batch 2), 240p:16f:9:16",
        ),
        row(
            "train-block",
            Kind::TrainStdit2 { latent: square(256), pixels: [256, 256] },
            "STDiT2-XL/2, one block and the embedders, 16x256x256, forward and backward",
        ),
        row("attention-1024", attention(1, 1024, 1024), "16 heads of 72, 1024 tokens"),
        row("attention-4096", attention(1, 4096, 4096), "16 heads of 72, 4096 tokens"),
        row("attention-space", attention(16, 256, 256), "16 heads of 72, 16 sequences of 256"),
        row("attention-time", attention(256, 16, 16), "16 heads of 72, 256 sequences of 16"),
        row("attention-cross", attention(1, 4096, TOKENS), "16 heads of 72, 4096 tokens to 120"),
        row("linear-proj", linear(4096, WIDTH, WIDTH), "product 4096 x 1152 x 1152"),
        row("linear-qkv", linear(4096, 3 * WIDTH, WIDTH), "product 4096 x 3456 x 1152"),
        row("linear-fc1", linear(4096, 4 * WIDTH, WIDTH), "product 4096 x 4608 x 1152"),
        row("linear-fc2", linear(4096, WIDTH, 4 * WIDTH), "product 4096 x 1152 x 4608"),
        row("vae-decode-256", decode(256, 256), "AutoencoderKL, one frame from its latent"),
        row("vae-decode-512", decode(512, 512), "AutoencoderKL, one frame from its latent"),
        row("vae-decode-720p", decode(720, 1280), "AutoencoderKL, one frame from its latent"),
        row("vae-encode-256", encode(256, 256), "AutoencoderKL, one frame to its latent"),
        row("vae-encode-512", encode(512, 512), "AutoencoderKL, one frame to its latent"),
        row("vae-encode-720p", encode(720, 1280), "AutoencoderKL, one frame to its latent"),
        row("t5-large", t5("t5-large", 24), "T5 v1.1 large encoder, 120 tokens"),
        row("t5-xl", t5("t5-xl", 24), "T5 v1.1 XL encoder, 120 tokens"),
        row("t5-xxl-4", t5("t5-xxl", 4), "T5 v1.1 XXL encoder, 4 of 24 layers, 120 tokens"),
        slow("t5-xxl", t5("t5-xxl", 24), "T5 v1.1 XXL encoder, 120 tokens"),
    ];
    rows.retain(|row| cfg!(feature = "training") || !row.trains());
    rows
}

/// The row called `name`.
pub fn find(name: &str) -> Option<Work> {
    all().into_iter().find(|work| work.name == name)
}

impl Work {
    /// Whom it is measured against in this type.
    pub fn peers(&self, dtype: DType) -> Vec<Peer> {
        let is_f32 = dtype == DType::F32;
        match self.kind {
            Kind::Linear { .. } if is_f32 => vec![TORCH, ONE_DNN, OPEN_BLAS],
            Kind::Linear { .. } => vec![TORCH, ONE_DNN],
            Kind::Attention { .. } => vec![TORCH, NAIVE],
            Kind::TrainStdit2 { .. } if is_f32 => vec![TORCH, COMPILE],
            Kind::TrainStdit2 { .. } => vec![TORCH, COMPILE, AUTOCAST, COMPILE_AUTOCAST],
            Kind::Decode { .. } | Kind::Encode { .. } if is_f32 => {
                vec![TORCH, COMPILE, CHANNELS_LAST, OPEN_VINO, ONNX_RUNTIME]
            }
            Kind::Decode { .. } | Kind::Encode { .. } => {
                vec![TORCH, COMPILE, CHANNELS_LAST, OPEN_VINO]
            }
            Kind::Stdit2 { .. } | Kind::T5 { .. } if is_f32 => {
                vec![TORCH, COMPILE, OPEN_VINO, ONNX_RUNTIME]
            }
            Kind::Stdit2 { .. } | Kind::T5 { .. } => vec![TORCH, COMPILE, OPEN_VINO],
        }
    }

    /// The graph in storage type `dtype`.
    ///
    /// # Errors
    /// None for a row of the table, as a test shows.
    pub fn graph(&self, dtype: DType) -> Result<Graph, Error> {
        match &self.kind {
            Kind::Stdit2 { rows, latent, pixels, .. } => {
                let bucket = Bucket::new(*rows, *latent, pixels.map(|size| size as f64), TOKENS);
                Ok(stdit2::graph(&self.stdit2()?, &Bucket { dtype, ..bucket })?)
            }
            Kind::TrainStdit2 { latent, pixels } => {
                let bucket = Bucket::new(1, *latent, pixels.map(|size| size as f64), TOKENS);
                let bucket = Bucket { dtype, guided: false, ..bucket };
                with_gradients(stdit2::graph(&self.stdit2()?, &bucket)?)
            }
            &Kind::Decode { height, width } => {
                let vae = self.vae()?;
                let (height, width) = (height / vae.downscale(), width / vae.downscale());
                Ok(vae::decoder_graph(&vae, &FrameBucket { dtype, frames: 1, height, width })?)
            }
            &Kind::Encode { height, width } => {
                let bucket = FrameBucket { dtype, frames: 1, height, width };
                Ok(vae::encoder_graph(&self.vae()?, &bucket)?)
            }
            Kind::T5 { .. } => {
                let bucket = t5::TextBucket { dtype, rows: 1, tokens: TOKENS, mask: true };
                Ok(t5::graph(&self.t5()?, &bucket)?)
            }
            &Kind::Attention { sequences, queries, keys } => {
                let mut b = Builder::new("attention");
                let mut input = |name, tokens| {
                    let ty = TensorType::new(dtype, [sequences, tokens, HEADS, HEAD_WIDTH])?;
                    Ok::<_, Error>(b.input(name, ty))
                };
                let qkv = [input("q", queries)?, input("k", keys)?, input("v", keys)?];
                let out = b.attention(qkv, None, None, (HEAD_WIDTH as f64).powf(-0.5))?;
                Ok(b.finish(&[out]))
            }
            &Kind::Linear { rows, columns, depth } => {
                let mut b = Builder::new("linear");
                let x = b.input("x", TensorType::new(dtype, [rows, depth])?);
                let weight = Net::new(&mut b, dtype).weight("weight", &[columns, depth])?;
                let out = b.linear(x, weight, None)?;
                Ok(b.finish(&[out]))
            }
        }
    }

    /// The checkpoint that it needs, in `dtype`; `None` if it has no weights.
    ///
    /// # Errors
    /// As [`Work::graph`].
    pub fn synthetic(&self, dtype: checkpoint::DType) -> Result<Option<Synthetic>, Error> {
        let (config, params) = match self.kind {
            Kind::Attention { .. } => return Ok(None),
            Kind::Linear { columns, depth, .. } => {
                (None, vec![("weight".to_string(), vec![columns, depth])])
            }
            _ => {
                let (config, architecture) = self.architecture()?;
                (Some(config), architecture.params()?)
            }
        };
        Ok(Some(Synthetic { config, params, dtype, seed: SEED, shard_bytes: SHARD_BYTES }))
    }

    /// Rows with one name here use the same weights.
    pub fn weights_name(&self) -> &'static str {
        match self.kind {
            Kind::Decode { .. } | Kind::Encode { .. } => "sd-vae",
            Kind::Stdit2 { depth: 28, .. } => "stdit2-xl",
            Kind::TrainStdit2 { .. } => "stdit2-block",
            _ => self.name,
        }
    }

    /// Whether it is a forward and a backward pass, whose results are gradients.
    pub fn trains(&self) -> bool {
        matches!(self.kind, Kind::TrainStdit2 { .. })
    }

    /// What a peer has to know, besides the paths of weights and inputs.
    ///
    /// # Errors
    /// As [`Work::graph`].
    pub fn request(&self) -> Result<Json, Error> {
        Ok(match self.kind {
            Kind::Stdit2 { latent, pixels, .. } => {
                json!({ "model": "stdit2", "latent": latent, "pixels": pixels })
            }
            Kind::TrainStdit2 { latent, pixels } => {
                // The gradients that our graph returns, in their order; `x` comes last.
                let graph = self.graph(DType::F32)?;
                let params: Vec<&str> = trained(&graph).map(|(_, name)| name).collect();
                json!({ "model": "stdit2", "latent": latent, "pixels": pixels, "gradients": params })
            }
            Kind::Decode { .. } => json!({ "model": "vae-decode" }),
            Kind::Encode { .. } => json!({ "model": "vae-encode" }),
            Kind::T5 { .. } => json!({ "model": "t5" }),
            Kind::Attention { .. } => json!({ "model": "attention" }),
            Kind::Linear { columns, depth, .. } => {
                json!({ "model": "linear", "weight_shape": [columns, depth] })
            }
        })
    }

    /// The value of an input that is not noise: sizes as a video of this row has them, timesteps that bf16 holds
    /// exactly.
    pub(crate) fn scalar(&self, input: &str) -> Option<f32> {
        let (Kind::Stdit2 { latent, pixels: [height, width], .. }
        | Kind::TrainStdit2 { latent, pixels: [height, width] }) = self.kind
        else {
            return None;
        };
        Some(match input {
            "timestep" => 500.0,
            "height" => height as f32,
            "width" => width as f32,
            "num_frames" => latent[0] as f32,
            "ar" => height as f32 / width as f32,
            "fps" => 8.0,
            _ => return None,
        })
    }

    /// Largest token id.
    pub(crate) fn vocabulary(&self) -> Result<usize, Error> {
        Ok(self.t5()?.vocab_size)
    }

    fn architecture(&self) -> Result<(Json, Architecture), Error> {
        let (name, changes) = match self.kind {
            Kind::Stdit2 { depth, .. } => {
                ("stdit2-xl", vec![("depth", depth), ("model_max_length", TOKENS)])
            }
            Kind::TrainStdit2 { .. } => {
                ("stdit2-xl", vec![("depth", 1), ("model_max_length", TOKENS)])
            }
            Kind::T5 { model, layers } => (model, vec![("num_layers", layers)]),
            _ => ("sd-vae", vec![]),
        };
        let model = published::find(name).expect("the table names published models");
        let mut config = model.config_json();
        for (key, value) in changes {
            config[key] = json!(value);
        }
        let architecture = model.parse(&config)?;
        Ok((config, architecture))
    }

    fn stdit2(&self) -> Result<Stdit2, Error> {
        match self.architecture()?.1 {
            Architecture::Stdit2(config) => Ok(config),
            other => unreachable!("{other:?} is no STDiT2"),
        }
    }

    fn t5(&self) -> Result<T5, Error> {
        match self.architecture()?.1 {
            Architecture::T5(config) => Ok(config),
            other => unreachable!("{other:?} is no T5"),
        }
    }

    fn vae(&self) -> Result<AutoencoderKl, Error> {
        match self.architecture()?.1 {
            Architecture::AutoencoderKl(config) => Ok(config),
            other => unreachable!("{other:?} is no AutoencoderKL"),
        }
    }
}

/// The parameters of `graph` that training changes: the frequencies of rotations are in checkpoints, but stay as
/// they are upstream.
fn trained(graph: &Graph) -> impl Iterator<Item = (ValueId, &str)> {
    graph.params().filter(|(_, name)| *name != "rope.freqs")
}

/// The gradients of all trained parameters and of the input `x` of `graph`, which has one result, instead of its
/// result.
fn with_gradients(graph: Graph) -> Result<Graph, Error> {
    let x = graph.inputs().find(|(_, name)| *name == "x").map(|(value, _)| value);
    let of: Vec<ValueId> = trained(&graph).map(|(value, _)| value).chain(x).collect();
    let out = graph.outputs[0];
    let ty = graph.ty(out).clone();
    let mut b = Builder::extend(graph);
    let cotangent = b.input(COTANGENT, ty);
    let gradients = append_gradients(&mut b, out, cotangent, &of)?;
    let gradients: Option<Vec<ValueId>> = gradients.into_iter().collect();
    Ok(b.finish(&gradients.expect("every parameter of a model has an influence")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_differ_and_are_found() {
        let names: BTreeSet<&str> = all().iter().map(|work| work.name).collect();
        assert_eq!(names.len(), all().len());
        assert!(names.iter().all(|name| find(name).unwrap().name == *name));
        assert!(find("stdit2").is_none());
    }

    /// Rows that share a folder of weights would otherwise read each other's.
    #[test]
    fn rows_with_one_name_of_weights_have_the_same_tensors() {
        for work in all() {
            for other in all().iter().filter(|other| other.weights_name() == work.weights_name()) {
                let params = |work: &Work| {
                    work.synthetic(checkpoint::DType::F32).unwrap().map(|made| made.params)
                };
                assert_eq!(params(&work), params(other), "{} {}", work.name, other.name);
            }
        }
    }

    #[test]
    fn every_graph_finds_its_weights_in_its_checkpoint() {
        for work in all() {
            let synthetic = work.synthetic(checkpoint::DType::F32).unwrap();
            let made: BTreeSet<(String, Vec<usize>)> =
                synthetic.into_iter().flat_map(|made| made.params).collect();
            for dtype in [DType::F32, DType::Bf16] {
                let graph = work.graph(dtype).unwrap();
                for (value, name) in graph.params() {
                    let param = (name.to_string(), graph.ty(value).shape().to_vec());
                    assert!(made.contains(&param), "{}: {param:?}", work.name);
                }
                assert!(!work.peers(dtype).is_empty());
                assert_eq!(work.peers(dtype)[0], TORCH, "what all others are compared with");
            }
        }
    }

    #[test]
    fn a_product_counts_two_operations_per_multiply_add() {
        let graph = find("linear-fc1").unwrap().graph(DType::F32).unwrap();
        assert_eq!(graph.flops(), 2 * 4096 * 4608 * 1152);
    }
}
