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

impl Command {
    /// What has failed if it fails.
    pub(crate) fn failed(&self) -> &'static str {
        match self {
            Self::Recovery(_) => "no recovery key",
        }
    }
}
