//! The ledger's head and records.

use super::clock::Order;
use super::reason::says;
use super::{Case, ClaimId, Doubt, Judged, Proven, Reason, digest_of_hex, rests_on};
use crate::format::ProvenRecord;
use crate::key::AttestationKey;
use crate::ledger::{Checkpoint, Hash, ORIGIN_PREFIX, Record};

/// Longest request identifier that is shown, in characters.
const REQUEST_CHARS_MAX: usize = 80;

/// A head whose records were all seen, and what their dates say.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) checkpoint: Checkpoint,
    pub(super) facts: Vec<Reason>,
}

/// Whether the head is the machine's and every record is under it, without a gap up to the newest, and within one
/// boot no later one is dated before an earlier one.
pub(super) fn ledger(case: &Case<'_>, key: &Judged<AttestationKey>) -> Judged<Head> {
    let key = rests_on(ClaimId::Machine, key)?;
    let checkpoint = checkpoint(case, key)?;
    let sent = &case.evidence.ledger;
    let (size, sent) = (checkpoint.size, &sent.records);
    let (mut next, mut order) = (None, Order::default());
    for sent in sent {
        let record = open(&checkpoint, next, sent)?;
        let index = sent.index;
        next = index.checked_add(1);
        let what = says!("record {index}", "l'enregistrement {index}");
        order.follow(&record.time, Some(record.boot), what)?;
    }
    // The newest records are what an attacker would leave out, and the head says how many there are.
    if next.unwrap_or(0) != size {
        let last = next.unwrap_or(0);
        return Err(Doubt::refuted(says!(
            "the head has {size} records; those sent end before record {last}",
            "la tête compte {size} enregistrements ; ceux envoyés s'arrêtent avant l'enregistrement {last}"
        )));
    }
    // The agent's first act after a start is a record, so the newest one is of the boot that made the evidence.
    let what = says!("the evidence", "le fichier de preuves");
    order.follow(&case.evidence.created, None, what)?;
    let proven = sent.len();
    let reason = says!(
        "the newest {proven} of {size} records are in the ledger under the signed head",
        "les {proven} derniers enregistrements sur {size} sont dans le registre sous la tête signée"
    );
    Ok(Proven { value: Head { checkpoint, facts: order.facts() }, reason })
}

/// The ledger's head, signed by the machine in its own name.
pub(super) fn checkpoint(case: &Case<'_>, key: &AttestationKey) -> Result<Checkpoint, Doubt> {
    let sent = &case.evidence.ledger;
    let checkpoint =
        Checkpoint::parse(&sent.checkpoint, |text, signature| key.verify(text, signature))
            .map_err(|error| {
                Doubt::refuted(says!(
                    "the ledger's head is not the machine's: {error}",
                    "la tête du registre n'est pas celle de la machine : {error}"
                ))
            })?;
    let expected = format!("{ORIGIN_PREFIX}{}", key.name());
    if checkpoint.origin != expected {
        let found = &checkpoint.origin;
        return Err(Doubt::refuted(says!(
            "the head is of the ledger {found:?}; {expected:?} is expected",
            "la tête est celle du registre {found:?} ; {expected:?} est attendu"
        )));
    }
    Ok(checkpoint)
}

/// Opens a record under the head; `next` is the index that it must have, if one is expected.
pub(super) fn open(
    checkpoint: &Checkpoint,
    next: Option<u64>,
    sent: &ProvenRecord,
) -> Result<Record, Doubt> {
    let index = sent.index;
    let proof: Option<Vec<Hash>> = sent.proof.iter().map(|hash| digest_of_hex(hash)).collect();
    let opened = match proof {
        Some(proof) => {
            checkpoint.open(index, &sent.record, &proof).map_err(|error| error.to_string())
        }
        None => Err("its proof is not hex of SHA-256 digests".to_owned()),
    };
    let record = opened.map_err(|error| {
        let request = request(&sent.record);
        Doubt::refuted(says!(
            "record {index} ({request}) does not prove: {error}",
            "l'enregistrement {index} ({request}) n'est pas prouvé : {error}"
        ))
    })?;
    match next {
        Some(next) if next != index => Err(Doubt::refuted(says!(
            "record {index} was sent where record {next} is expected: records are missing, repeated or reordered",
            "l'enregistrement {index} a été envoyé à la place de {next} : des enregistrements manquent, sont répétés ou déplacés"
        ))),
        _ => Ok(record),
    }
}

/// What an unproven record calls itself, so that the auditor can find it.
fn request(record: &str) -> String {
    let json: Result<serde_json::Value, _> = serde_json::from_str(record);
    let found =
        json.as_ref().ok().and_then(|json| json.pointer("/event/exchange/request")?.as_str());
    match found {
        Some(request) => {
            let request: String = request.chars().take(REQUEST_CHARS_MAX).collect();
            format!("request {request:?}")
        }
        None => "no request".to_owned(),
    }
}
