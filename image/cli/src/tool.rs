//! The programs of the tools tree that the commands drive.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Context as _, bail};

/// Most of a failed program's messages that is repeated, in characters.
const MESSAGE_CHARS_MAX: usize = 4000;

/// Runs `program` to its end; what it wrote appears only if it failed.
pub(crate) fn run<A: AsRef<OsStr>>(program: &str, args: &[A]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| {
        format!("cannot run {program}; `cargo xtask` runs this inside a tools tree that has it")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let start = text.chars().count().saturating_sub(MESSAGE_CHARS_MAX);
    let end: String = text.chars().skip(start).collect();
    bail!("{program}: {}\n{}", output.status, end.trim_end())
}
