//! Options and a model's own defaults, resolved: everything that decides what is sampled.

use media::Fps;
use pipeline::{Model, Request, Scheduler, SchedulerKind, Transformer};

use crate::failure::{Failure, Outcome};
use crate::options::{SampleOptions, SchedulerName, Storage};
use crate::source::{EMBEDDED, EMBEDDED_CFG_SCALE, is_first_release};
use crate::{layers, units};

/// The seed of upstream's configurations.
const SEED: u64 = 42;

/// Decided settings of a run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Size and kind of the videos; `rows` is the batch size.
    pub request: Request,
    /// Which sampler.
    pub kind: SchedulerKind,
    /// Its steps.
    pub steps: usize,
    /// Guidance scale.
    pub cfg_scale: f64,
    /// Guided channels; `None` for the release's.
    pub cfg_channel: Option<usize>,
    /// Chooses the noise.
    pub seed: u64,
    /// Rate of the output.
    pub save_fps: Fps,
    /// Storage type as an option.
    pub storage: Storage,
}

/// Checks of the numbers that need no model.
pub(crate) fn check(options: &SampleOptions) -> Outcome<()> {
    let positive = [
        ("--num-sample", options.num_sample),
        ("--batch-size", options.batch_size),
        ("--frame-interval", options.frame_interval),
        ("--num-sampling-steps", options.num_sampling_steps),
        ("--cfg-channel", options.cfg_channel),
    ];
    if let Some((flag, _)) = positive.iter().find(|(_, value)| *value == Some(0)) {
        return Err(Failure::usage(format!("{flag} 0; expected at least 1")));
    }
    for (flag, rate) in [("--fps", options.fps), ("--save-fps", options.save_fps)] {
        if let Some(rate) = rate {
            Fps::from_f64(rate).map_err(|error| Failure::usage(format!("{flag}: {error}")))?;
        }
    }
    if let Some(text) = &options.num_frames {
        diffusion::num_frames(text)?;
    }
    size(options)?;
    memory(options)?;
    Ok(())
}

/// The memory that the options allow, in bytes.
pub(crate) fn memory(options: &SampleOptions) -> Outcome<Option<usize>> {
    let Some(text) = &options.memory else { return Ok(None) };
    units::parse_bytes(text).map(Some).ok_or_else(|| {
        let expected = "expected bytes, or such as 800MiB or 12GiB";
        Failure::usage(format!("--memory {text}; {expected}"))
    })
}

/// The size that the options ask for, height first.
fn size(options: &SampleOptions) -> Outcome<Option<[usize; 2]>> {
    if let Some(size) = &options.image_size {
        if options.resolution.is_some() || options.aspect_ratio.is_some() {
            let reason = "give --image-size, or --resolution and --aspect-ratio, not both";
            return Err(Failure::usage(reason));
        }
        return match size.as_slice() {
            &[height, width] if height > 0 && width > 0 => Ok(Some([height, width])),
            found => Err(Failure::usage(format!(
                "image size {found:?}; expected height and width, both above 0"
            ))),
        };
    }
    match (&options.resolution, &options.aspect_ratio) {
        (Some(name), aspect) => {
            let aspect = aspect.as_deref().unwrap_or("9:16");
            let (height, width) = diffusion::image_size(name, aspect, diffusion::Release::V1_2)?;
            Ok(Some([height, width]))
        }
        (None, Some(_)) => Err(Failure::usage("--aspect-ratio needs --resolution")),
        (None, None) => Ok(None),
    }
}

impl Settings {
    /// Options first, then the model's own defaults, then those of upstream's configurations for
    /// its release.
    pub(crate) fn resolve(options: &SampleOptions, model: &Model) -> Outcome<Settings> {
        let own = |key: &str| model.default("sampling", key);
        let own_count = |key: &str| own(key).map(|value| value as usize);
        let long = matches!(&model.transformer, Transformer::Stdit1(c) if c.time_scale < 1.0);
        let num_frames = match &options.num_frames {
            Some(text) => diffusion::num_frames(text)?,
            None => own_count("num_frames").unwrap_or(if long { 64 } else { 16 }),
        };
        let released_size = match &model.transformer {
            Transformer::Stdit1(config) if config.space_scale < 1.0 => [256, 256],
            Transformer::Stdit1(_) => [512, 512],
            Transformer::Stdit2(_) => [240, 426],
        };
        let own_size = own_count("height").zip(own_count("width")).map(|(h, w)| [h, w]);
        let [height, width] = size(options)?.or(own_size).unwrap_or(released_size);
        let fps = options.fps.or(own("fps")).unwrap_or(24.0);
        let released_interval = if long { 2 } else { 3 };
        let own_interval = own("fps").map(|_| own_count("frame_interval").unwrap_or(1));
        let interval = options.frame_interval.or(own_interval).unwrap_or(released_interval);
        // Upstream divides whole rates as integers.
        let played = if fps.fract() == 0.0 {
            (fps / interval as f64).floor()
        } else {
            fps / interval as f64
        };
        let save_fps = Fps::from_f64(options.save_fps.unwrap_or(played)).map_err(|error| {
            Failure::usage(format!("--fps {fps} at --frame-interval {interval}: {error}"))
        })?;
        let kind = match options.scheduler {
            Some(SchedulerName::DpmSolver) => SchedulerKind::DpmSolver,
            Some(SchedulerName::Iddpm) | None => SchedulerKind::Iddpm,
        };
        let own_steps =
            model.default("scheduler", "num_sampling_steps").map(|steps| steps as usize);
        let steps = options.num_sampling_steps.unwrap_or(match kind {
            SchedulerKind::Iddpm => own_steps.unwrap_or(100),
            SchedulerKind::DpmSolver => 20,
        });
        let embedded_scale = options.ckpt_path.is_none().then_some(EMBEDDED_CFG_SCALE);
        let own_scale = embedded_scale.or(model.default("scheduler", "cfg_scale"));
        let own_channel = model.default("scheduler", "cfg_channel").map(|count| count as usize);
        // The configurations that came with 1.0 and 1.1 guide three channels.
        let released_channel = (own_scale.is_none() || is_first_release(model)).then_some(3);
        let storage = options.dtype.unwrap_or(Storage::F32);
        let settings = Settings {
            request: Request {
                rows: options.batch_size.unwrap_or(1),
                num_frames,
                height,
                width,
                fps,
                dtype: storage.dtype(),
                frame_mask: false,
            },
            kind,
            steps,
            cfg_scale: options.cfg_scale.or(own_scale).unwrap_or(7.0),
            cfg_channel: options.cfg_channel.or(own_channel).or(released_channel),
            seed: options.seed.unwrap_or(SEED),
            save_fps,
            storage,
        };
        settings.request.latent(model)?;
        Ok(settings)
    }

    /// The sampler's tables.
    pub(crate) fn scheduler(&self, model: &Model) -> Outcome<Scheduler> {
        let transformer = &model.transformer;
        Ok(Scheduler::new(self.kind, self.steps, self.cfg_scale, self.cfg_channel, transformer)?)
    }

    /// What `kino sample --from` needs to sample video `sample_index` again, as JSON.
    pub(crate) fn to_json(&self, options: &SampleOptions, sample_index: u64) -> String {
        let request = &self.request;
        let embedded = options.ckpt_path.is_none().then(|| EMBEDDED.to_string());
        let full = SampleOptions {
            model: options.model.clone().or(embedded),
            ckpt_path: options.ckpt_path.clone(),
            vae: options.vae.clone(),
            text_encoder: options.text_encoder.clone(),
            tokenizer: options.tokenizer.clone(),
            no_clean_caption: options.no_clean_caption,
            initial_noise: options.initial_noise.clone(),
            dtype: Some(self.storage),
            num_frames: Some(request.num_frames.to_string()),
            image_size: Some(vec![request.height, request.width]),
            fps: Some(request.fps),
            save_fps: Some(self.save_fps.as_f64()),
            num_sampling_steps: Some(self.steps),
            cfg_scale: Some(self.cfg_scale),
            cfg_channel: self.cfg_channel,
            scheduler: Some(match self.kind {
                SchedulerKind::Iddpm => SchedulerName::Iddpm,
                SchedulerKind::DpmSolver => SchedulerName::DpmSolver,
            }),
            seed: Some(self.seed),
            sample_index: Some(sample_index),
            ..SampleOptions::default()
        };
        serde_json::Value::Object(layers::layer(&full)).to_string()
    }
}
