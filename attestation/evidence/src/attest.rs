//! `TPMS_ATTEST`: what every attestation of a TPM begins with, whatever it is about.
//!
//! Invariant: what was read proves nothing. A [`crate::quote::Quote`] or a [`crate::nv::NvCertify`] exists only
//! if the signature over these bytes verified.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;

use crate::cursor::{Cursor, Short};

/// `TPM_GENERATED_VALUE`: the TPM itself made what is signed. No restricted key signs foreign bytes that
/// begin with it.
const MAGIC: u32 = 0xff54_4347;

/// What is attested: TPM 2.0 Library Part 2, "TPMI_ST_ATTEST"; those that are read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `TPM_ST_ATTEST_NV`: contents of an NV index.
    Nv,
    /// `TPM_ST_ATTEST_QUOTE`: values of PCRs.
    Quote,
}

impl Kind {
    /// Its `TPM_ST`.
    #[must_use]
    pub fn tag(self) -> u16 {
        match self {
            Self::Nv => 0x8014,
            Self::Quote => 0x8018,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Nv => "an NV certification",
            Self::Quote => "a quote",
        };
        write!(f, "{name} ({:#06x})", self.tag())
    }
}

/// Why bytes are not the attestation that is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
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
    #[error("TPMS_ATTEST is of type {found:#06x}; {expected} is expected")]
    Type {
        /// The value found.
        found: u16,
        /// What is read.
        expected: Kind,
    },
    /// Neither yes nor no.
    #[error("TPMS_CLOCK_INFO says {found} for `safe`; 0 or 1 is expected")]
    Safe {
        /// The value found.
        found: u8,
    },
}

/// `TPMS_CLOCK_INFO`: TPM 2.0 Library Part 2, "TPMS_CLOCK_INFO". The counters are plain only under a key of the
/// endorsement or platform hierarchy: Part 1, "Clock Info and Firmware Version", obfuscates them for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds that the TPM had power since it was cleared. The owner may advance it, never set it back.
    pub clock_ms: u64,
    /// Times since the TPM was cleared that it was reset: one for each boot.
    pub reset_count: u32,
    /// Times since the last reset that the TPM was restarted or resumed.
    pub restart_count: u32,
    /// Whether no higher clock value was ever reported; false after a power cut, for a while.
    pub safe: bool,
}

/// The fields that every attestation has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) qualified_signer: Vec<u8>,
    pub(crate) extra_data: Vec<u8>,
    pub(crate) clock: ClockInfo,
    pub(crate) firmware_version: u64,
}

impl Header {
    /// Reads up to the `attested` union; what follows is of `expected`.
    pub(crate) fn read(cursor: &mut Cursor<'_>, expected: Kind) -> Result<Self, AttestError> {
        let magic = cursor.u32_be()?;
        if magic != MAGIC {
            return Err(AttestError::Magic { found: magic });
        }
        let found = cursor.u16_be()?;
        if found != expected.tag() {
            return Err(AttestError::Type { found, expected });
        }
        let qualified_signer = cursor.tpm2b()?.to_vec();
        let extra_data = cursor.tpm2b()?.to_vec();
        let clock_ms = cursor.u64_be()?;
        let reset_count = cursor.u32_be()?;
        let restart_count = cursor.u32_be()?;
        let safe = match cursor.u8()? {
            0 => false,
            1 => true,
            found => return Err(AttestError::Safe { found }),
        };
        let firmware_version = cursor.u64_be()?;
        let clock = ClockInfo { clock_ms, reset_count, restart_count, safe };
        Ok(Self { qualified_signer, extra_data, clock, firmware_version })
    }
}

/// Nothing may follow what was read.
pub(crate) fn finish(cursor: &Cursor<'_>) -> Result<(), AttestError> {
    if cursor.is_empty() { Ok(()) } else { Err(AttestError::Tail { left: cursor.left() }) }
}
