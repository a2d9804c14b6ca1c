//! Reading and extending the SHA-256 bank.

use tss_esapi::handles::PcrHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Digest, DigestValues, PcrSelectionList, PcrSelectionListBuilder, PcrSlot,
};

use crate::{Tpm, TpmError, during};

/// Registers of a PC client TPM.
pub const PCRS: usize = 24;
/// Values of the SHA-256 bank, by index.
pub type Pcrs = [[u8; 32]; PCRS];

/// TPM2_PCR_Read answers with at most this many digests (TPML_DIGEST).
const DIGESTS_MAX: usize = 8;

const HANDLES: [PcrHandle; PCRS] = [
    PcrHandle::Pcr0,
    PcrHandle::Pcr1,
    PcrHandle::Pcr2,
    PcrHandle::Pcr3,
    PcrHandle::Pcr4,
    PcrHandle::Pcr5,
    PcrHandle::Pcr6,
    PcrHandle::Pcr7,
    PcrHandle::Pcr8,
    PcrHandle::Pcr9,
    PcrHandle::Pcr10,
    PcrHandle::Pcr11,
    PcrHandle::Pcr12,
    PcrHandle::Pcr13,
    PcrHandle::Pcr14,
    PcrHandle::Pcr15,
    PcrHandle::Pcr16,
    PcrHandle::Pcr17,
    PcrHandle::Pcr18,
    PcrHandle::Pcr19,
    PcrHandle::Pcr20,
    PcrHandle::Pcr21,
    PcrHandle::Pcr22,
    PcrHandle::Pcr23,
];

impl Tpm {
    /// Reads the SHA-256 bank. The registers are read in three commands: a quote, and not this, says that the
    /// values held at one moment.
    ///
    /// # Errors
    /// If the TPM fails, or has no SHA-256 bank.
    pub fn pcrs(&mut self) -> Result<Pcrs, TpmError> {
        let mut values: Pcrs = [[0; 32]; PCRS];
        for (chunk, indexes) in values.chunks_mut(DIGESTS_MAX).zip(indexes().chunks(DIGESTS_MAX)) {
            let selection = select(indexes)?;
            let (_, _, digests) = self
                .context
                .execute_without_session(|context| context.pcr_read(selection))
                .map_err(during("TPM2_PCR_Read"))?;
            let digests = digests.value();
            if digests.len() != chunk.len() {
                return Err(TpmError::Answer {
                    command: "TPM2_PCR_Read",
                    found: format!("{} of {} values", digests.len(), chunk.len()),
                    expected: "a SHA-256 bank of 24 PCRs; enable it in the firmware",
                });
            }
            for (value, digest) in chunk.iter_mut().zip(digests) {
                *value = digest_bytes("TPM2_PCR_Read", digest)?;
            }
        }
        Ok(values)
    }

    /// Extends the SHA-256 bank of `pcr` by `digest`.
    ///
    /// # Errors
    /// If there is no such register, or the TPM fails.
    pub fn extend(&mut self, pcr: u8, digest: [u8; 32]) -> Result<(), TpmError> {
        let handle = *HANDLES.get(usize::from(pcr)).ok_or(TpmError::Pcr { pcr })?;
        let command = "TPM2_PCR_Extend";
        let digest = Digest::try_from(digest.as_slice()).map_err(during(command))?;
        let mut digests = DigestValues::new();
        digests.set(HashingAlgorithm::Sha256, digest);
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.pcr_extend(handle, digests)
            })
            .map_err(during(command))
    }
}

/// The selection of `indexes` in the SHA-256 bank.
pub(crate) fn select(indexes: &[u8]) -> Result<PcrSelectionList, TpmError> {
    let slots = indexes
        .iter()
        .map(|&pcr| {
            if usize::from(pcr) >= PCRS {
                return Err(TpmError::Pcr { pcr });
            }
            let bit = 1_u32 << pcr;
            PcrSlot::try_from(bit).map_err(|_| TpmError::Pcr { pcr })
        })
        .collect::<Result<Vec<_>, _>>()?;
    PcrSelectionListBuilder::new()
        .with_selection(HashingAlgorithm::Sha256, &slots)
        .build()
        .map_err(during("TPM2_PCR_Read"))
}

/// The 32 bytes of a SHA-256 digest.
fn digest_bytes(command: &'static str, digest: &Digest) -> Result<[u8; 32], TpmError> {
    digest.value().try_into().map_err(|_| TpmError::Answer {
        command,
        found: format!("a digest of {} bytes", digest.value().len()),
        expected: "32 bytes of SHA-256",
    })
}

/// 0 to 23.
fn indexes() -> [u8; PCRS] {
    let mut indexes = [0; PCRS];
    for (index, pcr) in indexes.iter_mut().zip(0..) {
        *index = pcr;
    }
    indexes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_that_does_not_exist_is_refused() {
        for pcr in [24, 32, 255] {
            let error = select(&[0, pcr]).unwrap_err();
            assert!(matches!(error, TpmError::Pcr { pcr: found } if found == pcr), "{error}");
        }
    }

    #[test]
    fn every_register_can_be_selected() {
        let selection = select(&indexes()).unwrap();
        assert_eq!(selection.get_selections()[0].selected().len(), PCRS);
    }
}
