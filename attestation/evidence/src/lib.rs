//! Evidence and its verification: pure, with no I/O, clock or randomness.
//!
//! The same code judges in the builder, on the appliance and on the auditor's laptop.

pub mod bundle;
pub mod format;
pub mod ledger;
