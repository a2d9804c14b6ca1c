//! Where things are. The defaults are the appliance's; the tests put them elsewhere.

use std::path::PathBuf;

use clap::Parser;

/// Measures, verifies bundles, hands out weights, keeps the ledger.
#[derive(Clone, Debug, Parser)]
#[command(name = "agentd", version)]
pub(crate) struct Options {
    /// Quorum policy in the signed image.
    #[arg(long, default_value = "/usr/lib/casemate/policy.json")]
    pub(crate) policy: PathBuf,
    /// Folder with site.json and client-ca.pem in the signed image.
    #[arg(long, default_value = "/usr/lib/casemate/site")]
    pub(crate) site: PathBuf,
    /// os-release in the signed image.
    #[arg(long, default_value = "/etc/os-release")]
    pub(crate) os_release: PathBuf,
    /// Folder of the ledger and of what dates it, on the state partition.
    #[arg(long, default_value = "/var/lib/casemate/ledger")]
    pub(crate) state: PathBuf,
    /// Folder of the gateway's key, on the state partition.
    #[arg(long, default_value = "/var/lib/casemate/tls")]
    pub(crate) tls: PathBuf,
    /// Folder that outlives this process but not the boot.
    #[arg(long, default_value = "/run/casemate-agentd")]
    pub(crate) runtime: PathBuf,
    /// Where the bundle medium is mounted.
    #[arg(long, default_value = "/run/casemate/bundle")]
    pub(crate) bundle: PathBuf,
    /// Where the exchange medium is mounted.
    #[arg(long, default_value = "/run/casemate/exchange/medium")]
    pub(crate) exchange: PathBuf,
    /// Control socket of the engine.
    #[arg(long, default_value = "/run/casemate/engine-control.sock")]
    pub(crate) engine_control: PathBuf,
    /// The TPM.
    #[arg(long, default_value = "device:/dev/tpmrm0")]
    pub(crate) tcti: String,
    /// The boot manager's variable with the entry of this boot, if that counts tries.
    #[arg(
        long,
        default_value = "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    )]
    pub(crate) counted: PathBuf,
    /// There once a try is blessed.
    #[arg(long, default_value = "/run/casemate-update/blessed")]
    pub(crate) blessed: PathBuf,
    /// Identifier of this boot, 32 hex digits (systemd's %b).
    #[arg(long)]
    pub(crate) boot: String,
    /// How long a start that is refused waits for a medium with an exception.
    #[arg(long, default_value_t = 30)]
    pub(crate) exception_wait_s: u64,
    /// Most bytes of a bundle's files; three quarters of the memory if not given.
    #[arg(long)]
    pub(crate) bundle_bytes_max: Option<u64>,
}
