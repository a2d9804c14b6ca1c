//! The PCR values that a boot of the image must show, from the bytes of its files alone.
//! Invariant: nothing here boots, reads a TPM or asks the machine; a prediction is wrong or right by the files.

mod boot_manager;
mod secure_boot;
mod uki;

pub use boot_manager::pcr4;
pub use secure_boot::{SecureBoot, pcr7};
pub use uki::{PHASES, UkiError, pcr11};

/// `EV_SEPARATOR`'s data between the firmware's own events and the operating system's; TCG PC Client Platform
/// Firmware Profile, "EV_SEPARATOR".
const SEPARATOR: [u8; 4] = [0; 4];
