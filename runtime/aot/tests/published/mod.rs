//! What the table of kernels is of: the embedded model and published architectures, at sizes that engines are
//! made for, in bf16, guided, one video.

use std::path::Path;

use aot::Error;
use aot::table::Survey;
use compiler::Plan;
use diffusion::Release;
use kernels::cuda::Gpu;
use kernels::{Isa, Target};
use models::Bucket;
use models::config::{AutoencoderKl, Stdit2, T5};
use models::published::{self, Architecture};
use ops::{DType, Graph};
use pipeline::{Noise, Scheduler, SchedulerKind, Transformer};

/// What activations and weights are stored in.
const DTYPE: DType = DType::Bf16;
/// Pixels per latent of Stable Diffusion's VAE.
const DOWNSCALE: usize = 8;
/// Tokens of a prompt that Open-Sora 1.1 reads.
const TOKENS: usize = 200;

/// Programs by name; names are unique.
pub(crate) fn graphs() -> Vec<(String, Graph)> {
    let mut graphs = tiny();
    for (resolution, frames) in
        [("144p", 16), ("240p", 16), ("480p", 16), ("720p", 16), ("720p", 128)]
    {
        let size = diffusion::image_size(resolution, "9:16", Release::V1_1);
        let (height, width) = size.expect("upstream's resolutions have this aspect");
        let size = [frames, height, width];
        let name = format!("stdit2-xl {resolution}:{frames}f");
        graphs.push((name, step(&transformer("stdit2-xl"), size, DOWNSCALE)));
    }
    for size in [[16, 256, 256], [16, 512, 512]] {
        let [frames, height, width] = size;
        let name = format!("stdit-xl {frames}x{height}x{width}");
        graphs.push((name, step(&transformer("stdit-xl"), size, DOWNSCALE)));
    }
    let Architecture::T5(t5) = architecture("t5-xxl") else { panic!("t5-xxl is a T5") };
    graphs.push(("t5-xxl".to_owned(), text(&t5, TOKENS)));
    let Architecture::AutoencoderKl(vae) = architecture("sd-vae") else {
        panic!("sd-vae is an autoencoder")
    };
    for [height, width] in [[512, 512], [720, 1280]] {
        graphs.push((format!("sd-vae {height}x{width}"), decoder(&vae, [height, width])));
    }
    graphs
}

/// Adds the plan of `graph` for `gpu` to `survey`.
pub(crate) fn add(survey: &mut Survey, name: &str, graph: &Graph, gpu: Gpu) -> Result<(), Error> {
    survey.add(name, &plan(name, graph, gpu))
}

fn plan(name: &str, graph: &Graph, gpu: Gpu) -> Plan {
    let target = Target {
        isa: Isa::PORTABLE,
        threads: 1,
        l1_bytes: 0,
        l2_bytes: 0,
        l3_bytes: 0,
        gpu: Some(gpu),
        tiles: None,
    };
    compiler::compile(graph.clone(), &target).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The stages of the model in the binary, at the size that it was trained at.
fn tiny() -> Vec<(String, Graph)> {
    let config = |part: &str| -> serde_json::Value {
        let folder = "../../models/kino/embedded/tiny-flare-1.1";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(part);
        let text = std::fs::read_to_string(path.join("config.json"));
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let known = "the embedded model has a known configuration";
    let t5 = T5::from_json(&config("text_encoder")).expect(known);
    let stdit2 = Stdit2::from_json(&config("transformer")).expect(known);
    let vae = AutoencoderKl::from_json(&config("vae")).expect(known);
    let transformer = Transformer::Stdit2(stdit2);
    let tokens = transformer.common().model_max_length;
    let name = |part: &str| format!("tiny-flare-1.1 {part}");
    vec![
        (name("text"), text(&t5, tokens)),
        (name("denoise"), step(&transformer, [8, 64, 64], vae.downscale())),
        (name("decode"), decoder(&vae, [64, 64])),
    ]
}

fn architecture(name: &str) -> Architecture {
    let model = published::find(name).expect("a published name");
    model.architecture().unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn transformer(name: &str) -> Transformer {
    match architecture(name) {
        Architecture::Stdit1(config) => Transformer::Stdit1(config),
        Architecture::Stdit2(config) => Transformer::Stdit2(config),
        Architecture::T5(_) | Architecture::AutoencoderKl(_) => panic!("{name} is no transformer"),
    }
}

/// A guided step of the sampler.
fn step(transformer: &Transformer, [frames, height, width]: [usize; 3], downscale: usize) -> Graph {
    let scheduler = Scheduler::new(SchedulerKind::Iddpm, 100, 7.0, None, transformer);
    let scheduler = scheduler.expect("every transformer here predicts its variance");
    let latent = [frames, height / downscale, width / downscale];
    let tokens = transformer.common().model_max_length;
    let bucket = Bucket::new(1, latent, [height as f64, width as f64], tokens);
    let bucket = Bucket { dtype: DTYPE, guided: true, ..bucket };
    scheduler.graph(transformer, &bucket, Noise::Drawn).expect("the sizes are possible")
}

fn text(t5: &T5, tokens: usize) -> Graph {
    pipeline::text_graph(t5, DTYPE, tokens).expect("there are tokens")
}

/// One frame of so many pixels.
fn decoder(vae: &AutoencoderKl, size: [usize; 2]) -> Graph {
    let latent = size.map(|pixels| pixels / vae.downscale());
    pipeline::decode_graph(vae, DTYPE, latent).expect("the sizes are possible")
}
