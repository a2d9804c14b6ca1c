use std::fs;
use std::path::{Path, PathBuf};

use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use serde_json::{Value, json};

use super::*;
use crate::format::{POLICY_SCHEMA, ReleaseKey};

/// A key from a seed: tests need no randomness.
fn key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).unwrap()
}

fn pem(key: &SigningKey) -> String {
    key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap()
}

fn sign(key: &SigningKey, payload: &[u8]) -> Vec<u8> {
    let signature: p256::ecdsa::Signature = key.sign(&pae(payload));
    let public = PublicKey::from_pem("test", &pem(key)).unwrap();
    signature_json(payload, &public, signature.to_der().as_bytes()).unwrap()
}

/// Three keys, of which two must sign.
fn policy() -> Policy {
    let keys =
        (1..=3).map(|n| ReleaseKey { name: format!("release-{n}"), pem: pem(&key(n)) }).collect();
    Policy { schema: POLICY_SCHEMA.to_owned(), threshold: 2, keys }
}

fn file(name: &str, content: &[u8]) -> SignedFile {
    SignedFile { name: name.to_owned(), sha256: Sha256::digest(content).into() }
}

fn payload() -> Vec<u8> {
    statement_json(&[file("weights.gguf", b"w"), file("casemate.json", b"{}")]).unwrap()
}

/// The statement as JSON, changed by `edit`, signed and judged.
fn check_edited(edit: impl FnOnce(&mut Value), expected: &str) {
    let mut statement: Value = serde_json::from_slice(&payload()).unwrap();
    edit(&mut statement);
    let payload = serde_json::to_vec(&statement).unwrap();
    check_payload(&payload, expected);
}

fn check_payload(payload: &[u8], expected: &str) {
    let error = verify_one(&pem(&key(1)), &sign(&key(1), payload)).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
}

#[test]
fn two_of_three_keys_admit_in_any_order() {
    let (payload, policy) = (payload(), policy());
    let verified = quorum(&policy, &[sign(&key(3), &payload), sign(&key(1), &payload)]).unwrap();
    assert_eq!(verified.signers(), ["release-1", "release-3"]);
    assert_eq!(verified.digest(), <[u8; 32]>::from(Sha256::digest(&payload)));
    assert_eq!(verified.payload(), payload);
    assert_eq!(verified.files(), [file("casemate.json", b"{}"), file("weights.gguf", b"w")]);
}

#[test]
fn one_signature_of_two_is_refused_by_name() {
    let error = quorum(&policy(), &[sign(&key(1), &payload())]).unwrap_err();
    assert_eq!(error.to_string(), "1 of 2 needed signatures: release-1");
}

#[test]
fn a_key_counts_once_however_often_it_signs() {
    let one = sign(&key(2), &payload());
    let error = quorum(&policy(), &[one.clone(), one]).unwrap_err();
    assert!(
        matches!(&error, BundleError::Quorum { needed: 2, signers, .. } if signers == &["release-2"])
    );
}

#[test]
fn foreign_and_malformed_signatures_do_not_count_and_do_no_harm() {
    let (payload, policy) = (payload(), policy());
    let others = [sign(&key(9), &payload), b"rubbish".to_vec()];
    let error = quorum(&policy, &[&[sign(&key(1), &payload)], &others[..]].concat()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("1 of 2 needed signatures: release-1; file 1 does not count: "),
        "{text}"
    );
    assert!(text.contains("under none of the policy's 3 keys"), "{text}");
    assert!(text.contains("file 2 does not count: not a Sigstore bundle"), "{text}");

    let enough = [&others[..], &[sign(&key(1), &payload), sign(&key(2), &payload)]].concat();
    assert_eq!(quorum(&policy, &enough).unwrap().signers(), ["release-1", "release-2"]);
}

#[test]
fn an_error_does_not_grow_with_what_it_complains_about() {
    let long = "\u{fe}".repeat(100_000);
    let as_type = json!({"mediaType": long, "verificationMaterial": {}, "dsseEnvelope":
        {"payload": "", "payloadType": "", "signatures": []}});
    let as_wrong_type = json!({"mediaType": "", "verificationMaterial": long});
    for file in [as_type, as_wrong_type] {
        let file = serde_json::to_vec(&file).unwrap();
        let error = quorum(&policy(), &vec![file; SIGNATURES_MAX]).unwrap_err().to_string();
        assert!(error.len() < 5000, "{} bytes", error.len());
        assert!(error.ends_with("nor do 24 more"), "{error}");
    }
}

#[test]
fn signatures_over_different_statements_do_not_add_up() {
    let other = statement_json(&[file("weights.gguf", b"other")]).unwrap();
    let mixed = [sign(&key(1), &payload()), sign(&key(2), &other)];
    let error = quorum(&policy(), &mixed).unwrap_err();
    assert!(matches!(&error, BundleError::Disagree { payloads } if payloads.len() == 2), "{error}");

    // The same statement in another spelling is another payload.
    let spaced = [payload(), b" ".to_vec()].concat();
    let error =
        quorum(&policy(), &[sign(&key(1), &payload()), sign(&key(2), &spaced)]).unwrap_err();
    assert!(matches!(error, BundleError::Disagree { .. }), "{error}");
}

#[test]
fn too_many_or_too_long_signature_files_are_not_read() {
    let error = quorum(&policy(), &vec![Vec::new(); SIGNATURES_MAX + 1]).unwrap_err();
    assert!(
        matches!(error, BundleError::TooManySignatures { count } if count == SIGNATURES_MAX + 1)
    );
    let long = vec![b' '; SIGNATURE_BYTES_MAX + 1];
    let error = verify_one(&pem(&key(1)), &long).unwrap_err();
    assert!(matches!(error, BundleError::SignatureTooLong { .. }));
}

fn check_policy(edit: impl FnOnce(&mut Policy), expected: &str) {
    let mut policy = policy();
    edit(&mut policy);
    let error = Quorum::parse(&policy).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
}

#[test]
fn unusable_policies_are_refused() {
    check_policy(|p| p.schema = "other".into(), "schema");
    check_policy(|p| p.threshold = 0, "threshold 0");
    check_policy(|p| p.threshold = 4, "threshold 4 with 3 keys");
    check_policy(|p| p.keys.clear(), "with 0 keys");
    check_policy(|p| p.keys[1].name = "release-1".into(), "two keys are named");
    // One holder under two names, the second spelled with other line ends.
    check_policy(
        |p| p.keys[1].pem = p.keys[0].pem.replace('\n', "\r\n"),
        "another name has already",
    );
    check_policy(|p| p.keys[0].pem = "-----BEGIN".into(), "not SubjectPublicKeyInfo");
    check_policy(|p| p.keys[0].pem = "x".repeat(KEY_PEM_BYTES_MAX + 1), "bytes of PEM");
    check_policy(|p| p.keys[0].name = String::new(), "printable");
    check_policy(|p| p.keys[0].name = "a\nb".into(), "printable");
    check_policy(|p| p.keys = vec![p.keys[0].clone(); KEYS_MAX + 1], "at most 32");
}

#[test]
fn statements_of_another_kind_are_refused() {
    check_edited(|s| s["_type"] = json!("https://in-toto.io/Statement/v0.1"), "_type");
    check_edited(|s| s["predicateType"] = json!("https://slsa.dev/provenance/v1"), "predicateType");
    check_edited(|s| s["subject"] = json!([]), "0 subjects");
    check_edited(|s| s["subject"] = json!([s["subject"][0], s["subject"][0]]), "2 subjects");
    check_edited(|s| s["predicate"]["resources"] = json!([]), "0 files");
    check_edited(|s| s["predicate"]["resources"][0]["algorithm"] = json!("blake2b"), "algorithm");
    check_edited(
        |s| s["predicate"]["resources"][0]["digest"] = json!("AB".repeat(32)),
        "hex digits",
    );
    check_edited(
        |s| s["predicate"]["resources"][0]["digest"] = json!("00".repeat(31)),
        "hex digits",
    );
    check_payload(b"{}", "missing field");
    check_payload(&[0xff; 16], "signed statement refused");
}

#[test]
fn serializations_that_change_what_digests_mean_are_refused() {
    let how = |member: &'static str, value: Value| {
        move |s: &mut Value| s["predicate"]["serialization"][member] = value
    };
    check_edited(how("method", json!("shards")), "serialization method");
    check_edited(how("hash_type", json!("blake3")), "hash_type");
    check_edited(how("allow_symlinks", json!(true)), "allow_symlinks");
    check_edited(how("shard_size", json!(1)), "unknown field `shard_size`");
}

#[test]
fn only_paths_that_cannot_hide_weights_may_be_ignored() {
    for hiding in
        ["weights.gguf", ".", "", "/", "..", "../x.sig", "/abs/x.sig", "sub", ".gitx", "x.sig/.."]
    {
        check_edited(
            |s| s["predicate"]["serialization"]["ignore_paths"] = json!([".git", hiding]),
            "could hide content",
        );
    }
    let signed = [file("a.sig", b"1"), file("b.sig/weights", b"2"), file(".git/x", b"3")];
    for (ignored, name) in [("a.sig", "a.sig"), ("b.sig", "b.sig/weights"), (".git", ".git/x")] {
        let error = statement_with(&signed, ignored).unwrap_err().to_string();
        assert!(error.contains(&format!("{name:?} is both signed and ignored")), "{error}");
    }
    // What model-signing writes when the signature lies in the folder.
    assert!(statement_with(&[file("w", b"1")], "sub/model.sig").is_ok());
}

fn statement_with(files: &[SignedFile], ignored: &str) -> Result<Verified, BundleError> {
    let resources: Vec<_> = files
        .iter()
        .map(|f| json!({"name": f.name, "algorithm": "sha256", "digest": hex::encode(f.sha256)}))
        .collect();
    let payload = json!({
        "_type": statement::STATEMENT_TYPE,
        "subject": [{"name": "m", "digest": {"sha256": hex::encode(statement::root_digest(files))}}],
        "predicateType": statement::PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": false,
                              "ignore_paths": [ignored]},
            "resources": resources,
        },
    });
    let payload = serde_json::to_vec(&payload).unwrap();
    verify_one(&pem(&key(1)), &sign(&key(1), &payload))
}

#[test]
fn names_that_leave_the_folder_or_confuse_are_refused() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for name in
        ["", "/etc/passwd", "a//b", "a/", "..", "a/../b", ".", "./a", "a\0b", "a\nb", "a\\b", &long]
    {
        assert!(check_name(name).is_err(), "{name:?}");
        assert!(statement_json(&[file(name, b"")]).is_err(), "{name:?}");
    }
    for name in ["a", "sub/tokenizer.json", "..a", "a..b/...", "modèle.gguf", &long[1..]] {
        check_name(name).unwrap();
    }
    let twice = statement_json(&[file("a", b"1"), file("a", b"2")]).unwrap_err();
    assert!(twice.to_string().contains("listed twice"));
    let many: Vec<_> = (0..=FILES_MAX).map(|n| file(&format!("f{n}"), b"")).collect();
    assert!(statement_json(&many).unwrap_err().to_string().contains("4097 files"));
    assert!(statement_json(&many[1..]).is_ok());
}

#[test]
fn a_rename_keeps_the_root_digest_but_not_the_bundle_digest() {
    let digests = |name| {
        let payload = statement_json(&[file(name, b"w")]).unwrap();
        let verified = verify_one(&pem(&key(1)), &sign(&key(1), &payload)).unwrap();
        (statement::root_digest(verified.files()), verified.digest())
    };
    let ((root_a, bundle_a), (root_b, bundle_b)) = (digests("a.gguf"), digests("b.gguf"));
    assert_eq!(root_a, root_b);
    assert_ne!(bundle_a, bundle_b);
}

#[test]
fn the_order_in_which_files_are_found_does_not_matter() {
    let (a, b, c) = (file("sub/x", b"1"), file("sub-a", b"2"), file("z", b"3"));
    let one = statement_json(&[a.clone(), b.clone(), c.clone()]).unwrap();
    assert_eq!(one, statement_json(&[c, b, a]).unwrap());
    let text = String::from_utf8(one).unwrap();
    assert!(text.find("sub/x").unwrap() < text.find("sub-a").unwrap());
}

#[test]
fn a_wrong_signature_is_not_written() {
    let public = PublicKey::from_pem("other", &pem(&key(2))).unwrap();
    let signature: p256::ecdsa::Signature = key(1).sign(&pae(&payload()));
    let error = signature_json(&payload(), &public, signature.to_der().as_bytes()).unwrap_err();
    assert!(matches!(error, BundleError::Unverified { .. }));
}

#[test]
fn a_claim_is_read_without_a_key_but_only_if_it_could_be_admitted() {
    let claim = Claim::parse(&sign(&key(9), &payload())).unwrap();
    assert_eq!(claim.payload(), payload());
    assert!(claim.compare(&[]).is_err());
    assert!(matches!(Claim::parse(&sign(&key(9), b"{}")), Err(BundleError::Statement { .. })));
}

#[test]
fn differences_are_named() {
    let verified = verify_one(&pem(&key(1)), &sign(&key(1), &payload())).unwrap();
    let found = |name: &str, content: &[u8]| Found {
        name: name.to_owned(),
        sha256: Sha256::digest(content).into(),
        bytes: content.len() as u64,
    };
    let (card, weights) = (found("casemate.json", b"{}"), found("weights.gguf", b"w"));
    assert_eq!(verified.compare(&[weights.clone(), card.clone()]), Ok(()));
    let error = verified.compare(&[found("weights.gguf", b"W!"), found("x", b"")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "files differ from what was signed: 1 missing: casemate.json; 1 not signed: x; \
         1 changed: weights.gguf (2 bytes)"
    );
    // A reader that lists one name twice is not believed.
    assert!(verified.compare(&[card, weights.clone(), weights]).is_err());
}

proptest::proptest! {
    /// No edit of a signature file is admitted as anything but the original statement.
    #[test]
    fn an_edited_signature_file_never_says_something_else(
        position: proptest::sample::Index, bit in 0..8u8,
    ) {
        let mut edited = sign(&key(1), &payload());
        let index = position.index(edited.len());
        edited[index] ^= 1 << bit;
        if let Ok(verified) = verify_one(&pem(&key(1)), &edited) {
            assert_eq!(verified.payload(), payload());
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes: Vec<u8>) {
        assert!(verify_one(&pem(&key(1)), &bytes).is_err());
    }
}

// What model-signing 1.1.1 made: the corpus beside the checkout.

fn corpus() -> Option<PathBuf> {
    let beside =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join("shared/corpus"));
    let named = std::env::var_os("CASEMATE_CORPUS").map(PathBuf::from);
    let found = named.into_iter().chain(beside).map(|dir| dir.join("oms")).find(|dir| dir.is_dir());
    if found.is_none() {
        eprintln!("skipped: no corpus (shared/corpus/oms beside the checkout, or CASEMATE_CORPUS)");
    }
    found
}

fn judge(oms: &Path, signature: &str, key: &str) -> Result<Verified, BundleError> {
    let pem = fs::read_to_string(oms.join(key)).unwrap();
    verify_one(&pem, &fs::read(oms.join(signature)).unwrap())
}

fn found(folder: &Path) -> Vec<Found> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let content = fs::read(&path).unwrap();
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            files.push(Found {
                name,
                sha256: Sha256::digest(&content).into(),
                bytes: content.len() as u64,
            });
        }
    }
    files
}

#[test]
fn corpus_good_signatures_verify_over_their_model() {
    let Some(oms) = corpus() else { return };
    for name in ["p256", "p384", "hsm"] {
        let verified = judge(&oms, &format!("{name}.sig"), &format!("{name}.pub.pem")).unwrap();
        verified.compare(&found(&oms.join("model"))).unwrap();
        assert_eq!(verified.files().len(), 5);
        // The hint in the file is what we compute for the key.
        let text = fs::read_to_string(oms.join(format!("{name}.sig"))).unwrap();
        assert!(text.contains(&verified.signers()[0]));
    }
}

#[test]
fn corpus_bad_signatures_are_refused_each_for_its_reason() {
    let Some(oms) = corpus() else { return };
    let refused = |signature, key| judge(&oms, signature, key).unwrap_err();
    let error = refused("bad-nosigs.sig", "p256.pub.pem");
    assert!(matches!(error, BundleError::SignatureCount { count: 0 }), "{error}");
    let error = refused("bad-payloadtype.sig", "p256.pub.pem");
    assert!(
        matches!(&error, BundleError::PayloadType { found } if found == "text/plain"),
        "{error}"
    );
    let error = refused("bad-sigflip.sig", "p256.pub.pem");
    assert!(matches!(error, BundleError::Unverified { .. }), "{error}");
    let error = refused("bad-signed-wrong-root.sig", "p256.pub.pem");
    assert!(matches!(error, BundleError::RootDigest { files: 5, .. }), "{error}");
    let error = refused("p256.sig", "other.pub.pem");
    assert!(matches!(error, BundleError::Unverified { .. }), "{error}");
    let error = refused("p256.sig", "p384.pub.pem");
    assert!(matches!(error, BundleError::Unverified { .. }), "{error}");
    let error = refused("cert.sig", "p256.pub.pem");
    assert!(matches!(error, BundleError::Certificate), "{error}");
}

#[test]
fn corpus_variants_are_refused_by_file_name() {
    let Some(oms) = corpus() else { return };
    let verified = judge(&oms, "p256.sig", "p256.pub.pem").unwrap();
    let differ = |variant: &str| verified.compare(&found(&oms.join("variants").join(variant)));
    let extra = differ("extra-file").unwrap_err();
    assert_eq!(extra, Differences { extra: vec!["backdoor.py".into()], ..Default::default() });
    let missing = differ("missing-file").unwrap_err();
    assert_eq!(
        missing,
        Differences { missing: vec!["sub/tokenizer.json".into()], ..Default::default() }
    );
    let changed = differ("tampered-byte").unwrap_err();
    let expected = vec![("weights.safetensors".into(), 3_000_000)];
    assert_eq!(changed, Differences { changed: expected, ..Default::default() });
}

#[test]
fn corpus_signers_whose_tool_spelled_the_statement_differently_disagree() {
    let Some(oms) = corpus() else { return };
    let keys = ["p256", "p384"]
        .map(|name| ReleaseKey {
            name: name.to_owned(),
            pem: fs::read_to_string(oms.join(format!("{name}.pub.pem"))).unwrap(),
        })
        .to_vec();
    let policy = Policy { schema: POLICY_SCHEMA.to_owned(), threshold: 2, keys };
    let signatures = ["p256.sig", "p384.sig"].map(|name| fs::read(oms.join(name)).unwrap());
    assert!(matches!(quorum(&policy, &signatures), Err(BundleError::Disagree { .. })));
}
