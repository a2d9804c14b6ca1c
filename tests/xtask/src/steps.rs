//! Named steps: what runs now, for how long, and a table at the end.

use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A step that says nothing for this long gets a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The steps so far.
#[derive(Debug, Default)]
pub(crate) struct Steps(Vec<(String, Duration, bool)>);

impl Steps {
    /// Runs `work`, which prints its own progress, under `name`.
    pub(crate) fn show<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("==> {name}");
        let begin = Instant::now();
        let outcome = work();
        self.0.push((name.to_owned(), begin.elapsed(), outcome.is_ok()));
        outcome.with_context(|| format!("step \"{name}\" failed"))
    }

    /// Runs `work` under `name`, with a heartbeat.
    pub(crate) fn run<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.show(name, || with_heartbeat(name, work))
    }

    /// The steps with their times.
    pub(crate) fn table(&self) -> String {
        let width = self.0.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
        let total: Duration = self.0.iter().map(|(_, time, _)| *time).sum();
        let mut table = String::new();
        for (name, time, good) in &self.0 {
            let outcome = if *good { "ok" } else { "FAILED" };
            table += &format!("  {name:width$}  {:7.1} s  {outcome}\n", time.as_secs_f64());
        }
        table + &format!("  {:width$}  {:7.1} s\n", "total", total.as_secs_f64())
    }
}

fn with_heartbeat<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    let (done, ended) = channel::<()>();
    let label = name.to_owned();
    let heart = thread::spawn(move || {
        while ended.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("    … {label}: {} s", begin.elapsed().as_secs());
        }
    });
    let outcome = work();
    drop(done);
    if heart.join().is_err() {
        bail!("the heartbeat of step {name} died");
    }
    outcome
}

/// Runs a command to its end, its output shown.
pub(crate) fn sh(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| start_failed(command))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().display());
    }
    Ok(())
}

/// Runs a command to its end; returns what it printed on standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| start_failed(command))?;
    if !out.status.success() {
        bail!("{} ended with {}", command.get_program().display(), out.status);
    }
    String::from_utf8(out.stdout).context("output is not UTF-8")
}

/// Runs a command to its end, its input and output the caller's; passes on its exit code.
pub(crate) fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| start_failed(command))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn start_failed(command: &Command) -> String {
    format!("cannot start {}", command.get_program().display())
}
