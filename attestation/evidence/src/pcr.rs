//! PCR values, and the extend rule that joins them.
//! Invariant: a [`Pcr`] changes only through `extend`, so it is the fold of its events.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// PCRs of one bank (TCG PC Client Platform TPM Profile for TPM 2.0, "PCR Attributes").
pub const PCRS: usize = 24;

/// A value of the SHA-256 bank.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pcr([u8; 32]);

impl Pcr {
    /// What a PCR that measures the boot holds before its first event.
    pub const ZERO: Self = Self([0; 32]);

    /// Returns `SHA-256(self || digest)`; TPM 2.0 Library Part 1, "Extend of a PCR".
    #[must_use]
    pub fn extend(self, digest: [u8; 32]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(digest).finalize().into())
    }

    /// Extends by the SHA-256 of `data`.
    #[must_use]
    pub fn measure(self, data: &[u8]) -> Self {
        self.extend(Sha256::digest(data).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn value(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for Pcr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Pcr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pcr({self})")
    }
}

/// A hash algorithm that banks and event logs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlg {
    /// `TPM_ALG_SHA1`; read in old logs, trusted for nothing.
    Sha1,
    /// `TPM_ALG_SHA256`.
    Sha256,
    /// `TPM_ALG_SHA384`.
    Sha384,
    /// `TPM_ALG_SHA512`.
    Sha512,
}

impl HashAlg {
    /// Every algorithm, weakest first.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The algorithm of a `TPM_ALG_ID` (TCG Algorithm Registry, "TPM_ALG_ID").
    #[must_use]
    pub fn from_tpm(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.tpm_id() == id)
    }

    /// Its `TPM_ALG_ID`.
    #[must_use]
    pub fn tpm_id(self) -> u16 {
        match self {
            Self::Sha1 => 0x0004,
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
        }
    }

    /// The algorithm of a name as `sha256`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.name() == name)
    }

    /// Lower-case name, as tpm2-tools and systemd write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of a digest in bytes.
    #[must_use]
    pub fn digest_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Hashes the concatenation of `parts`.
    #[must_use]
    pub fn hash(self, parts: &[&[u8]]) -> Digest {
        fn fold<D: sha2::Digest>(parts: &[&[u8]]) -> sha2::digest::Output<D> {
            parts.iter().fold(D::new(), |hash, part| hash.chain_update(part)).finalize()
        }
        match self {
            Self::Sha1 => Digest::Sha1(fold::<Sha1>(parts).into()),
            Self::Sha256 => Digest::Sha256(fold::<Sha256>(parts).into()),
            Self::Sha384 => Digest::Sha384(fold::<Sha384>(parts).into()),
            Self::Sha512 => Digest::Sha512(fold::<Sha512>(parts).into()),
        }
    }
}

/// A digest, or a value of a PCR bank, with its algorithm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Digest {
    /// 20 bytes.
    Sha1([u8; 20]),
    /// 32 bytes.
    Sha256([u8; 32]),
    /// 48 bytes.
    Sha384([u8; 48]),
    /// 64 bytes.
    Sha512([u8; 64]),
}

impl Digest {
    /// A digest of `alg` from its bytes; `None` if the length is another.
    #[must_use]
    pub fn new(alg: HashAlg, bytes: &[u8]) -> Option<Self> {
        Some(match alg {
            HashAlg::Sha1 => Self::Sha1(bytes.try_into().ok()?),
            HashAlg::Sha256 => Self::Sha256(bytes.try_into().ok()?),
            HashAlg::Sha384 => Self::Sha384(bytes.try_into().ok()?),
            HashAlg::Sha512 => Self::Sha512(bytes.try_into().ok()?),
        })
    }

    /// A digest whose bytes are all `fill`.
    #[must_use]
    pub fn filled(alg: HashAlg, fill: u8) -> Self {
        match alg {
            HashAlg::Sha1 => Self::Sha1([fill; 20]),
            HashAlg::Sha256 => Self::Sha256([fill; 32]),
            HashAlg::Sha384 => Self::Sha384([fill; 48]),
            HashAlg::Sha512 => Self::Sha512([fill; 64]),
        }
    }

    /// Its algorithm.
    #[must_use]
    pub fn alg(&self) -> HashAlg {
        match self {
            Self::Sha1(_) => HashAlg::Sha1,
            Self::Sha256(_) => HashAlg::Sha256,
            Self::Sha384(_) => HashAlg::Sha384,
            Self::Sha512(_) => HashAlg::Sha512,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha1(bytes) => bytes,
            Self::Sha256(bytes) => bytes,
            Self::Sha384(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Sha1(bytes) => bytes,
            Self::Sha256(bytes) => bytes,
            Self::Sha384(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.alg().name())
    }
}

/// Why a bank was not extended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PcrError {
    /// There is no such PCR.
    #[error("PCR {index} does not exist; a bank has PCRs 0 to 23")]
    NoSuchPcr {
        /// The index asked for.
        index: u32,
    },
    /// The digest belongs to another bank.
    #[error("a {} digest cannot extend the {} bank", found.name(), expected.name())]
    OtherBank {
        /// Algorithm of the digest.
        found: HashAlg,
        /// Algorithm of the bank.
        expected: HashAlg,
    },
}

/// The PCRs of one algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrBank {
    alg: HashAlg,
    values: [Digest; PCRS],
    extended: [bool; PCRS],
}

impl PcrBank {
    /// The bank after `TPM2_Startup(CLEAR)` at `locality`. TCG PC Client Platform TPM Profile: PCR 0 begins
    /// with the locality in its last byte, 17 to 22 with all ones, the others with zeros.
    #[must_use]
    pub fn at_startup(alg: HashAlg, locality: u8) -> Self {
        let mut values = [Digest::filled(alg, 0); PCRS];
        if let Some(last) = values.first_mut().and_then(|pcr| pcr.as_bytes_mut().last_mut()) {
            *last = locality;
        }
        for dynamic in values.iter_mut().skip(17).take(6) {
            *dynamic = Digest::filled(alg, 0xff);
        }
        Self { alg, values, extended: [false; PCRS] }
    }

    /// The bank's algorithm.
    #[must_use]
    pub fn alg(&self) -> HashAlg {
        self.alg
    }

    /// Extends PCR `index` by `digest`.
    ///
    /// # Errors
    /// If there is no such PCR, or the digest is of another algorithm.
    pub fn extend(&mut self, index: u32, digest: &Digest) -> Result<(), PcrError> {
        if digest.alg() != self.alg {
            return Err(PcrError::OtherBank { found: digest.alg(), expected: self.alg });
        }
        let position = usize::try_from(index).unwrap_or(usize::MAX);
        let (Some(value), Some(extended)) =
            (self.values.get_mut(position), self.extended.get_mut(position))
        else {
            return Err(PcrError::NoSuchPcr { index });
        };
        *value = self.alg.hash(&[value.as_bytes(), digest.as_bytes()]);
        *extended = true;
        Ok(())
    }

    /// Value of PCR `index`; `None` if there is no such PCR.
    #[must_use]
    pub fn value(&self, index: u8) -> Option<Digest> {
        self.values.get(usize::from(index)).copied()
    }

    /// Whether PCR `index` was extended since startup.
    #[must_use]
    pub fn is_extended(&self, index: u8) -> bool {
        self.extended.get(usize::from(index)).copied().unwrap_or(false)
    }

    /// The PCRs that were extended since startup, by index.
    pub fn extended(&self) -> impl Iterator<Item = (u8, Digest)> {
        (0_u8..).zip(self.values).filter(|&(index, _)| self.is_extended(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extend_is_the_hash_of_value_and_digest() {
        // TCG PC Client Platform Firmware Profile: EV_SEPARATOR measures four zero bytes. The value is the
        // one that PCRs 2, 3 and 6 of most machines show after it, and nothing else.
        let separator = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969";
        assert_eq!(Pcr::ZERO.measure(&[0; 4]).to_string(), separator);
        let mut bank = PcrBank::at_startup(HashAlg::Sha256, 0);
        bank.extend(3, &HashAlg::Sha256.hash(&[&[0, 0], &[0, 0]])).unwrap();
        assert_eq!(bank.value(3).unwrap().to_string(), separator);
        assert_eq!(bank.extended().map(|(index, _)| index).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_bank_begins_as_the_tpm_profile_says() {
        let bank = PcrBank::at_startup(HashAlg::Sha1, 3);
        assert_eq!(bank.value(0).unwrap().to_string(), format!("{:040}", 3));
        assert_eq!(bank.value(1), Some(Digest::Sha1([0; 20])));
        assert_eq!(bank.value(16), Some(Digest::Sha1([0; 20])));
        assert_eq!(bank.value(17), Some(Digest::Sha1([0xff; 20])));
        assert_eq!(bank.value(22), Some(Digest::Sha1([0xff; 20])));
        assert_eq!(bank.value(23), Some(Digest::Sha1([0; 20])));
        assert_eq!(bank.value(24), None);
    }

    #[test]
    fn a_bank_refuses_what_it_does_not_hold() {
        let mut bank = PcrBank::at_startup(HashAlg::Sha256, 0);
        let before = bank.clone();
        let sha1 = Digest::Sha1([1; 20]);
        let other = PcrError::OtherBank { found: HashAlg::Sha1, expected: HashAlg::Sha256 };
        assert_eq!(bank.extend(0, &sha1), Err(other));
        let sha256 = Digest::Sha256([1; 32]);
        assert_eq!(bank.extend(24, &sha256), Err(PcrError::NoSuchPcr { index: 24 }));
        assert_eq!(bank, before);
    }
}
