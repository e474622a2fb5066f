//! Runs the built program in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// A prompt that the embedded model knows.
pub(crate) const PROMPT: &str = "a zombie runs to the left on green grass";

/// The embedded model's files.
pub(crate) const EMBEDDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/embedded/tiny-flare-1.1");

/// A folder, and the program in it.
#[derive(Debug)]
pub(crate) struct Program {
    folder: TempDir,
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Program {
    pub(crate) fn new() -> Program {
        Program { folder: TempDir::new().unwrap() }
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kino"));
        command.args(args).current_dir(self.folder.path()).env_remove("KINO_CPU");
        // What the user's machine was measured at is not what a test expects.
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// Samples two small frames in two steps.
    pub(crate) fn sample(&self, args: &[&str]) -> Ran {
        let few =
            ["sample", PROMPT, "--num-sampling-steps", "2", "--num-frames", "2", "--threads", "2"];
        self.run(&[&few, args].concat())
    }

    /// Names of all files and folders, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Ran {
    pub(crate) fn of(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The run succeeded.
    #[track_caller]
    pub(crate) fn done(self) -> Ran {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// The run failed with `code` and one error that contains `message`.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, message: &str) -> Ran {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stderr.matches("error: ").count(), 1, "{self:?}");
        assert!(self.stderr.contains(message), "expected {message:?}: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }
}
