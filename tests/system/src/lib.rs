//! Whole-system tests.
//!
//! - `tests/tidy.rs`: what can be seen in the sources; needs no boot.
//! - `scenarios` (binary): what can be seen on a booted appliance, see [`scenarios`].

pub mod api;
pub mod auditor;
pub mod bench;
mod flashed;
pub mod media;
pub mod ratios;
pub mod runner;
pub mod scenarios;
pub mod stick;
mod tool;
