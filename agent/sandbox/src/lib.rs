//! What each process of the appliance may still do once it is running.
//!
//! Invariants:
//! - [`confine`] either enforces the whole profile or returns an error: there is no best effort.
//! - Having a [`Confined`] proves that the denial of opening a path and of an IP socket was observed in this
//!   process, after Landlock and again after seccomp.
//! - Having a [`Sealed`] proves that no process can change the mapped bytes any more.
//!
//! Landlock alone is no egress barrier (MPTCP, `MSG_FASTOPEN`, UDP and Unix sockets are not covered), so the
//! tables refuse sockets too. The units add network and mount namespaces; nothing here relies on them.
#![expect(unsafe_code, reason = "mapping a sealed descriptor; with a SAFETY comment")]

mod confine;
mod profile;
mod profiles;
mod sealed;

pub use confine::{Confined, LANDLOCK_ABI_MIN, SandboxError, confine};
pub use profile::{Access, Allow, Arg, Limit, PathRule, Profile, Refuse};
pub use profiles::{AGENTD, ENGINE, GATEWAY};
pub use sealed::{SealError, Sealed, map_sealed};
