//! The data set as a folder: clips, tables, buckets, and whose art it is.
//!
//! ```text
//! clips/zombie_run_left_green-grass/frame_0000.png ...     or .mp4
//! data.csv, train.csv, held_out.csv, frames.csv
//! buckets.toml
//! README.md
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use media::{Clip, Format, Fps, Metadata, PartFolder};

use super::captions::Subject;
use super::figure::Figure;
use super::{ACTIONS, CREATURES, DIRECTIONS, FPS, GROUNDS, N_FRAMES, SIDE};
use crate::{Error, Result};

/// Of all clips, each so manyth is held out. The embedded model has not seen those either.
const HELD_OUT_EVERY: usize = 20;

/// Where distributions install the game's art.
const INSTALLED: [&str; 3] =
    ["/usr/share/games/flare/mods", "/usr/share/flare/mods", "/usr/local/share/flare/mods"];

/// Columns of the tables.
const COLUMNS: [&str; 15] = [
    "path",
    "text",
    "num_frames",
    "height",
    "width",
    "aspect_ratio",
    "resolution",
    "fps",
    "text_2",
    "text_3",
    "creature",
    "action",
    "direction",
    "ground",
    "split",
];

const BUCKETS: &str = "\
# One bucket for all clips; sizes of one's own take clips with as many frames as they have.
release = \"1.1\"
buckets = [{ resolution = \"64x64\", frames = 8, keep = 1.0, batch = 16 }]
";

const README: &str = "\
# Flare clips

Creatures of the Flare game, each in every action, direction and on every ground: 8 frames of 64x64 at 8 a
second. `data.csv` lists all clips with three wordings of their captions, `train.csv` and `held_out.csv` the two
parts; paths are below this folder. Every 20th clip is held out. Of clips that are folders, `frames.csv` lists each
frame to train with as an image.

Derived from art of the Flare project (Clint Bellanger and contributors, https://flarerpg.org), CC-BY-SA 3.0 or
later: scaled, brightened and put on plain grounds. The clips are under the same license, and so is what is
derived from them.
";

/// How clips are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClipFormat {
    /// A folder of PNGs: exact.
    Folder,
    /// H.264, which loses some detail.
    Mp4,
}

/// Which clips are made.
#[derive(Clone, Debug)]
pub struct SetSettings {
    /// Names of creatures; empty for all.
    pub creatures: Vec<String>,
    /// All 8 directions, or the 4 of them that are not diagonal.
    pub n_directions: usize,
    /// How clips are stored.
    pub format: ClipFormat,
}

impl SetSettings {
    /// The clips that are asked for, in the order of the data set.
    ///
    /// # Errors
    /// [`Error::Setting`] for creatures or numbers of directions that there are not.
    pub fn subjects(&self) -> Result<Vec<Subject>> {
        let step = match self.n_directions {
            8 => 1,
            4 => 2,
            n => return Err(Error::Setting(format!("there are 4 or 8 directions, not {n}"))),
        };
        for name in &self.creatures {
            if !CREATURES.iter().any(|creature| creature.name == name) {
                let known = CREATURES.each_ref().map(|creature| creature.name).join(", ");
                let message = format!("no creature is called `{name}`; expected some of {known}");
                return Err(Error::Setting(message));
            }
        }
        let is_wanted = |creature: &usize| {
            let name = CREATURES[*creature].name;
            self.creatures.is_empty() || self.creatures.iter().any(|wanted| wanted == name)
        };
        let mut subjects = Vec::new();
        for creature in (0..CREATURES.len()).filter(is_wanted) {
            for action in 0..ACTIONS.len() {
                for direction in (0..DIRECTIONS.len()).step_by(step) {
                    let of = |ground| Subject { creature, action, direction, ground };
                    subjects.extend((0..GROUNDS.len()).map(of));
                }
            }
        }
        Ok(subjects)
    }
}

/// What was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrittenSet {
    /// Clips to train with.
    pub n_train: usize,
    /// Clips held out.
    pub n_held_out: usize,
}

/// The folder with the game's art: `path`, or the folder `mods` in it, or where distributions install it.
///
/// # Errors
/// [`Error::Flare`] tells how to install it.
pub fn find_art(path: Option<&Path>) -> Result<PathBuf> {
    let candidates: Vec<PathBuf> = match path {
        Some(path) => vec![path.to_owned(), path.join("mods")],
        None => INSTALLED.map(PathBuf::from).into(),
    };
    let has_art = |folder: &&PathBuf| folder.join("fantasycore/animations").is_dir();
    candidates.iter().find(has_art).cloned().ok_or_else(|| Error::Flare {
        path: candidates[0].clone(),
        reason:
            "has no art of the Flare game (fantasycore/animations); install the package flare-game \
                 (Debian: apt-get install flare-game), or name the folder that holds its mods"
                .into(),
    })
}

/// Makes the data set as folder `out`, of art below `art`, with `n_threads` threads, which do not change
/// it; `each` is told how many clips are done, and of how many. `out` appears whole or not at all.
///
/// # Errors
/// [`Error::Setting`] for creatures that there are not, [`Error::Flare`], [`Error::Media`], [`Error::Io`],
/// [`Error::Interrupted`].
pub fn write_set(
    art: &Path,
    out: &Path,
    settings: &SetSettings,
    n_threads: usize,
    stop: &AtomicBool,
    each: impl Fn(usize, usize) + Sync,
) -> Result<WrittenSet> {
    let subjects = settings.subjects()?;
    media::check_writable(out, Format::Folder)?;
    let folder = PartFolder::create(out).map_err(io(out, "create a folder beside it"))?;
    let clips = folder.path().join("clips");
    std::fs::create_dir(&clips).map_err(io(&clips, "create it"))?;

    let n_done = AtomicUsize::new(0);
    render(art, &subjects, n_threads, stop, |subject, rgb| {
        write_clip(subject, rgb, settings.format, &clips)?;
        each(n_done.fetch_add(1, Ordering::Relaxed) + 1, subjects.len());
        Ok(())
    })?;

    let (held_out, train): (Vec<Subject>, Vec<Subject>) =
        subjects.iter().copied().partition(|&subject| is_held_out(subject));
    for (name, part) in
        [("data.csv", &subjects), ("train.csv", &train), ("held_out.csv", &held_out)]
    {
        let path = folder.path().join(name);
        media::write_file(&path, table(part, settings.format).as_bytes())?;
    }
    if settings.format == ClipFormat::Folder {
        media::write_file(&folder.path().join("frames.csv"), frames(&train).as_bytes())?;
    }
    for (name, text) in [("buckets.toml", BUCKETS), ("README.md", README)] {
        media::write_file(&folder.path().join(name), text.as_bytes())?;
    }
    folder.commit().map_err(io(out, "give the folder its name"))?;
    Ok(WrittenSet { n_train: train.len(), n_held_out: held_out.len() })
}

/// Draws clips of art below `art` with `n_threads` threads: `each` gets RGB `[T, H, W, 3]` of every subject. Creatures
/// come in any order, and several at once; clips of one come in the order of `subjects`, where they follow each other.
///
/// # Errors
/// [`Error::Flare`], [`Error::Media`], [`Error::Io`], [`Error::Interrupted`], and what `each` returns.
pub fn render(
    art: &Path,
    subjects: &[Subject],
    n_threads: usize,
    stop: &AtomicBool,
    each: impl Fn(Subject, &[u8]) -> Result<()> + Sync,
) -> Result<()> {
    let creatures: Vec<&[Subject]> = subjects.chunk_by(|a, b| a.creature == b.creature).collect();
    let next = AtomicUsize::new(0);
    // The first creature that failed. Those before it go on, so that which failure is told does not depend on threads.
    let failed_at = AtomicUsize::new(usize::MAX);
    let draw = |index: usize, of_creature: &[Subject]| -> Result<()> {
        let layers = CREATURES[of_creature[0].creature].layers;
        let figure = Figure::open(art, layers, &ACTIONS.each_ref().map(|action| action.animation))?;
        for &subject in of_creature {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if failed_at.load(Ordering::Relaxed) < index {
                return Ok(());
            }
            let color = GROUNDS[subject.ground].1;
            let animation = ACTIONS[subject.action].animation;
            each(subject, &figure.clip(animation, subject.direction, color)?)?;
        }
        Ok(())
    };
    let work = || -> Option<(usize, Error)> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = draw(index, creatures.get(index)?) {
                failed_at.fetch_min(index, Ordering::Relaxed);
                return Some((index, error));
            }
        }
    };
    let failures: Vec<Option<(usize, Error)>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads.max(1)).map(|_| scope.spawn(work)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Option<(usize, Error)>>| {
            thread.join().unwrap_or(Some((0, Error::Interrupted)))
        };
        threads.into_iter().map(join).collect()
    });
    match failures.into_iter().flatten().min_by_key(|(index, _)| *index) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// The captions of every clip that there can be, in the order of the data set: three wordings of each.
pub fn captions() -> Vec<[String; 3]> {
    let all = SetSettings { creatures: vec![], n_directions: 8, format: ClipFormat::Folder };
    let subjects = all.subjects().expect("nothing is asked for that there is not");
    subjects.into_iter().map(Subject::captions).collect()
}

fn is_held_out(subject: Subject) -> bool {
    subject.index().is_multiple_of(HELD_OUT_EVERY)
}

fn write_clip(subject: Subject, rgb: &[u8], format: ClipFormat, folder: &Path) -> Result<()> {
    let clip = Clip::new(N_FRAMES, SIDE, SIDE, rgb, Fps::new(FPS, 1)?)?;
    let mut metadata = Metadata::new();
    let [caption, ..] = subject.captions();
    metadata.push("prompt", &caption)?;
    let (path, format) = match format {
        ClipFormat::Folder => (folder.join(subject.slug()), Format::Folder),
        ClipFormat::Mp4 => (folder.join(subject.slug() + ".mp4"), Format::Mp4),
    };
    media::write(&path, &clip, &metadata, format)?;
    Ok(())
}

/// The table of some clips. No cell has a quote or a line break; captions have commas.
fn table(subjects: &[Subject], format: ClipFormat) -> String {
    let mut csv = COLUMNS.join(",") + "\n";
    let ending = match format {
        ClipFormat::Folder => "",
        ClipFormat::Mp4 => ".mp4",
    };
    for &subject in subjects {
        let [first, second, third] = subject.captions().map(|caption| format!("\"{caption}\""));
        let cells = [
            format!("clips/{}{ending}", subject.slug()),
            first,
            N_FRAMES.to_string(),
            SIDE.to_string(),
            SIDE.to_string(),
            "1.0".into(),
            (SIDE * SIDE).to_string(),
            FPS.to_string(),
            second,
            third,
            CREATURES[subject.creature].name.into(),
            ACTIONS[subject.action].name.into(),
            DIRECTIONS[subject.direction].into(),
            GROUNDS[subject.ground].0.into(),
            if is_held_out(subject) { "held_out".into() } else { "train".into() },
        ];
        csv += &(cells.join(",") + "\n");
    }
    csv
}

/// The table of the frames of some clips that are folders. An image has no rate.
fn frames(subjects: &[Subject]) -> String {
    let mut csv = "path,text,num_frames,height,width\n".to_string();
    for &subject in subjects {
        let [caption, ..] = subject.captions();
        for frame in 0..N_FRAMES {
            let path = format!("clips/{}/frame_{frame:04}.png", subject.slug());
            csv += &format!("{path},\"{caption}\",1,{SIDE},{SIDE}\n");
        }
    }
    csv
}

fn io<'a>(path: &'a Path, action: &'static str) -> impl Fn(std::io::Error) -> Error + 'a {
    move |source| Error::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Table;

    fn settings(creatures: &[&str], n_directions: usize) -> SetSettings {
        let creatures = creatures.iter().map(ToString::to_string).collect();
        SetSettings { creatures, n_directions, format: ClipFormat::Folder }
    }

    /// The embedded model was trained with 244 of these 256.
    #[test]
    fn the_split_is_that_of_the_embedded_model() {
        let four = settings(&["zombie", "minotaur", "fire ant", "hobgoblin"], 4);
        let subjects = four.subjects().unwrap();
        let n_held_out = subjects.iter().filter(|&&subject| is_held_out(subject)).count();
        assert_eq!((subjects.len(), n_held_out), (256, 12));
    }

    #[test]
    fn what_there_is_not_is_refused() {
        let error = settings(&["zombi"], 8).subjects().unwrap_err().to_string();
        assert!(error.contains("`zombi`; expected some of goblin, zombie"), "{error}");
        assert!(settings(&[], 5).subjects().unwrap_err().is_usage());
        let folder = tempfile::tempdir().unwrap();
        let error = find_art(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("apt-get install flare-game"), "{error}");
    }

    #[test]
    fn tables_can_be_read() {
        let subjects = settings(&[], 8).subjects().unwrap();
        let csv = table(&subjects, ClipFormat::Mp4);
        let table = Table::parse(csv.as_bytes(), Path::new("data.csv"), None).unwrap();
        assert_eq!(table.rows().len(), 1280);
        let row = &table.rows()[0];
        assert_eq!(row.path, Path::new("clips/goblin_stand_left_green-grass.mp4"));
        assert_eq!(row.text, "a goblin stands facing left on green grass");
        assert_eq!((row.fps, table.sizes().unwrap()[9].width), (Some(8.0), 64));
        let csv = frames(&subjects[..2]);
        let images = Table::parse(csv.as_bytes(), Path::new("frames.csv"), None).unwrap();
        assert_eq!(images.rows().len(), 2 * N_FRAMES);
        let frame = &images.rows()[7].path;
        assert_eq!(frame, Path::new("clips/goblin_stand_left_green-grass/frame_0007.png"));
        let file = crate::BucketFile::parse(BUCKETS).unwrap();
        let taken = file.buckets.assign(table.sizes().unwrap()[5], file.frame_interval, 3);
        assert!(taken.is_some(), "the buckets of the set take its clips");
    }
}
