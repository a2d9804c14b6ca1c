//! The PCR values that a boot of the image must show, from the bytes of its files alone.
//! Invariant: nothing here boots, reads a TPM or asks the machine; a prediction is wrong or right by the files.

mod boot_manager;
mod secure_boot;
mod uki;

pub use boot_manager::pcr4;
pub use secure_boot::{SecureBoot, pcr7};
pub use uki::{PHASES, UkiError, pcr11};

use sha2::{Digest as _, Sha256};

/// `EV_SEPARATOR`'s data between the firmware's own events and the operating system's; TCG PC Client Platform
/// Firmware Profile, "EV_SEPARATOR".
const SEPARATOR: [u8; 4] = [0; 4];

/// A PCR of the SHA-256 bank: the fold of its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pcr([u8; 32]);

impl Pcr {
    /// Extends with a digest; TPM 2.0 Library Part 1, "Extend of a PCR".
    #[must_use]
    pub fn extend(self, digest: [u8; 32]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(digest).finalize().into())
    }

    /// Extends with the digest of `data`.
    #[must_use]
    pub fn measure(self, data: &[u8]) -> Self {
        self.extend(Sha256::digest(data).into())
    }

    /// Lower-case hex.
    #[must_use]
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untouched_pcr_is_zero_and_events_fold_in_order() {
        assert_eq!(Pcr::default().to_hex(), "0".repeat(64));
        let (a, b) = (Pcr::default().measure(b"a"), Pcr::default().measure(b"b"));
        assert_ne!(a.measure(b"b"), b.measure(b"a"));
        let expected = Sha256::new().chain_update([0; 32]).chain_update(Sha256::digest(b"a"));
        assert_eq!(a.to_hex(), hex::encode(expected.finalize()));
    }
}
