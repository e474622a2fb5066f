//! One side of a measurement: a process that is asked in lines of JSON and answers in lines of JSON.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value as Json;

use crate::Error;

/// Variables that choose kernels of a peer's library instead of what suits the machine.
const KERNEL_VARIABLES: [&str; 2] = ["OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"];

/// Variables that libraries read their number of threads from.
const THREAD_VARIABLES: [&str; 3] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"];

/// Most characters of a peer's error that are shown; some list all they could have done.
const MAX_REASON: usize = 160;

/// A running process; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Side {
    name: String,
    child: Child,
    // An Option only so that `drop` can close it, which ends the process.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    log: PathBuf,
    /// The most memory that it had when the system was last asked to count anew.
    earlier_peak: u64,
}

impl Side {
    /// Starts `command`; what it prints as errors goes to the file `log`.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        threads: usize,
        log: &Path,
    ) -> Result<Side, Error> {
        let program = PathBuf::from(command.get_program());
        for variable in KERNEL_VARIABLES {
            command.env_remove(variable);
        }
        for variable in THREAD_VARIABLES {
            command.env(variable, threads.to_string());
        }
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |error| Error::Io { path, error }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(log).map_err(io(log))?);
        let mut child = command.spawn().map_err(io(&program))?;
        let requests = child.stdin.take();
        let answers = child.stdout.take().expect("it was piped");
        let (name, log) = (name.to_string(), log.to_path_buf());
        let answers = BufReader::new(answers);
        Ok(Side { name, child, requests, answers, log, earlier_peak: 0 })
    }

    /// Name in the table.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The answer to one request.
    ///
    /// # Errors
    /// [`Error::Side`] with what the process says, or with its last line where it ended.
    pub(crate) fn ask(&mut self, request: &Json) -> Result<Json, Error> {
        let requests = self.requests.as_mut().expect("only `drop` closes it");
        let sent = writeln!(requests, "{request}").and_then(|()| requests.flush());
        let mut line = String::new();
        let read = sent.and_then(|()| self.answers.read_line(&mut line));
        let fail = |reason: String| Error::Side { side: self.name.clone(), reason };
        if !matches!(read, Ok(n) if n > 0) {
            let said = fs::read(&self.log).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let last = said.lines().rfind(|line| !line.trim().is_empty());
            return Err(fail(format!("ended; it last said: {}", last.unwrap_or("nothing"))));
        }
        let answer: Json = serde_json::from_str(&line)
            .map_err(|error| fail(format!("answered with no JSON ({error}): {}", line.trim())))?;
        match answer["error"].as_str() {
            Some(reason) => {
                let first = reason.lines().next().unwrap_or_default();
                Err(fail(first.chars().take(MAX_REASON).collect()))
            }
            None => Ok(answer),
        }
    }

    /// Seconds of one run.
    pub(crate) fn run(&mut self) -> Result<f64, Error> {
        let answer = self.ask(&serde_json::json!({ "request": "run" }))?;
        answer["seconds"].as_f64().ok_or_else(|| Error::Side {
            side: self.name.clone(),
            reason: format!("a run's answer has no seconds: {answer}"),
        })
    }

    /// The most memory that the process has had at once, in bytes, where the system tells (Linux).
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        self.counted_peak().map(|bytes| bytes.max(self.earlier_peak))
    }

    /// What `ask` gives, whose memory does not count to the peak where the system can count anew (Linux).
    pub(crate) fn without_peak<T>(&mut self, ask: impl FnOnce(&mut Side) -> T) -> T {
        let before = self.peak_bytes();
        let answer = ask(self);
        let count_anew = format!("/proc/{}/clear_refs", self.child.id());
        // 5 sets the peak to what is there now.
        if let (Some(before), Ok(())) = (before, fs::write(count_anew, "5")) {
            self.earlier_peak = before;
        }
        answer
    }

    fn counted_peak(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.requests = None;
        // Without requests it ends by itself; whoever does not is of no more use.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shell(script: &str, log: &Path) -> Side {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Side::start("the shell", command, 1, log).unwrap()
    }

    #[test]
    fn answers_errors_and_ends_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "read a; echo '{\"seconds\": 2.5}'; read a; echo '{\"error\": \"no\"}';
                      read a; echo oops; read a; echo why >&2; exit 3";
        let mut side = shell(script, &log);
        assert_eq!(side.run().unwrap(), 2.5);
        if cfg!(target_os = "linux") {
            assert!(side.peak_bytes().unwrap() > 1 << 16);
        }
        for expected in ["the shell: no", "answered with no JSON", "it last said: why"] {
            let error = side.ask(&json!({})).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_peak_from_before_is_kept_when_the_system_counts_anew() {
        let folder = tempfile::tempdir().unwrap();
        let script = "read a; x=$(head -c 8000000 /dev/zero | tr '\\0' x); x=; echo '{}'; read a; echo '{}'; read a";
        let mut side = shell(script, &folder.path().join("log"));
        side.ask(&json!({})).unwrap();
        let before = side.peak_bytes();
        side.without_peak(|side| side.ask(&json!({})).unwrap());
        assert_eq!(side.peak_bytes(), before);
    }

    #[test]
    fn a_peer_does_not_see_variables_that_choose_its_kernels() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        let script = "read a; echo \"{\\\"seen\\\": \\\"$OPENBLAS_CORETYPE $OMP_NUM_THREADS\\\"}\"";
        command.args(["-c", script]).env("OPENBLAS_CORETYPE", "Haswell");
        let mut side = Side::start("sh", command, 3, &folder.path().join("log")).unwrap();
        assert_eq!(side.ask(&json!({})).unwrap()["seen"], " 3");
    }
}
