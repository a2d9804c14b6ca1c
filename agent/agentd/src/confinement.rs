//! What is left of this process's rights once the TPM is open: the folders of its options, Unix sockets, memory.
//!
//! The TPM is not among the paths: its one descriptor stays open. A TPM behind a socket, as in the tests, is
//! connected to anew for each command, which works over Unix sockets only.

use std::path::Path;

use sandbox::{AGENTD, AgentdFolders, Confined, Profile, SandboxError, agentd_paths};

use crate::options::Options;

/// Confines this process to `options`' folders, which exist, and to the table of [`sandbox::AGENTD`].
pub(crate) fn confine(options: &Options) -> Result<Confined, SandboxError> {
    sandbox::confine(&Profile { paths: &agentd_paths(&folders(options)), ..AGENTD })
}

fn folders(options: &Options) -> AgentdFolders<'_> {
    AgentdFolders {
        media: options.bundle.parent().unwrap_or(Path::new("/")),
        exchange: options.exchange.parent().unwrap_or(Path::new("/")),
        ledger: &options.state,
        tls: &options.tls,
        runtime: &options.runtime,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_appliance_s_table_is_the_one_that_the_builder_predicts() {
        let options = Options::parse_from(["agentd", "--boot", "b"]);
        let profile = Profile { paths: &agentd_paths(&folders(&options)), ..AGENTD };
        assert_eq!(sandbox::appliance_tables()[0], ("agentd", profile.table_sha256()));
    }
}
