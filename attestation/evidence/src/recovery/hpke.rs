//! One message to one key: RFC 9180 (HPKE), base mode, single-shot, with DHKEM(P-256, HKDF-SHA256), HKDF-SHA256 and
//! AES-256-GCM. The receiver's Diffie-Hellman is a parameter, since its key is in a token.

use aes_gcm::aead::{Aead as _, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::{Hkdf, HkdfExtract};
use p256::PublicKey;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes of an encapsulated key: an uncompressed point.
pub(super) const ENC_BYTES: usize = 65;
/// `kem_id` of DHKEM(P-256, HKDF-SHA256).
const KEM: [u8; 2] = 0x0010_u16.to_be_bytes();
/// `kdf_id` of HKDF-SHA256.
const KDF: [u8; 2] = 0x0001_u16.to_be_bytes();
/// `aead_id` of AES-256-GCM.
const AES_256_GCM: u16 = 0x0002;
const NONCE_BYTES: usize = 12;

/// A shared secret.
pub(super) type Secret = Zeroizing<[u8; 32]>;

/// `Encap`: a shared secret for the holder of `key`, and what that holder needs to derive it; `None` if `ephemeral` is no
/// scalar of the curve.
#[expect(clippy::arithmetic_side_effects, reason = "on a curve nothing overflows")]
pub(super) fn encapsulate(key: &PublicKey, ephemeral: &[u8; 32]) -> Option<(Secret, Vec<u8>)> {
    let ephemeral = p256::SecretKey::from_slice(ephemeral).ok()?;
    let point = (key.to_projective() * *ephemeral.to_nonzero_scalar()).to_affine();
    let mut shared = Zeroizing::new([0; 32]);
    // Not the point at infinity: the scalar is not zero and the order is prime.
    shared.copy_from_slice(point.to_encoded_point(false).x()?);
    let enc = encoded(&ephemeral.public_key());
    Some((extract_and_expand(&shared, &enc, key), enc))
}

/// `Decap`, once the token has made `shared` of its key and `enc`: the x-coordinate.
pub(super) fn decapsulate(key: &PublicKey, enc: &[u8], shared: &Secret) -> Secret {
    extract_and_expand(shared, enc, key)
}

/// `SealBase` under a shared secret.
pub(super) fn seal(secret: &Secret, info: &[u8], aad: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    let (key, nonce) = schedule::<32>(secret, AES_256_GCM, info);
    let cipher = Aes256Gcm::new_from_slice(key.as_slice()).ok()?;
    cipher.encrypt(&Nonce::from(nonce), Payload { msg: plain, aad }).ok()
}

/// `OpenBase`; `None` if it was not sealed so.
pub(super) fn open(
    secret: &Secret,
    info: &[u8],
    aad: &[u8],
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (key, nonce) = schedule::<32>(secret, AES_256_GCM, info);
    let cipher = Aes256Gcm::new_from_slice(key.as_slice()).ok()?;
    cipher.decrypt(&Nonce::from(nonce), Payload { msg: sealed, aad }).ok().map(Zeroizing::new)
}

/// `SerializePublicKey`.
fn encoded(key: &PublicKey) -> Vec<u8> {
    key.to_encoded_point(false).as_bytes().to_vec()
}

fn extract_and_expand(shared: &Secret, enc: &[u8], key: &PublicKey) -> Secret {
    let suite = [b"KEM".as_slice(), &KEM].concat();
    let context = [enc, &encoded(key)].concat();
    let (_, prk) = extract(&suite, b"", b"eae_prk", shared.as_slice());
    expand(&prk, &suite, b"shared_secret", &context)
}

/// `KeySchedule` of the base mode: key and first nonce.
fn schedule<const KEY_BYTES: usize>(
    secret: &Secret,
    aead: u16,
    info: &[u8],
) -> (Zeroizing<[u8; KEY_BYTES]>, [u8; NONCE_BYTES]) {
    let suite = [b"HPKE".as_slice(), &KEM, &KDF, &aead.to_be_bytes()].concat();
    let (psk_id_hash, _) = extract(&suite, b"", b"psk_id_hash", b"");
    let (info_hash, _) = extract(&suite, b"", b"info_hash", info);
    // mode_base is 0.
    let context = [&[0][..], &psk_id_hash, &info_hash].concat();
    let (_, prk) = extract(&suite, secret.as_slice(), b"secret", b"");
    let nonce = expand(&prk, &suite, b"base_nonce", &context);
    (expand(&prk, &suite, b"key", &context), *nonce)
}

fn extract(suite: &[u8], salt: &[u8], label: &[u8], key: &[u8]) -> ([u8; 32], Hkdf<Sha256>) {
    let mut extract = HkdfExtract::<Sha256>::new(Some(salt));
    for part in [b"HPKE-v1", suite, label, key] {
        extract.input_ikm(part);
    }
    let (digest, prk) = extract.finalize();
    (digest.into(), prk)
}

#[expect(clippy::expect_used, reason = "HKDF gives up to 255 digests, and this asks for one")]
fn expand<const BYTES: usize>(
    prk: &Hkdf<Sha256>,
    suite: &[u8],
    label: &[u8],
    context: &[u8],
) -> Zeroizing<[u8; BYTES]> {
    let mut out = Zeroizing::new([0; BYTES]);
    let length = u16::try_from(BYTES).unwrap_or(u16::MAX).to_be_bytes();
    let info = [&length, b"HPKE-v1".as_slice(), suite, label, context];
    prk.expand_multi_info(&info, out.as_mut_slice()).expect("at most 255 digests");
    out
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use aes_gcm::Aes128Gcm;

    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// RFC 9180, A.3.1: the same suite but for AES-128-GCM, whose identifier and key length alone differ.
    #[test]
    fn it_is_the_rfc_s() {
        let ephemeral = "4995788ef4b9d6132b249ce59a77281493eb39af373d236a1fe415cb0c2d7beb";
        let receiver = "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2";
        let receiver = p256::SecretKey::from_slice(&bytes::<32>(receiver)).unwrap();
        let (secret, enc) = encapsulate(&receiver.public_key(), &bytes(ephemeral)).unwrap();
        assert_eq!(
            hex::encode(&enc),
            "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac98536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4"
        );
        assert_eq!(
            hex::encode(secret.as_slice()),
            "c0d26aeab536609a572b07695d933b589dcf363ff9d93c93adea537aeabb8cb8"
        );
        let info = hex::decode("4f6465206f6e2061204772656369616e2055726e").unwrap();
        let (key, nonce) = schedule::<16>(&secret, 0x0001, &info);
        assert_eq!(hex::encode(key.as_slice()), "868c066ef58aae6dc589b6cfdd18f97e");
        assert_eq!(hex::encode(nonce), "4e0bc5018beba4bf004cca59");
        let payload = Payload { msg: b"Beauty is truth, truth beauty", aad: b"Count-0" };
        let cipher = Aes128Gcm::new_from_slice(key.as_slice()).unwrap();
        let sealed = cipher.encrypt(&Nonce::from(nonce), payload).unwrap();
        assert_eq!(
            hex::encode(sealed),
            "5ad590bb8baa577f8619db35a36311226a896e7342a6d836d8b7bcd2f20b6c7f9076ac232e3ab2523f39513434"
        );
    }

    #[test]
    fn what_was_sealed_is_opened_and_nothing_else() {
        let receiver = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        let (secret, enc) = encapsulate(&receiver.public_key(), &[9; 32]).unwrap();
        assert_eq!(enc.len(), ENC_BYTES);
        let sealed = seal(&secret, b"info", b"aad", b"plain").unwrap();
        assert_eq!(*open(&secret, b"info", b"aad", &sealed).unwrap(), b"plain");
        assert!(open(&secret, b"other", b"aad", &sealed).is_none());
        assert!(open(&secret, b"info", b"other", &sealed).is_none());
        assert!(open(&secret, b"info", b"aad", &sealed[1..]).is_none());
        assert!(open(&Zeroizing::new([0; 32]), b"info", b"aad", &sealed).is_none());
        assert!(encapsulate(&receiver.public_key(), &[0xff; 32]).is_none());
    }
}
