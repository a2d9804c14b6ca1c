//! The key slots of the state partition, read by ourselves and changed by systemd-cryptenroll.

use anyhow::Context as _;
use evidence::reseal::{SealingKey, Slots, tpm2_pcrs};

use crate::options::Apply;
use crate::{files, luks};

/// Longest public key in PEM.
const KEY_BYTES_MAX: u64 = 8192;

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
        luks::slots(&self.paths.device)
    }

    /// Adds a slot that opens with this PCR 7, PCRs 12 and 13 zero, and a PCR 11 that the image's key signed. The volume key
    /// comes from the TPM, by the slot of the present state.
    pub(crate) fn enroll(&self, pcr7: [u8; 32]) -> anyhow::Result<()> {
        let mut command = luks::cryptenroll(&self.paths.cryptenroll);
        command.args(["--unlock-tpm2-device=auto", "--tpm2-device=auto"]);
        command.arg(format!("--tpm2-pcrs={}", tpm2_pcrs(Some(pcr7))));
        command.arg(option("--tpm2-public-key=", &self.paths.key));
        command.arg("--tpm2-public-key-pcrs=11");
        command.arg(option("--tpm2-signature=", &self.paths.signature));
        luks::run(command.arg(&self.paths.device)).map(drop)
    }

    /// Wipes a slot and its token.
    pub(crate) fn wipe(&self, keyslot: u32) -> anyhow::Result<()> {
        let mut command = luks::cryptenroll(&self.paths.cryptenroll);
        luks::run(command.arg(format!("--wipe-slot={keyslot}")).arg(&self.paths.device)).map(drop)
    }
}

fn option(name: &str, path: &std::path::Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(name);
    option.push(path);
    option
}
