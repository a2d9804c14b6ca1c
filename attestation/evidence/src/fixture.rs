//! A TPM, an appliance and its builder in software: evidence for tests and fuzzing seeds.
//!
//! Never in a product: the feature `fixture` is for tests of this crate, of the verifier and of fuzzing. Its
//! keys are made of one byte each and protect nothing.
#![allow(clippy::unwrap_used, reason = "what is built here is right or the test is")]
#![allow(clippy::missing_panics_doc, reason = "as above")]

mod appliance;
mod certificate;
mod endorsement;
pub mod log;
mod tpm;

pub use appliance::{Appliance, policy, reference, sign, sign_files};
pub use certificate::certificate;
pub use endorsement::{Says, TIME_S, Vendor, draw, pinned, sealed_key};
pub use tpm::{ATTRIBUTES, SoftTpm};
