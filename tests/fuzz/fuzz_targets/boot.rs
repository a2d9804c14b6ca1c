//! A machine whose firmware logged these bytes, and whose TPM measured what they say: the log explains the PCRs
//! whatever it says, and nothing that is shown of it is more than one harmless line.
#![no_main]

use std::sync::LazyLock;

use evidence::eventlog::EventLog;
use evidence::fixture::{Appliance, policy, reference};
use evidence::format::{Policy, Reference};
use evidence::pcr::HashAlg;
use evidence::verify::{ClaimId, Status, verify};
use libfuzzer_sys::fuzz_target;

const NONCE: [u8; 32] = [0xa5; 32];

static APPLIANCE: LazyLock<Appliance> = LazyLock::new(Appliance::booted);
static AUDITOR: LazyLock<(Reference, Policy)> = LazyLock::new(|| (reference(), policy()));

fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = EventLog::parse(bytes) else { return };
    if log.replay(HashAlg::Sha256).is_err() {
        return;
    }
    let appliance = Appliance { firmware: vec![bytes.to_vec()], ..APPLIANCE.clone() };
    let (reference, policy) = &*AUDITOR;
    let machine = appliance.machine();
    let verdict = verify(&appliance.evidence(NONCE), reference, policy, &machine, NONCE);
    assert_eq!(verdict.status(ClaimId::Pcrs), Status::Established);
    // The kernel's measurement into PCR 10 is not in the log, so a log that has others there does not explain it.
    let measured = |pcr| log.events().iter().any(|event| event.kind.is_measured() && event.pcr == pcr);
    let alone = !measured(10);
    assert_eq!(verdict.status(ClaimId::FirmwareLog) == Status::Established, alone);
    let claims = verdict.claims.iter();
    let said = claims.flat_map(|claim| std::iter::once(&claim.reason).chain(&claim.facts));
    let mut lines = said.flat_map(|reason| [reason.en(), reason.fr()]).chain(
        verdict.unexplained.iter().flat_map(|event| [event.kind.as_str(), event.text.as_str()]),
    );
    assert!(lines.all(|line| !line.chars().any(char::is_control)));
});
