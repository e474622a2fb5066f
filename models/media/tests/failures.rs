//! What goes wrong leaves nothing behind and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the functions shared by tests are tests too"
)]

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use media::{
    Clip, Error, Format, Fps, MediaWriter, Metadata, check_writable, read_metadata, write,
};

const FORMATS: [Format; 6] =
    [Format::Mp4, Format::Png, Format::Gif, Format::WebP, Format::Folder, Format::ContactSheet];

fn fps() -> Fps {
    Fps::new(8, 1).unwrap()
}

fn create(path: &Path, format: Format, size: [u32; 2]) -> media::Result<MediaWriter> {
    MediaWriter::create(path, format, size, fps(), &Metadata::new())
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn dropping_the_writer_leaves_nothing_and_keeps_the_old_file() {
    for format in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        if format != Format::Folder {
            fs::write(&path, "old").unwrap();
        }
        let before = entries(folder.path());
        let mut writer = create(&path, format, [16, 16]).unwrap();
        writer.push(&[7; 16 * 16 * 3]).unwrap();
        assert!(entries(folder.path()).len() > before.len(), "{format:?} writes beside its target");
        drop(writer);
        assert_eq!(entries(folder.path()), before, "{format:?}");
        if format != Format::Folder {
            assert_eq!(fs::read(&path).unwrap(), b"old");
        }
    }
}

#[test]
fn a_stopped_finish_leaves_nothing() {
    for format in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut writer = create(&path, format, [16, 16]).unwrap();
        writer.push(&[7; 16 * 16 * 3]).unwrap();
        let error = writer.finish_unless(&AtomicBool::new(true)).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{format:?}: {error}");
        assert!(entries(folder.path()).is_empty(), "{format:?}");
    }
}

#[test]
fn no_frames_is_an_error_without_a_file() {
    for format in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let writer = create(&folder.path().join("out"), format, [16, 16]).unwrap();
        assert!(matches!(writer.finish(), Err(Error::FrameCount { found: 0, .. })), "{format:?}");
        assert!(entries(folder.path()).is_empty());
    }
}

#[test]
fn png_refuses_a_second_frame_and_names_other_formats() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let rgb = [0; 2 * 4 * 4 * 3];
    let clip = Clip::new(2, 4, 4, &rgb, fps()).unwrap();
    let message = write(&path, &clip, &Metadata::new(), Format::Png).unwrap_err().to_string();
    assert!(message.contains("a.png") && message.contains(".sheet.png"), "{message}");
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn frames_of_another_size_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = create(&folder.path().join("a.gif"), Format::Gif, [16, 16]).unwrap();
    assert!(matches!(
        writer.push(&[0; 5]),
        Err(Error::FrameLength { expected: 768, found: 5, .. })
    ));
}

#[test]
fn sizes_past_the_format_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for (format, size) in [
        (Format::Mp4, [4096, 2160]),
        (Format::Mp4, [8, 8]),
        (Format::WebP, [16_385, 16]),
        (Format::Gif, [65_536, 16]),
        (Format::Png, [0, 16]),
    ] {
        let error = create(&folder.path().join("out"), format, size).unwrap_err();
        assert!(matches!(error, Error::FrameSize { .. }), "{error}");
    }
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn occupied_and_missing_places_are_found_before_the_computation() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("frames");
    fs::create_dir(&inside).unwrap();
    fs::write(inside.join("note.txt"), "mine").unwrap();
    fs::write(folder.path().join("file"), "mine").unwrap();
    for (path, format, part) in [
        (folder.path().join("none/a.mp4"), Format::Mp4, "its folder must be there"),
        (inside.clone(), Format::Mp4, "is a folder"),
        (inside, Format::Folder, "not empty"),
        (folder.path().join("file"), Format::Folder, "is a file"),
        (folder.path().join("file/a.mp4"), Format::Mp4, "another folder"),
        (folder.path().join("x".repeat(300) + ".mp4"), Format::Mp4, "shorter"),
    ] {
        for error in [
            check_writable(&path, format).unwrap_err(),
            create(&path, format, [16, 16]).unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(message.contains(part), "{message}");
            assert!(message.starts_with(&path.display().to_string()), "{message}");
        }
    }
    assert_eq!(entries(folder.path()).len(), 2);
    check_writable(&folder.path().join("new.mp4"), Format::Mp4).unwrap();
    assert_eq!(entries(folder.path()).len(), 2);
}

#[cfg(unix)]
#[test]
fn devices_are_not_replaced() {
    for path in ["/dev/null", "/dev/full"] {
        let error = check_writable(Path::new(path), Format::Mp4).unwrap_err();
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
    }
}

/// The folder that the limited child writes to; only set in the child.
const LIMITED: &str = "MEDIA_TEST_LIMITED_FOLDER";

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_and_names_the_path() {
    if let Some(folder) = std::env::var_os(LIMITED) {
        return write_all_formats_into(Path::new(&folder));
    }
    // A limit on file size makes writes fail halfway as a full disk does, without one being needed. The
    // signal is ignored, so that the write returns an error instead.
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_leaves_nothing_and_names_the_path", "--nocapture"])
        .env(LIMITED, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("6 formats failed cleanly"), "{text}");
    assert!(entries(folder.path()).is_empty());
}

#[cfg(unix)]
fn write_all_formats_into(folder: &Path) {
    // Noise, so that no format fits it into the limit.
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let frame: Vec<u8> = (0..128 * 128 * 3).map(|_| noise()).collect();
    for format in FORMATS {
        let path = folder.join("out");
        let frames = if format == Format::Png { 1 } else { 20 };
        let clip = frame.repeat(frames);
        let clip = Clip::new(frames, 128, 128, &clip, fps()).unwrap();
        let error = write(&path, &clip, &Metadata::new(), format).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{format:?}: {error:?}");
        assert!(error.to_string().contains("out"), "{error}");
        assert!(entries(folder).is_empty(), "{format:?}: {:?}", entries(folder));
    }
    println!("{} formats failed cleanly", FORMATS.len());
}

#[test]
fn files_without_our_metadata_are_told_apart_from_damaged_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    for format in FORMATS {
        if format == Format::Folder {
            continue;
        }
        let mut writer = create(&path, format, [16, 16]).unwrap();
        writer.push(&[7; 16 * 16 * 3]).unwrap();
        writer.finish().unwrap();
        let error = read_metadata(&path).unwrap_err();
        assert!(matches!(error, Error::NoMetadata { .. }), "{format:?}: {error}");
    }
    fs::write(&path, "plain text, no media").unwrap();
    assert!(matches!(read_metadata(&path), Err(Error::Malformed { .. })));
    assert!(matches!(read_metadata(&folder.path().join("none")), Err(Error::Io { .. })));
}
