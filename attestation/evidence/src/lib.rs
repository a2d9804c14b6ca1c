//! Evidence and its verification: pure, with no I/O, clock or randomness.
//!
//! The same code judges in the builder, on the appliance and on the auditor's laptop.

pub mod bundle;
#[cfg(test)]
mod corpus;
mod cursor;
pub mod enrol;
pub mod eventlog;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod format;
pub mod key;
pub mod ledger;
#[cfg(test)]
mod mutations;
pub mod pcr;
pub mod quote;
pub mod signature;
pub mod userspace;
pub mod verify;

pub use cursor::Short;
