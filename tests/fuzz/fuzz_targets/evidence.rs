//! Evidence that is established says what the honest appliance's says, wherever something vouches for it.
#![no_main]

use std::sync::LazyLock;

use evidence::fixture::{Appliance, policy, reference};
use evidence::format::{Evidence, Machine, Policy, Reference};
use evidence::verify::{ClaimId, verify};
use libfuzzer_sys::fuzz_target;

const NONCE: [u8; 32] = [0xa5; 32];

struct Auditor {
    honest: Evidence,
    reference: Reference,
    policy: Policy,
    machine: Machine,
}

static AUDITOR: LazyLock<Auditor> = LazyLock::new(|| {
    let appliance = Appliance::booted();
    Auditor {
        honest: appliance.evidence(NONCE),
        reference: reference(),
        policy: policy(),
        machine: appliance.machine(),
    }
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(evidence) = serde_json::from_slice::<Evidence>(bytes) else { return };
    let Auditor { honest, reference, policy, machine } = &*AUDITOR;
    let verdict = verify(&evidence, reference, policy, machine, NONCE);
    assert_eq!(verdict.claims.len(), ClaimId::ALL.len());
    if verdict.established() {
        assert_eq!(evidence.quote.attest, honest.quote.attest);
        assert_eq!(evidence.agent_log, honest.agent_log);
        assert_eq!(evidence.profile, honest.profile);
        assert_eq!(evidence.ledger.checkpoint, honest.ledger.checkpoint);
    }
});
