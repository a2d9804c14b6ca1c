//! `TPM2_MakeCredential` without a TPM: a secret that only the TPM with one endorsement key gives out, and only if a
//! key of one Name is loaded beside it. TPM 2.0 Library Part 1, "Credential Protection"; Part 1 annexes B.10.4 (RSA)
//! and C.6.4 (ECC) for the seed. An object that only that TPM imports is wrapped alike, under another label
//! ("Protected Storage Hierarchy", "Duplication").
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use aes::Aes128;
use cfb_mode::cipher::{AsyncStreamCipher as _, KeyIvInit as _};
use hmac::{Hmac, Mac as _};
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, RsaPublicKey};
use sha2::{Digest as _, Sha256};

use super::ek::{EndorsementKey, Numbers};
use crate::key::Name;
#[cfg(any(test, feature = "fixture"))]
use crate::key::fixed;

/// Bytes of the secret: what an EK with a SHA-256 Name carries at most.
pub const SECRET_BYTES: usize = 32;
/// Bytes of an RSA 2048 modulus.
const RSA_BYTES: usize = 256;

/// Fresh randomness for one challenge: whoever can guess it can answer without the TPM.
#[derive(Clone)]
pub struct Draw {
    /// What the TPM must give back.
    pub secret: [u8; SECRET_BYTES],
    /// The seed's randomness: the seed itself for RSA, the ephemeral private key for ECC.
    pub seed: [u8; 32],
    /// Randomness of the RSA padding.
    pub padding: [u8; 32],
}

/// Nothing of a secret goes into a log.
impl std::fmt::Debug for Draw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Draw(..)")
    }
}

/// Why no credential was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// One of 2³² draws is none.
    #[error("the random seed is no private key of P-256; draw again")]
    Seed,
}

/// What `TPM2_ActivateCredential` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// `TPMS_ID_OBJECT`, marshalled: the contents of `TPM2B_ID_OBJECT`.
    pub id_object: Vec<u8>,
    /// Contents of `TPM2B_ENCRYPTED_SECRET`.
    pub encrypted_secret: Vec<u8>,
}

/// What a seed is for, with its terminating zero: a TPM that expects the other one gets another seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label(&'static [u8]);

impl Label {
    /// `TPM2_ActivateCredential`.
    const IDENTITY: Self = Self(b"IDENTITY\0");
    /// `TPM2_Import`.
    pub(crate) const DUPLICATE: Self = Self(b"DUPLICATE\0");
}

/// Encrypts `draw.secret` to `key`, for a TPM in which an object called `name` is loaded.
///
/// # Errors
/// If `draw` has no usable seed.
pub fn make(key: &EndorsementKey, name: &Name, draw: &Draw) -> Result<Credential, CredentialError> {
    let (seed, encrypted_secret) = send(key, Label::IDENTITY, &draw.seed, &draw.padding)?;
    Ok(Credential { id_object: protect(&seed, name, sized(&draw.secret)), encrypted_secret })
}

/// A seed that only the TPM with `key` learns: the seed, and what it is encrypted as. `random` is the seed itself for
/// RSA, with `padding`, and the ephemeral private key for ECC.
///
/// # Errors
/// If `random` is no private key.
pub(crate) fn send(
    key: &EndorsementKey,
    label: Label,
    random: &[u8; 32],
    padding: &[u8; 32],
) -> Result<([u8; 32], Vec<u8>), CredentialError> {
    match &key.0 {
        Numbers::P256(key) => share(key, label, random),
        Numbers::Rsa(key) => Ok((*random, encrypt(key, label, random, padding))),
    }
}

/// Outer wrapping of `identity`, which is a `TPM2B`: AES-128-CFB with a zero IV, then HMAC-SHA-256 over that and the
/// Name. The seed is used once, so the IV may be constant.
pub(crate) fn protect(seed: &[u8; 32], name: &Name, mut identity: Vec<u8>) -> Vec<u8> {
    let symmetric = kdf_a(seed, b"STORAGE\0", name.as_bytes(), 128);
    if let Some((key, _)) = symmetric.split_first_chunk::<16>() {
        cfb_mode::Encryptor::<Aes128>::new(key.into(), &[0; 16].into()).encrypt(&mut identity);
    }
    let integrity = kdf_a(seed, b"INTEGRITY\0", &[], 256);
    let mac = hmac(&integrity, &[&identity, name.as_bytes()]);
    let mut id_object = sized(&mac);
    id_object.extend(identity);
    id_object
}

/// One-pass ECDH: the seed, and the ephemeral key as `TPMS_ECC_POINT`.
#[expect(clippy::arithmetic_side_effects, reason = "on a curve nothing overflows")]
fn share(
    key: &p256::PublicKey,
    Label(label): Label,
    ephemeral: &[u8; 32],
) -> Result<([u8; 32], Vec<u8>), CredentialError> {
    let ephemeral = p256::SecretKey::from_slice(ephemeral).map_err(|_| CredentialError::Seed)?;
    let shared = (key.to_projective() * *ephemeral.to_nonzero_scalar()).to_affine();
    let coordinates = |point: p256::EncodedPoint| {
        point.x().zip(point.y()).map(|(x, y)| (<[u8; 32]>::from(*x), <[u8; 32]>::from(*y)))
    };
    let own = coordinates(ephemeral.public_key().to_encoded_point(false));
    let theirs = coordinates(key.to_encoded_point(false));
    let shared = coordinates(shared.to_encoded_point(false));
    // None of the three is the point at infinity: the scalars are not zero and the order is prime.
    let (((x, y), (their_x, _)), (z, _)) =
        own.zip(theirs).zip(shared).ok_or(CredentialError::Seed)?;
    let mut point = sized(&x);
    point.extend(sized(&y));
    Ok((kdf_e(&z, label, &x, &their_x), point))
}

/// RSAES-OAEP over SHA-256, its label with the terminating zero: TPM 2.0 Library Part 1, B.4; RFC 8017, 7.1.1.
fn encrypt(
    key: &RsaPublicKey,
    Label(label): Label,
    secret: &[u8; 32],
    padding: &[u8; 32],
) -> Vec<u8> {
    let mut block = [0; RSA_BYTES - 1 - 32];
    let mut padded = Sha256::digest(label).to_vec();
    padded.resize(block.len().saturating_sub(secret.len()).saturating_sub(1), 0);
    padded.push(1);
    padded.extend(secret);
    block.iter_mut().zip(padded).for_each(|(to, from)| *to = from);
    let mut seed = *padding;
    mask(&mut block, &seed);
    mask(&mut seed, &block);
    let encoded = [&[0], seed.as_slice(), block.as_slice()].concat();
    let encrypted = BigUint::from_bytes_be(&encoded).modpow(key.e(), key.n()).to_bytes_be();
    let mut full = vec![0; RSA_BYTES.saturating_sub(encrypted.len())];
    full.extend(encrypted);
    full
}

/// Exclusive or with MGF1 of `from`: RFC 8017, B.2.1.
fn mask(into: &mut [u8], from: &[u8]) {
    for (counter, chunk) in (0_u32..).zip(into.chunks_mut(32)) {
        let block = Sha256::new().chain_update(from).chain_update(counter.to_be_bytes()).finalize();
        chunk.iter_mut().zip(block).for_each(|(to, from)| *to ^= from);
    }
}

/// KDFa, SP 800-108 in counter mode, for at most one block: TPM 2.0 Library Part 1, "KDFa()".
fn kdf_a(key: &[u8; 32], label: &[u8], context: &[u8], bits: u32) -> [u8; 32] {
    hmac(key, &[&1_u32.to_be_bytes(), label, context, &bits.to_be_bytes()])
}

/// KDFe, SP 800-56A, for one block of SHA-256: TPM 2.0 Library Part 1, "KDFe for ECDH".
fn kdf_e(z: &[u8; 32], label: &[u8], party_u: &[u8; 32], party_v: &[u8; 32]) -> [u8; 32] {
    Sha256::new()
        .chain_update(1_u32.to_be_bytes())
        .chain_update(z)
        .chain_update(label)
        .chain_update(party_u)
        .chain_update(party_v)
        .finalize()
        .into()
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // RFC 2104: a key shorter than a block is filled up with zeros.
    let mut block = [0; 64];
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// A `TPM2B` of 32 bytes.
fn sized(bytes: &[u8; 32]) -> Vec<u8> {
    [&[0, 32], bytes.as_slice()].concat()
}

/// What a TPM does in `TPM2_ActivateCredential`: for tests, and P-256 alone.
#[cfg(any(test, feature = "fixture"))]
pub(crate) fn recover(
    key: &p256::SecretKey,
    name: &Name,
    credential: &Credential,
) -> Option<[u8; SECRET_BYTES]> {
    let Credential { id_object, encrypted_secret } = credential;
    let identity = open(key, Label::IDENTITY, name, (id_object, encrypted_secret))?;
    fixed::<SECRET_BYTES>(identity.get(2..)?)
}

/// What a TPM does with an outer wrapping and its seed: the `TPM2B` inside.
#[cfg(any(test, feature = "fixture"))]
#[expect(clippy::arithmetic_side_effects, reason = "on a curve nothing overflows")]
pub(crate) fn open(
    key: &p256::SecretKey,
    Label(label): Label,
    name: &Name,
    (wrapped, encrypted_seed): (&[u8], &[u8]),
) -> Option<Vec<u8>> {
    use p256::elliptic_curve::sec1::FromEncodedPoint as _;
    let mut point = crate::cursor::Cursor::new(encrypted_seed);
    let (x, y) = (fixed::<32>(point.tpm2b().ok()?)?, fixed::<32>(point.tpm2b().ok()?)?);
    let encoded = p256::EncodedPoint::from_affine_coordinates(&x.into(), &y.into(), false);
    let ephemeral = Option::from(p256::PublicKey::from_encoded_point(&encoded))
        .map(|public: p256::PublicKey| public.to_projective() * *key.to_nonzero_scalar())?;
    let shared = ephemeral.to_affine().to_encoded_point(false);
    let own = key.public_key().to_encoded_point(false);
    let seed = kdf_e(&(*shared.x()?).into(), label, &x, &(*own.x()?).into());
    let mut cursor = crate::cursor::Cursor::new(wrapped);
    cursor.tpm2b().ok()?;
    let mut identity = cursor.take(cursor.left()).ok()?.to_vec();
    let symmetric = kdf_a(&seed, b"STORAGE\0", name.as_bytes(), 128);
    let key = symmetric.first_chunk::<16>()?;
    cfb_mode::Decryptor::<Aes128>::new(key.into(), &[0; 16].into()).decrypt(&mut identity);
    // The integrity value covers ciphertext and Name: made again, it must be the one received.
    (protect(&seed, name, identity.clone()) == wrapped).then_some(identity)
}
