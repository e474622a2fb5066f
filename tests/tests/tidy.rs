//! Rules of the repository that neither the compiler nor clippy can hold, one test each; what a
//! test prints says where and what to do.
//!
//! A rule is a function of texts, so the last tests show each of them a text that breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Each crate and what it may depend on besides other people's crates; what those may depend on is
/// allowed too. The same as the table of `ARCHITECTURE.md`.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("ops", &[]),
    ("kernels", &["ops"]),
    ("kernels/cuda", &["kernels"]),
    ("compiler", &["kernels"]),
    ("runtime", &["compiler"]),
    ("runtime/aot", &["compiler", "cuda-kernels", "engine"]),
    ("runtime/cuda", &["emulator", "engine", "runtime"]),
    ("runtime/emulator", &[]),
    ("runtime/engine", &["ops"]),
    ("runtime/measure", &["runtime"]),
    ("models", &["ops"]),
    ("models/checkpoint", &["ops"]),
    ("models/data", &["diffusion", "media"]),
    ("models/text", &[]),
    ("models/diffusion", &["ops"]),
    ("models/media", &[]),
    ("models/pipeline", &["checkpoint", "diffusion", "models", "runtime", "text"]),
    ("models/training", &["checkpoint", "diffusion", "models", "runtime"]),
    ("models/training/run", &["data", "pipeline", "training"]),
    ("models/kino", EVERYTHING),
    ("benches", EVERYTHING),
    ("tests", EVERYTHING),
    ("tests/cuda", EVERYTHING),
    ("tests/judge", EVERYTHING),
];

const EVERYTHING: &[&str] = &["everything"];

/// Where unsafe code may be: kernels, what calls them, and what the operating system is asked for.
const MAY_BE_UNSAFE: &[&str] = &[
    "benches/src/product.rs",
    "benches/src/site.rs",
    "kernels/",
    "models/checkpoint/src/blob.rs",
    "models/checkpoint/tests/mutations.rs",
    "runtime/cuda/src/driver/",
    "runtime/engine/src/blob.rs",
    "runtime/src/arena.rs",
    "runtime/src/session.rs",
    "runtime/src/streamed_session.rs",
    "tests/tests/kernels.rs",
];

/// Where something may be printed; also in any folder of tests or examples.
const MAY_PRINT: &[&str] = &["benches/", "models/kino/", "tests/"];

/// Folders that hold no source: what builds and fuzzing leave, and golden vectors.
const SKIPPED: &[&str] = &[
    ".git",
    "target",
    "tests/fuzz/artifacts",
    "tests/fuzz/corpus",
    "tests/fuzz/coverage",
    "tests/fuzz/target",
    "tests/golden",
];

/// This file, which names what it forbids.
const HERE: &str = "tests/tests/tidy.rs";

const MAX_LINES: usize = 800;
const MANY_LINES: usize = 500;

struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn has_ending(&self, ending: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == ending)
    }
}

/// Every text file, by path.
static TEXTS: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let mut texts = vec![];
    walk(&root(), "", &mut texts);
    texts.sort_by(|a: &Source, b| a.path.cmp(&b.path));
    assert!(texts.len() > 100, "only {} files below {}", texts.len(), root().display());
    texts
});

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn walk(folder: &Path, path: &str, texts: &mut Vec<Source>) {
    // Cargo marks its target folders so, whatever they are called.
    if folder.join("CACHEDIR.TAG").exists() {
        return;
    }
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries.flatten() {
        let name = entry.file_name().into_string().expect("names in the repository are UTF-8");
        let path = if path.is_empty() { name } else { format!("{path}/{name}") };
        // `.git` is a file in a worktree.
        if SKIPPED.contains(&path.as_str()) {
            continue;
        }
        let kind = entry.file_type().expect("entries of the repository have a type");
        if kind.is_dir() {
            walk(&entry.path(), &path, texts);
        } else if kind.is_file()
            && let Ok(bytes) = fs::read(entry.path())
            && !bytes.contains(&0)
            && let Ok(text) = String::from_utf8(bytes)
        {
            texts.push(Source { path, text });
        }
    }
}

fn text(path: &str) -> &'static str {
    let found = TEXTS.iter().find(|source| source.path == path);
    &found.unwrap_or_else(|| panic!("{path} is gone: tell {HERE} where its content is now")).text
}

fn rust() -> impl Iterator<Item = &'static Source> {
    TEXTS.iter().filter(|source| source.has_ending("rs"))
}

/// The text of a Rust file with a space for each character of a comment or literal. Lines stay.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let n_bytes = literal_or_comment(rest, code.ends_with(is_word));
        if n_bytes == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..n_bytes].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[n_bytes..];
        }
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes of the comment or literal that `rest` opens with; 0 if it opens with neither.
fn literal_or_comment(rest: &str, is_inside_word: bool) -> usize {
    let until = |end: Option<usize>| end.unwrap_or(rest.len());
    if rest.starts_with("//") {
        return until(rest.find('\n'));
    }
    if rest.starts_with("/*") {
        let (mut depth, mut at) = (0, 0);
        while at < rest.len() {
            match &rest.as_bytes()[at..] {
                [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
                [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
                _ => at += 1,
            }
            if depth == 0 {
                break;
            }
        }
        return at;
    }
    if let Some(quoted) = rest.strip_prefix('\'') {
        let mut chars = quoted.char_indices();
        return match (chars.next(), chars.next()) {
            (Some((_, '\\')), Some((at, escaped))) => {
                let tail = at + escaped.len_utf8();
                until(quoted[tail..].find('\'').map(|end| 1 + tail + end + 1))
            }
            (Some(_), Some((at, '\''))) => 1 + at + 1,
            // A lifetime or a label.
            _ => 0,
        };
    }
    if let Some(raw) = ["r", "br", "cr"].iter().find_map(|prefix| rest.strip_prefix(prefix))
        && !is_inside_word
    {
        let hashes = &raw[..raw.len() - raw.trim_start_matches('#').len()];
        if let Some(body) = raw[hashes.len()..].strip_prefix('"') {
            let end = format!("\"{hashes}");
            let start = rest.len() - body.len();
            return until(body.find(&end).map(|at| start + at + end.len()));
        }
    }
    if let Some(body) = rest.strip_prefix('"') {
        let mut is_escaped = false;
        let end = body.find(|c| {
            let is_end = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        });
        return until(end.map(|at| 1 + at + 1));
    }
    0
}

/// Where `word` is in `text` with no letter, digit or underscore beside it.
fn positions(text: &str, word: &str) -> Vec<usize> {
    let is_alone = |&at: &usize| {
        let opens = word.starts_with(is_word) && text[..at].ends_with(is_word);
        let closes = word.ends_with(is_word) && text[at + word.len()..].starts_with(is_word);
        !opens && !closes
    };
    text.match_indices(word).map(|(at, _)| at).filter(is_alone).collect()
}

/// Where `words` are, as `path:line: word`. `text` has the lines of the file.
fn places(path: &str, text: &str, words: &[&str]) -> Vec<String> {
    let mut found = vec![];
    for word in words {
        for at in positions(text, word) {
            found.push(format!("{path}:{}: {word}", line_index(text, at) + 1));
        }
    }
    found
}

fn line_index(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count()
}

fn is_in(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path == *place || place.ends_with('/') && path.starts_with(place))
}

fn demand(rule: &str, broken: impl IntoIterator<Item = String>) {
    let broken: Vec<String> = broken.into_iter().collect();
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The name of the package, and names in `[dependencies]` and `[build-dependencies]`.
fn manifest(text: &str) -> (String, BTreeSet<String>) {
    let (mut name, mut dependencies, mut section) = (String::new(), BTreeSet::new(), "");
    let is_ours = |section: &str| {
        let table = section.rsplit('.').next().unwrap_or(section);
        table == "dependencies" || table == "build-dependencies"
    };
    for line in text.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
            if let Some((table, dependency)) = section.rsplit_once('.')
                && is_ours(table)
                && table != "workspace.dependencies"
            {
                dependencies.insert(dependency.to_string());
            }
        } else if let Some((key, value)) = line.split_once('=') {
            let key = key.trim();
            if section == "package" && key == "name" {
                name = value.trim().trim_matches('"').to_string();
            } else if is_ours(section) && !key.starts_with('#') {
                dependencies.insert(key.split('.').next().unwrap_or(key).to_string());
            }
        }
    }
    (name, dependencies)
}

/// Dependencies between `manifests` (folder, text) that `table` does not allow.
fn wrong_dependencies(manifests: &[(&str, &str)], table: &[(&str, &[&str])]) -> Vec<String> {
    let crates: BTreeMap<&str, (String, BTreeSet<String>)> =
        manifests.iter().map(|(folder, text)| (*folder, manifest(text))).collect();
    let folder_of = |name: &str| crates.iter().find(|(_, (n, _))| n == name).map(|(f, _)| *f);
    let mut wrong = vec![];
    for (folder, (_, dependencies)) in &crates {
        let row = |folder: &str| table.iter().find(|(f, _)| *f == folder).map(|(_, may)| *may);
        let Some(direct) = row(folder) else {
            wrong.push(format!("{folder} has no row"));
            continue;
        };
        let mut allowed = vec![];
        let mut open = direct.to_vec();
        while let Some(name) = open.pop() {
            open.extend(folder_of(name).and_then(row).unwrap_or_default());
            allowed.push(name);
        }
        for dependency in dependencies.iter().filter(|name| folder_of(name).is_some()) {
            if !allowed.contains(&dependency.as_str()) && direct != EVERYTHING {
                wrong.push(format!("{folder} depends on {dependency}"));
            }
        }
    }
    wrong
}

fn manifests() -> Vec<(&'static str, &'static str)> {
    let folder = |source: &'static Source| source.path.strip_suffix("/Cargo.toml");
    TEXTS
        .iter()
        .filter_map(|source| Some((folder(source)?, source.text.as_str())))
        .filter(|(folder, _)| *folder != "tests/fuzz")
        .collect()
}

#[test]
fn crates_depend_one_way() {
    let rule = "move the code to the crate that may have the dependency, or discuss a new row of \
                MAY_DEPEND_ON and ARCHITECTURE.md";
    demand(rule, wrong_dependencies(&manifests(), MAY_DEPEND_ON));
    let gone = MAY_DEPEND_ON.iter().filter(|row| manifests().iter().all(|m| m.0 != row.0));
    demand("drop the rows of crates that are gone", gone.map(|row| row.0.to_string()));
}

#[test]
fn the_architecture_states_the_same_dependencies() {
    let mut stated: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in text("ARCHITECTURE.md").lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", folder, _, may, ""] = cells[..] {
            let names = may.split(", ").map(|name| name.trim_matches('`'));
            stated.insert(folder.trim_matches('`'), names.filter(|name| *name != "-").collect());
        }
    }
    let rule = "make the rows of ARCHITECTURE.md's code map and MAY_DEPEND_ON equal";
    let differs = |&&(folder, may): &&(&str, &[&str])| {
        stated.get(folder) != Some(&may.iter().copied().collect())
    };
    let state = |&(folder, may): &(&str, &[&str])| {
        format!("{folder}: {may:?} here, {:?} there", stated.get(folder))
    };
    demand(rule, MAY_DEPEND_ON.iter().filter(differs).map(state));
}

fn without_opening<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
    sources.filter(|source| !source.text.starts_with("//! ")).map(|s| s.path.clone()).collect()
}

#[test]
fn every_file_says_what_it_is() {
    demand("open each file with `//!`: what it is and what it keeps true", without_opening(rust()));
}

fn longer_than<'a>(limit: usize, sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
    let lines = sources.map(|source| (source.text.lines().count(), &source.path));
    lines.filter(|(n, _)| *n > limit).map(|(n, path)| format!("{path}: {n} lines")).collect()
}

#[test]
fn no_file_is_long() {
    println!("above {MANY_LINES} lines:\n  {}", longer_than(MANY_LINES, rust()).join("\n  "));
    demand(
        &format!("split files above {MAX_LINES} lines by subject"),
        longer_than(MAX_LINES, rust()),
    );
}

fn misplaced_unsafe<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
    sources
        .filter(|source| !is_in(&source.path, MAY_BE_UNSAFE))
        .flat_map(|source| places(&source.path, &code(&source.text), &["unsafe"]))
        .collect()
}

#[test]
fn unsafe_code_is_where_it_belongs() {
    let rule = "call a safe function of `kernels` or `runtime` instead, or add the file to \
                MAY_BE_UNSAFE with a reason in its head";
    demand(rule, misplaced_unsafe(rust()));
}

/// The text before the innermost open brace at `at`, back to the brace or semicolon before it.
fn enclosing_header(code: &str, at: usize) -> &str {
    let (mut open, mut start) = (vec![], 0);
    for (i, c) in code[..at].char_indices().filter(|(_, c)| matches!(c, '{' | '}' | ';')) {
        match c {
            '{' => open.push(code[start..i].trim()),
            '}' => drop(open.pop()),
            _ => {}
        }
        start = i + 1;
    }
    open.last().copied().unwrap_or("")
}

/// `unsafe` without a reason. A block or impl needs `SAFETY:` above its statement, a function
/// `# Safety` in its docs; methods of a trait's implementation keep the trait's contract.
fn unexplained_unsafe<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
    let mut found = vec![];
    for source in sources {
        let code = code(&source.text);
        let code_lines: Vec<&str> = code.lines().map(str::trim).collect();
        let lines: Vec<&str> = source.text.lines().collect();
        for at in positions(&code, "unsafe") {
            let after = code[at + "unsafe".len()..].trim_start();
            let after = after.strip_prefix("extern").unwrap_or(after).trim_start();
            let reason = match after.strip_prefix("fn") {
                // A type.
                Some(rest) if rest.trim_start().starts_with('(') => continue,
                Some(_) => {
                    let header = enclosing_header(&code, at);
                    if !positions(header, "impl").is_empty() && header.contains(" for ") {
                        continue;
                    }
                    "# Safety"
                }
                None => "SAFETY:",
            };
            // Up to where the item or statement before ends.
            let line = line_index(&code, at);
            let is_end = |i: &usize| {
                lines[*i].trim().is_empty() || code_lines[*i].ends_with(['{', '}', ';'])
            };
            let start = (0..line).rev().find(is_end).map_or(0, |end| end + 1);
            if !lines[start..=line].iter().any(|line| line.contains(reason)) {
                found.push(format!("{}:{}: no `{reason}`", source.path, line + 1));
            }
        }
    }
    found
}

#[test]
fn unsafe_code_has_a_reason() {
    let rule = "say what makes it sound: `// SAFETY:` above the statement, `# Safety` in the docs of \
                a function";
    demand(rule, unexplained_unsafe(rust()));
}

fn leftovers<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
    let words = ["todo!", "unimplemented!", "#[ignore", "FIXME", "XXX", "TODO"];
    let is_written = |source: &&Source| {
        let data = ["json", "lock", "txt"];
        source.path != HERE && !data.iter().any(|ending| source.has_ending(ending))
    };
    sources.filter(is_written).flat_map(|s| places(&s.path, &s.text, &words)).collect()
}

#[test]
fn nothing_is_left_for_later() {
    demand(
        "finish it, or open an issue and say in the docs what is missing",
        leftovers(TEXTS.iter()),
    );
}

fn machine_paths<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
    let folders = ["/home", "/root", "/tmp", "/work"];
    let mut found = vec![];
    for source in sources.filter(|source| source.path != HERE) {
        for folder in folders {
            for at in positions(&source.text, folder) {
                // Not the middle of a relative path or of an address.
                let is_inside = |c: char| is_word(c) || matches!(c, '.' | '/' | '-' | '}' | '*');
                if !source.text[..at].ends_with(is_inside) {
                    let line = line_index(&source.text, at) + 1;
                    found.push(format!("{}:{line}: {folder}", source.path));
                }
            }
        }
    }
    found
}

#[test]
fn no_path_of_a_machine_is_named() {
    demand("use a path from the repository or a temporary folder", machine_paths(TEXTS.iter()));
}

fn hash_tables<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
    let words = ["HashMap", "HashSet"];
    sources.flat_map(|source| places(&source.path, &code(&source.text), &words)).collect()
}

#[test]
fn no_hash_table_is_used() {
    let rule = "use a BTreeMap or a Vec indexed by id: iteration order would reach outputs";
    demand(rule, hash_tables(rust()));
}

fn prints<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
    let words = ["print!", "println!", "eprint!", "eprintln!", "dbg!"];
    let may_not = |source: &&Source| {
        let folders = ["/benches/", "/examples/", "/tests/"];
        !is_in(&source.path, MAY_PRINT) && !folders.iter().any(|f| source.path.contains(f))
    };
    sources.filter(may_not).flat_map(|s| places(&s.path, &code(&s.text), &words)).collect()
}

#[test]
fn libraries_print_nothing() {
    demand("return it, and let `kino` print it", prints(rust()));
}

/// The lines of `text` after the one that is `first`, up to `last`, without comments.
fn between<'a>(text: &'a str, first: &str, last: &str) -> Vec<&'a str> {
    let lines = text.lines().skip_while(|line| *line != first).skip(1);
    let list = lines.take_while(|line| *line != last).map(str::trim);
    list.filter(|line| !line.starts_with("//")).collect()
}

/// Entries of a list that come before the entry above them.
fn unsorted(list: &[&str]) -> Vec<String> {
    let pairs = list.windows(2).filter(|pair| pair[0] > pair[1]);
    pairs.map(|pair| format!("{} is below {}", pair[1], pair[0])).collect()
}

#[test]
fn lists_of_ops_and_kernels_are_sorted() {
    let ops = between(text("ops/src/op.rs"), "    ops {", "    }");
    assert!(ops.len() > 20, "the list in ops/src/op.rs looks different now: {ops:?}");
    demand("sort the list in ops/src/op.rs", unsorted(&ops));
    let kernels = between(text("kernels/src/kernel.rs"), "kernels! {", "}");
    assert!(
        kernels.len() > 5,
        "the list in kernels/src/kernel.rs looks different now: {kernels:?}"
    );
    // `map` takes whatever is left, so it is asked last.
    let (last, rest) = kernels.split_last().expect("there are kernels");
    assert!(last.starts_with("\"map\""), "`map` must be the last entry of kernels!, not {last}");
    demand("sort the list in kernels/src/kernel.rs, but for the last entry", unsorted(rest));
}

/// What is missing of `pass`, a module of `compiler/src/passes`, given all paths.
fn missing_of_pass(pass: &str, texts: &[Source]) -> Vec<String> {
    let mut missing = vec![];
    let file = format!("compiler/src/passes/{pass}.rs");
    let name = format!("name: \"{}\"", pass.replace('_', "-"));
    if !texts.iter().any(|source| source.path == file && source.text.contains(&name)) {
        missing.push(format!("{file} with `{name}`"));
    }
    let folder = format!("tests/ir/{pass}/");
    let is_case = |source: &Source| source.path.starts_with(&folder) && source.has_ending("ir");
    if !texts.iter().any(is_case) {
        missing.push(format!("{folder}*.ir"));
    }
    missing
}

#[test]
fn every_pass_has_its_file_and_its_cases() {
    let lines = between(text("compiler/src/pass.rs"), "pub const PIPELINE: &[Pass] = &[", "];");
    let passes: Vec<&str> = lines.iter().filter_map(|line| line.strip_suffix("::PASS,")).collect();
    assert!(passes.len() > 5, "PIPELINE looks different now: {lines:?}");
    let rule = "a pass, its file and the folder of its cases have one name; add";
    demand(rule, passes.iter().flat_map(|pass| missing_of_pass(pass, &TEXTS)));
}

/// Targets without a `[[bin]]` in `manifest`, and the other way around.
fn unpaired_targets(manifest: &str, targets: &BTreeSet<&str>) -> Vec<String> {
    let bins: BTreeSet<&str> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"targets/")?.strip_suffix(".rs\""))
        .collect();
    bins.symmetric_difference(targets).map(|name| (*name).to_string()).collect()
}

#[test]
fn every_fuzz_target_is_built() {
    let name = |source: &'static Source| {
        source.path.strip_prefix("tests/fuzz/targets/")?.strip_suffix(".rs")
    };
    let targets: BTreeSet<&str> = TEXTS.iter().filter_map(name).collect();
    assert!(targets.len() > 3, "tests/fuzz/targets is gone: {targets:?}");
    let rule = "give each file of tests/fuzz/targets one [[bin]] in tests/fuzz/Cargo.toml";
    demand(rule, unpaired_targets(text("tests/fuzz/Cargo.toml"), &targets));
}

fn file(path: &str, text: &str) -> [Source; 1] {
    [Source { path: path.to_string(), text: text.to_string() }]
}

#[test]
fn comments_and_literals_are_no_code() {
    let text = "a // unsafe\nb /* /* unsafe */ \n unsafe */ c \"unsafe\\\" unsafe\" d 'u' '\\'' e \
                r#\"unsafe\" unsafe\"# f<'a> /// unsafe\n\"\\\\\" unsafe";
    let code = code(text);
    assert_eq!(code.split_whitespace().collect::<String>(), "abcdef<'a>unsafe");
    assert_eq!(places("x.rs", &code, &["unsafe"]), ["x.rs:4: unsafe"]);
    assert_eq!(positions("unsafe_code un_unsafe unsafe{", "unsafe"), [22]);
}

#[test]
fn wrong_dependencies_are_found() {
    let ops = "[package]\nname = \"ops\"\n[dependencies]\nhalf = \"2\"\n[dev-dependencies]\n\
               runtime.workspace = true\n";
    let kernels = "[package]\nname = \"kernels\"\n[dependencies]\nops.workspace = true\n";
    let runtime = "[package]\nname = \"runtime\"\n[dependencies]\nkernels = { path = \"..\" }\n\
                   ops.workspace = true\n";
    let table: &[(&str, &[&str])] = &[("a", &[]), ("b", &["ops"]), ("c", &["kernels"])];
    let good = [("a", ops), ("b", kernels), ("c", runtime)];
    assert_eq!(wrong_dependencies(&good, table), [""; 0]);
    let upward = ops.replace("half =", "kernels =");
    let found = wrong_dependencies(&[("a", &upward), ("b", kernels), ("c", runtime)], table);
    assert_eq!(found, ["a depends on kernels"]);
    let sections = format!("{ops}[target.'cfg(unix)'.dependencies]\nruntime.workspace = true\n");
    let found = wrong_dependencies(&[("a", &sections), ("b", kernels), ("c", runtime)], table);
    assert_eq!(found, ["a depends on runtime"]);
    let table_of_one = format!("{ops}[dependencies.runtime]\nworkspace = true\n");
    let found = wrong_dependencies(&[("a", &table_of_one), ("b", kernels), ("c", runtime)], table);
    assert_eq!(found, ["a depends on runtime"]);
    assert_eq!(wrong_dependencies(&[("d", ops)], table), ["d has no row"]);
}

#[test]
fn unsafe_without_a_reason_is_found() {
    let unexplained = |text: &str| unexplained_unsafe(file("kernels/src/x.rs", text).iter()).len();
    assert_eq!(unexplained("// SAFETY: checked.\nlet x =\n    unsafe { f() };"), 0);
    assert_eq!(unexplained("// SAFETY: checked.\ng();\nunsafe { f() };"), 1);
    assert_eq!(unexplained("/// # Safety\n/// Never.\n#[inline]\nunsafe fn f() {}"), 0);
    assert_eq!(unexplained("/// Does.\nunsafe fn f() {}"), 1);
    assert_eq!(unexplained("impl K for A {\n    unsafe fn run(&self) {}\n}"), 0);
    assert_eq!(unexplained("impl A {\n    unsafe fn run(&self) {}\n}"), 1);
    assert_eq!(unexplained("unsafe impl Send for A {}"), 1);
    assert_eq!(unexplained("type F = unsafe fn(u8);"), 0);
}

#[test]
fn each_rule_finds_what_it_forbids() {
    let library = |text: &str| file("ops/src/x.rs", text);
    assert_eq!(without_opening(library("// A file.\n").iter()), ["ops/src/x.rs"]);
    assert_eq!(longer_than(2, library("a\nb\nc\n").iter()), ["ops/src/x.rs: 3 lines"]);
    assert_eq!(misplaced_unsafe(library("unsafe {}").iter()).len(), 1);
    assert_eq!(misplaced_unsafe(file("kernels/src/x.rs", "unsafe {}").iter()).len(), 0);
    assert_eq!(leftovers(library("todo!()\n// TODO: and XXX\n#[ignore = \"\"]").iter()).len(), 4);
    assert_eq!(machine_paths(library("\"/tmp/x\", (/home), a/tmp, /rooted").iter()).len(), 2);
    assert_eq!(hash_tables(library("use std::collections::HashMap; // HashSet").iter()).len(), 1);
    assert_eq!(prints(library("println!(); eprintln!(); print!()").iter()).len(), 3);
    assert_eq!(prints(file("ops/tests/x.rs", "println!()").iter()).len(), 0);
    assert_eq!(unsorted(&["a", "c", "b"]), ["b is below c"]);
    let pass = file("compiler/src/passes/fuse_it.rs", "name: \"fuse-it\"");
    assert_eq!(missing_of_pass("fuse_it", &pass), ["tests/ir/fuse_it/*.ir"]);
    assert_eq!(missing_of_pass("fuse_all", &pass).len(), 2);
    let targets = BTreeSet::from(["a", "b"]);
    assert_eq!(
        unpaired_targets("path = \"targets/a.rs\"\npath = \"targets/c.rs\"", &targets),
        ["b", "c"]
    );
}
