//! The key slots of the state partition, read by ourselves and changed by systemd-cryptenroll.

use std::path::Path;

use anyhow::Context as _;
use evidence::reseal::{ImageKeys, SIGNATURES_BYTES_MAX, SealingKey, Slots, tpm2_pcrs};

use crate::options::Apply;
use crate::{files, luks};

/// Longest public key in PEM.
const KEY_BYTES_MAX: u64 = 8192;

/// The state partition.
#[derive(Debug)]
pub(crate) struct Device<'a> {
    paths: &'a Apply,
    image: ImageKeys,
}

impl<'a> Device<'a> {
    /// Reads the keys that signed the image's policies.
    pub(crate) fn open(paths: &'a Apply) -> anyhow::Result<Self> {
        let read = |path: &Path, bytes_max| {
            files::read_bounded(path, bytes_max)
                .with_context(|| format!("cannot read {} of the signed policy", path.display()))
        };
        let pem = String::from_utf8(read(&paths.key, KEY_BYTES_MAX)?)
            .with_context(|| format!("{} is not UTF-8", paths.key.display()))?;
        let signatures = read(&paths.signature, SIGNATURES_BYTES_MAX as u64)?;
        Ok(Self { paths, image: ImageKeys::read(&pem, &signatures)? })
    }

    /// The keys that signed the image's policies.
    pub(crate) fn image(&self) -> &ImageKeys {
        &self.image
    }

    /// The image's own key, to which slots are sealed.
    pub(crate) fn key(&self) -> &SealingKey {
        self.image.own()
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

fn option(name: &str, path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(name);
    option.push(path);
    option
}
