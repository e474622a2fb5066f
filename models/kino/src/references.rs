//! Given frames: `--reference-path` with `--mask-strategy`, or the same at the end of a prompt.
//!
//! Files are opened and rules placed before anything is computed, so that what cannot be is refused
//! first; only the frames that a rule names are decoded to pixels and encoded, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use diffusion::{GivenFrame, MaskStrategy};
use media::FrameSource;

use crate::failure::{Failure, Outcome};
use crate::options::{SampleOptions, SchedulerName};
use crate::prompts::Prompt;

/// The references of all prompts.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// Every file once.
    sources: Vec<FrameSource>,
    /// For each prompt in hand.
    asked: Vec<Option<Asked>>,
}

/// What one prompt asks for.
#[derive(Debug)]
struct Asked {
    /// Its references, of all sources.
    sources: Vec<usize>,
    strategy: MaskStrategy,
}

/// Which frames are given, for videos of one length.
#[derive(Debug)]
pub(crate) struct Placed {
    /// Source and frame of every picture that is needed, ascending.
    pictures: Vec<(usize, usize)>,
    /// For each prompt, by loop: which frames, of which picture, at which edit ratio.
    videos: Vec<Vec<LoopFrames>>,
    n_frames: usize,
    n_loops: usize,
}

/// `(frame, picture, edit ratio)` of the given frames of a loop.
type LoopFrames = Vec<(usize, usize, f32)>;

/// What a batch is given, as the sampler takes it.
#[derive(Debug)]
pub(crate) struct GivenLatents {
    /// f32 `[rows, T]`; 1 where nothing is given.
    pub edit_ratios: Vec<f32>,
    /// f32 `[rows, channels, T, h, w]`; what no frame is given is 0.
    pub latents: Vec<f32>,
    n_frames: usize,
    plane: usize,
}

/// The reference and the strategy that the options give to the prompt numbered `index` of the list;
/// both empty for none.
pub(crate) fn of_prompt(options: &SampleOptions, index: usize) -> [&str; 2] {
    [&options.reference_path, &options.mask_strategy].map(|list| match list.as_slice() {
        [one] => one.as_str(),
        list => list.get(index).map_or("", String::as_str),
    })
}

/// Opens what `prompts`, of a list of `n_listed`, refer to.
pub(crate) fn gather(
    options: &SampleOptions,
    prompts: &[Prompt],
    n_listed: usize,
    interrupt: &AtomicBool,
) -> Outcome<References> {
    for (flag, list) in
        [("--reference-path", &options.reference_path), ("--mask-strategy", &options.mask_strategy)]
    {
        if list.len() > 1 && list.len() != n_listed {
            return Err(Failure::usage(format!(
                "{flag} has {} entries for {n_listed} prompts; give one for all or one for each",
                list.len()
            )));
        }
    }
    let mut references = References::default();
    let mut opened: BTreeMap<&str, usize> = BTreeMap::new();
    for prompt in prompts {
        let suffix = [prompt.reference_path.as_str(), prompt.mask_strategy.as_str()];
        let [paths, strategy] =
            if suffix == ["", ""] { of_prompt(options, prompt.index) } else { suffix };
        let fail =
            |reason: String| Failure::Usage(format!("prompt {}: {reason}", prompt.index + 1));
        match (paths.is_empty(), strategy.is_empty()) {
            (true, true) => {
                references.asked.push(None);
                continue;
            }
            (false, false) => {}
            (false, true) => {
                return Err(fail(
                    "a reference needs --mask-strategy, which says what frames it gives; \"0\" \
                     makes an image the first frame"
                        .into(),
                ));
            }
            (true, false) => {
                return Err(fail(
                    "a mask strategy needs --reference-path to take frames of".into(),
                ));
            }
        }
        if options.scheduler == Some(SchedulerName::DpmSolver) {
            return Err(fail("dpm-solver cannot keep given frames; use iddpm".into()));
        }
        let strategy = MaskStrategy::parse(strategy).map_err(|error| fail(error.to_string()))?;
        let n_loops = options.n_loops.unwrap_or(1);
        if let Some(last) = strategy.last_loop().filter(|&last| last >= n_loops) {
            return Err(fail(format!(
                "a rule is for loop {last}, the video has {n_loops}, counted from 0 (--loop)"
            )));
        }
        let mut sources = Vec::new();
        for path in paths.split(';') {
            let index = match opened.get(path) {
                Some(&index) => index,
                None => {
                    let source = FrameSource::open(Path::new(path), interrupt)?;
                    references.sources.push(source);
                    opened.insert(path, references.sources.len() - 1);
                    references.sources.len() - 1
                }
            };
            sources.push(index);
        }
        references.asked.push(Some(Asked { sources, strategy }));
    }
    Ok(references)
}

impl References {
    /// Places the given frames in videos of `n_loops` loops of `n_frames`.
    pub(crate) fn place(&self, n_frames: usize, n_loops: usize) -> Outcome<Placed> {
        let mut videos = Vec::new();
        for asked in &self.asked {
            let Some(Asked { sources, strategy }) = asked else {
                videos.push(Vec::new());
                continue;
            };
            let lengths: Vec<usize> =
                sources.iter().map(|&source| self.sources[source].n_frames()).collect();
            let loops = (0..n_loops).map(|index| strategy.place(index, n_frames, &lengths));
            let loops: Vec<_> = loops.collect::<Result<_, _>>()?;
            let picture = |given: GivenFrame| (sources[given.reference], given.frame);
            let given = |(t, frame): (usize, Option<GivenFrame>)| {
                frame.map(|given| (t, picture(given), given.edit_ratio))
            };
            let frames = |frames: Vec<_>| -> Vec<_> {
                frames.into_iter().enumerate().filter_map(given).collect()
            };
            videos.push(loops.into_iter().map(frames).collect());
        }
        let all = videos.iter().flatten().flatten();
        let needed: BTreeSet<(usize, usize)> = all.map(|(_, picture, _)| *picture).collect();
        let pictures: Vec<(usize, usize)> = needed.into_iter().collect();
        let index = |picture| pictures.binary_search(&picture).expect("it is among the needed");
        let numbered = |frames: Vec<_>| -> LoopFrames {
            frames.into_iter().map(|(t, picture, ratio)| (t, index(picture), ratio)).collect()
        };
        let videos = videos
            .into_iter()
            .map(|loops: Vec<_>| loops.into_iter().map(numbered).collect())
            .collect();
        Ok(Placed { pictures, videos, n_frames, n_loops })
    }

    /// Calls `each` with the pixels of every picture of `placed`, in order, in frames of `size`
    /// (height first).
    pub(crate) fn read(
        &self,
        placed: &Placed,
        size: [usize; 2],
        interrupt: &AtomicBool,
        mut each: impl FnMut(&[f32]) -> Outcome<()>,
    ) -> Outcome<()> {
        for of_source in placed.pictures.chunk_by(|a, b| a.0 == b.0) {
            let frames: Vec<usize> = of_source.iter().map(|(_, frame)| *frame).collect();
            let source = &self.sources[of_source[0].0];
            source.read(&frames, size, interrupt, |_, pixels| each(&pixels))?;
        }
        Ok(())
    }
}

impl Placed {
    /// Count of pictures to encode.
    pub(crate) fn n_pictures(&self) -> usize {
        self.pictures.len()
    }

    /// Whether frames of the videos of `prompt` are given: by rules, or by the loop before.
    pub(crate) fn is_given(&self, prompt: usize) -> bool {
        self.n_loops > 1 || self.videos[prompt].iter().any(|frames| !frames.is_empty())
    }

    /// `(frame, picture, edit ratio)` of the frames that rules give to loop `index` of the videos of
    /// `prompt`.
    pub(crate) fn frames(
        &self,
        prompt: usize,
        index: usize,
    ) -> impl Iterator<Item = (usize, usize, f32)> {
        self.videos[prompt].get(index).into_iter().flatten().copied()
    }

    /// Frames that rules give, of all frames of a video: `1 of 16 frames`.
    pub(crate) fn summary(&self) -> Option<String> {
        let counts = self.videos.iter().map(|loops| loops.iter().map(Vec::len).sum::<usize>());
        let given = counts.filter(|&count| count > 0);
        let (least, most) = (given.clone().min()?, given.max()?);
        let range = if least == most { most.to_string() } else { format!("{least} to {most}") };
        Some(format!("{range} of {} frames", self.n_frames * self.n_loops))
    }
}

impl GivenLatents {
    /// Nothing, for `rows` videos of `n_frames` latents of `channels` planes.
    pub(crate) fn new(rows: usize, channels: usize, n_frames: usize, plane: usize) -> GivenLatents {
        GivenLatents {
            edit_ratios: vec![1.0; rows * n_frames],
            latents: vec![0.0; rows * channels * n_frames * plane],
            n_frames,
            plane,
        }
    }

    /// Gives frame `t` of row `row` the latent f32 `[channels, h, w]`.
    pub(crate) fn put(&mut self, row: usize, t: usize, latent: &[f32], edit_ratio: f32) {
        self.edit_ratios[row * self.n_frames + t] = edit_ratio;
        let channels = latent.len() / self.plane;
        for (c, values) in latent.chunks_exact(self.plane).enumerate() {
            let at = ((row * channels + c) * self.n_frames + t) * self.plane;
            self.latents[at..at + self.plane].copy_from_slice(values);
        }
    }
}
