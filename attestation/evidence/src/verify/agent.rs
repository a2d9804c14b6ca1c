//! What the agent measured: its quorum policy, the site configuration, the gateway's TLS key, how the processes are
//! confined, and the bundle that it admitted.
//!
//! The order of the events is part of what is judged: each has its place, and an event that is out of it refutes the
//! claim that it belongs to.

use super::reason::says;
use super::{Case, ClaimId, Doubt, Judged, Proven, confinement, digest_of_hex, rests_on};
use crate::bundle;
use crate::format::{
    AGENT_PCR, AgentEvent, BundleEvent, BundleStatement, Evidence, Policy, Site, agent_event,
};
use crate::pcr::{HashAlg, Pcr};
use crate::quote::PcrValues;

/// Most agent events that are read: a boot has one of each kind, and a confinement per process.
pub const AGENT_EVENTS_MAX: usize = 256;

/// Kinds that anything is known of.
const KINDS: [&str; 5] = [
    agent_event::POLICY,
    agent_event::SITE,
    agent_event::TLS_KEY,
    agent_event::CONFINEMENT,
    agent_event::BUNDLE,
];
/// Places of the events that a boot begins with.
const POLICY_AT: usize = 0;
const SITE_AT: usize = 1;
const TLS_KEY_AT: usize = 2;

/// The agent's events, once PCR 14 says that they happened.
pub(super) struct Agent<'a> {
    case: &'a Case<'a>,
    events: Result<&'a [AgentEvent], Doubt>,
}

impl<'a> Agent<'a> {
    pub(super) fn new(case: &'a Case<'a>, pcrs: &Judged<PcrValues>) -> Self {
        let events = rests_on(ClaimId::Pcrs, pcrs).and_then(|pcrs| replay(case, pcrs));
        Self { case, events }
    }

    pub(super) fn policy(&self) -> Judged<()> {
        let events = self.events.as_ref().map_err(Clone::clone)?;
        if events.is_empty() {
            return Err(Doubt::refuted(says!(
                "the agent measured nothing: it did not start, or it is not this image's agent",
                "l'agent n'a rien mesuré : il n'a pas démarré, ou ce n'est pas celui de cette image"
            )));
        }
        if let Some(foreign) = events.iter().find(|event| !KINDS.contains(&event.kind.as_str())) {
            let found = &foreign.kind;
            return Err(Doubt::refuted(says!(
                "the agent measured an event of kind {found:?}; {KINDS:?} are known",
                "l'agent a mesuré un événement de type {found:?} ; {KINDS:?} sont connus"
            )));
        }
        let first = self.only(agent_event::POLICY, POLICY_AT)?;
        let measured = HashAlg::Sha256.hash(&[first.content.as_bytes()]).to_string();
        let expected = &self.case.reference.policy_sha256;
        if !measured.eq_ignore_ascii_case(expected) {
            return Err(Doubt::refuted(says!(
                "the agent enforces the policy {measured}; the reference has {expected:?}",
                "l'agent applique la politique {measured} ; la référence a {expected:?}"
            )));
        }
        // The auditor's copy judges the bundle below, so it must say what the agent's says.
        let same = serde_json::from_str::<Policy>(&first.content)
            .is_ok_and(|policy| policy == *self.case.policy);
        if !same {
            return Err(Doubt::refuted(says!(
                "the agent enforces the reference's policy, but the policy file given here is another one",
                "l'agent applique la politique de la référence, mais le fichier de politique donné ici est un autre"
            )));
        }
        let (needed, keys) = (self.case.policy.threshold, self.case.policy.keys.len());
        let reason = says!(
            "the agent enforces the reference's policy: {needed} of {keys} release keys (PCR 14)",
            "l'agent applique la politique de la référence : {needed} clés de publication sur {keys} (PCR 14)"
        );
        Ok(Proven { value: (), reason })
    }

    pub(super) fn site(&self) -> Judged<()> {
        let event = self.only(agent_event::SITE, SITE_AT)?;
        let measured = HashAlg::Sha256.hash(&[event.content.as_bytes()]).to_string();
        let expected = &self.case.reference.site_sha256;
        if !measured.eq_ignore_ascii_case(expected) {
            return Err(Doubt::refuted(says!(
                "the site configuration is {measured}; the reference has {expected:?}",
                "la configuration du site est {measured} ; la référence a {expected:?}"
            )));
        }
        let site: Site = serde_json::from_str(&event.content).map_err(|error| {
            Doubt::refuted(says!(
                "the reference's site configuration is malformed: {error}",
                "la configuration du site de la référence est mal formée : {error}"
            ))
        })?;
        let (version, names, clients) =
            (site.version, site.server_names.join(", "), site.client_ca_sha256);
        let reason = says!(
            "the reference's, version {version}: served as {names}; clients are of the authority {clients}",
            "celle de la référence, version {version} : service sous {names} ; clients de l'autorité {clients}"
        );
        Ok(Proven { value: (), reason })
    }

    pub(super) fn tls_key(&self) -> Judged<()> {
        let event = self.only(agent_event::TLS_KEY, TLS_KEY_AT)?;
        let key = &event.content;
        if digest_of_hex(key).is_none() {
            return Err(Doubt::refuted(says!(
                "the measured TLS key is {key:?}, which is no SHA-256",
                "la clé TLS mesurée est {key:?}, qui n'est pas un SHA-256"
            )));
        }
        let reason = says!(
            "made on the appliance and measured; SHA-256 of the public key: {key}",
            "créée sur l'appliance et mesurée ; SHA-256 de la clé publique : {key}"
        );
        Ok(Proven { value: (), reason })
    }

    pub(super) fn confinement(&self) -> Judged<()> {
        let Ok(events) = &self.events else { return Err(Doubt::rests_on(ClaimId::Policy)) };
        confinement::judge(events, &self.case.reference.confinement)
    }

    /// The one event of its kind, at its place.
    fn only(&self, kind: &str, place: usize) -> Result<&'a AgentEvent, Doubt> {
        let events = match &self.events {
            Ok(events) => *events,
            // Said once, by the first claim about the agent.
            Err(_) if place != POLICY_AT => return Err(Doubt::rests_on(ClaimId::Policy)),
            Err(doubt) => return Err(doubt.clone()),
        };
        let mut found = (0_usize..).zip(events.iter()).filter(|(_, event)| event.kind == kind);
        match (found.next(), found.next()) {
            (Some((at, event)), None) if at == place => Ok(event),
            (None, _) => Err(Doubt::refuted(says!(
                "the agent measured no {kind}",
                "l'agent n'a pas mesuré d'événement « {kind} »"
            ))),
            _ => {
                let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
                Err(Doubt::refuted(says!(
                    "the agent's events are {kinds:?}; one {kind:?} is expected, at place {place} from 0",
                    "les événements de l'agent sont {kinds:?} ; un seul {kind:?} est attendu, à la place {place} à partir de 0"
                )))
            }
        }
    }

    pub(super) fn bundle(&self) -> Judged<()> {
        let Ok(events) = &self.events else { return Err(Doubt::rests_on(ClaimId::Policy)) };
        let (event, statement) = self.loaded(events)?;
        let files: Vec<_> = statement.signatures.iter().map(|s| s.as_bytes().to_vec()).collect();
        let verified = bundle::quorum(self.case.policy, &files).map_err(|error| {
            Doubt::refuted(says!(
                "the bundle's signatures do not meet the policy: {error}",
                "les signatures du modèle ne satisfont pas la politique : {error}"
            ))
        })?;
        let (found, measured) = (hex::encode(verified.digest()), &event.bundle_digest);
        if found != *measured {
            return Err(Doubt::refuted(says!(
                "the signatures are of bundle {found}; the one that was measured is {measured:?}",
                "les signatures sont celles du modèle {found} ; celui qui a été mesuré est {measured:?}"
            )));
        }
        let sent = (&statement.model_id, verified.signers());
        let measured = (&event.model_id, event.signers.as_slice());
        if sent != measured {
            return Err(Doubt::refuted(says!(
                "the statement is of {sent:?}; the measured event says {measured:?}",
                "la déclaration porte sur {sent:?} ; l'événement mesuré dit {measured:?}"
            )));
        }
        let (model, version, signers) = (&event.model_id, event.version, event.signers.join(", "));
        let reason = says!(
            "{model} version {version} ({found}), signed by {signers}, was measured before it was read",
            "{model} version {version} ({found}), signé par {signers}, a été mesuré avant d'être lu"
        );
        Ok(Proven { value: (), reason })
    }

    /// The bundle that was measured last, and what was sent about it.
    fn loaded(&self, events: &[AgentEvent]) -> Result<(BundleEvent, &'a BundleStatement), Doubt> {
        let measured = events.iter().rev().find(|event| event.kind == agent_event::BUNDLE);
        let (event, statement) = match (measured, &self.case.evidence.bundle) {
            (Some(event), Some(statement)) => (event, statement),
            (None, None) => {
                return Err(Doubt::open(says!("no bundle is loaded", "aucun modèle n'est chargé")));
            }
            (Some(_), None) => {
                return Err(Doubt::refuted(says!(
                    "a bundle was measured, and its signatures were not sent",
                    "un modèle a été mesuré, et ses signatures n'ont pas été envoyées"
                )));
            }
            (None, Some(_)) => {
                return Err(Doubt::refuted(says!(
                    "a bundle's signatures were sent, and no bundle was measured",
                    "les signatures d'un modèle ont été envoyées, et aucun modèle n'a été mesuré"
                )));
            }
        };
        let event = serde_json::from_str(&event.content).map_err(|error| {
            Doubt::refuted(says!(
                "the measured bundle event is malformed: {error}",
                "l'événement mesuré du modèle est mal formé : {error}"
            ))
        })?;
        Ok((event, statement))
    }
}

/// SHA-256 of the SubjectPublicKeyInfo that the evidence says is the gateway's. It means nothing before
/// [`ClaimId::TlsKey`] is established.
#[must_use]
pub fn measured_tls_key(evidence: &Evidence) -> Option<[u8; 32]> {
    let event = evidence.agent_log.iter().find(|event| event.kind == agent_event::TLS_KEY)?;
    digest_of_hex(&event.content)
}

fn replay<'a>(case: &Case<'a>, pcrs: &PcrValues) -> Result<&'a [AgentEvent], Doubt> {
    let events = case.evidence.agent_log.as_slice();
    let count = events.len();
    if count > AGENT_EVENTS_MAX {
        return Err(Doubt::refuted(says!(
            "{count} agent events; at most {AGENT_EVENTS_MAX} are read",
            "{count} événements de l'agent ; au plus {AGENT_EVENTS_MAX} sont lus"
        )));
    }
    let measure = |pcr: Pcr, event: &AgentEvent| pcr.measure(event.content.as_bytes());
    let replayed = events.iter().fold(Pcr::ZERO, measure);
    if pcrs.get(&AGENT_PCR) != Some(&replayed.value()) {
        return Err(Doubt::refuted(says!(
            "the agent's {count} events give {replayed}, which is not the quoted PCR 14: events are missing, added or changed",
            "les {count} événements de l'agent donnent {replayed}, qui n'est pas le PCR 14 cité : des événements manquent, sont ajoutés ou modifiés"
        )));
    }
    Ok(events)
}
