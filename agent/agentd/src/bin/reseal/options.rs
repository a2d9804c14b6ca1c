//! Where things are. The defaults are the appliance's; the tests put them elsewhere.

use std::path::PathBuf;

use clap::Parser;

/// Seals the state partition to a state that a signed order foresees.
#[derive(Clone, Debug, Parser)]
#[command(name = "reseal", version)]
pub(crate) struct Options {
    /// Quorum policy in the signed image.
    #[arg(long, default_value = "/usr/lib/casemate/policy.json")]
    pub(crate) policy: PathBuf,
    /// The TPM.
    #[arg(long, default_value = "device:/dev/tpmrm0")]
    pub(crate) tcti: String,
    /// Folder of the accepted order, on the state partition.
    #[arg(long, default_value = "/var/lib/casemate/reseal-order")]
    pub(crate) accepted: PathBuf,
    /// Folder of what was applied, on the state partition.
    #[arg(long, default_value = "/var/lib/casemate/reseal")]
    pub(crate) applied: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Judge the order on a medium, and keep it for the next boot.
    Accept(Accept),
    /// Apply the kept order, follow a rotated key, and wipe key slots that are of no use any more.
    Apply(Apply),
}

impl Command {
    /// How a failure's line begins.
    pub(crate) fn failure(&self) -> &'static str {
        match self {
            Self::Accept(_) => "order refused",
            Self::Apply(_) => "not resealed",
        }
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Accept {
    /// Where the medium is mounted.
    #[arg(long, default_value = "/run/casemate/reseal")]
    pub(crate) medium: PathBuf,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Apply {
    /// The state partition.
    #[arg(long, default_value = "/dev/disk/by-partlabel/casemate-state")]
    pub(crate) device: PathBuf,
    /// The key of the image's signed PCR policy, as systemd-stub handed it over.
    #[arg(long, default_value = "/run/systemd/tpm2-pcr-public-key.pem")]
    pub(crate) key: PathBuf,
    /// The image's signed PCR policy.
    #[arg(long, default_value = "/run/systemd/tpm2-pcr-signature.json")]
    pub(crate) signature: PathBuf,
    /// What changes key slots.
    #[arg(long, default_value = "/usr/bin/systemd-cryptenroll")]
    pub(crate) cryptenroll: PathBuf,
}
