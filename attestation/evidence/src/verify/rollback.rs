//! Whether ledger and state are of now: what the TPM's counter shows is what the ledger says it shows.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::reason::says;
use super::{Case, ClaimId, Doubt, Judged, Proven, qualifying_data, records, rests_on};
use crate::counter;
use crate::key::AttestationKey;
use crate::ledger::Count;
use crate::nv::NvCertify;

/// The counter counts at each boot and whenever a minimum version rises, and each time the ledger gets a record of
/// it. A disk that was restored from an older copy has no record of the present count.
pub(super) fn rollback(
    case: &Case<'_>,
    key: &Judged<AttestationKey>,
    fresh: &Judged<()>,
) -> Judged<()> {
    let key = rests_on(ClaimId::Machine, key)?;
    rests_on(ClaimId::Fresh, fresh)?;
    let shown = certified(case, key)?;
    let sent = &case.evidence.counter.counted;
    let checkpoint =
        records::checkpoint(case, key).map_err(|_| Doubt::rests_on(ClaimId::Ledger))?;
    let record = records::open(&checkpoint, None, sent)?;
    let index = sent.index;
    let Some(Count { began, value }) = record.event.count() else {
        return Err(Doubt::refuted(says!(
            "record {index} was sent as the last that counted, and it does not count",
            "l'enregistrement {index} a été envoyé comme le dernier compté, et il ne compte pas"
        )));
    };
    if value != shown {
        return Err(Doubt::refuted(says!(
            "the TPM's counter shows {shown}; the ledger's last count is {value} (record {index}): ledger and state are older than the machine",
            "le compteur du TPM affiche {shown} ; le dernier compte du registre est {value} (enregistrement {index}) : le registre et l'état sont plus anciens que la machine"
        )));
    }
    let reason = match case.machine.state_began {
        Some(pinned) if pinned != began => {
            return Err(Doubt::refuted(says!(
                "the machine's state began at the count {began}; the pinned machine's at {pinned}: versions and ledger before that were set aside",
                "l'état de la machine a commencé au compte {began} ; celui de la machine épinglée à {pinned} : les versions et le registre antérieurs ont été écartés"
            )));
        }
        Some(_) => says!(
            "the TPM's counter shows {shown}, as the ledger's record {index} says; the state began at {began}, as pinned",
            "le compteur du TPM affiche {shown}, comme le dit l'enregistrement {index} du registre ; l'état a commencé à {began}, comme épinglé"
        ),
        None => says!(
            "the TPM's counter shows {shown}, as the ledger's record {index} says; the state began at {began} (pin it as state_began)",
            "le compteur du TPM affiche {shown}, comme le dit l'enregistrement {index} du registre ; l'état a commencé à {began} (à épingler comme state_began)"
        ),
    };
    Ok(Proven { value: (), reason })
}

/// The count that the TPM signed under the auditor's nonce.
fn certified(case: &Case<'_>, key: &AttestationKey) -> Result<u64, Doubt> {
    let refuted = |error: &dyn std::fmt::Display| {
        Doubt::refuted(says!(
            "the counter's certification does not hold: {error}",
            "la certification du compteur ne tient pas : {error}"
        ))
    };
    let sent = &case.evidence.counter;
    let attest = STANDARD.decode(&sent.attest).map_err(|e| refuted(&e))?;
    let signature = STANDARD.decode(&sent.signature).map_err(|e| refuted(&e))?;
    let certified = NvCertify::verify(key, &attest, &signature).map_err(|e| refuted(&e))?;
    let attest = certified.attest();
    if attest.extra_data != qualifying_data(case.nonce, &case.evidence.ledger.checkpoint) {
        return Err(Doubt::refuted(says!(
            "the counter's certification answers another question than yours",
            "la certification du compteur répond à une autre question que la vôtre"
        )));
    }
    if !counter::is_name(&attest.index_name, true) {
        let name = hex::encode(&attest.index_name);
        return Err(Doubt::refuted(says!(
            "the TPM certified the index {name:?}, which is not the counter: it was defined otherwise, or is another one",
            "le TPM a certifié l'index {name:?}, qui n'est pas le compteur : il a été défini autrement, ou c'en est un autre"
        )));
    }
    match counter::value(&attest.contents) {
        Some(value) if attest.offset == 0 => Ok(value),
        _ => {
            let bytes = attest.contents.len();
            Err(Doubt::refuted(says!(
                "{bytes} bytes of the counter were certified; all 8 are expected",
                "{bytes} octets du compteur ont été certifiés ; les 8 sont attendus"
            )))
        }
    }
}
