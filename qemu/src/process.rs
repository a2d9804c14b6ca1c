//! Child processes that cannot be left behind.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a condition is looked at again.
pub(crate) const POLL: Duration = Duration::from_millis(40);

/// Failures of child processes.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program could not be started.
    #[error("cannot start {program}: {cause}; is its Debian package in the tools tree?")]
    Start {
        /// Name of the program.
        program: String,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// The program's log could not be made, or its end could not be awaited.
    #[error("{program} ({log}): {cause}")]
    Io {
        /// Name of the program.
        program: String,
        /// Where its output goes.
        log: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// A tool that should have done its work failed.
    #[error("{program} ended with {status}: {stderr}")]
    Failed {
        /// Name of the program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        stderr: String,
    },
}

/// A running child with its output in a file. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub(crate) struct Daemon {
    program: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` in a process group of its own, so that a Ctrl-C on the terminal is ours to handle.
    /// The kernel kills it when the thread that started it ends (`PR_SET_PDEATHSIG`), even by SIGKILL.
    pub(crate) fn start<S: AsRef<OsStr>>(
        program: &'static str,
        args: &[S],
        log: &Path,
    ) -> Result<Self, ProcessError> {
        let io =
            |cause| ProcessError::Io { program: program.to_owned(), log: log.to_owned(), cause };
        let out = File::create(log).map_err(io)?;
        let err = out.try_clone().map_err(io)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]).args(args);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|cause| ProcessError::Start { program: program.to_owned(), cause })?;
        Ok(Self { program, child, log: log.to_owned() })
    }

    /// How it ended, or `None` while it runs.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.child.try_wait().map_err(|cause| self.io(cause))
    }

    /// Waits at most `limit` for its end; `None` if it still runs.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>, ProcessError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Result<(), ProcessError> {
        if self.ended()?.is_none() {
            self.child.kill().map_err(|cause| self.io(cause))?;
            self.child.wait().map_err(|cause| self.io(cause))?;
        }
        Ok(())
    }

    /// The last lines of its output.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&text), 8)
    }

    fn io(&self, cause: std::io::Error) -> ProcessError {
        ProcessError::Io { program: self.program.to_owned(), log: self.log.clone(), cause }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error}");
        }
    }
}

/// Runs a tool to its end.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<(), ProcessError> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|cause| ProcessError::Start { program: program.to_owned(), cause })?;
    if output.status.success() {
        return Ok(());
    }
    Err(ProcessError::Failed {
        program: program.to_owned(),
        status: output.status,
        stderr: last_lines(&String::from_utf8_lossy(&output.stderr), 8),
    })
}

/// The last `count` lines of `text`.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_daemon_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start("sleep", &["600"], &dir.path().join("log")).unwrap();
        let stat = PathBuf::from(format!("/proc/{}", daemon.child.id()));
        assert!(stat.exists());
        drop(daemon);
        assert!(!stat.exists());
    }

    #[test]
    fn a_failed_tool_says_why() {
        let error = run("ls", &["/nonexistent-folder"]).unwrap_err().to_string();
        assert!(error.contains("ls ended with") && error.contains("nonexistent-folder"), "{error}");
        assert!(matches!(run::<&str>("no-such-tool", &[]), Err(ProcessError::Start { .. })));
    }

    #[test]
    fn last_lines_skips_blank_ones() {
        assert_eq!(last_lines("a\n\nb\nc\n\n", 2), "b\nc");
        assert_eq!(last_lines("", 3), "");
    }
}
