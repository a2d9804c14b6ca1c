//! Runs Debian's tools: output to a log file, progress on the terminal, a bounded time.
//! Invariant: a tool that fails is an error that names the tool, its last words and its log.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest run of one tool, unless it says otherwise; a bootstrap over a slow line takes minutes.
const RUN_S_MAX: u64 = 1800;
/// A tool that runs longer than this shows its last line now and then.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(20);
/// As much of a log's end as an error shows.
const TAIL_BYTES: u64 = 2000;

/// Where each tool comes from.
const PACKAGES: &[(&str, &str)] = &[
    ("apt-cache", "apt"),
    ("apt-get", "apt"),
    ("cargo", "cargo"),
    ("cp", "coreutils"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("dpkg-deb", "dpkg"),
    ("fsck.erofs", "erofs-utils"),
    ("mkfs.erofs", "erofs-utils"),
    ("mkfs.vfat", "dosfstools"),
    ("mcopy", "mtools"),
    ("mmdebstrap", "mmdebstrap"),
    ("systemctl", "systemd"),
    ("systemd-analyze", "systemd"),
    ("systemd-repart", "systemd-repart"),
    ("systemd-sysusers", "systemd"),
    ("ukify", "systemd-ukify"),
    ("unshare", "util-linux"),
    ("virt-fw-vars", "python3-virt-firmware"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not there.
    #[error("{tool} is missing; install Debian's package {package}")]
    Missing {
        /// The tool.
        tool: String,
        /// Where it comes from.
        package: &'static str,
    },
    /// It could not be run.
    #[error("running {tool}: {cause}")]
    Run {
        /// The tool.
        tool: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// It ended with an error.
    #[error("{tool} ended with {status}; the end of {}:\n{tail}", log.display())]
    Failed {
        /// The tool.
        tool: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines.
        tail: String,
        /// All of its lines.
        log: PathBuf,
    },
    /// It did not end.
    #[error("{tool} was stopped after {run_s_max} s; see {}", log.display())]
    TooSlow {
        /// The tool.
        tool: String,
        /// Longest run, in seconds.
        run_s_max: u64,
        /// Its output so far.
        log: PathBuf,
    },
}

/// A tool and its arguments.
#[derive(Debug)]
pub(crate) struct Tool {
    name: String,
    command: Command,
    log: PathBuf,
    run_s_max: u64,
}

impl Tool {
    /// `logs` is a folder that exists; the log is named for the tool and its job.
    pub(crate) fn new(name: &str, job: &str, logs: &Path) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
        Self {
            name: name.to_owned(),
            command,
            log: logs.join(format!("{job}.log")),
            run_s_max: RUN_S_MAX,
        }
    }

    /// Another longest run, in seconds.
    pub(crate) fn run_s_max(mut self, run_s_max: u64) -> Self {
        self.run_s_max = run_s_max;
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// One argument `name` + `path`, for `--output=/a/path`.
    pub(crate) fn path_arg(self, name: &str, path: &Path) -> Self {
        let mut arg = OsString::from(name);
        arg.push(path);
        self.arg(arg)
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn current_dir(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs the tool to its end; returns what it wrote to standard output.
    pub(crate) fn run(mut self) -> Result<Vec<u8>, ToolError> {
        let output = self.log.with_extension("out");
        let (log_file, output_file) = (self.create(&self.log)?, self.create(&output)?);
        self.command.stderr(log_file).stdout(output_file);
        let mut child = self.command.spawn().map_err(|cause| self.spawn_error(cause))?;
        let started = Instant::now();
        let mut shown = started;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|cause| self.run_error(cause))? {
                break status;
            }
            if started.elapsed() > Duration::from_secs(self.run_s_max) {
                child.kill().map_err(|cause| self.run_error(cause))?;
                child.wait().map_err(|cause| self.run_error(cause))?;
                return Err(ToolError::TooSlow {
                    tool: self.name,
                    run_s_max: self.run_s_max,
                    log: self.log,
                });
            }
            if shown.elapsed() > PROGRESS_EVERY {
                shown = Instant::now();
                let last = self.tail()?.lines().last().unwrap_or_default().to_owned();
                eprintln!("    {} s, {}: {last}", started.elapsed().as_secs(), self.name);
            }
            std::thread::sleep(POLL_EVERY);
        };
        if !status.success() {
            let tail = self.tail()?;
            return Err(ToolError::Failed { tool: self.name, status, tail, log: self.log });
        }
        std::fs::read(&output).map_err(|cause| self.run_error(cause))
    }

    fn create(&self, path: &Path) -> Result<File, ToolError> {
        File::create(path).map_err(|cause| self.run_error(cause))
    }

    fn tail(&self) -> Result<String, ToolError> {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(|cause| self.run_error(cause))
    }

    fn run_error(&self, cause: std::io::Error) -> ToolError {
        ToolError::Run { tool: self.name.clone(), cause }
    }

    fn spawn_error(&self, cause: std::io::Error) -> ToolError {
        let package = PACKAGES.iter().find(|(tool, _)| *tool == self.name);
        match package {
            Some((tool, package)) if cause.kind() == std::io::ErrorKind::NotFound => {
                ToolError::Missing { tool: (*tool).to_owned(), package }
            }
            _ => self.run_error(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_tool_is_reported_with_its_last_words() {
        let logs = tempfile::tempdir().unwrap();
        let tool = Tool::new("sh", "failing", logs.path()).args(["-c", "echo no disk >&2; exit 3"]);
        let error = tool.run().unwrap_err();
        assert!(matches!(&error, ToolError::Failed { tail, .. } if tail == "no disk\n"), "{error}");
    }

    #[test]
    fn output_is_returned() {
        let logs = tempfile::tempdir().unwrap();
        let output =
            Tool::new("sh", "speaking", logs.path()).args(["-c", "printf out; echo log >&2"]).run();
        assert_eq!(output.unwrap(), b"out");
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let logs = tempfile::tempdir().unwrap();
        let tool = Tool::new("ukify", "absent", logs.path());
        let error = tool.spawn_error(std::io::Error::from(std::io::ErrorKind::NotFound));
        assert!(error.to_string().contains("systemd-ukify"), "{error}");
    }
}
