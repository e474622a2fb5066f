//! `kino dump`: a model's graph, the graph after a pass, or its plan, as text.
//!
//! No weight is read, so published architectures can be looked at without their files.

use clap::{Args, ValueEnum};
use kernels::Target;
use models::Bucket;
use models::config::AutoencoderKl;
use ops::Graph;
use pipeline::{Noise, Scheduler, SchedulerKind, decode_graph, encode_graph, text_graph};

use crate::failure::{Failure, Outcome};
use crate::options::Storage;
use crate::parts::Parts;
use crate::{machine, progress};

/// Which graph of which model.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelOptions {
    /// tiny-flare-1.1, stdit-xl, stdit2-xl, t5-large, t5-xl, t5-xxl, sd-vae, or a checkpoint or
    /// pipeline folder
    pub model: String,
    /// Size: 240p:16f:9:16 (name, frames, aspect) or 16x256x256 (frames, height, width)
    #[arg(long, default_value = "240p:16f:9:16")]
    pub bucket: String,
    /// Part of sampling, where the model has several
    #[arg(long)]
    pub stage: Option<StageName>,
    /// Videos at once
    #[arg(long, default_value_t = 1)]
    pub batch_size: usize,
    /// Storage type of weights and activations
    #[arg(long, default_value = "f32")]
    pub dtype: Storage,
    /// Storage type of a pipeline's text encoder, f32 or bf16 [default: f32; --dtype for one by itself]
    #[arg(long, value_name = "TYPE")]
    pub text_dtype: Option<Storage>,
    /// Threads of the plan
    #[arg(long)]
    pub threads: Option<usize>,
}

/// What to print.
#[derive(Args, Debug)]
pub(crate) struct DumpOptions {
    #[command(flatten)]
    model: ModelOptions,
    /// Print the graph after this pass of the compiler
    #[arg(long, value_name = "PASS", conflicts_with = "plan")]
    after: Option<String>,
    /// Print the graph as a picture for Graphviz
    #[arg(long, conflicts_with = "plan")]
    dot: bool,
    /// Print the plan for this machine
    #[arg(long)]
    plan: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum StageName {
    /// The text encoder on one prompt
    Text,
    /// The VAE's encoder on one given frame
    Condition,
    /// One step of the sampler
    Denoise,
    /// The decoder on one frame
    Decode,
}

impl StageName {
    /// As the option takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            StageName::Text => "text",
            StageName::Condition => "condition",
            StageName::Denoise => "denoise",
            StageName::Decode => "decode",
        }
    }
}

/// Pixels per latent of Stable Diffusion's VAE, for a transformer by itself.
const USUAL_DOWNSCALE: usize = 8;

/// Tokens of a T5 encoder by itself: what Open-Sora 1.1 reads.
const USUAL_TOKENS: usize = 200;

/// The command.
pub(crate) fn run(options: &DumpOptions, forced_isa: Option<&str>) -> Outcome<()> {
    let target = machine::target(forced_isa, options.model.threads)?;
    let size = options.model.size()?;
    let passes = match &options.after {
        Some(name) => Some(compiler::pipeline_through(name)?),
        None => None,
    };
    let parts = Parts::find(&options.model.model)?;
    let stage = options.model.stage.unwrap_or(parts.usual_stage());
    let graph = parts.graph(&options.model, stage, size, &target)?;
    if options.plan {
        progress::write_out(&compiler::compile(graph, &target)?.to_string());
        return Ok(());
    }
    let graph = match passes {
        Some(passes) => compiler::run_passes(graph, passes, &mut |_| {}),
        None => graph,
    };
    let text = if options.dot { compiler::to_dot(&graph) } else { graph.to_string() };
    progress::write_out(&text);
    Ok(())
}

impl ModelOptions {
    /// Frames, height and width in pixels; says what of the request cannot be.
    pub(crate) fn size(&self) -> Outcome<[usize; 3]> {
        if self.batch_size == 0 {
            return Err(Failure::usage("--batch-size 0; expected at least 1"));
        }
        parse_bucket(&self.bucket)
    }
}

/// Frames, height and width in pixels.
fn parse_bucket(text: &str) -> Outcome<[usize; 3]> {
    let unknown =
        || Failure::usage(format!("--bucket {text}; expected such as 240p:16f:9:16 or 16x256x256"));
    if let Some((name, rest)) = text.split_once(':') {
        let (frames, aspect) = rest.split_once(':').unwrap_or((rest, "9:16"));
        let frames = diffusion::num_frames(frames.strip_suffix('f').unwrap_or(frames))?;
        let (height, width) = diffusion::image_size(name, aspect, diffusion::Release::V1_2)?;
        return Ok([frames, height, width]);
    }
    let dims: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    match dims.map_err(|_| unknown())?.as_slice() {
        &[frames, height, width] if frames > 0 && height > 0 && width > 0 => {
            Ok([frames, height, width])
        }
        _ => Err(unknown()),
    }
}

impl Parts {
    /// The stages of sampling that these configurations can run, in order; given frames, which few
    /// requests have, are not among them.
    pub(crate) fn stages(&self) -> Vec<StageName> {
        let have = [
            (StageName::Text, self.t5.is_some()),
            (StageName::Denoise, self.transformer.is_some()),
            (StageName::Decode, self.vae.is_some()),
        ];
        have.into_iter().filter(|(_, have)| *have).map(|(stage, _)| stage).collect()
    }

    /// The stage that is meant where none is named: the most telling one.
    pub(crate) fn usual_stage(&self) -> StageName {
        match (&self.transformer, &self.vae) {
            (Some(_), _) => StageName::Denoise,
            (None, Some(_)) => StageName::Decode,
            (None, None) => StageName::Text,
        }
    }

    /// Frames, height and width of the latent of a video of `size`.
    pub(crate) fn latent(&self, [frames, height, width]: [usize; 3]) -> [usize; 3] {
        let downscale = self.vae.as_ref().map_or(USUAL_DOWNSCALE, AutoencoderKl::downscale);
        [frames, height / downscale, width / downscale]
    }

    /// The graph of `stage` for frames, height and width in pixels, as it is sampled on `target`.
    pub(crate) fn graph(
        &self,
        options: &ModelOptions,
        stage: StageName,
        [frames, height, width]: [usize; 3],
        target: &Target,
    ) -> Outcome<Graph> {
        let latent = self.latent([frames, height, width]);
        let missing = |what: &str| {
            Failure::usage(format!("{} has no {what}; choose another --stage", options.model))
        };
        let dtype = options.dtype.dtype();
        let tokens = self.transformer.as_ref().map(|config| config.common().model_max_length);
        match stage {
            StageName::Text => {
                let t5 = self.t5.as_ref().ok_or_else(|| missing("text encoder"))?;
                let alone = self.transformer.is_none().then_some(options.dtype);
                let storage = options.text_dtype.or(alone).unwrap_or(Storage::F32);
                Ok(text_graph(t5, storage.text_dtype()?, tokens.unwrap_or(USUAL_TOKENS))?)
            }
            StageName::Condition => {
                let vae = self.vae.as_ref().ok_or_else(|| missing("VAE"))?;
                Ok(encode_graph(vae, dtype, [height, width])?)
            }
            StageName::Denoise => {
                let config = self.transformer.as_ref().ok_or_else(|| missing("transformer"))?;
                // A step's graph does not depend on how many there are.
                let scheduler = Scheduler::new(SchedulerKind::Iddpm, 100, 7.0, None, config)?;
                let pixels = [height as f64, width as f64];
                let tokens = config.common().model_max_length;
                let bucket = Bucket::new(options.batch_size, latent, pixels, tokens);
                let bucket = Bucket { dtype, guided: true, ..bucket };
                Ok(scheduler.graph(config, &bucket, Noise::of(target))?)
            }
            StageName::Decode => {
                let vae = self.vae.as_ref().ok_or_else(|| missing("VAE"))?;
                Ok(decode_graph(vae, dtype, [latent[1], latent[2]])?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_bucket_are_read() {
        for (text, expected) in [
            ("240p:16f:9:16", [16, 240, 426]),
            ("240p:2s", [51, 240, 426]),
            ("16x256x128", [16, 256, 128]),
        ] {
            assert_eq!(parse_bucket(text).unwrap(), expected, "{text}");
        }
        for text in ["", "240p", "16x256", "0x1x1", "1x1x1x1", "9p:1f", "240p:0f", "240p:1f:9"] {
            assert!(parse_bucket(text).is_err(), "{text}");
        }
    }
}
