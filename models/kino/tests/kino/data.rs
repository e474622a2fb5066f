//! `kino data`: what cannot be made, and what a table holds.

use std::fs;

use media::{Clip, Format, Fps, Metadata};

use crate::program::Program;

#[test]
fn art_that_is_missing_is_told_how_to_get() {
    let program = Program::new();
    let nowhere = ["data", "flare", "--out", "set", "--flare", "nowhere"];
    program.run(&nowhere).failed(1, "apt-get install flare-game");
    fs::create_dir_all(program.path("mods/fantasycore/animations")).unwrap();
    for (args, message) in [
        (["--directions", "5"], "4 or 8 directions"),
        (["--creatures", "zombie,zombi"], "no creature is called `zombi`"),
    ] {
        let args = [&["data", "flare", "--out", "set", "--flare", "."], &args[..]].concat();
        program.run(&args).failed(2, message);
    }
    program.run(&["data", "flare", "--out", "set", "--flare", "."]).failed(1, "goblin.txt");
    assert_eq!(program.files(), ["mods"]);
}

#[test]
fn a_table_is_checked_against_buckets_and_files() {
    let program = Program::new();
    let mut table = String::from("path,text,num_frames,height,width,fps\n");
    for row in 0..3 {
        let rgb = vec![row * 40; 6 * 64 * 64 * 3];
        let clip = Clip::new(6, 64, 64, &rgb, Fps::new(8, 1).unwrap()).unwrap();
        media::write(&program.path(format!("{row}")), &clip, &Metadata::new(), Format::Folder)
            .unwrap();
        table += &format!("{row},a caption,6,64,64,8\n");
    }
    fs::write(program.path("table.csv"), &table).unwrap();
    fs::write(
        program.path("buckets.toml"),
        "buckets = [{ resolution = '64x64', frames = 4, keep = 1.0, batch = 2 },
                    { resolution = '144p', frames = 16, keep = 1.0, batch = 1 }]",
    )
    .unwrap();
    let check = ["data", "check", "table.csv", "--buckets", "buckets.toml"];
    let ran = program.run(&check).done();
    for expected in [
        "   64x64      4      2        3        1  all: 3\n",
        "144p     16      1        0        0  no sample that came to it has 29492 pixels in a frame\n",
        "0 of 3 samples are left out\n",
    ] {
        assert!(ran.stdout.contains(expected), "{expected:?} is not in:\n{}", ran.stdout);
    }
    let ran = program.run(&[&check[..], &["--json"]].concat()).done();
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(found["buckets"][1]["by_aspect"], serde_json::json!({ "all": 3 }));
    assert!(found["buckets"][0]["why_empty"].is_string());
    assert_eq!((&found["samples"], &found["left_out"]), (&3.into(), &0.into()));
    fs::write(program.path("table.csv"), table + "3,a caption,6,64,64,8\n").unwrap();
    let ran = program.run(&check);
    assert!(ran.stdout.contains("line 5: 3: cannot read: "), "{}", ran.stdout);
    ran.failed(1, "table.csv: 1 of 4 files cannot be used");
    program.run(&[&check[..], &["--no-files"]].concat()).done();
    program.run(&[&check[..], &["--root", "no", "--quiet"]].concat()).failed(1, "4 of 4 files");
    let unknown = "buckets = [{ resolution = '7p', frames = 1, keep = 1, batch = 1 }]";
    fs::write(program.path("buckets.toml"), unknown).unwrap();
    program.run(&check).failed(2, "buckets.toml: resolution `7p` is unknown");
    program.run(&["data", "check", "no.csv", "--buckets", "no.toml"]).failed(1, "no.toml");
}
