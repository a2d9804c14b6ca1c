//! The key slots of the state partition, read by ourselves and changed by systemd-cryptenroll.

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use evidence::reseal::{HEADER_BYTES_MAX, SealingKey, Slots, tpm2_pcrs};

use crate::files;
use crate::options::Apply;

/// Longest public key in PEM.
const KEY_BYTES_MAX: u64 = 8192;
/// Most characters of a program's messages that are repeated.
const MESSAGE_CHARS_MAX: usize = 1000;

/// The state partition.
#[derive(Debug)]
pub(crate) struct Device<'a> {
    paths: &'a Apply,
    key: SealingKey,
}

impl<'a> Device<'a> {
    /// Reads the key that the image's policies are signed by.
    pub(crate) fn open(paths: &'a Apply) -> anyhow::Result<Self> {
        let shown = paths.key.display();
        let pem = files::read_bounded(&paths.key, KEY_BYTES_MAX)
            .with_context(|| format!("cannot read the key of the signed policy {shown}"))?;
        let pem = String::from_utf8(pem).with_context(|| format!("{shown} is not UTF-8"))?;
        Ok(Self { paths, key: SealingKey::from_pem(&pem)? })
    }

    /// The key that the image's policies are signed by.
    pub(crate) fn key(&self) -> &SealingKey {
        &self.key
    }

    /// The header as it is on the disk now.
    pub(crate) fn slots(&self) -> anyhow::Result<Slots> {
        let path = &self.paths.device;
        let context = || format!("cannot read {}", path.display());
        let device = std::fs::File::open(path).with_context(context)?;
        let device = std::io::Read::take(device, HEADER_BYTES_MAX as u64);
        let header = files::read_all(device, HEADER_BYTES_MAX as u64).with_context(context)?;
        Ok(Slots::parse(&header)?)
    }

    /// Adds a slot that opens with this PCR 7, PCRs 12 and 13 zero, and a PCR 11 that the image's key signed. The volume key
    /// comes from the TPM, by the slot of the present state.
    pub(crate) fn enroll(&self, pcr7: [u8; 32]) -> anyhow::Result<()> {
        let mut command = self.command();
        command.args(["--unlock-tpm2-device=auto", "--tpm2-device=auto"]);
        command.arg(format!("--tpm2-pcrs={}", tpm2_pcrs(Some(pcr7))));
        command.arg(option("--tpm2-public-key=", &self.paths.key));
        command.arg("--tpm2-public-key-pcrs=11");
        command.arg(option("--tpm2-signature=", &self.paths.signature));
        run(command.arg(&self.paths.device))
    }

    /// Wipes a slot and its token.
    pub(crate) fn wipe(&self, keyslot: u32) -> anyhow::Result<()> {
        let mut command = self.command();
        run(command.arg(format!("--wipe-slot={keyslot}")).arg(&self.paths.device))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.paths.cryptenroll);
        command.env_clear().stdin(Stdio::null());
        command
    }
}

fn option(name: &str, path: &std::path::Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(name);
    option.push(path);
    option
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let said: String =
        String::from_utf8_lossy(&output.stderr).chars().take(MESSAGE_CHARS_MAX).collect();
    ensure!(output.status.success(), "{program}: {}: {}", output.status, said.trim_end());
    Ok(())
}
