//! A quote: what a TPM says of its PCRs, under the signature of an attestation key.
//!
//! Invariant: a [`Quote`] exists only if its signature verified; [`Attest`] alone proves nothing.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;

use crate::cursor::{Cursor, Short};
use crate::key::{AttestationKey, VerifyError};
use crate::pcr::{Digest, HashAlg, PCRS};

/// Most banks in a PCR selection: TPM 2.0 Library Part 2, `HASH_COUNT`, with room.
pub const BANKS_MAX: u32 = 16;
/// Longest `pcrSelect` bitmap, in bytes: `PCR_SELECT_MAX` of 32 PCRs.
pub const SELECT_BYTES_MAX: u8 = 4;

/// `TPM_GENERATED_VALUE`: the TPM itself made what is signed. No restricted key signs foreign bytes that
/// begin with it.
const MAGIC: u32 = 0xff54_4347;
/// `TPM_ST_ATTEST_QUOTE`.
const TYPE_QUOTE: u16 = 0x8018;

/// Why bytes are not a quote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// A field reaches past the end.
    #[error("TPMS_ATTEST: {0}")]
    Cut(#[from] Short),
    /// Bytes are left over.
    #[error("TPMS_ATTEST has {left} bytes too many")]
    Tail {
        /// Bytes left.
        left: usize,
    },
    /// Not made by the TPM.
    #[error(
        "TPMS_ATTEST begins with {found:#010x}, not with TPM_GENERATED (0xff544347): the TPM did not make it"
    )]
    Magic {
        /// The value found.
        found: u32,
    },
    /// Another kind of attestation.
    #[error("TPMS_ATTEST is of type {found:#06x}; a quote (0x8018) is expected")]
    Type {
        /// The value found.
        found: u16,
    },
    /// A PCR selection beyond what TPMs have.
    #[error("the PCR selection has {found} {field}; at most {max} are expected")]
    Selection {
        /// `banks` or `bytes`.
        field: &'static str,
        /// The value found.
        found: u32,
        /// The maximum.
        max: u32,
    },
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] VerifyError),
}

/// Why PCR values are not the quoted ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PcrsError {
    /// Other banks than SHA-256 alone.
    #[error("the quote selects {found:?}; the SHA-256 bank alone is expected")]
    Banks {
        /// `TPM_ALG_ID` of the banks selected.
        found: Vec<u16>,
    },
    /// Values for other PCRs than the quoted ones.
    #[error("the quote is over PCRs {quoted:?}, the values are of {sent:?}")]
    OtherPcrs {
        /// PCRs quoted.
        quoted: Vec<u8>,
        /// PCRs for which there are values.
        sent: Vec<u8>,
    },
    /// The values do not give the quoted digest.
    #[error(
        "the PCR values hash to {computed}, the quote signed {quoted}: at least one value was changed"
    )]
    Digest {
        /// Hash of the values.
        computed: String,
        /// Digest in the quote.
        quoted: String,
    },
}

/// `TPMS_PCR_SELECTION`: PCRs of one bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// `TPM_ALG_ID` of the bank.
    pub bank: u16,
    /// PCR indices, ascending.
    pub pcrs: Vec<u8>,
}

/// `TPMS_ATTEST` of a quote: TPM 2.0 Library Part 2, "TPMS_ATTEST". Unproven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attest {
    /// Qualified Name of the key.
    pub qualified_signer: Vec<u8>,
    /// What the caller of `TPM2_Quote` gave as qualifying data.
    pub extra_data: Vec<u8>,
    /// Milliseconds of the TPM's clock, which only TPM2_Clear sets back while it is not reset; the owner may advance
    /// it.
    pub clock_ms: u64,
    /// Times since the TPM was cleared that it was reset.
    pub reset_count: u32,
    /// Restarts since the last reset.
    pub restart_count: u32,
    /// Firmware version of the TPM, vendor-specific.
    pub firmware_version: u64,
    /// PCRs quoted.
    pub selections: Vec<Selection>,
    /// Digest of their values.
    pub pcr_digest: Vec<u8>,
}

impl Attest {
    /// Reads a marshalled `TPMS_ATTEST` that is a quote.
    ///
    /// # Errors
    /// If it is malformed, or not a quote that a TPM made.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        let mut cursor = Cursor::new(bytes);
        let magic = cursor.u32_be()?;
        if magic != MAGIC {
            return Err(QuoteError::Magic { found: magic });
        }
        let kind = cursor.u16_be()?;
        if kind != TYPE_QUOTE {
            return Err(QuoteError::Type { found: kind });
        }
        let qualified_signer = cursor.tpm2b()?.to_vec();
        let extra_data = cursor.tpm2b()?.to_vec();
        // clockInfo: the clock, two counters, and whether the clock is safe.
        let clock_ms = cursor.u64_be()?;
        let reset_count = cursor.u32_be()?;
        let restart_count = cursor.u32_be()?;
        cursor.u8()?;
        let firmware_version = cursor.u64_be()?;
        let selections = read_selections(&mut cursor)?;
        let pcr_digest = cursor.tpm2b()?.to_vec();
        if !cursor.is_empty() {
            return Err(QuoteError::Tail { left: cursor.left() });
        }
        Ok(Self {
            qualified_signer,
            extra_data,
            clock_ms,
            reset_count,
            restart_count,
            firmware_version,
            selections,
            pcr_digest,
        })
    }
}

fn read_selections(cursor: &mut Cursor<'_>) -> Result<Vec<Selection>, QuoteError> {
    let banks = cursor.u32_be()?;
    if banks > BANKS_MAX {
        return Err(QuoteError::Selection { field: "banks", found: banks, max: BANKS_MAX });
    }
    let mut selections = Vec::new();
    for _ in 0..banks {
        let bank = cursor.u16_be()?;
        let bytes = cursor.u8()?;
        if bytes > SELECT_BYTES_MAX {
            let (found, max) = (u32::from(bytes), u32::from(SELECT_BYTES_MAX));
            return Err(QuoteError::Selection { field: "bytes", found, max });
        }
        let bitmap = cursor.take(usize::from(bytes))?;
        let bits = bitmap.iter().flat_map(|byte| (0..8).map(move |bit| byte & (1 << bit) != 0));
        let pcrs = (0_u8..).zip(bits).filter(|&(_, set)| set).map(|(index, _)| index).collect();
        selections.push(Selection { bank, pcrs });
    }
    Ok(selections)
}

/// Values of the SHA-256 bank, by PCR index.
pub type PcrValues = BTreeMap<u8, [u8; 32]>;

/// A quote whose signature verified under a key: the TPM that holds the key said this.
#[derive(Clone, Debug)]
pub struct Quote {
    attest: Attest,
    hash: HashAlg,
}

impl Quote {
    /// Checks the signature, then reads what was signed.
    ///
    /// # Errors
    /// If the signature does not verify, or what it signs is not a quote.
    pub fn verify(
        key: &AttestationKey,
        attest: &[u8],
        tpmt_signature: &[u8],
    ) -> Result<Self, QuoteError> {
        key.verify_tpmt(attest, tpmt_signature)?;
        Ok(Self { attest: Attest::parse(attest)?, hash: key.hash() })
    }

    /// What the TPM said.
    #[must_use]
    pub fn attest(&self) -> &Attest {
        &self.attest
    }

    /// Checks that `values` are exactly the quoted PCRs' values. TPM 2.0 Library Part 3, "TPM2_Quote": the
    /// digest is of the values in order of index, by the hash of the signing scheme.
    ///
    /// # Errors
    /// If the quote is over another bank, other PCRs, or other values.
    pub fn check_pcrs(&self, values: &PcrValues) -> Result<(), PcrsError> {
        let [Selection { bank, pcrs }] = self.attest.selections.as_slice() else {
            let found = self.attest.selections.iter().map(|selection| selection.bank).collect();
            return Err(PcrsError::Banks { found });
        };
        if *bank != HashAlg::Sha256.tpm_id() {
            return Err(PcrsError::Banks { found: vec![*bank] });
        }
        if !values.keys().eq(pcrs) || pcrs.iter().any(|&index| usize::from(index) >= PCRS) {
            let sent = values.keys().copied().collect();
            return Err(PcrsError::OtherPcrs { quoted: pcrs.clone(), sent });
        }
        let values: Vec<&[u8]> = values.values().map(<[u8; 32]>::as_slice).collect();
        let computed = self.hash.hash(&values);
        if computed.as_bytes() != self.attest.pcr_digest {
            let quoted = match Digest::new(self.hash, &self.attest.pcr_digest) {
                Some(digest) => digest.to_string(),
                None => format!("{} bytes", self.attest.pcr_digest.len()),
            };
            return Err(PcrsError::Digest { computed: computed.to_string(), quoted });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
