//! Builds the signed appliance image and predicts the PCR values of its boot.
//!
//! Runs as root, or as root of a user namespace, inside a Debian 13 tools tree; it needs no loop device and no
//! device-mapper. Output is written aside and renamed when it is whole.

mod bootstrap;
mod build;
mod cache;
mod compare;
mod cpio;
mod delivery;
mod difference;
mod disk;
mod elf;
mod enrolment;
mod fetch;
mod gpt;
mod initrd;
mod inventory;
mod keys;
mod lock;
mod modules;
pub mod pe;
mod place;
pub mod predict;
mod provenance;
mod prune;
mod reasoned;
mod reference;
mod report;
mod repository;
mod resolve;
mod sbom;
mod sign;
mod steps;
mod tool;
mod tree;
mod uki;
mod users;
mod varstore;

pub use bootstrap::{BootstrapError, SUITE};
pub use build::{BuildError, Built, Options, build};
pub use compare::{CompareError, compare};
pub use cpio::CpioError;
pub use delivery::{Delivered, DeliveryError, ENVELOPE, signed_digest, verify as verify_build};
pub use difference::Difference;
pub use disk::DiskError;
pub use elf::ElfError;
pub use enrolment::{Enrolment, EnrolmentError};
pub use fetch::FetchError;
pub use gpt::GptError;
pub use initrd::InitrdError;
pub use inventory::InventoryError;
pub use keys::{DEVELOPER_TOKEN, Guid, KeySet, KeysError, Profile, SECURE_BOOT, Signers};
pub use lock::{LOCK_FILE, Lock, LockError, Locked};
pub use modules::ModulesError;
pub use prune::PruneError;
pub use reasoned::ListError;
pub use reference::ReferenceError;
pub use repository::RepositoryError;
pub use resolve::{ResolveError, resolve};
pub use sign::{SignError, common_name};
pub use steps::{StepTime, Steps};
pub use tool::ToolError;
pub use tree::TreeError;
pub use uki::UkiBuildError;
pub use users::UsersError;
pub use varstore::VarstoreError;
