//! The content key as an object for one TPM: sealed data that `TPM2_Import` takes under an endorsement key.
//! TPM 2.0 Library Part 1, "Duplication" (outer wrapper, no inner one); Part 2, `TPMT_PUBLIC` and `TPMT_SENSITIVE`.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zeroize::Zeroizing;

use super::{Draw, PCRS};
use crate::enrol::{CredentialError, EndorsementKey, Label, protect, send};
use crate::key::{ALG_NULL, Name};
use crate::pcr::HashAlg;
use crate::quote::PcrValues;

/// `TPM_ALG_KEYEDHASH`.
const TYPE_KEYEDHASH: u16 = 0x0008;
/// adminWithPolicy and noDA. Not userWithAuth: nothing but the policy unseals it, and there is no password that
/// `TPM2_ObjectChangeAuth` would take instead. Not fixedTPM or fixedParent, or no TPM would import it.
const ATTRIBUTES: u32 = 1 << 7 | 1 << 10;
const CC_POLICY_PCR: u32 = 0x017f;
const CC_POLICY_COMMAND_CODE: u32 = 0x016c;
const CC_UNSEAL: u32 = 0x015e;

/// What `TPM2_Import` takes: contents of its sized parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    /// `TPMT_PUBLIC`.
    pub(super) public: Vec<u8>,
    /// `TPM2B_PRIVATE`.
    pub(super) duplicate: Vec<u8>,
    /// `TPM2B_ENCRYPTED_SECRET`.
    pub(super) encrypted_seed: Vec<u8>,
}

impl Object {
    /// Wraps the content key in `draw` for the TPM with `key`, to come out only while PCRs are `pcrs`.
    pub(super) fn wrap(
        key: &EndorsementKey,
        pcrs: &PcrValues,
        draw: &Draw,
    ) -> Result<Self, CredentialError> {
        // TPM 2.0 Library Part 1, "Symmetric Object Creation": the public area shows the secret hashed with a seed.
        let unique = HashAlg::Sha256.hash(&[&*draw.obfuscation, &*draw.content]);
        let public = public(&policy(pcrs), unique.as_bytes());
        let (seed, encrypted_seed) = send(key, Label::DUPLICATE, &draw.seed, &draw.padding)?;
        let seed = Zeroizing::new(seed);
        // Encrypted in place.
        let duplicate =
            protect(&seed, &Name::of(&public), sensitive(&draw.obfuscation, &draw.content));
        Ok(Self { public, duplicate, encrypted_seed })
    }

    /// Whether `public` is what [`Object::wrap`] makes for these PCRs: whose policy it is cannot be told from a digest.
    pub(super) fn has_policy(&self, pcrs: &PcrValues) -> bool {
        let unique = self.public.last_chunk::<32>();
        unique.is_some_and(|unique| public(&policy(pcrs), unique) == self.public)
    }
}

/// The digest that the TPM makes of these PCRs, in ascending order: `TPM2_PolicyPCR`'s `pcrDigest`.
pub(super) fn pcr_digest(pcrs: &PcrValues) -> [u8; 32] {
    sha256(&pcrs.values().map(<[u8; 32]>::as_slice).collect::<Vec<_>>())
}

/// `TPM2_PolicyPCR`, then `TPM2_PolicyCommandCode(TPM2_Unseal)` (Part 3). The second keeps `TPM2_Duplicate`, whose
/// role wants `TPM2_PolicyCommandCode(TPM2_Duplicate)`, from ever being authorized.
fn policy(pcrs: &PcrValues) -> [u8; 32] {
    let first = sha256(&[&[0; 32], &CC_POLICY_PCR.to_be_bytes(), &selection(), &pcr_digest(pcrs)]);
    sha256(&[&first, &CC_POLICY_COMMAND_CODE.to_be_bytes(), &CC_UNSEAL.to_be_bytes()])
}

/// `TPML_PCR_SELECTION` of [`PCRS`] in the SHA-256 bank.
fn selection() -> Vec<u8> {
    let bits = PCRS.iter().fold(0_u32, |bits, &pcr| bits | 1_u32.unbounded_shl(pcr.into()));
    let [first, second, third, _] = bits.to_le_bytes();
    let [high, low] = HashAlg::Sha256.tpm_id().to_be_bytes();
    vec![0, 0, 0, 1, high, low, 3, first, second, third]
}

/// `TPMT_PUBLIC`.
fn public(policy: &[u8; 32], unique: &[u8]) -> Vec<u8> {
    let mut public = Vec::new();
    public.extend(TYPE_KEYEDHASH.to_be_bytes());
    public.extend(HashAlg::Sha256.tpm_id().to_be_bytes());
    public.extend(ATTRIBUTES.to_be_bytes());
    public.extend([0, 32]);
    public.extend(policy);
    // No scheme: data, and no key.
    public.extend(ALG_NULL.to_be_bytes());
    public.extend([0, 32]);
    public.extend(unique);
    public
}

/// `TPM2B_SENSITIVE`: no password, the seed of the obfuscation, the secret.
fn sensitive(obfuscation: &[u8; 32], content: &[u8; 32]) -> Vec<u8> {
    let [high, low] = TYPE_KEYEDHASH.to_be_bytes();
    // Written in one allocation, so that nothing is left behind where it grew.
    let mut sensitive = Vec::with_capacity(74);
    sensitive.extend([0, 72, high, low, 0, 0, 0, 32]);
    sensitive.extend(obfuscation);
    sensitive.extend([0, 32]);
    sensitive.extend(content);
    sensitive
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = [0; 32];
    let hash = HashAlg::Sha256.hash(parts);
    digest.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
    digest
}
