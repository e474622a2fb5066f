//! Given frames: `--reference-path` with `--mask-strategy`, or the same at the end of a prompt.
//!
//! Files are opened and rules placed before anything is computed, so that what cannot be is refused
//! first; only the frames that a rule names are decoded to pixels and encoded, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use diffusion::MaskStrategy;
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
    /// For each prompt, for each frame: which picture, and its edit ratio.
    videos: Vec<Option<Vec<Option<(usize, f32)>>>>,
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
        if let Some(last) = strategy.last_loop().filter(|&last| last > 0) {
            return Err(fail(format!("a rule is for loop {last}, a video has loop 0 only")));
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
    /// Places the given frames in videos of `n_frames`.
    pub(crate) fn place(&self, n_frames: usize) -> Outcome<Placed> {
        let mut placed = Vec::new();
        for asked in &self.asked {
            let Some(asked) = asked else {
                placed.push(None);
                continue;
            };
            let lengths: Vec<usize> =
                asked.sources.iter().map(|&source| self.sources[source].n_frames()).collect();
            let frames = asked.strategy.place(0, n_frames, &lengths)?;
            let frames = frames.into_iter().map(|frame| {
                frame.map(|given| ((asked.sources[given.reference], given.frame), given.edit_ratio))
            });
            let frames: Vec<_> = frames.collect();
            placed.push(frames.iter().any(Option::is_some).then_some(frames));
        }
        let needed: BTreeSet<(usize, usize)> =
            placed.iter().flatten().flatten().flatten().map(|(picture, _)| *picture).collect();
        let pictures: Vec<(usize, usize)> = needed.into_iter().collect();
        let index = |picture| pictures.binary_search(&picture).expect("it is among the needed");
        let videos = placed
            .into_iter()
            .map(|video| {
                video.map(|frames| {
                    let numbered = |(picture, ratio)| (index(picture), ratio);
                    frames.into_iter().map(|frame| frame.map(numbered)).collect()
                })
            })
            .collect();
        Ok(Placed { pictures, videos })
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

    /// Whether frames of the videos of `prompt` are given.
    pub(crate) fn is_given(&self, prompt: usize) -> bool {
        self.videos[prompt].is_some()
    }

    /// Given frames of all videos of `prompts`, as text: `8 of 16 frames`.
    pub(crate) fn summary(&self) -> Option<String> {
        let videos: Vec<_> = self.videos.iter().flatten().collect();
        let n_given = |video: &Vec<Option<_>>| video.iter().flatten().count();
        let counts = videos.iter().map(|video| n_given(video));
        let (least, most) = (counts.clone().min()?, counts.max()?);
        let n_frames = videos[0].len();
        let range = if least == most { most.to_string() } else { format!("{least} to {most}") };
        Some(format!("{range} of {n_frames} frames"))
    }

    /// For a batch of videos, one per entry of `prompts`: edit ratios `[rows, T]`, and latents
    /// `[rows, channels, T, h, w]` that hold the given frames. `latents` has one of each picture.
    pub(crate) fn batch(
        &self,
        prompts: &[usize],
        latents: &[Vec<f32>],
        channels: usize,
        n_frames: usize,
        plane: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let mut ratios = vec![1.0; prompts.len() * n_frames];
        let mut given = vec![0.0; prompts.len() * channels * n_frames * plane];
        for (row, &prompt) in prompts.iter().enumerate() {
            for (t, frame) in self.videos[prompt].iter().flatten().enumerate() {
                let Some((picture, ratio)) = *frame else { continue };
                ratios[row * n_frames + t] = ratio;
                for (c, values) in latents[picture].chunks_exact(plane).enumerate() {
                    let at = ((row * channels + c) * n_frames + t) * plane;
                    given[at..at + plane].copy_from_slice(values);
                }
            }
        }
        (ratios, given)
    }
}
