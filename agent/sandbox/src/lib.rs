//! What each process of the appliance may still do once it is running.
//!
//! Invariants:
//! - [`confine`] either enforces the whole profile or returns an error: there is no best effort.
//! - Having a [`Confined`] proves that everything in its self-test was tried and refused at this process's start:
//!   opening a path, making a socket, starting a program, making a process, tracing one.
//! - [`Profile::table_sha256`] names what is enforced, so that it can be predicted, measured and compared.
//! - Having a [`Sealed`] proves that no process can change the mapped bytes any more.
//!
//! Landlock alone is no egress barrier (MPTCP, `MSG_FASTOPEN`, UDP and Unix sockets are not covered), so the
//! tables refuse sockets too. The units add network and mount namespaces; nothing here relies on them.
#![expect(
    unsafe_code,
    reason = "mapping a sealed descriptor, children of the self-test; with SAFETY comments"
)]

mod confine;
mod profile;
mod profiles;
mod sealed;
mod self_test;
mod table;

pub use confine::{Confined, LANDLOCK_ABI_MIN, SandboxError, confine};
pub use profile::{Access, Allow, Arg, Limit, PathRule, Profile, Refuse};
pub use profiles::{AGENTD, AgentdFolders, ENGINE, GATEWAY, agentd_paths, appliance_tables};
pub use sealed::{SealError, Sealed, map_sealed};

/// What every process tries at its start and must see refused, by name.
#[must_use]
pub fn self_test_names() -> Vec<&'static str> {
    self_test::names()
}
