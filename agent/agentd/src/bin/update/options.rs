//! Where things are. The defaults are the appliance's; the tests put them elsewhere.

use std::path::PathBuf;

use clap::Parser;

/// Updates the appliance to a signed image.
#[derive(Clone, Debug, Parser)]
#[command(name = "update", version)]
pub(crate) struct Options {
    /// Where the EFI system partition is mounted.
    #[arg(long, default_value = "/run/casemate/esp")]
    pub(crate) esp: PathBuf,
    /// The boot manager's variable with the entry of this boot, if that has a counter of tries.
    #[arg(
        long,
        default_value = "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    )]
    pub(crate) counted: PathBuf,
    /// Made when this boot is blessed.
    #[arg(long, default_value = "/run/casemate-update/blessed")]
    pub(crate) blessed: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Write the update on a medium beside the running image.
    Apply(Apply),
    /// Take the counter of tries off the entry that was booted.
    Bless,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Apply {
    /// Where the medium is mounted.
    #[arg(long, default_value = "/run/casemate/update")]
    pub(crate) medium: PathBuf,
    /// Key of what leaves a build, in the signed image.
    #[arg(long, default_value = "/usr/lib/casemate/build.pub.pem")]
    pub(crate) key: PathBuf,
    /// What the running image says of itself.
    #[arg(long, default_value = "/etc/os-release")]
    pub(crate) os_release: PathBuf,
    /// Block devices, as the kernel shows them.
    #[arg(long, default_value = "/sys/class/block")]
    pub(crate) block: PathBuf,
    /// Device nodes.
    #[arg(long, default_value = "/dev")]
    pub(crate) dev: PathBuf,
}
