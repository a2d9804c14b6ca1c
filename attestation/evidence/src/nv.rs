//! NV indices: their Names, and `TPM2_NV_Certify`, by which a TPM says what one of them holds.
//!
//! The Name of an index hashes its whole public area, so a certification under a Name says under which
//! attributes and policy the contents were written, and that they were written at all.
//!
//! Invariant: an [`NvCertify`] exists only if its signature verified; [`NvAttest`] alone proves nothing.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::attest::{self, AttestError, ClockInfo, Header, Kind};
use crate::cursor::Cursor;
use crate::key::{AttestationKey, Name, VerifyError};
use crate::pcr::HashAlg;

/// `TPMA_NV_WRITTEN`: the index was written since it was defined. It is part of the Name.
pub const NV_WRITTEN: u32 = 1 << 29;

/// Why bytes do not certify an NV index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvError {
    /// They are not such an attestation.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] VerifyError),
}

/// `TPMS_NV_PUBLIC` of an index whose Name is a SHA-256: TPM 2.0 Library Part 2, "TPMS_NV_PUBLIC".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvPublic {
    /// Handle, `01xxxxxx`.
    pub index: u32,
    /// `TPMA_NV`; [`NV_WRITTEN`] is set by the TPM at the first write.
    pub attributes: u32,
    /// `authPolicy`, at most a digest.
    pub policy: Vec<u8>,
    /// Size of the contents in bytes.
    pub data_bytes: u16,
}

impl NvPublic {
    /// The Name: TPM 2.0 Library Part 1, "Names"; `nameAlg ‖ SHA-256(TPMS_NV_PUBLIC)`. `None` if the policy is
    /// longer than a `TPM2B` can say.
    #[must_use]
    pub fn name(&self) -> Option<Name> {
        let policy_bytes = u16::try_from(self.policy.len()).ok()?;
        let mut public = self.index.to_be_bytes().to_vec();
        public.extend(HashAlg::Sha256.tpm_id().to_be_bytes());
        public.extend(self.attributes.to_be_bytes());
        public.extend(policy_bytes.to_be_bytes());
        public.extend(&self.policy);
        public.extend(self.data_bytes.to_be_bytes());
        Some(Name::of(&public))
    }
}

/// `TPMS_ATTEST` with `TPMS_NV_CERTIFY_INFO`: TPM 2.0 Library Part 2. Unproven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvAttest {
    /// Qualified Name of the key.
    pub qualified_signer: Vec<u8>,
    /// What the caller of `TPM2_NV_Certify` gave as qualifying data.
    pub extra_data: Vec<u8>,
    /// The TPM's clock and counters.
    pub clock: ClockInfo,
    /// Firmware version of the TPM, vendor-specific.
    pub firmware_version: u64,
    /// Name of the index.
    pub index_name: Vec<u8>,
    /// Where in the index the contents begin, in bytes.
    pub offset: u16,
    /// What the index holds there.
    pub contents: Vec<u8>,
}

impl NvAttest {
    /// Reads a marshalled `TPMS_ATTEST` that certifies an NV index.
    ///
    /// # Errors
    /// If it is malformed, or another kind of attestation.
    pub fn parse(bytes: &[u8]) -> Result<Self, AttestError> {
        let mut cursor = Cursor::new(bytes);
        let Header { qualified_signer, extra_data, clock, firmware_version } =
            Header::read(&mut cursor, Kind::Nv)?;
        let index_name = cursor.tpm2b()?.to_vec();
        let offset = cursor.u16_be()?;
        let contents = cursor.tpm2b()?.to_vec();
        attest::finish(&cursor)?;
        Ok(Self {
            qualified_signer,
            extra_data,
            clock,
            firmware_version,
            index_name,
            offset,
            contents,
        })
    }
}

/// A certification whose signature verified under a key: the TPM that holds the key said this.
#[derive(Clone, Debug)]
pub struct NvCertify(NvAttest);

impl NvCertify {
    /// Checks the signature, then reads what was signed. The caller compares Name, offset, length and
    /// `extra_data` with what it expects.
    ///
    /// # Errors
    /// If the signature does not verify, or what it signs does not certify an NV index.
    pub fn verify(
        key: &AttestationKey,
        attest: &[u8],
        tpmt_signature: &[u8],
    ) -> Result<Self, NvError> {
        key.verify_tpmt(attest, tpmt_signature)?;
        Ok(Self(NvAttest::parse(attest)?))
    }

    /// What the TPM said.
    #[must_use]
    pub fn attest(&self) -> &NvAttest {
        &self.0
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::fixture::SoftTpm;
    use crate::quote::{Quote, QuoteError};

    fn counter() -> NvPublic {
        // TPMA_NV: OWNERWRITE, counter, OWNERREAD, AUTHREAD, NO_DA, WRITTEN.
        let attributes = NV_WRITTEN | 0x0206_0012;
        NvPublic { index: 0x0180_ca5e, attributes, policy: vec![7; 32], data_bytes: 8 }
    }

    fn certified(tpm: &SoftTpm) -> (Vec<u8>, Vec<u8>) {
        let name = counter().name().unwrap();
        tpm.certify_nv(name.as_bytes(), 0, &41_u64.to_be_bytes(), b"nonce")
    }

    #[test]
    fn a_certification_proves_name_and_contents() {
        let tpm = SoftTpm::new(1);
        let (attest, signature) = certified(&tpm);
        let proven = NvCertify::verify(&tpm.attestation_key(), &attest, &signature).unwrap();
        let attest = proven.attest();
        assert_eq!(attest.index_name, counter().name().unwrap().as_bytes());
        assert_eq!((attest.offset, attest.contents.as_slice()), (0, &41_u64.to_be_bytes()[..]));
        assert_eq!(attest.extra_data, b"nonce");
        let clock = ClockInfo { clock_ms: 1_234_567, reset_count: 3, restart_count: 0, safe: true };
        assert_eq!(attest.clock, clock);
    }

    #[test]
    fn a_name_covers_every_field_of_the_public_area() {
        // Marshalled by hand: handle, nameAlg, attributes, policy, size.
        let marshalled = [
            &[0x01, 0x80, 0xca, 0x5e, 0x00, 0x0b, 0x22, 0x06, 0x00, 0x12, 0x00, 0x20][..],
            &[7; 32],
            &[0x00, 0x08],
        ]
        .concat();
        let name = counter().name().unwrap();
        assert_eq!(name.to_string(), format!("000b{}", HashAlg::Sha256.hash(&[&marshalled])));
        let edits: [fn(&mut NvPublic); 4] = [
            |public| public.index += 1,
            |public| public.attributes &= !NV_WRITTEN,
            |public| public.policy[0] ^= 1,
            |public| public.data_bytes = 9,
        ];
        for edit in edits {
            let mut other = counter();
            edit(&mut other);
            assert_ne!(other.name().unwrap(), name, "{other:?}");
        }
        assert_eq!(NvPublic { policy: vec![0; 1 << 16], ..counter() }.name(), None);
    }

    #[test]
    fn no_flipped_bit_verifies() {
        let tpm = SoftTpm::new(1);
        let key = tpm.attestation_key();
        let (attest, signature) = certified(&tpm);
        for bit in 0..attest.len() * 8 {
            let mut flipped = attest.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(NvCertify::verify(&key, &flipped, &signature).is_err(), "bit {bit}");
        }
        let other = SoftTpm::new(2).attestation_key();
        let error = NvCertify::verify(&other, &attest, &signature).unwrap_err();
        assert_eq!(error, NvError::Signature(VerifyError::Mismatch { name: other.name() }));
    }

    #[test]
    fn a_malformed_certification_is_refused_though_signed() {
        let tpm = SoftTpm::new(1);
        let key = tpm.attestation_key();
        let (attest, _) = certified(&tpm);
        let verify = |attest: &[u8]| NvCertify::verify(&key, attest, &tpm.sign_tpmt(attest));
        for length in 0..attest.len() {
            let error = verify(&attest[..length]).unwrap_err();
            assert!(matches!(error, NvError::Attest(AttestError::Cut(_))), "cut to {length}");
        }
        let error = verify(&[&attest[..], &[0]].concat()).unwrap_err();
        assert_eq!(error, NvError::Attest(AttestError::Tail { left: 1 }));
        let mut unsafe_clock = attest.clone();
        // `safe` is the last byte before the firmware version, Name, offset and contents.
        let at = attest.len() - (1 + 8 + 2 + 34 + 2 + 2 + 8);
        unsafe_clock[at] = 2;
        let error = verify(&unsafe_clock).unwrap_err();
        assert_eq!(error, NvError::Attest(AttestError::Safe { found: 2 }));
    }

    #[test]
    fn a_quote_is_no_certification_and_a_certification_no_quote() {
        let tpm = SoftTpm::new(1);
        let key = tpm.attestation_key();
        let (attest, signature) = certified(&tpm);
        let error = Quote::verify(&key, &attest, &signature).unwrap_err();
        let type_error = AttestError::Type { found: 0x8014, expected: Kind::Quote };
        assert_eq!(error, QuoteError::Attest(type_error));
        let (attest, signature) = tpm.quote(&[(0, [0; 32])].into(), b"nonce");
        let error = NvCertify::verify(&key, &attest, &signature).unwrap_err();
        let type_error = AttestError::Type { found: 0x8018, expected: Kind::Nv };
        assert_eq!(error, NvError::Attest(type_error));
    }
}
