//! Where things are. The defaults are the appliance's; the tests put them elsewhere.

use std::path::PathBuf;

use clap::Parser;

/// Keys of the state partition.
#[derive(Clone, Debug, Parser)]
#[command(name = "state", version)]
pub(crate) struct Options {
    /// The TPM.
    #[arg(long, default_value = "device:/dev/tpmrm0")]
    pub(crate) tcti: String,
    /// The state partition.
    #[arg(long, default_value = "/dev/disk/by-partlabel/casemate-state")]
    pub(crate) device: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Give the partition a recovery key, unless it has one whose fate is known.
    Recovery(Recovery),
    /// Destroy the state that the signed order on a medium names.
    Reset(Reset),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Recovery {
    /// Folder with site.json and client-ca.pem in the signed image.
    #[arg(long, default_value = "/usr/lib/casemate/site")]
    pub(crate) site: PathBuf,
    /// Folder on the state partition that keeps what became of the key.
    #[arg(long, default_value = "/var/lib/casemate/recovery")]
    pub(crate) kept: PathBuf,
    /// What changes key slots.
    #[arg(long, default_value = "/usr/bin/systemd-cryptenroll")]
    pub(crate) cryptenroll: PathBuf,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Reset {
    /// Where the medium is mounted.
    #[arg(long, default_value = "/run/casemate/reset")]
    pub(crate) medium: PathBuf,
    /// Quorum policy in the signed image.
    #[arg(long, default_value = "/usr/lib/casemate/policy.json")]
    pub(crate) policy: PathBuf,
    /// Label of the partition.
    #[arg(long, default_value = "casemate-state")]
    pub(crate) label: String,
    /// Where the kernel tells of block devices.
    #[arg(long, default_value = "/sys/class/block")]
    pub(crate) sysfs: PathBuf,
    /// Where block devices are.
    #[arg(long, default_value = "/dev")]
    pub(crate) devices: PathBuf,
}

impl Command {
    /// What has failed if it fails.
    pub(crate) fn failed(&self) -> &'static str {
        match self {
            Self::Recovery(_) => "no recovery key",
            Self::Reset(_) => "factory reset refused or not finished",
        }
    }
}
