use proptest::prelude::*;
use proptest::sample::Index;
use sha2::{Digest, Sha256};

use super::*;

/// MTH of RFC 6962, section 2.1, as the text defines it: slow, and nothing shared with [`Tree`] but
/// the hash.
fn naive_root(leaves: &[Vec<u8>]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => Sha256::digest([&[0], leaf.as_slice()].concat()).into(),
        _ => {
            let split = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(split);
            Sha256::digest([&[1], &naive_root(left)[..], &naive_root(right)].concat()).into()
        }
    }
}

/// PATH of RFC 6962, section 2.1.1, as the text defines it.
fn naive_path(index: usize, leaves: &[Vec<u8>]) -> Vec<Hash> {
    if leaves.len() <= 1 {
        return Vec::new();
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    let (mut path, other) = if index < left.len() {
        (naive_path(index, left), right)
    } else {
        (naive_path(index - left.len(), right), left)
    };
    path.push(naive_root(other));
    path
}

fn tree(leaves: &[Vec<u8>]) -> Tree {
    let mut tree = Tree::default();
    for leaf in leaves {
        tree.push(leaf_hash(leaf)).unwrap();
    }
    tree
}

/// The eight leaves of Certificate Transparency's reference test vectors.
fn ct_leaves() -> Vec<Vec<u8>> {
    [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    .map(|leaf| hex::decode(leaf).unwrap())
    .to_vec()
}

#[test]
fn certificate_transparency_roots() {
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    for (size, root) in roots.iter().enumerate() {
        assert_eq!(hex::encode(tree(&ct_leaves()[..size]).root()), *root, "{size} leaves");
    }
}

#[test]
fn rfc_6962_example_of_seven_leaves() {
    // Section 2.1.3: in the tree of d0..d6, the path of d0 is [b, h, l], of d6 [i, k].
    let leaves = &ct_leaves()[..7];
    let tree = tree(leaves);
    assert_eq!(tree.proof(0).unwrap().len(), 3);
    assert_eq!(tree.proof(6).unwrap().len(), 2);
    assert_eq!(tree.proof(6).unwrap()[1], naive_root(&leaves[..4]));
}

#[test]
fn every_proof_of_every_small_tree() {
    let leaves: Vec<_> = (0..70u8).map(|n| vec![n]).collect();
    for size in 0..=leaves.len() {
        let (leaves, tree) = (&leaves[..size], tree(&leaves[..size]));
        assert_eq!(tree.size(), size as u64);
        assert_eq!(tree.root(), naive_root(leaves));
        for (index, leaf) in leaves.iter().enumerate() {
            let proof = tree.proof(index as u64).unwrap();
            assert_eq!(proof, naive_path(index, leaves), "{index} in {size}");
            let (index, size) = (index as u64, size as u64);
            assert_eq!(verify_inclusion(leaf_hash(leaf), index, size, &proof, tree.root()), Ok(()));
        }
        let (index, size) = (size as u64, size as u64);
        assert_eq!(tree.proof(index), Err(LedgerError::Index { index, size }));
    }
}

#[test]
fn ten_thousand_proofs_need_no_rehash_of_the_tree() {
    let leaves: Vec<_> = (0..10_000u32).map(|n| n.to_be_bytes().to_vec()).collect();
    let (tree, start) = (tree(&leaves), std::time::Instant::now());
    for index in 0..tree.size() {
        assert!(tree.proof(index).unwrap().len() <= 14);
    }
    // Rehashing even once per proof would be 10^8 hashes; this is far below a second unoptimised.
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

#[test]
fn proofs_of_another_length_are_refused() {
    let tree = tree(&ct_leaves());
    let leaf = leaf_hash(&ct_leaves()[5]);
    let proof = tree.proof(5).unwrap();
    let check =
        |index, size, proof: &[Hash]| verify_inclusion(leaf, index, size, proof, tree.root());
    assert_eq!(check(5, 8, &proof), Ok(()));
    assert!(matches!(check(5, 8, &proof[..2]), Err(LedgerError::ProofLength { found: 2, .. })));
    let longer = [&proof[..], &[[0; 32]]].concat();
    assert!(matches!(check(5, 8, &longer), Err(LedgerError::ProofLength { found: 4, .. })));
    assert!(matches!(check(8, 8, &proof), Err(LedgerError::Index { .. })));
    assert!(matches!(check(0, 0, &[]), Err(LedgerError::Index { .. })));
    assert!(check(u64::MAX - 1, u64::MAX, &proof).is_err());
}

/// What the tests say of a whole ledger: its records and what an auditor is given.
fn audit(
    records: &[String],
    checkpoint: &Checkpoint,
    proofs: &[Vec<Hash>],
) -> Result<(), LedgerError> {
    for ((index, record), proof) in (0..).zip(records).zip(proofs) {
        checkpoint.open(index, record, proof)?;
    }
    Ok(())
}

fn record(seq: u64, request: &str) -> Record {
    Record {
        seq,
        time: "2026-11-24T03:45:58.123Z".into(),
        boot: "0123456789abcdef0123456789abcdef".into(),
        event: Event::Exchange(Exchange {
            request: request.into(),
            client: "demo-client".into(),
            client_cert_sha256: "11".repeat(32),
            model: "22".repeat(32),
            prompt_sha256: "33".repeat(32),
            answer_sha256: "44".repeat(32),
            prompt_tokens: 7,
            completion_tokens: 9,
            outcome: "stop".into(),
            receipt_sha256: None,
        }),
    }
}

fn ledger(size: u64) -> (Vec<String>, Checkpoint, Vec<Vec<Hash>>) {
    let records: Vec<_> =
        (0..size).map(|seq| record(seq, &format!("chatcmpl-{seq}")).to_json().unwrap()).collect();
    let tree = tree(&records.iter().map(|text| text.clone().into_bytes()).collect::<Vec<_>>());
    let origin = format!("{ORIGIN_PREFIX}000b{}", "ab".repeat(32));
    let proofs = (0..size).map(|index| tree.proof(index).unwrap()).collect();
    (records, Checkpoint { origin, size, root: tree.root() }, proofs)
}

proptest! {
    #[test]
    fn tree_and_proofs_match_the_definition(
        leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), 1..200),
        position: Index,
    ) {
        let (tree, index) = (tree(&leaves), position.index(leaves.len()));
        prop_assert_eq!(tree.root(), naive_root(&leaves));
        prop_assert_eq!(tree.proof(index as u64).unwrap(), naive_path(index, &leaves));
    }

    #[test]
    fn an_edit_of_one_character_is_found_at_its_index(size in 1..40u64, at: Index, byte: Index) {
        let (mut records, checkpoint, proofs) = ledger(size);
        prop_assert_eq!(audit(&records, &checkpoint, &proofs), Ok(()));
        let index = at.index(records.len());
        let mut bytes = records[index].clone().into_bytes();
        let position = byte.index(bytes.len());
        bytes[position] ^= 1;
        records[index] = String::from_utf8(bytes).unwrap();
        let error = audit(&records, &checkpoint, &proofs).unwrap_err();
        let named = matches!(error, LedgerError::Inclusion { index: i, .. } if i == index as u64);
        prop_assert!(named, "{}", error);
    }

    #[test]
    fn a_swap_is_found(size in 2..40u64, a: Index, b: Index) {
        let (mut records, checkpoint, proofs) = ledger(size);
        let (a, b) = (a.index(records.len()), b.index(records.len()));
        prop_assume!(a != b);
        records.swap(a, b);
        prop_assert!(audit(&records, &checkpoint, &proofs).is_err());
    }

    #[test]
    fn a_dropped_record_is_found_even_with_proofs_made_anew(size in 2..40u64, at: Index) {
        let (mut records, checkpoint, proofs) = ledger(size);
        let dropped = at.index(records.len());
        records.remove(dropped);
        if dropped != records.len() {
            prop_assert!(audit(&records, &checkpoint, &proofs).is_err());
        }
        let shorter = tree(&records.iter().map(|text| text.clone().into_bytes()).collect::<Vec<_>>());
        prop_assert_ne!(shorter.root(), checkpoint.root);
        for (index, record) in (0..).zip(&records) {
            prop_assert!(checkpoint.open(index, record, &shorter.proof(index).unwrap()).is_err());
        }
    }

    #[test]
    fn an_edited_note_is_refused(position: Index, bit in 0..7u8) {
        let (_, checkpoint, _) = ledger(3);
        let mut bytes = note(&checkpoint).into_bytes();
        let index = position.index(bytes.len());
        bytes[index] ^= 1 << bit;
        if let Ok(text) = String::from_utf8(bytes) {
            // The key ID is a hint; an edit of it alone changes nothing that is believed.
            if let Ok(read) = Checkpoint::parse(&text, genuine(&checkpoint)) {
                prop_assert_eq!(read, checkpoint);
            }
        }
    }
}

/// A stand-in signature: what is tested here is what reaches the verifier, not the signature.
fn seal(message: &[u8]) -> Vec<u8> {
    Sha256::digest([b"secret", message].concat()).to_vec()
}

fn genuine(checkpoint: &Checkpoint) -> impl FnOnce(&[u8], &[u8]) -> bool {
    let body = checkpoint.body();
    move |message, signature| message == body.as_bytes() && signature == seal(message)
}

fn note(checkpoint: &Checkpoint) -> String {
    let body = checkpoint.body();
    sign_note(&body, &checkpoint.origin, [1, 2, 3, 4], &seal(body.as_bytes()))
}

#[test]
fn a_note_reads_back() {
    let (_, checkpoint, _) = ledger(5);
    assert_eq!(Checkpoint::parse(&note(&checkpoint), genuine(&checkpoint)), Ok(checkpoint.clone()));
    let error = Checkpoint::parse(&note(&checkpoint), |_, _| false).unwrap_err();
    assert_eq!(error, LedgerError::NoteSignature { origin: checkpoint.origin });
}

#[test]
fn a_cosignature_of_a_witness_is_not_ours() {
    let (_, checkpoint, _) = ledger(5);
    let witness = "\u{2014} witness.example AQIDBAUGBwg=\n";
    let cosigned = note(&checkpoint) + witness;
    assert_eq!(Checkpoint::parse(&cosigned, genuine(&checkpoint)), Ok(checkpoint.clone()));
    check_note(&(checkpoint.body() + "\n" + witness), "no signature in the name of the origin");
    check_note(&(note(&checkpoint) + &witness.repeat(NOTE_SIGNATURES_MAX)), "more than 16");
}

fn check_note(note: &str, expected: &str) {
    let error = Checkpoint::parse(note, |_, _| true).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
}

#[test]
fn malformed_notes_are_refused() {
    let (_, checkpoint, _) = ledger(5);
    let good = note(&checkpoint);
    let line = good.lines().last().unwrap().to_owned() + "\n";
    check_note("", "no empty line");
    check_note(&checkpoint.body(), "no empty line");
    check_note(&(good.clone() + &line), "two signatures");
    check_note(good.trim_end(), "no newline");
    check_note(&good.replace("\n5\n", "\n05\n"), "canonical");
    check_note(&good.replace("\n5\n", "\n+5\n"), "canonical");
    check_note(&good.replace("\n5\n", "\n-5\n"), "not a decimal");
    check_note(&good.replace("\n5\n", "\n5\n\n"), "expected 3");
    check_note(&good.replace("\n\n", "\nextension\n\n"), "expected 3");
    check_note(&good.replace("=\n\n", "\n\n"), "not base64 of 32 bytes");
    check_note(&good.replace(ORIGIN_PREFIX, "a ledger/"), "not a key name");
    check_note(&good.replace("\u{2014} ", "- "), "malformed");
    check_note(&good.replace('5', "5\r"), "control character");
    check_note(&(good + &"x".repeat(NOTE_BYTES_MAX)), "at most 8192");
}

#[test]
fn an_ecdsa_key_id_is_the_start_of_the_hash_of_the_key() {
    assert_eq!(ecdsa_key_id(b""), [0xe3, 0xb0, 0xc4, 0x42]);
}

#[test]
fn each_event_reads_back_as_one_compact_object() {
    let events = [
        (
            Event::Boot { image_version: "0.1".into(), profile: "development".into(), count: None },
            r#"{"boot":{"image_version":"0.1","profile":"development"}}"#.to_owned(),
        ),
        (
            Event::BundleAdmitted {
                bundle_digest: "ab".repeat(32),
                model_id: "m".into(),
                signers: vec!["a".into()],
            },
            format!(
                r#"{{"bundle-admitted":{{"bundle_digest":"{}","model_id":"m","signers":["a"]}}}}"#,
                "ab".repeat(32)
            ),
        ),
        (
            Event::VersionsRaised {
                image: 2,
                site: 0,
                model_id: "m".into(),
                version: 3,
                count: Count { began: 1, value: 9 },
            },
            concat!(
                r#"{"versions-raised":{"image":2,"site":0,"model_id":"m","version":3,"#,
                r#""count":{"began":1,"value":9}}}"#
            )
            .to_owned(),
        ),
        (
            Event::BundleRefused { reason: "1 of 2".into() },
            r#"{"bundle-refused":{"reason":"1 of 2"}}"#.to_owned(),
        ),
    ];
    for (event, text) in events {
        let record = Record { event, ..record(4, "") };
        let json = record.to_json().unwrap();
        assert!(
            json.starts_with(r#"{"seq":4,"time":"2026-11-24T03:45:58.123Z","boot":"0123"#),
            "{json}"
        );
        assert!(json.ends_with(&format!(r#""event":{text}}}"#)), "{json}");
        assert_eq!(Record::parse(&json), Ok(record));
    }
}

fn check_record(text: &str, expected: &str) {
    let error = Record::parse(text).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
}

#[test]
fn malformed_records_are_refused() {
    let good = record(1, "chatcmpl-1").to_json().unwrap();
    check_record(&good.replace(r#""seq":1"#, r#""seq": 1"#), "canonical");
    check_record(&(good.clone() + "\n"), "canonical");
    check_record(&good.replace(r#""seq":1"#, r#""seq":1,"extra":2"#), "unknown field");
    check_record(&good.replace(r#""outcome""#, r#""text":"secret","outcome""#), "unknown field");
    check_record(&good.replace(r#""seq":1"#, r#""seq":1,"seq":1"#), "duplicate field");
    check_record(&good.replace("exchange", "deleted"), "unknown variant");
    check_record(&good.replace("0123456789abcdef", "0123456789ABCDEF"), "boot");
    check_record(&good.replace(&"33".repeat(32), "33"), "prompt_sha256");
    check_record(&good.replace(&"22".repeat(32), "x"), "model");
    check_record(&good.replace("chatcmpl-1", &"x".repeat(RECORD_BYTES_MAX)), "at most 16384");
    assert!(Record::parse(&good.replace(&"22".repeat(32), "")).is_ok());
    let with = |receipt: &str| {
        let outcome = r#""outcome":"stop""#;
        good.replace(outcome, &format!(r#"{outcome},"receipt_sha256":{receipt}"#))
    };
    assert!(Record::parse(&with(&format!("\"{}\"", "55".repeat(32)))).is_ok());
    check_record(&with(r#""55""#), "receipt_sha256");
    check_record(&with("null"), "canonical");
}

#[test]
fn every_refusal_fits_a_record() {
    for worst in ["\u{1}", "\u{10ffff}", "\"", "x"] {
        let event = Event::bundle_refused(&worst.repeat(1_000_000));
        let text = Record { event, ..record(0, "") }.to_json().unwrap();
        assert!(Record::parse(&text).is_ok());
    }
}

#[test]
fn times_are_rfc_3339_in_utc() {
    let judge = |time: &str| Record { time: time.into(), ..record(0, "") }.to_json().is_ok();
    for good in ["2026-11-24T03:45:58Z", "2026-11-24T23:59:60Z", "2026-11-24T03:45:58.123456789Z"] {
        assert!(judge(good), "{good}");
    }
    for bad in [
        "",
        "2026-11-24",
        "2026-11-24 03:45:58Z",
        "2026-11-24T03:45:58",
        "2026-13-24T03:45:58Z",
        "2026-11-24T24:45:58Z",
        "2026-11-24T03:45:58+01:00",
        "2026-11-24T03:45:58.Z",
        "2026-11-24T03:45:58.1234567890Z",
        "2026-11-24T03:45:é8Z",
        "2O26-11-24T03:45:58Z",
    ] {
        assert!(!judge(bad), "{bad}");
    }
}

#[test]
fn a_record_under_another_index_is_refused() {
    // Twice the same record: the second is in the tree, but lies about its place.
    let text = record(0, "chatcmpl-0").to_json().unwrap();
    let tree = tree(&[text.clone().into_bytes(), text.clone().into_bytes()]);
    let checkpoint = Checkpoint { origin: "o".into(), size: 2, root: tree.root() };
    let opened = checkpoint.open(1, &text, &tree.proof(1).unwrap());
    assert_eq!(opened, Err(LedgerError::Sequence { index: 1, seq: 0 }));
}
