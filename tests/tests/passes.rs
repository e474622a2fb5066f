//! Runs every `ir/<pass>/*.ir`: the graph above `==== expect`, the passes of its first line, and the
//! text that must come out. `UPDATE_EXPECT=1` writes the lower half.

use std::fs;
use std::path::{Path, PathBuf};

use compiler::{PIPELINE, passes, pipeline_through, run_passes};

const SEPARATOR: &str = "==== expect\n";

fn ir_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ir")
}

/// Cases below `ir`, sorted: the name of the folder and the file.
fn cases() -> Vec<(String, PathBuf)> {
    let mut cases = Vec::new();
    for folder in sorted(&ir_dir()) {
        let name = folder.file_name().unwrap().to_str().unwrap().to_string();
        cases.extend(sorted(&folder).into_iter().map(|file| (name.clone(), file)));
    }
    cases
}

fn sorted(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn ir_files_give_what_they_expect() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut wrong = Vec::new();
    for (_, path) in cases() {
        let text = fs::read_to_string(&path).unwrap();
        let (input, expected) = text.split_once(SEPARATOR).unwrap_or((&text, ""));
        let header = input.lines().next().unwrap();
        let names = header.strip_prefix("// passes: ").expect("line 1 is `// passes: a, b`");
        let names: Vec<&str> = names.split(", ").collect();
        let graph = ops::parse(input).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let passes = passes(&names).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let found = run_passes(graph, passes, &mut |_| {}).to_string();
        if update {
            fs::write(&path, format!("{}\n{SEPARATOR}{found}", input.trim_end())).unwrap();
        } else if found != expected {
            wrong.push(format!("{}\nexpected:\n{expected}found:\n{found}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE_EXPECT=1 accepts these:\n{}", wrong.join("\n"));
}

#[test]
fn every_pass_has_a_folder_of_cases_that_run_it() {
    let cases = cases();
    for pass in PIPELINE {
        let folder = pass.name.replace('-', "_");
        let own: Vec<&PathBuf> =
            cases.iter().filter(|(name, _)| *name == folder).map(|(_, file)| file).collect();
        assert!(!own.is_empty(), "no case in ir/{folder}");
        for file in own {
            let text = fs::read_to_string(file).unwrap();
            let header = text.lines().next().unwrap();
            assert!(header.contains(pass.name), "{} does not run {}", file.display(), pass.name);
        }
    }
    for (folder, file) in &cases {
        let known = PIPELINE.iter().any(|pass| pass.name.replace('-', "_") == *folder);
        assert!(known, "{} is for no pass", file.display());
        let n_lines = fs::read_to_string(file).unwrap().lines().count();
        assert!(n_lines <= 45, "{} has {n_lines} lines: one idea a file", file.display());
    }
}

#[test]
fn an_unknown_pass_is_refused_with_the_known_names() {
    let error = passes(&["canonicalize", "fuse-everything"]).unwrap_err().to_string();
    assert!(error.contains("fuse-everything"), "{error}");
    for pass in PIPELINE {
        assert!(error.contains(pass.name), "{error} lacks {}", pass.name);
    }
}

#[test]
fn the_pipeline_stops_after_a_named_pass() {
    let part = pipeline_through("simplify-algebra").unwrap();
    assert_eq!(part.last().unwrap().name, "simplify-algebra");
    assert!(part.len() < PIPELINE.len());
}

#[test]
fn the_observer_hears_of_each_pass_and_whether_it_changed_the_graph() {
    let text = "graph @g {\n  %0 : f32[2] = input \"x\"\n  %1 : f32[2] = neg %0\n  \
                %2 : f32[2] = neg %1\n  return %2\n}\n";
    let mut changed = Vec::new();
    let mut n_stages = 0;
    run_passes(ops::parse(text).unwrap(), PIPELINE, &mut |stage| {
        n_stages += 1;
        if stage.changed {
            changed.push(stage.pass.name);
        }
    });
    assert_eq!(n_stages, PIPELINE.len());
    assert_eq!(changed, ["simplify-algebra", "eliminate-dead-values"]);
}
