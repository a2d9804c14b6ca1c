//! Mutated inputs for every parser of the measured-boot half: what fuzzing does for hours, for a second.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::enrol::{EkCertificate, Roots};
use crate::eventlog::EventLog;
use crate::fixture::{Appliance, Says, SoftTpm, TIME_S, Vendor, policy, reference};
use crate::format::{Evidence, Policy, Reference};
use crate::key::AttestationKey;
use crate::pcr::{HashAlg, PcrBank};
use crate::quote::Quote;
use crate::userspace::UserspaceLog;
use crate::verify::{ClaimId, Status, Verdict, verify};

const NONCE: [u8; 32] = [0xa5; 32];
/// A TPM's vendor, and the certificate of its endorsement key.
static VENDOR: LazyLock<(Vendor, Vec<u8>)> = LazyLock::new(|| {
    let vendor = Vendor::new(1);
    let certificate = vendor.certify(&SoftTpm::new(1), &Says::default());
    (vendor, certificate)
});

/// One change of a byte string.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
    /// Four bytes that many lengths and counts would choke on.
    Large(Index),
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match self {
            Self::Set(at, byte) => bytes[at.index(length)] = *byte,
            Self::Flip(at, bit) => bytes[at.index(length)] ^= 1 << (bit % 8),
            Self::Insert(at, byte) => bytes.insert(at.index(length), *byte),
            Self::Remove(at) => drop(bytes.remove(at.index(length))),
            Self::Cut(at) => bytes.truncate(at.index(length)),
            Self::Large(at) => {
                let at = at.index(length);
                let end = length.min(at + 4);
                bytes[at..end].fill(0xff);
            }
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = || any::<Index>();
    let edit = prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at(), any::<u8>()).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
        at().prop_map(Edit::Remove),
        at().prop_map(Edit::Cut),
        at().prop_map(Edit::Large),
    ];
    vec(edit, 1..4)
}

fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    edits.iter().for_each(|edit| edit.apply(&mut bytes));
    bytes
}

static HONEST: LazyLock<Appliance> = LazyLock::new(Appliance::booted);
static EVIDENCE: LazyLock<Evidence> = LazyLock::new(|| HONEST.evidence(NONCE));
static REFERENCE: LazyLock<Reference> = LazyLock::new(reference);
static POLICY: LazyLock<Policy> = LazyLock::new(policy);

fn judge(evidence: &Evidence) -> Verdict {
    verify(evidence, &REFERENCE, &POLICY, &HONEST.machine(), NONCE)
}

proptest! {
    #[test]
    fn event_logs(edits in edits()) {
        let bytes = edited(HONEST.firmware.concat(), &edits);
        if let Ok(log) = EventLog::parse(&bytes) {
            let data: usize = log.events().iter().map(|event| event.data.len()).sum();
            prop_assert!(data < bytes.len());
            // Nothing but a SHA-256 log is one edit away, and its events all have that digest or none.
            drop(log.replay(HashAlg::Sha256));
        }
    }

    #[test]
    fn userspace_logs(edits in edits()) {
        let bytes = edited(HONEST.userspace.concat().into_bytes(), &edits);
        if let Ok(log) = UserspaceLog::parse(&bytes) {
            drop(log.replay_onto(&mut PcrBank::at_startup(HashAlg::Sha256, 0)));
        }
    }

    #[test]
    fn keys(edits in edits()) {
        let honest = HONEST.tpm.attestation_key().name();
        let bytes = edited(HONEST.tpm.public(), &edits);
        if let Ok(key) = AttestationKey::parse(&bytes) {
            prop_assert_eq!(key.name() == honest, bytes == HONEST.tpm.public());
        }
    }

    #[test]
    fn certificates(edits in edits()) {
        let (vendor, honest) = &*VENDOR;
        let bytes = edited(honest.clone(), &edits);
        let roots = Roots::parse(std::slice::from_ref(&vendor.root)).unwrap();
        let chain = [bytes.clone(), vendor.intermediate.clone()];
        let verified = EkCertificate::verify(&chain, &roots, TIME_S).is_ok();
        prop_assert_eq!(verified, bytes == *honest);
    }

    #[test]
    fn quotes(of_attest in edits(), of_signature in edits()) {
        let tpm = SoftTpm::new(1);
        let (attest, signature) = tpm.quote(&HONEST.pcrs(), &NONCE);
        let changed = (edited(attest.clone(), &of_attest), edited(signature.clone(), &of_signature));
        let verified = Quote::verify(&tpm.attestation_key(), &changed.0, &changed.1).is_ok();
        prop_assert_eq!(verified, changed == (attest, signature));
    }

    #[test]
    fn evidence_files(edits in edits()) {
        let honest = &*EVIDENCE;
        let bytes = edited(serde_json::to_vec(honest).unwrap(), &edits);
        let Ok(evidence) = serde_json::from_slice::<Evidence>(&bytes) else { return Ok(()) };
        let verdict = judge(&evidence);
        let said = |evidence: &Evidence| {
            let Evidence { profile, quote, agent_log, ledger, .. } = evidence.clone();
            (profile, quote.attest, agent_log, ledger.checkpoint)
        };
        prop_assert!(!verdict.established() || said(&evidence) == said(honest));
    }

    /// No edit of the firmware log goes unnoticed, unless it changed commentary only.
    #[test]
    fn edited_firmware_logs_are_found_out(edits in edits()) {
        use base64::Engine as _;
        let honest = HONEST.firmware.concat();
        let bytes = edited(honest.clone(), &edits);
        let mut evidence = EVIDENCE.clone();
        evidence.firmware_log = base64::engine::general_purpose::STANDARD.encode(&bytes);
        let verdict = judge(&evidence);
        let bank = |bytes: &[u8]| EventLog::parse(bytes).ok()?.replay(HashAlg::Sha256).ok();
        let same = bank(&bytes) == bank(&honest);
        prop_assert_eq!(verdict.status(ClaimId::FirmwareLog) == Status::Established, same);
        prop_assert_eq!(verdict.status(ClaimId::BootChain), Status::Established);
    }
}
