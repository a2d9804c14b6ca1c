//! Every scheme of a key, checked with signatures that OpenSSL 3 made over [`MESSAGE`] with keys of this test.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use p384::ecdsa::signature::Signer as _;

use super::*;
use crate::fixture::{ATTRIBUTES, SoftTpm};

const MESSAGE: &[u8] = b"TPMS_ATTEST";
/// A modulus of 2048 bits.
const MODULUS: &str = "ba61267a9bdc8b2bc0781e9357d40a380506a86c7bedba1aa5b31deaaa0c99ea1f79da47e419f3b47f1829ce3d00fdf4\
         c6002b78eb431ca43b98572f771c75bbb97d45bccc936aff58101a8bd8406f0e534ddb74431f6aa1bb3f2dbd102eebc8\
         f0798f57ae531feecb14f9ad3f5b3c1c8cf8795021bd5c29f69b8cbb0b6541fadd813515eef919c74e608ac5a46ab5b0\
         c6a9a8f2b77a4acf418f400d6081c9f8323b7e8282a73822fd52c8031e7bc0e01bd459a6356ac326f04eead2f5e765e8\
         50aa4e115be5ad067facce01b3b618b5e9c773056feadff1e1fc2d84a0635f3c4dc12e76661584508fbacc7f720a5cc6\
         3ba9bd43f0ee98fb599297efa6d50779";
/// RSAPSS over SHA-256, a salt as long as the hash.
const PSS_DIGEST: &str = "33ee21bbcf405750cabacb6b886d33df4e7a042ffbfd827974aea098cc75eb3adf80ec1f63899442712c4cfa8a72e3eb\
         e79b28b1ab68ae382fcb4d320d00a00b0ff72975d51ddc0ff9faaea0728076b473f686ec41a70ba23026ce0e37c79b9e\
         cc3a118887bbb8bc4747dd406f1d06ae9b131c0d188cf4ae89dd94f64665226dca003685c6bb165637bac7f9ad514de1\
         f10c2964d69bdd06c3e32bc440f86313220ea1220aa0b7573223ea01d1a2a0f3edd317765db6ab0dff057d1c8d90dfb6\
         f0acf6677f9ea9afd6adcdb7363d86cc092cc22c22b1aa276ff837bc845f7c9253dfd8bd0d64a147583fc7bef53943b5\
         0fec3c4afd5678002c995709bd8b2afa";
/// RSAPSS over SHA-256, the longest salt: 222 bytes.
const PSS_MAX: &str = "a395ebceb4a8f8ef3b6895a9646e50ee20cec2401cdac9f8a7f9c014bf376f64e35539f218ce0e1cc09449106ffb8711\
         21da6a7d24b7106dd1efdab48cea7b7f388d9ee034291b71877b26432f03b733901f8e0584d128d0e212d87eda598081\
         365127ae3c6a6984bfd07b995abf51ba2cc835e06bdbef1c10d8358ab739ce191033209a45a2ae1e0d44b971db89afc4\
         0a55f7e0c28f3458149f2c1e9994e6755352b340e9ae96b17b10b0a5a76afb63f7899d0cd8e7c7611213ea2094ef4a22\
         a264aaaa1a1bd605b7fd2743d2859a0c622a0e309d6b954631ba3263b655af2599d2568c509ef97eee07b859136c95e3\
         3189f863f33859ae315c877d8b5e97ea";
/// RSAPSS over SHA-256, a salt of 20 bytes, which no TPM makes.
const PSS_20: &str = "7fc136851a388ed5f1180b4bd94059a3e655a4ecdf9886eca6e9476a9721c09746f84930ce25358f9e5feed8a6fc0d1e\
         2e69a97b8db64c728b29f556bf79b5be0a9bd35cc24ae6b3985de5b8930959660caa6627fbf6b97121d2c98915291855\
         4764d72a4968f5a3abae82097cc9eb70fc7d4ecf006c5fb47900f47b67dc2fea28a7c69c5a1ba29e452969e572e3f746\
         7682360a332ad720d1eb5da45b75bf83c35c315a36456aa43ed915f98c537b73f1c34928af1fa5be7894f89b2a860dc8\
         3ff1d24de217a0e5ef28068e9220ed4bb9be64be5135f7028e8c3a1ad2e0eb6521b07e6acbe91c74ab3ffc22afac3eb5\
         e47ec76444e971990fc7299eb5f50cdd";
/// RSASSA over SHA-256.
const SSA: &str = "98e066d6e084a2dc5b04abd9139e13bbb7648195c94bf8f9012e271b95a6d2935aa9ee333f514e1dfe18fbe3891856c6\
         fd5720ae26a5759027c53d9e578a5df8c11b47bf9601e39829cabceac175c32a428fc9c14ce90a931dcc6f687ed7413f\
         a6361c48edbd66588b3920549096a80745e650d5cd5ecb260f85d213bc549831706864ab59fb124055c63966d97facb6\
         ed714f8dd58a14277a8f82483d3b037f802848f23bd89267681abee67429f3e654cc3fe9a55aa1c94d6453467ec893db\
         206d8baac059c2354865975879043adbfea90fec90d01a1bcf9a6dc72f669061a3894c07e256bd87a01af2bd34b536a7\
         c86503a3a776c25a4e9058c44cfd8d21";
/// RSASSA over SHA-512.
const SSA_512: &str = "a2b0852e34507f70a366933ab8f6ca1e76c2903b854515862c9ed6b6ad109bb425338d81c321d44f36ffe1157d21c9d7\
         0d2e6449beabec7d9b3fe2721278a79089b88bf5d8e9e3e56e9a9696ea10f0373f815d883fa78f9085b535c4d12901c6\
         3c698f528cf24b0c347f4452d4e430464d052d90e7eb4acd31cf049937aba57714ce286214fea02ffca6cee50ae0a3f1\
         ad3cfd410e273d01ebb7bceb1778c2a33b8f4284c27b514933616699dd30fa05a87677d2c993e8bcf989a4bc5648f303\
         08b704be35c48c312bdd21ac153187a8140b2b757511caa773b2ee419ccb7d6b7c77c9a084c0298b51cecdabc3eafe91\
         236d56f457122fb9837375a2ca13df82";

/// `TPMT_PUBLIC` of an RSA key with this scheme and hash.
fn rsa_public(alg: u16, hash: HashAlg, bits: u16) -> Vec<u8> {
    let mut public = [TYPE_RSA, HashAlg::Sha256.tpm_id()].map(u16::to_be_bytes).concat();
    public.extend(ATTRIBUTES.to_be_bytes());
    let modulus = hex::decode(MODULUS).unwrap();
    for field in [0, ALG_NULL, alg, hash.tpm_id(), bits, 0, 0, 256_u16] {
        public.extend(field.to_be_bytes());
    }
    public.extend(modulus);
    public
}

fn tpmt(alg: u16, hash: HashAlg, signature: &str) -> Vec<u8> {
    let signature = hex::decode(signature).unwrap();
    let length = u16::try_from(signature.len()).unwrap();
    let mut tpmt = [alg, hash.tpm_id(), length].map(u16::to_be_bytes).concat();
    tpmt.extend(signature);
    tpmt
}

#[test]
fn rsa_signatures_of_every_scheme_verify_and_no_other_does() {
    for (alg, hash, signature, good) in [
        (ALG_RSASSA, HashAlg::Sha256, SSA, true),
        (ALG_RSASSA, HashAlg::Sha512, SSA_512, true),
        (ALG_RSAPSS, HashAlg::Sha256, PSS_DIGEST, true),
        (ALG_RSAPSS, HashAlg::Sha256, PSS_MAX, true),
        (ALG_RSAPSS, HashAlg::Sha256, PSS_20, false),
        (ALG_RSAPSS, HashAlg::Sha256, SSA, false),
        (ALG_RSASSA, HashAlg::Sha256, PSS_DIGEST, false),
        (ALG_RSASSA, HashAlg::Sha384, SSA, false),
    ] {
        let key = AttestationKey::parse(&rsa_public(alg, hash, 2048)).unwrap();
        let tpmt = tpmt(alg, hash, signature);
        assert_eq!(key.verify_tpmt(MESSAGE, &tpmt).is_ok(), good, "{alg:#06x} {hash:?}");
        assert!(key.verify_tpmt(b"another message", &tpmt).is_err());
        for bit in (0..tpmt.len() * 8).step_by(61) {
            let mut flipped = tpmt.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(key.verify_tpmt(MESSAGE, &flipped).is_err(), "bit {bit}");
        }
        assert!(!key.verify(MESSAGE, &[1; 64]), "an RSA key signs no checkpoint");
    }
}

#[test]
fn a_modulus_of_another_length_than_it_says_is_refused() {
    for bits in [1024, 2047, 3072] {
        let error = AttestationKey::parse(&rsa_public(ALG_RSASSA, HashAlg::Sha256, bits));
        assert!(matches!(error, Err(KeyError::Numbers { .. })), "{bits}");
    }
    let sha1 = AttestationKey::parse(&rsa_public(ALG_RSASSA, HashAlg::Sha1, 2048)).unwrap_err();
    assert_eq!(sha1, KeyError::Scheme { alg: ALG_RSASSA, hash: 0x0004 });
}

#[test]
fn a_p384_key_signs_quotes_and_no_checkpoints() {
    let signing = p384::ecdsa::SigningKey::from_slice(&[7; 48]).unwrap();
    let point = signing.verifying_key().to_encoded_point(false);
    let mut public = [TYPE_ECC, HashAlg::Sha256.tpm_id()].map(u16::to_be_bytes).concat();
    public.extend(ATTRIBUTES.to_be_bytes());
    let sha384 = HashAlg::Sha384.tpm_id();
    for field in [0, ALG_NULL, ALG_ECDSA, sha384, CURVE_P384, ALG_NULL] {
        public.extend(field.to_be_bytes());
    }
    for coordinate in [point.x().unwrap(), point.y().unwrap()] {
        public.extend([0, 48]);
        public.extend(coordinate);
    }
    let key = AttestationKey::parse(&public).unwrap();
    // p384 signs over SHA-384, as the key's scheme says.
    let signature: p384::ecdsa::Signature = signing.sign(MESSAGE);
    let (r, s) = signature.split_bytes();
    let mut tpmt = [ALG_ECDSA, sha384].map(u16::to_be_bytes).concat();
    for scalar in [r, s] {
        tpmt.extend([0, 48]);
        tpmt.extend(scalar);
    }
    assert_eq!(key.verify_tpmt(MESSAGE, &tpmt), Ok(()));
    assert!(key.verify_tpmt(b"another message", &tpmt).is_err());
    assert!(!key.verify(MESSAGE, &signature.to_bytes()[..64]));
    assert!(key.public_key_pem().unwrap().starts_with("-----BEGIN PUBLIC KEY-----\n"));
}

#[test]
fn a_key_in_pem_is_the_same_key() {
    use p256::pkcs8::DecodePublicKey as _;
    let tpm = SoftTpm::new(1);
    let pem = tpm.attestation_key().public_key_pem().unwrap();
    let key = p256::ecdsa::VerifyingKey::from_public_key_pem(&pem).unwrap();
    let signature = p256::ecdsa::Signature::from_slice(&tpm.sign(MESSAGE)).unwrap();
    p256::ecdsa::signature::Verifier::verify(&key, MESSAGE, &signature).unwrap();
    let rsa = AttestationKey::parse(&rsa_public(ALG_RSASSA, HashAlg::Sha256, 2048)).unwrap();
    let rsa = RsaPublicKey::from_public_key_pem(&rsa.public_key_pem().unwrap()).unwrap();
    assert_eq!(rsa::traits::PublicKeyParts::n(&rsa).to_bytes_be(), hex::decode(MODULUS).unwrap());
}
