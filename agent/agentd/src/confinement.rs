//! What is left of this process's rights once the TPM is open: the folders of its options, Unix sockets, memory.
//!
//! The TPM is not among the paths: its one descriptor stays open. A TPM behind a socket, as in the tests, is
//! connected to anew for each command, which works over Unix sockets only.

use std::path::Path;

use sandbox::{AGENTD, Access, Confined, PathRule, Profile, SandboxError};

use crate::options::Options;

/// Confines this process to `options`' folders, which exist, and to the table of [`sandbox::AGENTD`].
pub(crate) fn confine(options: &Options) -> Result<Confined, SandboxError> {
    let above_medium = options.bundle.parent().unwrap_or(Path::new("/"));
    let above_exchange = options.exchange.parent().unwrap_or(Path::new("/"));
    let paths = [
        PathRule {
            path: above_medium,
            access: Access::Read,
            why: "media are mounted below it later, and judged file by file",
        },
        PathRule {
            path: above_exchange,
            access: Access::ReadWrite,
            why: "an exchange medium is mounted below it later; answers are written beside questions",
        },
        PathRule {
            path: &options.state,
            access: Access::ReadWrite,
            why: "records are appended, a torn one is cut, the checkpoint is replaced",
        },
        PathRule {
            path: &options.runtime,
            access: Access::ReadWrite,
            why: "the log of what was measured is replaced",
        },
    ];
    sandbox::confine(&Profile { paths: &paths, ..AGENTD })
}
