//! The policy digest of the state partition's seal, as systemd 257 computes it: TPM2_PolicyAuthorize with the key
//! that signs PCR 11 policies, then TPM2_PolicyPCR over the literal PCRs 7, 12 and 13 (TPM 2.0 Library Part 3).

use rsa::RsaPublicKey;
use rsa::pkcs1::EncodeRsaPublicKey as _;
use rsa::pkcs8::DecodePublicKey as _;
use rsa::traits::PublicKeyParts as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::pcr::HashAlg;

/// Longest PEM of the key.
const PEM_BYTES_MAX: usize = 8192;
/// Longest signed policy of an image.
pub const SIGNATURES_BYTES_MAX: usize = 64 << 10;
/// Most signatures in it.
const SIGNATURES_MAX: usize = 16;
/// `TPM_CC_PolicyAuthorize`.
const CC_POLICY_AUTHORIZE: u32 = 0x0000_016a;
/// `TPM_CC_PolicyPCR`.
const CC_POLICY_PCR: u32 = 0x0000_017f;
/// `TPM_ALG_RSA`.
const ALG_RSA: u16 = 0x0001;
/// `TPM_ALG_NULL`.
const ALG_NULL: u16 = 0x0010;
/// `TPMA_OBJECT` userWithAuth, decrypt and sign: how systemd loads the key (`tpm2_tpm2b_public_from_pem`).
const ATTRIBUTES: u32 = 0x0000_0040 | 0x0002_0000 | 0x0004_0000;
/// PCRs that must be zero: nothing came beside the signed UKI.
const PCRS_ZERO: [u8; 2] = [12, 13];
/// `TPML_PCR_SELECTION` of PCR 7 and those in the SHA-256 bank.
const SELECTION: [u8; 10] = [0, 0, 0, 1, 0, 0x0b, 3, 0x80, 0x30, 0];
/// Moduli that TPMs take.
const MODULUS_BYTES: [usize; 3] = [256, 384, 512];

/// Why a key signs no policies of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not an RSA key in PEM.
    #[error("the key of the signed PCR policy is not an RSA public key in PEM: {reason}")]
    Pem {
        /// What the reader says.
        reason: String,
    },
    /// Not what systemd-measure or the builder writes.
    #[error("the image's signed PCR policy: {reason}")]
    Signatures {
        /// What was found.
        reason: String,
    },
    /// A size or exponent that TPMs do not take.
    #[error(
        "the key of the signed PCR policy has {bits} bits and an exponent of {exponent_bytes} bytes; 2048, 3072 \
         or 4096 and at most 4 are expected"
    )]
    Size {
        /// Bits of the modulus.
        bits: usize,
        /// Bytes of the exponent.
        exponent_bytes: usize,
    },
}

/// A key that signs PCR 11 policies of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealingKey {
    authorized: [u8; 32],
    fingerprint: [u8; 32],
}

/// The keys that signed an image's PCR 11 policies: its own, to which new slots are sealed, and while a key is being
/// rotated the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageKeys {
    own: SealingKey,
    signers: Vec<[u8; 32]>,
}

/// `.pcrsig`: systemd-measure(1), "sign".
#[derive(Deserialize)]
struct Signatures {
    sha256: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    /// SHA-256 over the `RSAPublicKey`, hex.
    pkfp: String,
}

impl ImageKeys {
    /// Reads what systemd-stub hands over of the UKI: `.pcrpkey` and `.pcrsig`.
    ///
    /// # Errors
    /// [`SealError`] says what is wrong; the image's own key must have signed.
    pub fn read(own: &str, signatures: &[u8]) -> Result<Self, SealError> {
        let failed = |reason: String| SealError::Signatures { reason };
        if signatures.len() > SIGNATURES_BYTES_MAX {
            let found = signatures.len();
            return Err(failed(format!("{found} bytes; at most {SIGNATURES_BYTES_MAX} are read")));
        }
        let own = SealingKey::from_pem(own)?;
        let Signatures { sha256 } =
            serde_json::from_slice(signatures).map_err(|error| failed(error.to_string()))?;
        if sha256.len() > SIGNATURES_MAX {
            let found = sha256.len();
            return Err(failed(format!("{found} signatures; at most {SIGNATURES_MAX} are read")));
        }
        let mut signers = Vec::new();
        for Signature { pkfp } in sha256 {
            let mut signer = [0; 32];
            hex::decode_to_slice(&pkfp, &mut signer)
                .map_err(|_| failed(format!("pkfp {pkfp:.70?}; 64 hex digits are expected")))?;
            signers.push(signer);
        }
        if !signers.contains(&own.fingerprint) {
            return Err(failed("none is by the image's own key".to_owned()));
        }
        Ok(Self { own, signers })
    }

    /// The image's own key.
    #[must_use]
    pub fn own(&self) -> &SealingKey {
        &self.own
    }

    /// Whether the image carries a signature by this key.
    #[must_use]
    pub fn signed_by(&self, key: &SealingKey) -> bool {
        self.signers.contains(&key.fingerprint)
    }
}

impl SealingKey {
    /// Reads the key as systemd-stub hands it over.
    ///
    /// # Errors
    /// [`SealError`] says what is wrong with it.
    pub fn from_pem(pem: &str) -> Result<Self, SealError> {
        if pem.len() > PEM_BYTES_MAX {
            let reason = format!("{} bytes; at most {PEM_BYTES_MAX} are read", pem.len());
            return Err(SealError::Pem { reason });
        }
        let key = RsaPublicKey::from_public_key_pem(pem.trim())
            .map_err(|error| SealError::Pem { reason: error.to_string() })?;
        let (modulus, exponent) = (key.n().to_bytes_be(), key.e().to_bytes_be());
        let size = SealError::Size { bits: key.n().bits(), exponent_bytes: exponent.len() };
        let mut word = [0; 4];
        let (Some(tail), true) = (
            word.len().checked_sub(exponent.len()).and_then(|at| word.get_mut(at..)),
            MODULUS_BYTES.contains(&modulus.len()),
        ) else {
            return Err(size);
        };
        tail.copy_from_slice(&exponent);
        // A modulus of MODULUS_BYTES has at most 4096 bits.
        let bits = u16::try_from(modulus.len().saturating_mul(8)).unwrap_or(u16::MAX);
        let bytes = u16::try_from(modulus.len()).unwrap_or(u16::MAX);
        let public = [
            &ALG_RSA.to_be_bytes()[..],
            &HashAlg::Sha256.tpm_id().to_be_bytes(),
            &ATTRIBUTES.to_be_bytes(),
            // authPolicy: none.
            &[0, 0],
            // symmetric, scheme, keyBits, exponent.
            &ALG_NULL.to_be_bytes(),
            &ALG_NULL.to_be_bytes(),
            &bits.to_be_bytes(),
            &word,
            &bytes.to_be_bytes(),
            &modulus,
        ]
        .concat();
        let name = [&HashAlg::Sha256.tpm_id().to_be_bytes()[..], &Sha256::digest(public)].concat();
        // PolicyUpdate(): the policy so far (none), the command, the name; then policyRef (none).
        let first = extend(&[&[0; 32], &CC_POLICY_AUTHORIZE.to_be_bytes(), &name]);
        let der =
            key.to_pkcs1_der().map_err(|error| SealError::Pem { reason: error.to_string() })?;
        Ok(Self { authorized: extend(&[&first]), fingerprint: extend(&[der.as_bytes()]) })
    }

    /// systemd's name of the key: SHA-256 over the `RSAPublicKey` in it, hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(self.fingerprint)
    }

    /// Policy digest of a seal that opens with this PCR 7, PCRs 12 and 13 = 0, and a PCR 11 that the key signed.
    #[must_use]
    pub fn policy(&self, pcr7: [u8; 32]) -> [u8; 32] {
        self.policy_over(SELECTION, &[&pcr7, &[0; 32], &[0; 32]])
    }

    fn policy_over(&self, selection: [u8; 10], pcrs: &[&[u8]]) -> [u8; 32] {
        let pcrs = extend(pcrs);
        extend(&[&self.authorized, &CC_POLICY_PCR.to_be_bytes(), &selection, &pcrs])
    }
}

/// The same seal in the words of systemd: `--tpm2-pcrs=` of systemd-repart and systemd-cryptenroll. Without a PCR 7, it
/// is the present one.
#[must_use]
pub fn tpm2_pcrs(pcr7: Option<[u8; 32]>) -> String {
    let value = |pcr: u8, value: [u8; 32]| format!("{pcr}:sha256={}", hex::encode(value));
    let first = pcr7.map_or_else(|| "7".to_owned(), |pcr7| value(7, pcr7));
    PCRS_ZERO.iter().fold(first, |list, &pcr| format!("{list}+{}", value(pcr, [0; 32])))
}

fn extend(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A throw-away key, and what systemd 257 wrote for it into the header of a partition sealed to PCRs 7 and 12.
    const PEM: &str = include_str!("../fixture/pcr.pub.pem");

    #[test]
    fn the_policy_is_the_one_that_systemd_seals_to() {
        let key = SealingKey::from_pem(PEM).unwrap();
        let only_7_and_12 = [0, 0, 0, 1, 0, 0x0b, 3, 0x80, 0x10, 0];
        let mut pcr7 = [0; 32];
        let text = "8e8eb6766ea644fc5f4ca0aaf8b3210a8dcbb2888ef8d569cc8283b5ef832365";
        hex::decode_to_slice(text, &mut pcr7).unwrap();
        assert_eq!(
            hex::encode(key.policy_over(only_7_and_12, &[&pcr7, &[0; 32]])),
            "be719c0f6dd28ff7dfcb58b037944269aaa2b4eb8330c93d99b48214a696da57"
        );
        // With PCR 13 as well, as systemd-repart makes it; `dbx-update-forecast` compares with a real header.
        let with_13 = "74bb616cc14443abbc39105eb6c826fc8e27194e213a537c1169fdb4c5b88c3d";
        assert_eq!(hex::encode(key.policy(pcr7)), with_13);
        assert_ne!(key.policy([0; 32]), key.policy(pcr7));
    }

    #[test]
    fn an_order_seals_to_what_the_first_boot_seals_to() {
        let unit = include_str!(
            "../../../../image/config/tree/usr/lib/systemd/system/systemd-repart.service.d/50-casemate.conf"
        );
        let option = format!("--tpm2-pcrs={}\n", tpm2_pcrs(None));
        assert!(unit.contains(&option), "{option} is not what systemd-repart does");
        assert_eq!([&[7][..], &PCRS_ZERO].concat(), crate::forecast::STATE_PCRS);
        assert!(tpm2_pcrs(Some([0xab; 32])).starts_with("7:sha256=abab"));
    }

    /// What `openssl rsa -RSAPublicKey_out -outform DER | sha256sum` says of the same key.
    const FINGERPRINT: &str = "4ea33be0b46c6d9ddf136cc2388491f83f6f7d19901421cecfbf0434df69b368";

    #[test]
    fn an_image_is_signed_by_its_own_key_and_perhaps_another() {
        let key = SealingKey::from_pem(PEM).unwrap();
        let signatures = |fingerprints: &[&str]| {
            let entry =
                |fp: &&str| serde_json::json!({"pcrs": [11], "pkfp": fp, "pol": "", "sig": ""});
            let entries: Vec<_> = fingerprints.iter().map(entry).collect();
            serde_json::json!({"sha256": entries}).to_string().into_bytes()
        };
        let other = "ab".repeat(32);
        let keys = ImageKeys::read(PEM, &signatures(&[&other, FINGERPRINT])).unwrap();
        assert_eq!(*keys.own(), key);
        assert!(keys.signed_by(&key));
        assert!(!keys.signed_by(&SealingKey { fingerprint: [0; 32], ..key }));
        assert!(keys.signed_by(&SealingKey { fingerprint: [0xab; 32], ..key }));
        let many = vec![FINGERPRINT; SIGNATURES_MAX + 1];
        for bad in [
            signatures(&[]),
            signatures(&[&other]),
            signatures(&[FINGERPRINT, "ab"]),
            signatures(&many),
            b"{}".to_vec(),
            vec![b' '; SIGNATURES_BYTES_MAX + 1],
        ] {
            let error = ImageKeys::read(PEM, &bad).unwrap_err();
            assert!(matches!(error, SealError::Signatures { .. }), "{error}");
        }
    }

    #[test]
    fn what_is_no_rsa_key_is_refused() {
        let ec = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n";
        for pem in ["", "x", ec, &"x".repeat(PEM_BYTES_MAX + 1)] {
            assert!(matches!(SealingKey::from_pem(pem), Err(SealError::Pem { .. })), "{pem:.40}");
        }
    }
}
