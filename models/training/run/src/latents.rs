//! The autoencoder of a run with latents as noise processes want them: its last 1x1 convolutions are changed by
//! what its latents are on the data.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use checkpoint::Checkpoint;
use models::vae::LATENT_SCALE;
use pipeline::{FrameEncoder, Part, Watch, posterior_graph};
use runtime::Backend;
use training::{Autoencoder, LatentStatistics, ModelPart, StateKind};

use crate::export::Trained;
use crate::samples::{Samples, extents};
use crate::{Error, Result};

/// Videos whose latents are looked at.
const N_CLIPS: usize = 128;

/// Where latents are computed.
pub(crate) struct Encoders<'a> {
    pub(crate) pipeline: &'a mut pipeline::Model,
    pub(crate) backend: &'a dyn Backend,
    pub(crate) target: &'a kernels::Target,
    pub(crate) samples: &'a Samples,
    pub(crate) interrupt: &'a AtomicBool,
}

impl Encoders<'_> {
    /// The weights that are written in place of those of `trained`, by name. The pipeline's autoencoder is that of
    /// the run from then on. `scratch` is a folder for a file that does not stay.
    ///
    /// # Errors
    /// An autoencoder whose latents are all the same, and interrupts.
    pub(crate) fn folded(
        &mut self,
        model: &Autoencoder,
        trained: &Trained<'_>,
        part: &ModelPart,
        scratch: &Path,
    ) -> Result<Vec<(&'static str, Vec<f32>)>> {
        let folder = tempfile::Builder::new().prefix(".tmp").tempdir_in(scratch);
        let folder = folder.map_err(Error::io(scratch, "create a folder in it"))?;
        let path = folder.path().join(part.file);
        trained.write_weights(&path, &part.params)?;
        let params: Vec<(String, Vec<usize>)> =
            part.params.iter().map(|param| (param.name.clone(), param.shape.clone())).collect();
        self.pipeline.autoencoder = Part::new(Checkpoint::open(&path)?, &params)?;
        self.pipeline.vae = model.config.clone();
        let statistics = self.statistics()?;
        let weight = |name: &str| {
            let averaged = trained.state.get(StateKind::Ema, name);
            averaged.or_else(|| trained.state.get(StateKind::Master, name))
        };
        Ok(statistics.folded(&model.config, weight)?)
    }

    /// Moments of the latents of the first videos of the first epoch.
    fn statistics(&self) -> Result<LatentStatistics> {
        let (pipeline, samples, interrupt) = (&*self.pipeline, self.samples, self.interrupt);
        let mut statistics = LatentStatistics::new(pipeline.vae.latent_channels);
        let epoch = samples.epoch(0)?;
        let mut encoder: Option<([usize; 2], FrameEncoder<'_>)> = None;
        let mut n_clips = 0;
        for number in 0..epoch.n_steps(1) {
            let batch = epoch.batch(number, 0, 1);
            let shape = samples.buckets.shape(batch.bucket);
            let [frames, height, width] = extents(shape);
            let size = [height, width];
            if encoder.as_ref().is_none_or(|(of_size, _)| *of_size != size) {
                let graph = posterior_graph(&pipeline.vae, ops::DType::F32, size)?;
                let plan = Arc::new(compiler::compile(graph, self.target)?);
                encoder = Some((size, FrameEncoder::new(pipeline, plan, self.backend)?));
            }
            let (_, encoder) = encoder.as_mut().expect("made above");
            for &row in batch.rows {
                let (sample, _) = batch.read_or_replace(&samples.buckets, row, |index| {
                    let row = &samples.table.rows()[index];
                    samples.settings.read(row, index, shape, 0, interrupt)
                })?;
                let plane = height * width;
                for t in 0..frames {
                    let channels = (0..3).map(|channel| (channel * frames + t) * plane);
                    let frame: Vec<f32> =
                        channels.flat_map(|at| &sample.pixels[at..at + plane]).copied().collect();
                    let mut watch = Watch { interrupt: Some(interrupt), ..Watch::default() };
                    let [mut mean, mut deviation] = encoder.encode_posterior(&frame, &mut watch)?;
                    let scale = LATENT_SCALE as f32;
                    mean.iter_mut().for_each(|mean| *mean /= scale);
                    // The logarithm of the variance.
                    deviation.iter_mut().for_each(|std| *std = 2.0 * (*std / scale).ln());
                    statistics.add(&mean, &deviation, 1)?;
                }
                n_clips += 1;
            }
            if n_clips >= N_CLIPS {
                break;
            }
        }
        Ok(statistics)
    }
}
