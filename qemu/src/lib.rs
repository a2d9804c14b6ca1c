//! A machine like the customer's: OVMF with Secure Boot, a software TPM, two CPUs, one disk.
//!
//! Invariants:
//! - A [`Machine`] owns its processes: none outlives it, nor the thread that started it.
//! - The image is never written: disk and variable store are qcow2 overlays in the state folder.
//! - A [`Snapshot`] is frozen: forks write to overlays of their own, so any number may run.
//! - Nothing waits without a limit.

pub mod accel;
mod args;
pub mod console;
pub mod disk;
mod machine;
pub mod manufacture;
mod process;
pub mod qmp;
mod snapshot;

pub use accel::Accel;
pub use machine::{BUNDLE_SLOTS, CPUS, Config, GATEWAY_PORT, Machine, MachineError, SpareDisk};
pub use process::ProcessError;
pub use snapshot::Snapshot;
