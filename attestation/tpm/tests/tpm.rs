//! The TPM's answers, judged by other code than the TPM's, on a real swtpm.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod swtpm;

use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier};
use sha2::{Digest, Sha256};
use swtpm::Swtpm;
use tpm::{AttestationKey, Tpm, TpmError};

/// The key in a `TPMT_PUBLIC`: its last two fields are x and y, sized (TPM 2.0 Library Part 2, "TPMS_ECC_POINT").
fn verifying_key(public: &[u8]) -> VerifyingKey {
    let (rest, y) = public.split_at(public.len() - 32);
    let (rest, size) = rest.split_at(rest.len() - 2);
    assert_eq!(size, [0, 32]);
    let x = &rest[rest.len() - 32..];
    // SEC 1: an uncompressed point.
    VerifyingKey::from_sec1_bytes(&[&[4], x, y].concat()).unwrap()
}

/// The signature in a `TPMT_SIGNATURE`: scheme, hash, sized r, sized s.
fn ecdsa(marshalled: &[u8]) -> Signature {
    assert_eq!(marshalled[..4], [0x00, 0x18, 0x00, 0x0b], "TPM_ALG_ECDSA, TPM_ALG_SHA256");
    let (r, s) = marshalled[4..].split_at(34);
    assert_eq!((&r[..2], &s[..2]), (&[0, 32][..], &[0, 32][..]));
    Signature::from_slice(&[&r[2..], &s[2..]].concat()).unwrap()
}

#[test]
fn an_extend_changes_one_register_by_the_rule() {
    let Some(swtpm) = Swtpm::start() else { return };
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let before = tpm.pcrs().unwrap();
    let digest: [u8; 32] = Sha256::digest(b"policy").into();
    tpm.extend(14, digest).unwrap();
    let mut expected = before;
    expected[14] = Sha256::new().chain_update(before[14]).chain_update(digest).finalize().into();
    assert_eq!(tpm.pcrs().unwrap(), expected);
    assert!(matches!(tpm.extend(24, digest), Err(TpmError::Pcr { pcr: 24 })));
}

#[test]
fn a_quote_verifies_and_binds_nonce_and_registers() {
    let Some(swtpm) = Swtpm::start() else { return };
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    tpm.extend(7, [7; 32]).unwrap();
    let key = AttestationKey::create(&mut tpm).unwrap();
    let quote = key.quote(&mut tpm, [0xa5; 32], &[0, 7, 14]).unwrap();
    verifying_key(key.public()).verify(&quote.attest, &ecdsa(&quote.signature)).unwrap();
    let pcrs = tpm.pcrs().unwrap();
    let digest: [u8; 32] = Sha256::new()
        .chain_update(pcrs[0])
        .chain_update(pcrs[7])
        .chain_update(pcrs[14])
        .finalize()
        .into();
    assert!(quote.attest.ends_with(&digest));
    assert!(quote.attest.windows(32).any(|window| window == [0xa5; 32]));
}

#[test]
fn the_key_is_the_same_again_and_restricted() {
    let Some(swtpm) = Swtpm::start() else { return };
    let (name, public, point) = {
        let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
        let key = AttestationKey::create(&mut tpm).unwrap();
        (key.name().to_vec(), key.public().to_vec(), *key.point())
    };
    let (x, y) = (&public[public.len() - 66..public.len() - 34], &public[public.len() - 32..]);
    assert_eq!(point.as_slice(), [&[4], x, y].concat());
    let expected = [&[0x00, 0x0b][..], &Sha256::digest(&public)].concat();
    assert_eq!(name, expected, "the Name is the hash of the public area");
    // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign: TPMA_OBJECT.
    assert_eq!(public[4..8], 0x0005_0472_u32.to_be_bytes());
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    assert_eq!(AttestationKey::create(&mut tpm).unwrap().name(), name);
}

#[test]
fn a_message_is_signed_through_the_tpm_s_own_hash() {
    let Some(swtpm) = Swtpm::start() else { return };
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let key = AttestationKey::create(&mut tpm).unwrap();
    let verifier = verifying_key(key.public());
    // Enough signatures that some scalar begins with a zero byte now and then; all have one width.
    for length in [0, 1, 100, 1023, 1024] {
        let message = vec![b'c'; length];
        let signature = key.sign(&mut tpm, &message).unwrap();
        verifier.verify(&message, &Signature::from_slice(&signature).unwrap()).unwrap();
    }
    let error = key.sign(&mut tpm, &[0; 1025]).unwrap_err();
    assert!(matches!(error, TpmError::Message { found: 1025 }), "{error}");
}

#[test]
fn what_looks_like_a_quote_is_not_signed() {
    let Some(swtpm) = Swtpm::start() else { return };
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    let key = AttestationKey::create(&mut tpm).unwrap();
    // TPM_GENERATED_VALUE, then a forged TPMS_ATTEST.
    let error = key.sign(&mut tpm, b"\xffTCG\x80\x18 forged").unwrap_err();
    assert!(matches!(error, TpmError::Command { .. }), "{error}");
}

#[test]
fn no_transient_object_outlives_the_tpm() {
    let Some(swtpm) = Swtpm::start() else { return };
    // A TPM without a resource manager has three slots: leaking one fails the fourth round.
    for round in 0..5_u8 {
        let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
        let key = AttestationKey::create(&mut tpm).unwrap();
        key.quote(&mut tpm, [round; 32], &[14]).unwrap();
        key.sign(&mut tpm, b"checkpoint").unwrap();
    }
}
