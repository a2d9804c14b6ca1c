//! The PCR values that a boot of the image must show, from the bytes of its files alone.
//! Invariant: nothing here boots, reads a TPM or asks the machine; a prediction is wrong or right by the files.

mod boot_manager;
mod secure_boot;
mod uki;

pub use boot_manager::boot_manager;
pub use secure_boot::{SecureBoot, secure_boot};
pub use uki::{PHASES, UkiError, sections_and_phases};

use evidence::format::Measurement;
use evidence::pcr::Pcr;
use sha2::{Digest as _, Sha256};

/// `EV_SEPARATOR`'s data between the firmware's own events and the operating system's; TCG PC Client Platform
/// Firmware Profile, "EV_SEPARATOR".
const SEPARATOR: [u8; 4] = [0; 4];

/// One predicted measurement: what it is of, and the digest that extends the PCR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicted {
    what: String,
    digest: [u8; 32],
}

impl Predicted {
    fn of(what: &str, data: &[u8]) -> Self {
        Self { what: what.to_owned(), digest: Sha256::digest(data).into() }
    }

    /// As it stands in `reference.json`.
    #[must_use]
    pub fn to_measurement(&self) -> Measurement {
        Measurement { what: self.what.clone(), sha256: hex::encode(self.digest) }
    }
}

/// The PCR that these measurements add up to.
#[must_use]
pub fn fold(measurements: &[Predicted]) -> Pcr {
    measurements.iter().fold(Pcr::ZERO, |pcr, measured| pcr.extend(measured.digest))
}
