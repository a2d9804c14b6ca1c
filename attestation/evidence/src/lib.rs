//! Evidence and its verification: pure, with no I/O, clock or randomness.
//!
//! The same code judges in the builder, on the appliance and on the auditor's laptop.

pub mod attest;
pub mod bundle;
#[cfg(test)]
mod corpus;
pub mod counter;
mod cursor;
mod document;
pub mod enrol;
pub mod eventlog;
pub mod exception;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod forecast;
pub mod format;
pub mod key;
pub mod ledger;
#[cfg(test)]
mod mutations;
pub mod nv;
pub mod pcr;
pub mod provenance;
pub mod quote;
pub mod recovery;
pub mod reseal;
pub mod reset;
pub mod sealed;
pub mod sigdb;
pub mod signature;
pub mod site;
pub mod time;
pub mod update;
pub mod userspace;
pub mod verify;

pub use cursor::Short;
