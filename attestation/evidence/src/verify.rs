//! The verdict: does this evidence show that one machine runs one image, policy and bundle, and is its
//! ledger whole?
//!
//! Invariants:
//! - Every claim is judged, and by itself: one lie refutes the claim that it concerns. A claim that rests on
//!   another one is not established unless that one is.
//! - Nothing in the evidence is believed before something that the auditor trusts covers it: the pinned
//!   Name covers the key, the key's signature the PCRs and the ledger's head, the PCRs the logs.
//! - The verdict is ESTABLISHED only if every claim is.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod agent;
mod boot;
mod clock;
mod confinement;
mod reason;
mod records;
mod rollback;
mod unexplained;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

pub use agent::{AGENT_EVENTS_MAX, measured_tls_key};
pub use clock::{AsOf, CLOCK_SET_BACK_S_MAX};
pub use reason::Reason;
pub use unexplained::{Log, Unexplained};

use crate::format::{
    EVIDENCE_SCHEMA, Enrolment, Evidence, Machine, Policy, QUALIFYING_CONTEXT, REFERENCE_SCHEMA,
    Reference,
};
use crate::key::AttestationKey;
use crate::ledger::Checkpoint;
use crate::quote::{Attest, PcrValues, Quote};
pub(crate) use reason::says;

/// What is claimed. The order is that of the argument: each rests on earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClaimId {
    /// The evidence is by the machine that the auditor pinned, and its key cannot sign forgeries.
    Machine,
    /// Its TPM signed the quote.
    Quote,
    /// The quote answers the auditor's nonce and covers the ledger's head.
    Fresh,
    /// The PCR values sent are the quoted ones.
    Pcrs,
    /// The logs explain the PCRs.
    FirmwareLog,
    /// Secure Boot was on, with the reference's keys.
    SecureBoot,
    /// The firmware started the reference's boot files and no others.
    BootChain,
    /// The running image is the reference's.
    Image,
    /// Nothing was injected beside the image.
    CommandLine,
    /// The agent enforces the reference's quorum policy.
    Policy,
    /// The site configuration is the reference's.
    Site,
    /// The gateway's TLS key is the one that agentd measured.
    TlsKey,
    /// Every process confined itself by the reference's table and saw its refusals.
    Confinement,
    /// The model that runs was signed by the quorum.
    Bundle,
    /// The ledger's records are under the signed head.
    Ledger,
    /// Ledger and state are not older than the TPM's counter.
    Rollback,
}

impl ClaimId {
    /// Every claim, in the order of the verdict.
    pub const ALL: [Self; 16] = [
        Self::Machine,
        Self::Quote,
        Self::Fresh,
        Self::Pcrs,
        Self::FirmwareLog,
        Self::SecureBoot,
        Self::BootChain,
        Self::Image,
        Self::CommandLine,
        Self::Policy,
        Self::Site,
        Self::TlsKey,
        Self::Confinement,
        Self::Bundle,
        Self::Ledger,
        Self::Rollback,
    ];

    /// The name in machine-readable output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Quote => "quote",
            Self::Fresh => "fresh",
            Self::Pcrs => "pcrs",
            Self::FirmwareLog => "firmware-log",
            Self::SecureBoot => "secure-boot",
            Self::BootChain => "boot-chain",
            Self::Image => "image",
            Self::CommandLine => "command-line",
            Self::Policy => "policy",
            Self::Site => "site",
            Self::TlsKey => "tls-key",
            Self::Confinement => "confinement",
            Self::Bundle => "bundle",
            Self::Ledger => "ledger",
            Self::Rollback => "rollback",
        }
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a claim was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The evidence proves it.
    Established,
    /// The evidence shows the opposite, or was altered.
    Refuted,
    /// The evidence does not say, or what it rests on is not established.
    NotEstablished,
}

impl Status {
    /// The name in machine-readable output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Refuted => "refuted",
            Self::NotEstablished => "not-established",
        }
    }
}

/// One claim and its judgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is claimed.
    pub id: ClaimId,
    /// How it was judged.
    pub status: Status,
    /// Why.
    pub reason: Reason,
    /// What else the evidence says about it, for the auditor to know; nothing is decided by it.
    pub facts: Vec<Reason>,
}

impl Claim {
    fn with(self, facts: Vec<Reason>) -> Self {
        Self { facts, ..self }
    }
}

/// The judgement of one evidence file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// One for each of [`ClaimId::ALL`], in that order.
    pub claims: Vec<Claim>,
    /// Logged events that no rule explains.
    pub unexplained: Vec<Unexplained>,
    /// When the evidence was made, as far as it says.
    pub as_of: AsOf,
    /// Head of the ledger, if that claim is established.
    pub head: Option<Checkpoint>,
}

impl Verdict {
    /// Whether every claim is established.
    #[must_use]
    pub fn established(&self) -> bool {
        ClaimId::ALL.into_iter().all(|id| self.status(id) == Status::Established)
    }

    /// How one claim was judged.
    #[must_use]
    pub fn status(&self, id: ClaimId) -> Status {
        let claim = self.claims.iter().find(|claim| claim.id == id);
        claim.map_or(Status::NotEstablished, |claim| claim.status)
    }
}

/// `extraData` of a quote: `SHA-256("casemate-evidence-v1\0" ‖ nonce ‖ SHA-256(checkpoint note))`.
#[must_use]
pub fn qualifying_data(nonce: [u8; 32], checkpoint_note: &str) -> [u8; 32] {
    Sha256::new()
        .chain_update(QUALIFYING_CONTEXT)
        .chain_update(nonce)
        .chain_update(Sha256::digest(checkpoint_note))
        .finalize()
        .into()
}

/// Judges `evidence`. `reference`, `policy`, `machine` and `nonce` are the auditor's own and trusted.
#[must_use]
pub fn verify(
    evidence: &Evidence,
    reference: &Reference,
    policy: &Policy,
    machine: &Machine,
    nonce: [u8; 32],
) -> Verdict {
    let case = Case { evidence, reference, policy, machine, nonce };
    if let Err(doubt) = case.check_schemas() {
        return Verdict {
            claims: ClaimId::ALL
                .into_iter()
                .map(|id| claim::<()>(id, &Err(doubt.clone())))
                .collect(),
            unexplained: Vec::new(),
            as_of: AsOf::of(evidence, None),
            head: None,
        };
    }
    let key = case.machine();
    let quote = case.quote(&key);
    let fresh = case.fresh(&quote);
    let pcrs = case.pcrs(&quote);
    let bytes = case.log_bytes();
    let boot = boot::Boot::new(&case, &pcrs, bytes.as_ref());
    let agent = agent::Agent::new(&case, &pcrs);
    let ledger = records::ledger(&case, &key);
    let clock_facts = ledger.as_ref().map_or(Vec::new(), |proven| proven.value.facts.clone());
    let as_of = AsOf::of(evidence, quote.as_ref().ok().map(|quote| quote.value.attest()));
    Verdict {
        claims: vec![
            claim(ClaimId::Machine, &key),
            claim(ClaimId::Quote, &quote).with(as_of.counters()),
            claim(ClaimId::Fresh, &fresh).with(as_of.created_fact()),
            claim(ClaimId::Pcrs, &pcrs),
            claim(ClaimId::FirmwareLog, &boot.firmware_log()),
            claim(ClaimId::SecureBoot, &boot.secure_boot()).with(boot.secure_boot_facts()),
            claim(ClaimId::BootChain, &boot.boot_chain()).with(boot.boot_chain_facts()),
            claim(ClaimId::Image, &boot.image()).with(boot.image_facts()),
            claim(ClaimId::CommandLine, &boot.command_line()).with(boot.command_line_facts()),
            claim(ClaimId::Policy, &agent.policy()),
            claim(ClaimId::Site, &agent.site()),
            claim(ClaimId::TlsKey, &agent.tls_key()),
            claim(ClaimId::Confinement, &agent.confinement()),
            claim(ClaimId::Bundle, &agent.bundle()),
            claim(ClaimId::Ledger, &ledger).with(clock_facts),
            claim(ClaimId::Rollback, &rollback::rollback(&case, &key, &fresh)),
        ],
        unexplained: boot.into_unexplained(),
        as_of,
        head: ledger.ok().map(|proven| proven.value.checkpoint),
    }
}

/// Something proven, and how.
#[derive(Debug)]
struct Proven<T> {
    value: T,
    reason: Reason,
}

/// Why something is not proven.
#[derive(Clone, Debug)]
struct Doubt {
    status: Status,
    reason: Reason,
}

type Judged<T> = Result<Proven<T>, Doubt>;

impl Doubt {
    fn refuted(reason: Reason) -> Self {
        Self { status: Status::Refuted, reason }
    }

    fn open(reason: Reason) -> Self {
        Self { status: Status::NotEstablished, reason }
    }

    fn rests_on(id: ClaimId) -> Self {
        Self::open(says!(
            "rests on the claim {id}, which is not established",
            "repose sur l'affirmation {id}, qui n'est pas établie"
        ))
    }
}

fn claim<T>(id: ClaimId, judged: &Judged<T>) -> Claim {
    match judged {
        Ok(Proven { reason, .. }) => {
            Claim { id, status: Status::Established, reason: reason.clone(), facts: Vec::new() }
        }
        Err(Doubt { status, reason }) => {
            Claim { id, status: *status, reason: reason.clone(), facts: Vec::new() }
        }
    }
}

/// What an earlier claim proved, or that it proved nothing.
fn rests_on<T>(id: ClaimId, judged: &Judged<T>) -> Result<&T, Doubt> {
    judged.as_ref().map(|proven| &proven.value).map_err(|_| Doubt::rests_on(id))
}

/// Only TPM2_Clear sets the count of resets back, and the clock while the TPM is not reset: TPM 2.0 Library Part 1,
/// "Clock". That somebody has since reset a cleared TPM as often as before stays unseen.
fn check_not_cleared(enrolment: &Enrolment, attest: &Attest) -> Result<(), Doubt> {
    let (resets, clock_ms) = (attest.clock.reset_count, attest.clock.clock_ms);
    let Enrolment { reset_count, clock_ms: enrolled_ms, .. } = enrolment;
    if (resets, clock_ms) < (*reset_count, *enrolled_ms) {
        return Err(Doubt::refuted(says!(
            "the TPM was cleared since it was enrolled: reset count {resets} and clock {clock_ms} ms, at enrolment {reset_count} and {enrolled_ms} ms; find out who did it, and enrol again",
            "le TPM a été effacé depuis son enrôlement : compteur de redémarrages {resets} et horloge {clock_ms} ms, à l'enrôlement {reset_count} et {enrolled_ms} ms ; trouver qui l'a fait, et enrôler à nouveau"
        )));
    }
    Ok(())
}

/// A PCR value as files have it.
fn digest_of_hex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest).ok().map(|()| digest)
}

/// Evidence and what it is judged by.
#[derive(Clone, Copy, Debug)]
struct Case<'a> {
    evidence: &'a Evidence,
    reference: &'a Reference,
    policy: &'a Policy,
    machine: &'a Machine,
    nonce: [u8; 32],
}

impl Case<'_> {
    /// The meaning of every field hangs on the schema; the policy's is checked with the policy.
    fn check_schemas(&self) -> Result<(), Doubt> {
        for (found, expected) in
            [(&self.evidence.schema, EVIDENCE_SCHEMA), (&self.reference.schema, REFERENCE_SCHEMA)]
        {
            if found != expected {
                return Err(Doubt::open(says!(
                    "the file has schema {found:?}; {expected:?} is expected",
                    "le fichier a le schéma {found:?} ; {expected:?} est attendu"
                )));
            }
        }
        Ok(())
    }

    fn machine(&self) -> Judged<AttestationKey> {
        let refuted = |error: &dyn fmt::Display| {
            Doubt::refuted(says!(
                "the attestation key is not usable: {error}",
                "la clé d'attestation n'est pas utilisable : {error}"
            ))
        };
        let public = STANDARD.decode(&self.evidence.quote.public).map_err(|e| refuted(&e))?;
        let key = AttestationKey::parse(&public).map_err(|e| refuted(&e))?;
        let (name, pinned) = (key.name(), &self.machine.ak_name);
        let same = name.to_string().eq_ignore_ascii_case(pinned);
        let reason = match &self.machine.enrolment {
            None if same => says!(
                "restricted attestation key {name}, pinned from the console: no EK certificate vouches that it is in a TPM",
                "clé d'attestation restreinte {name}, épinglée depuis la console : aucun certificat EK n'atteste qu'elle est dans un TPM"
            ),
            Some(Enrolment {
                ek_certificate_sha256: ek, tpm, ek_issuer, root, enrolled, ..
            }) if same => {
                says!(
                    "restricted attestation key {name}, enrolled: EK certificate {ek} of {tpm:?}, issued by {ek_issuer:?} under {root:?}, on {enrolled}",
                    "clé d'attestation restreinte {name}, enrôlée : certificat EK {ek} de {tpm:?}, émis par {ek_issuer:?} sous {root:?}, le {enrolled}"
                )
            }
            None => {
                return Err(Doubt::refuted(says!(
                    "the evidence is by the key {name}; the pinned machine has {pinned:?}",
                    "les preuves viennent de la clé {name} ; la machine épinglée a {pinned:?}"
                )));
            }
            Some(Enrolment { ek_certificate_sha256: ek, .. }) => {
                return Err(Doubt::refuted(says!(
                    "the evidence is by the key {name}, which was never enrolled; the machine with the EK certificate {ek} has {pinned:?}",
                    "les preuves viennent de la clé {name}, qui n'a jamais été enrôlée ; la machine au certificat EK {ek} a {pinned:?}"
                )));
            }
        };
        Ok(Proven { value: key, reason })
    }

    fn quote(&self, key: &Judged<AttestationKey>) -> Judged<Quote> {
        let key = rests_on(ClaimId::Machine, key)?;
        let refuted = |error: &dyn fmt::Display| {
            Doubt::refuted(says!(
                "the quote does not hold: {error}",
                "la citation du TPM ne tient pas : {error}"
            ))
        };
        let sent = &self.evidence.quote;
        let attest = STANDARD.decode(&sent.attest).map_err(|e| refuted(&e))?;
        let signature = STANDARD.decode(&sent.signature).map_err(|e| refuted(&e))?;
        let quote = Quote::verify(key, &attest, &signature).map_err(|e| refuted(&e))?;
        let resets = quote.attest().clock.reset_count;
        if let Some(enrolment) = &self.machine.enrolment {
            check_not_cleared(enrolment, quote.attest())?;
        }
        let reason = says!(
            "signed by the machine's TPM (reset count {resets})",
            "signée par le TPM de la machine (compteur de redémarrages {resets})"
        );
        Ok(Proven { value: quote, reason })
    }

    fn fresh(&self, quote: &Judged<Quote>) -> Judged<()> {
        let quote = rests_on(ClaimId::Quote, quote)?;
        let note = &self.evidence.ledger.checkpoint;
        let signed = &quote.attest().extra_data;
        if signed == &qualifying_data(self.nonce, note) {
            let reason = says!(
                "the quote answers your nonce and covers the ledger's head",
                "la citation répond à votre nonce et couvre la tête du registre"
            );
            return Ok(Proven { value: (), reason });
        }
        let claimed = digest_of_hex(&self.evidence.nonce);
        let replayed = claimed
            .is_some_and(|nonce| nonce != self.nonce && signed == &qualifying_data(nonce, note));
        Err(Doubt::refuted(if replayed {
            let (found, expected) = (&self.evidence.nonce, hex::encode(self.nonce));
            says!(
                "the quote answers the nonce {found:?}; yours is {expected}: it was made for another question",
                "la citation répond au nonce {found:?} ; le vôtre est {expected} : elle répond à une autre question"
            )
        } else {
            says!(
                "the quote covers another nonce or another ledger head than those sent",
                "la citation couvre un autre nonce ou une autre tête de registre que ceux envoyés"
            )
        }))
    }

    fn pcrs(&self, quote: &Judged<Quote>) -> Judged<PcrValues> {
        let quote = rests_on(ClaimId::Quote, quote)?;
        let refuted = |error: &dyn fmt::Display| {
            Doubt::refuted(says!(
                "the PCR values are not the quoted ones: {error}",
                "les valeurs des PCR ne sont pas celles citées : {error}"
            ))
        };
        let mut values = PcrValues::new();
        for (&index, text) in &self.evidence.quote.pcrs {
            let value = digest_of_hex(text);
            let value = value.ok_or_else(|| refuted(&format!("PCR {index} is {text:?}")))?;
            values.insert(index, value);
        }
        quote.check_pcrs(&values).map_err(|e| refuted(&e))?;
        if let Some(missing) = boot::JUDGED.into_iter().find(|index| !values.contains_key(index)) {
            return Err(Doubt::open(says!(
                "PCR {missing} is not in the quote",
                "le PCR {missing} n'est pas dans la citation"
            )));
        }
        let count = values.len();
        let reason = says!(
            "{count} values of the SHA-256 bank hash to the quoted digest",
            "{count} valeurs de la banque SHA-256 donnent l'empreinte citée"
        );
        Ok(Proven { value: values, reason })
    }

    /// The two logs' bytes, firmware's first.
    fn log_bytes(&self) -> Result<(Vec<u8>, Vec<u8>), Doubt> {
        let decode = |text: &str| {
            STANDARD.decode(text).map_err(|error| {
                Doubt::refuted(says!(
                    "an event log is not base64: {error}",
                    "un journal d'événements n'est pas en base64 : {error}"
                ))
            })
        };
        Ok((decode(&self.evidence.firmware_log)?, decode(&self.evidence.userspace_log)?))
    }
}

#[cfg(test)]
mod tests;
