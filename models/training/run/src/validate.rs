//! Videos that are sampled with the averaged weights while a run trains: nothing of it comes back into the run.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use checkpoint::Checkpoint;
use kernels::Target;
use media::{Format, Fps, Layout, MediaWriter, Metadata};
use ops::DType;
use pipeline::{
    Conditioning, Features, Model, Part, Plans, Request, Sampler, Scheduler, SchedulerKind, Stage,
    Watch,
};
use runtime::Backend;
use training::run_log::Validation;
use training::{ModelPart, ValidationSection};

use crate::export::Trained;
use crate::features::cleaned;
use crate::{Error, Result};

/// What samples the prompts of a recipe.
#[derive(Debug)]
pub(crate) struct Validator {
    section: ValidationSection,
    request: Request,
    scheduler: Scheduler,
    plans: Plans,
    fps: Fps,
    seed: u64,
    /// Of the prompts; made once, if the text encoder stays as it is.
    features: Option<Vec<Features>>,
}

impl Validator {
    /// Plans the videos of `section` by `model`, whose transformer has the configuration of the one in training.
    ///
    /// # Errors
    /// A size that the model has no video of.
    pub(crate) fn new(
        section: &ValidationSection,
        model: &Model,
        target: &Target,
        seed: u64,
    ) -> Result<Validator> {
        let transformer = &model.transformer;
        let scheduler = Scheduler::new(
            SchedulerKind::Iddpm,
            section.steps,
            section.cfg_scale,
            None,
            transformer,
        )?;
        let request = Request {
            rows: 1,
            num_frames: section.frames,
            height: section.height,
            width: section.width,
            fps: section.fps,
            dtype: DType::F32,
            text_dtype: DType::F32,
            frame_mask: false,
        };
        let plans = Plans::compile(model, &scheduler, &request, target)?;
        let fps = Fps::from_f64(section.fps)?;
        let section = section.clone();
        Ok(Validator { section, request, scheduler, plans, fps, seed, features: None })
    }

    /// Whether videos are due after `step` updates.
    pub(crate) fn is_due(&self, step: u64) -> bool {
        step > 0 && step.is_multiple_of(self.section.every)
    }

    /// Samples the videos of `step` that `folder` has not, with `parts` of the pipeline as they are trained; `each` is told of every
    /// one that is written. Paths in what it is told are below the folder that `folder` is in.
    ///
    /// # Errors
    /// Interrupts, after which complete videos stay, and what cannot be written.
    pub(crate) fn sample(
        &mut self,
        model: &mut Model,
        backend: &dyn Backend,
        (trained, parts): (&Trained<'_>, &[ModelPart]),
        (folder, step): (&Path, u64),
        interrupt: &AtomicBool,
        each: &mut dyn FnMut(Validation) -> Result<()>,
    ) -> Result<()> {
        let (extension, format) = match self.section.frames {
            1 => ("png", Format::Png),
            _ => ("mp4", Format::Mp4),
        };
        let file = |index: usize| format!("step-{step:08}-{index}.{extension}");
        let prompts: Vec<String> = self.section.prompts.clone();
        let missing: Vec<usize> =
            (0..prompts.len()).filter(|&index| !folder.join(file(index)).exists()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
        // Weights go by way of a file, which is mapped: they need not fit in memory a second time.
        let weights = tempfile::Builder::new().prefix(".tmp").tempdir_in(folder);
        let weights = weights.map_err(Error::io(folder, "create a folder in it"))?;
        for part in parts {
            let path = weights.path().join(format!("{}.safetensors", part.folder));
            trained.write_weights(&path, &part.params)?;
            let params: Vec<(String, Vec<usize>)> =
                part.params.iter().map(|param| (param.name.clone(), param.shape.clone())).collect();
            let opened = Part::new(Checkpoint::open(&path)?, &params)?;
            if part.folder == "text_encoder" {
                model.text_encoder = opened;
                self.features = None;
            } else {
                model.denoiser = opened;
            }
        }
        let model = &*model;
        let watch = || Watch { interrupt: Some(interrupt), ..Watch::default() };
        let (scheduler, request) = (self.scheduler.clone(), self.request.clone());
        let mut sampler = Sampler::new(model, scheduler, request, self.plans.clone(), backend);
        if self.features.is_none() {
            let texts: Vec<String> = prompts.iter().map(|prompt| cleaned(prompt)).collect();
            self.features = Some(sampler.encode_text(&texts, &mut watch())?);
        }
        let features = self.features.as_ref().expect("made above");
        let [height, width] = self.request.frame_size(model)?;
        for index in missing {
            let mut noise = |draw: u64, out: &mut [f32]| {
                let offset = (index * out.len()) as u64;
                diffusion::fill_normal(self.seed, draw, offset, out);
            };
            let mut conditioning = Conditioning {
                features: &features[index..=index],
                noise: &mut noise,
                keys: None,
                given: None,
            };
            let latents = sampler.denoise(&mut conditioning, &mut watch())?;
            let mut metadata = Metadata::new();
            metadata.push("prompt", &prompts[index])?;
            let open = |name: &str, format| {
                let size = [width as u32, height as u32];
                MediaWriter::create(&folder.join(name), format, size, self.fps, &metadata)
            };
            let (name, sheet_name) = (file(index), format!("step-{step:08}-{index}.sheet.png"));
            let mut video = open(&name, format)?;
            let mut sheet = match format {
                Format::Png => None,
                _ => Some(open(&sheet_name, Format::ContactSheet)?),
            };
            let mut rgb = Vec::new();
            sampler.decode(&latents, &mut watch(), |_, _, pixels| -> Result<()> {
                media::frame_from_f32(pixels, Layout::Cthw, [1, height, width], 0, &mut rgb)?;
                video.push(&rgb)?;
                if let Some(sheet) = &mut sheet {
                    sheet.push(&rgb)?;
                }
                Ok(())
            })?;
            let below = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let frames_png = match sheet {
                None => None,
                Some(sheet) => {
                    sheet.finish_unless(interrupt)?;
                    Some(format!("{below}/{sheet_name}"))
                }
            };
            // The video comes last: where it is, all of it is.
            video.finish_unless(interrupt)?;
            let (prompt, file) = (prompts[index].clone(), format!("{below}/{name}"));
            each(Validation { step, prompt, file, frames_png })?;
        }
        sampler.release(Stage::Denoise);
        sampler.release(Stage::Decode);
        Ok(())
    }
}
