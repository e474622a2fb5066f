//! The samples of a run in its page: pictures are inside, the newest first where there is no room for all.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use training::run_log::{Validation, png_size};

use crate::base64;
use crate::svg::xml;
use crate::train_summary::Summary;

/// Most bytes of pictures inside the page. The newest are inside, others are named.
const MAX_PICTURES: u64 = 32 << 20;

/// Sampled videos: a heading for each prompt, below it what was sampled from update to update.
pub(crate) fn html(folder: &Path, summary: &Summary<'_>) -> String {
    let mut room = MAX_PICTURES;
    // The newest are inside where not all can be.
    let mut figures: Vec<(&Validation, String)> = Vec::new();
    for &validation in summary.validations.iter().rev() {
        figures.push((validation, figure(folder, validation, &mut room)));
    }
    figures.reverse();
    let mut prompts: Vec<&str> = Vec::new();
    for (validation, _) in &figures {
        if !prompts.contains(&validation.prompt.as_str()) {
            prompts.push(&validation.prompt);
        }
    }
    let mut text = String::new();
    for prompt in prompts {
        let _ = writeln!(text, "<h3>{}</h3>\n<div class=\"samples\">", xml(prompt));
        for (_, figure) in figures.iter().filter(|(of, _)| of.prompt == prompt) {
            text += figure;
        }
        text += "</div>\n";
    }
    if text.is_empty() { "<p>None were taken.</p>\n".into() } else { text }
}

fn figure(folder: &Path, validation: &Validation, room: &mut u64) -> String {
    let Validation { step, prompt, file, frames_png } = validation;
    let image = match picture(folder, frames_png.as_ref().unwrap_or(file), *room) {
        Ok((kind, bytes)) => {
            *room -= bytes.len() as u64;
            // Frames of a small model are a few pixels on most screens.
            let width = png_size(&bytes).map(|[width, _]| width).filter(|width| *width > 0);
            let doubled = width.filter(|width| *width <= 560).map(|width| width * 2);
            let width = doubled.map_or(String::new(), |width| format!(" width=\"{width}\""));
            format!(
                "<img{width} alt=\"{}, update {step}\" src=\"data:{kind};base64,{}\">",
                xml(prompt),
                base64::encode(&bytes)
            )
        }
        Err(reason) => format!("<p>{}</p>", xml(&reason)),
    };
    let file = xml(file);
    format!("<figure>{image}<figcaption>update {step}: {file}</figcaption></figure>\n")
}

/// The bytes of a picture below `folder` and what kind it is, or why it is not in the page.
fn picture(folder: &Path, name: &str, room: u64) -> Result<(&'static str, Vec<u8>), String> {
    let path = below(folder, name).ok_or_else(|| format!("{name}: not in the run's folder"))?;
    let read = || {
        let mut bytes = Vec::new();
        File::open(&path)?.take(room.saturating_add(1)).read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    let bytes = read().map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() as u64 > room {
        return Err(format!("{name}: left out, the page has many pictures"));
    }
    let kind = match bytes.as_slice() {
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        bytes if png_size(bytes).is_some() => "image/png",
        _ => return Err(format!("{name}: no picture")),
    };
    Ok((kind, bytes))
}

/// The path of `name` if it cannot be outside of `folder`: a log may come from anybody.
pub(crate) fn below(folder: &Path, name: &str) -> Option<PathBuf> {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    Path::new(name).components().all(is_plain).then(|| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_run_get_into_the_page() {
        let folder = Path::new("run");
        assert_eq!(below(folder, "samples/a.png"), Some(folder.join("samples/a.png")));
        for name in ["../a.png", "samples/../../a.png", "/a.png", "./a.png"] {
            assert_eq!(below(folder, name), None, "{name}");
        }
    }
}
