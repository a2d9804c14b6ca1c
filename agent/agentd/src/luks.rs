//! The state partition's header, read by ourselves and changed by systemd-cryptenroll.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use evidence::reseal::{HEADER_BYTES_MAX, Slots};

use crate::files;

/// Most characters of a program's messages that are repeated.
const MESSAGE_CHARS_MAX: usize = 1000;

/// The header as it is on the disk now.
pub(crate) fn slots(device: &Path) -> anyhow::Result<Slots> {
    let context = || format!("cannot read {}", device.display());
    let file = File::open(device).with_context(context)?.take(HEADER_BYTES_MAX as u64);
    let header = files::read_all(file, HEADER_BYTES_MAX as u64).with_context(context)?;
    Ok(Slots::parse(&header)?)
}

/// systemd-cryptenroll, without anything of this process.
pub(crate) fn cryptenroll(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    command
}

/// Runs it; returns what it printed on standard output, which may be a secret.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let said: String =
        String::from_utf8_lossy(&output.stderr).chars().take(MESSAGE_CHARS_MAX).collect();
    ensure!(output.status.success(), "{program}: {}: {}", output.status, said.trim_end());
    Ok(output.stdout)
}
