//! Evidence and its verification: pure, with no I/O, clock or randomness.
//!
//! The same code judges in the builder, on the appliance and on the auditor's laptop.

pub mod bundle;
#[cfg(test)]
mod corpus;
mod cursor;
pub mod eventlog;
pub mod format;
pub mod ledger;
pub mod pcr;
pub mod userspace;

pub use cursor::Short;
