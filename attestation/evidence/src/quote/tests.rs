#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use std::fs;

use super::*;
use crate::corpus;
use crate::fixture::{ATTRIBUTES, SoftTpm};
use crate::key::{KeyError, Name};
use crate::signature::SignatureError;

fn pcrs() -> PcrValues {
    (0..=15).map(|index| (index, [index; 32])).collect()
}

#[test]
fn a_quote_proves_extra_data_and_pcrs() {
    let tpm = SoftTpm::new(1);
    let (attest, signature) = tpm.quote(&pcrs(), b"nonce");
    let quote = Quote::verify(&tpm.attestation_key(), &attest, &signature).unwrap();
    assert_eq!(quote.attest().extra_data, b"nonce");
    assert_eq!(quote.attest().clock.reset_count, 3);
    assert_eq!(quote.check_pcrs(&pcrs()), Ok(()));

    let mut changed = pcrs();
    changed.insert(7, [0; 32]);
    assert!(matches!(quote.check_pcrs(&changed), Err(PcrsError::Digest { .. })));
    let mut fewer = pcrs();
    fewer.remove(&12);
    assert!(matches!(quote.check_pcrs(&fewer), Err(PcrsError::OtherPcrs { .. })));
}

#[test]
fn no_flipped_bit_of_a_quote_or_its_signature_verifies() {
    let tpm = SoftTpm::new(1);
    let key = tpm.attestation_key();
    let (attest, signature) = tpm.quote(&pcrs(), b"nonce");
    for bit in 0..attest.len() * 8 {
        let mut flipped = attest.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Quote::verify(&key, &flipped, &signature).is_err(), "bit {bit} of the quote");
    }
    for bit in 0..signature.len() * 8 {
        let mut flipped = signature.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Quote::verify(&key, &attest, &flipped).is_err(), "bit {bit} of the signature");
    }
    let other = SoftTpm::new(2).attestation_key();
    let error = Quote::verify(&other, &attest, &signature).unwrap_err();
    assert_eq!(error, QuoteError::Signature(VerifyError::Mismatch { name: other.name() }));
}

#[test]
fn only_a_quote_made_by_the_tpm_is_one() {
    let tpm = SoftTpm::new(1);
    let key = tpm.attestation_key();
    let (attest, _) = tpm.quote(&pcrs(), b"nonce");
    let verify = |attest: &[u8]| Quote::verify(&key, attest, &tpm.sign_tpmt(attest));

    let mut foreign = attest.clone();
    foreign[0] = 0xfe;
    assert_eq!(
        verify(&foreign).unwrap_err(),
        QuoteError::Attest(AttestError::Magic { found: 0xfe54_4347 })
    );
    let mut certify = attest.clone();
    certify[5] = 0x17;
    assert_eq!(
        verify(&certify).unwrap_err(),
        QuoteError::Attest(AttestError::Type { found: 0x8017, expected: Kind::Quote })
    );
    let longer = [&attest[..], &[0]].concat();
    assert_eq!(verify(&longer).unwrap_err(), QuoteError::Attest(AttestError::Tail { left: 1 }));
    for length in 0..attest.len() {
        assert!(
            matches!(verify(&attest[..length]), Err(QuoteError::Attest(AttestError::Cut(_)))),
            "cut to {length}"
        );
    }
}

#[test]
fn a_key_that_could_sign_forgeries_is_refused() {
    let tpm = SoftTpm::new(1);
    let parse = |attributes| AttestationKey::parse(&tpm.public_with(attributes));
    assert_eq!(parse(ATTRIBUTES).unwrap().name(), tpm.attestation_key().name());
    for (bit, fault) in [
        (1, "fixedTPM is not set"),
        (4, "fixedParent is not set"),
        (5, "sensitiveDataOrigin is not set"),
        (16, "restricted is not set"),
        (17, "decrypt is set"),
        (18, "sign is not set"),
    ] {
        let attributes = ATTRIBUTES ^ (1 << bit);
        let error = parse(attributes).unwrap_err();
        assert_eq!(error, KeyError::Attributes { attributes, fault: fault.to_owned() });
    }
}

#[test]
fn a_malformed_key_is_refused() {
    let public = SoftTpm::new(1).public();
    for length in 0..public.len() {
        let error = AttestationKey::parse(&public[..length]).unwrap_err();
        assert!(matches!(error, KeyError::Cut(_)), "cut to {length}: {error}");
    }
    let changed = |at: usize, byte: u8| {
        let mut public = public.clone();
        public[at] = byte;
        AttestationKey::parse(&public).unwrap_err()
    };
    assert_eq!(changed(1, 0x08), KeyError::Kind { field: "type", id: 0x0008 });
    assert_eq!(changed(3, 0x0c), KeyError::NameAlg { id: 0x000c });
    assert_eq!(changed(11, 0x06), KeyError::NotNull { field: "symmetric", id: 0x0006 });
    assert_eq!(changed(15, 0x04), KeyError::Scheme { alg: 0x0018, hash: 0x0004 });
    assert_eq!(changed(17, 0x05), KeyError::Kind { field: "curve", id: 0x0005 });
    assert!(matches!(changed(40, public[40] ^ 1), KeyError::Numbers { .. }));
    let longer = [&public[..], &[0]].concat();
    assert_eq!(AttestationKey::parse(&longer).unwrap_err(), KeyError::Tail { left: 1 });
}

#[test]
fn a_signature_of_another_scheme_is_refused() {
    let tpm = SoftTpm::new(1);
    let key = tpm.attestation_key();
    let mut signature = tpm.sign_tpmt(b"message");
    assert_eq!(key.verify_tpmt(b"message", &signature), Ok(()));
    signature[3] = 0x04;
    let sha1 = VerifyError::Signature(SignatureError::Hash { id: 0x0004 });
    assert_eq!(key.verify_tpmt(b"message", &signature), Err(sha1));
    signature[3] = 0x0c;
    let error = key.verify_tpmt(b"message", &signature).unwrap_err();
    assert!(matches!(error, VerifyError::OtherScheme { .. }), "{error}");
    signature[1] = 0x1a;
    let error = key.verify_tpmt(b"message", &signature).unwrap_err();
    assert_eq!(error, VerifyError::Signature(SignatureError::Algorithm { id: 0x001a }));
}

#[test]
fn integers_without_their_leading_zeros_are_read() {
    // Deterministic signing: some message has an r that begins with a zero byte.
    let tpm = SoftTpm::new(1);
    let short = (0_u32..).map(u32::to_be_bytes).find(|message| tpm.sign(message)[0] == 0).unwrap();
    let signature = tpm.sign(&short);
    let mut tpmt = vec![0x00, 0x18, 0x00, 0x0b, 0, 31];
    tpmt.extend(&signature[1..32]);
    tpmt.extend([0, 32]);
    tpmt.extend(&signature[32..]);
    assert_eq!(tpm.attestation_key().verify_tpmt(&short, &tpmt), Ok(()));
}

#[test]
fn a_checkpoint_signature_is_the_keys_own() {
    let tpm = SoftTpm::new(1);
    let signature = tpm.sign(b"head");
    assert!(tpm.attestation_key().verify(b"head", &signature));
    assert!(!tpm.attestation_key().verify(b"heap", &signature));
    assert!(!tpm.attestation_key().verify(b"head", &signature[1..]));
    assert!(!SoftTpm::new(2).attestation_key().verify(b"head", &signature));
}

/// Keylime's test data: an RSA key of a real TPM, and a quote over PCRs 15, 16 and 22.
#[test]
fn keylimes_real_quote_verifies() {
    let Some(folder) = corpus::find("eventlogs/keylime/test-data-files") else { return };
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    // tpm2-tools writes TPM2B_PUBLIC: a length, then TPMT_PUBLIC.
    let public = read("ak.pub");
    let key = AttestationKey::parse(&public[2..]).unwrap();
    assert_eq!(key.name().as_bytes().as_slice(), read("ak.name"));

    let (attest, signature) = (read("quote.out"), read("quotesig.out"));
    let quote = Quote::verify(&key, &attest, &signature).unwrap();
    assert_eq!(quote.attest().extra_data, read("rand.out"));
    // tpm2_quote's dump, in the layout of tpm2-tss: TPML_PCR_SELECTION (132 bytes), a count, TPML_DIGEST.
    let dump = read("quotepcr.out");
    let value = |number: usize| dump[142 + 66 * number..][..32].try_into().unwrap();
    let values: PcrValues = [(15, value(0)), (16, value(1)), (22, value(2))].into();
    assert_eq!(quote.check_pcrs(&values), Ok(()));

    let mut flipped = attest.clone();
    flipped[60] ^= 1;
    assert!(Quote::verify(&key, &flipped, &signature).is_err());
    let mut changed = values;
    changed.insert(16, [0; 32]);
    assert!(matches!(quote.check_pcrs(&changed), Err(PcrsError::Digest { .. })));
}

#[test]
fn a_name_is_shown_as_machine_json_has_it() {
    let name: Name = SoftTpm::new(1).attestation_key().name();
    let text = name.to_string();
    assert!(text.starts_with("000b") && text.len() == 68, "{text}");
}
