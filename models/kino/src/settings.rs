//! Options and a model's own defaults, resolved: everything that decides what is sampled.

use media::Fps;
use pipeline::{Model, Request, Scheduler, SchedulerKind, Transformer};

use crate::failure::{Failure, Outcome};
use crate::options::{SampleOptions, SchedulerName, Storage};
use crate::source::{EMBEDDED, is_first_release};
use crate::{references, units};

/// The seed of upstream's configurations.
const SEED: u64 = 42;

/// Most loops of a video.
const MAX_LOOPS: usize = 10_000;

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
    /// The text encoder's.
    pub text_storage: Storage,
    /// Loops of every video.
    pub n_loops: usize,
    /// Frames that a loop begins with and the one before ends with; less than a loop has.
    pub condition_frames: usize,
    /// Their edit ratio.
    pub condition_edit: f32,
}

/// Checks of the numbers that need no model.
pub(crate) fn check(options: &SampleOptions) -> Outcome<()> {
    let positive = [
        ("--num-sample", options.num_sample),
        ("--batch-size", options.batch_size),
        ("--frame-interval", options.frame_interval),
        ("--num-sampling-steps", options.num_sampling_steps),
        ("--cfg-channel", options.cfg_channel),
        ("--loop", options.n_loops),
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
    if let Some(ratio) = options.condition_frame_edit.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
        return Err(Failure::usage(format!("--condition-frame-edit {ratio}; expected 0 to 1")));
    }
    let n_loops = options.n_loops.unwrap_or(1);
    if n_loops > MAX_LOOPS {
        return Err(Failure::usage(format!("--loop {n_loops}; expected at most {MAX_LOOPS}")));
    }
    if n_loops > 1 && options.scheduler == Some(SchedulerName::DpmSolver) {
        return Err(Failure::usage("--loop: dpm-solver cannot keep given frames; use iddpm"));
    }
    if n_loops > 1 && options.save_latents.is_some() {
        return Err(Failure::usage("--save-latents is for videos of one loop; leave out --loop"));
    }
    if let Some(storage) = options.text_dtype {
        storage.text_dtype()?;
    }
    size(options)?;
    memory(options)?;
    Ok(())
}

/// The memory that the options allow, in bytes.
pub(crate) fn memory(options: &SampleOptions) -> Outcome<Option<usize>> {
    options.memory.as_deref().map(parse_memory).transpose()
}

/// What `--memory` was given, in bytes.
pub(crate) fn parse_memory(text: &str) -> Outcome<usize> {
    units::parse_bytes(text).ok_or_else(|| {
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
        let own_scale = model.default("scheduler", "cfg_scale");
        let own_channel = model.default("scheduler", "cfg_channel").map(|count| count as usize);
        // The configurations that came with 1.0 and 1.1 guide three channels.
        let released_channel = (own_scale.is_none() || is_first_release(model)).then_some(3);
        let storage = options.dtype.unwrap_or(Storage::F32);
        let text_storage = options.text_dtype.unwrap_or(Storage::F32);
        let n_loops = options.n_loops.unwrap_or(1);
        let condition_frames = options.condition_frame_length.unwrap_or((num_frames / 4).max(1));
        if n_loops > 1 && !(1..num_frames).contains(&condition_frames) {
            return Err(Failure::usage(format!(
                "--condition-frame-length {condition_frames}; loops of {num_frames} frames share at \
                 least 1 and fewer than {num_frames}"
            )));
        }
        let settings = Settings {
            request: Request {
                rows: options.batch_size.unwrap_or(1),
                num_frames,
                height,
                width,
                fps,
                dtype: storage.dtype(),
                text_dtype: text_storage.dtype(),
                frame_mask: false,
            },
            kind,
            steps,
            cfg_scale: options.cfg_scale.or(own_scale).unwrap_or(7.0),
            cfg_channel: options.cfg_channel.or(own_channel).or(released_channel),
            seed: options.seed.unwrap_or(SEED),
            save_fps,
            storage,
            text_storage,
            n_loops,
            condition_frames,
            condition_edit: options.condition_frame_edit.unwrap_or(0.0) as f32,
        };
        settings.request.latent(model)?;
        Ok(settings)
    }

    /// Frames of a video of all loops.
    pub(crate) fn total_frames(&self) -> usize {
        let per_loop = self.request.num_frames;
        let further =
            (self.n_loops - 1).saturating_mul(per_loop - self.condition_frames.min(per_loop));
        per_loop.saturating_add(further)
    }

    /// The sampler's tables.
    pub(crate) fn scheduler(&self, model: &Model) -> Outcome<Scheduler> {
        let transformer = &model.transformer;
        Ok(Scheduler::new(self.kind, self.steps, self.cfg_scale, self.cfg_channel, transformer)?)
    }

    /// What `kino sample --from` needs to sample video `sample_index` again, as JSON. `prompt` is the
    /// number of its prompt in the list.
    pub(crate) fn to_json(
        &self,
        options: &SampleOptions,
        prompt: usize,
        sample_index: u64,
    ) -> String {
        let [reference_path, mask_strategy] = references::of_prompt(options, prompt)
            .map(|text| (!text.is_empty()).then(|| text.to_string()).into_iter().collect());
        let request = &self.request;
        let embedded = options.ckpt_path.is_none().then(|| EMBEDDED.to_string());
        let is_long = self.n_loops > 1;
        let full = SampleOptions {
            model: options.model.clone().or(embedded),
            ckpt_path: options.ckpt_path.clone(),
            vae: options.vae.clone(),
            text_encoder: options.text_encoder.clone(),
            tokenizer: options.tokenizer.clone(),
            no_clean_caption: options.no_clean_caption,
            initial_noise: options.initial_noise.clone(),
            reference_path,
            mask_strategy,
            n_loops: is_long.then_some(self.n_loops),
            condition_frame_length: is_long.then_some(self.condition_frames),
            condition_frame_edit: is_long.then_some(f64::from(self.condition_edit)),
            dtype: Some(self.storage),
            text_dtype: (self.text_storage != Storage::F32).then_some(self.text_storage),
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
        serde_json::Value::Object(full.layer()).to_string()
    }
}
