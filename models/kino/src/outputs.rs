//! Where videos go: the file of each, its format, and folders made for them.

use std::fs;
use std::path::{Path, PathBuf};

use media::Format;

use crate::failure::{Failure, Outcome};
use crate::options::{FormatName, SampleOptions};
use crate::prompts::Prompt;

/// Folder of outputs without `--output` and `--save-dir`.
const SAVE_DIR: &str = "samples";

/// Most videos of one run.
const MAX_VIDEOS: usize = 100_000;

/// One video to sample.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Which of the prompts in hand.
    pub prompt: usize,
    /// Its number among all videos of the list of prompts, which chooses its noise.
    pub sample_index: u64,
    /// Where it goes.
    pub path: PathBuf,
    /// As what.
    pub format: Format,
}

/// Folders that were made for outputs. Dropped, it removes those that stayed empty.
#[derive(Debug, Default)]
pub(crate) struct MadeFolders(Vec<PathBuf>);

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // A folder with something in it stays, which is the point.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl MadeFolders {
    /// Makes `folder` and what is missing above it.
    fn make(&mut self, folder: &Path) -> Outcome<()> {
        let missing = folder.ancestors().take_while(|folder| !folder.exists());
        self.0
            .extend(missing.filter(|folder| !folder.as_os_str().is_empty()).map(Path::to_path_buf));
        fs::create_dir_all(folder).map_err(|error| {
            let error = anyhow::Error::from(error);
            Failure::Run(error.context(format!("cannot make the folder {}", folder.display())))
        })
    }
}

/// Refuses an output that cannot be, as far as that is known without a model.
pub(crate) fn check(options: &SampleOptions, n_videos: usize) -> Outcome<()> {
    if n_videos > MAX_VIDEOS {
        let reason = format!("{n_videos} videos; expected at most {MAX_VIDEOS} in one run");
        return Err(Failure::Usage(reason));
    }
    if let Some(path) = &options.output {
        for (flag, is_given) in [
            ("--save-dir", options.save_dir.is_some()),
            ("--sample-name", options.sample_name.is_some()),
            ("--format", options.format.is_some()),
        ] {
            if is_given {
                return Err(Failure::usage(format!(
                    "{flag} names outputs that --output names too"
                )));
            }
        }
        if n_videos > 1 {
            return Err(Failure::usage(format!(
                "--output names one file, {n_videos} videos are asked for; use --save-dir"
            )));
        }
        media::check_writable(path, Format::from_path(path)?)?;
    }
    if let Some(name) = &options.sample_name
        && (name.is_empty() || name.contains(['/', '\\', '\0']))
    {
        return Err(Failure::usage(format!("--sample-name {name:?}; expected a plain file name")));
    }
    if let Some(path) = &options.save_latents {
        // Any format of one file has the same demands.
        media::check_writable(path, Format::Png)?;
    }
    Ok(())
}

/// Every video with its file, which is checked to be writable; `size` is that of a frame, height
/// first.
pub(crate) fn jobs(
    options: &SampleOptions,
    prompts: &[Prompt],
    num_frames: usize,
    [height, width]: [usize; 2],
) -> Outcome<(Vec<Job>, MadeFolders)> {
    let num_sample = options.num_sample.unwrap_or(1);
    let mut made = MadeFolders::default();
    let folder = options.save_dir.clone().unwrap_or_else(|| SAVE_DIR.into());
    if options.output.is_none() {
        made.make(&folder)?;
    }
    let name = options.sample_name.as_deref().unwrap_or("sample");
    let first = options.sample_index;
    let mut jobs = Vec::new();
    for (at, prompt) in prompts.iter().enumerate() {
        for k in 0..num_sample {
            // The list decides, not the part of it that this run samples.
            let in_list = (prompt.index * num_sample + k) as u64;
            let sample_index = first.map_or(in_list, |first| first.saturating_add(in_list));
            let (path, format) = match &options.output {
                Some(path) => (path.clone(), Format::from_path(path)?),
                None => {
                    let (format, extension) = format(options.format, num_frames);
                    let suffix = if num_sample > 1 { format!("-{k}") } else { String::new() };
                    let file = format!("{name}_{:04}{suffix}{extension}", prompt.index);
                    (folder.join(file), format)
                }
            };
            let dim = |dim: usize| u32::try_from(dim).unwrap_or(u32::MAX);
            format.check_size(&path, dim(width), dim(height))?;
            if format == Format::Png && num_frames > 1 {
                return Err(Failure::usage(format!(
                    "{} holds one frame, the video has {num_frames}: choose .mp4, .gif, .webp, \
                     .sheet.png or a folder, or --num-frames 1",
                    path.display()
                )));
            }
            media::check_writable(&path, format)?;
            jobs.push(Job { prompt: at, sample_index, path, format });
        }
    }
    Ok((jobs, made))
}

/// Format and what a name ends in.
fn format(name: Option<FormatName>, num_frames: usize) -> (Format, &'static str) {
    match name {
        None if num_frames == 1 => (Format::Png, ".png"),
        None | Some(FormatName::Mp4) => (Format::Mp4, ".mp4"),
        Some(FormatName::Png) => (Format::Png, ".png"),
        Some(FormatName::Gif) => (Format::Gif, ".gif"),
        Some(FormatName::Webp) => (Format::WebP, ".webp"),
        Some(FormatName::Frames) => (Format::Folder, ""),
        Some(FormatName::Sheet) => (Format::ContactSheet, ".sheet.png"),
    }
}
