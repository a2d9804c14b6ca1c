//! How the processes confined themselves, as they reported to the agent.

use std::collections::BTreeMap;

use super::reason::says;
use super::{Doubt, Judged, Proven};
use crate::format::{AgentEvent, Confinement, ConfinementEvent, agent_event};

/// Its report is the first, since it measures the others'.
const AGENTD: &str = "agentd";
/// Place of that report: after policy, site and TLS key.
const AGENTD_AT: usize = 3;
/// Its report comes before any bundle: nothing is handed to an engine that is not confined.
const ENGINE: &str = "engine";

/// Judges the confinement events among `events`; each of `expected` must be there, once, and nothing else.
pub(super) fn judge(events: &[AgentEvent], expected: &BTreeMap<String, Confinement>) -> Judged<()> {
    let reports = reports(events)?;
    for (process, (_, report)) in &reports {
        let Some(table) = expected.get(process) else {
            return Err(Doubt::refuted(says!(
                "a process {process:?} reported its confinement; the reference has no such process",
                "un processus {process:?} a déclaré son confinement ; la référence n'en a pas de ce nom"
            )));
        };
        check(report, table)?;
    }
    check_order(events, &reports)?;
    if let Some(missing) = expected.keys().find(|process| !reports.contains_key(*process)) {
        // Not a lie: the process has not started, or has not confined itself yet.
        return Err(Doubt::open(says!(
            "{missing} has not reported its confinement",
            "{missing} n'a pas déclaré son confinement"
        )));
    }
    let (count, tried) =
        (reports.len(), expected.values().map(|table| table.self_test.len()).sum::<usize>());
    let names: Vec<_> = reports.into_keys().collect();
    let names = names.join(", ");
    let reason = says!(
        "{count} processes ({names}) enforce the reference's tables; {tried} forbidden acts were tried at their starts and refused",
        "{count} processus ({names}) appliquent les tables de la référence ; {tried} actes interdits ont été tentés à leur démarrage et refusés"
    );
    Ok(Proven { value: (), reason })
}

type Reports = BTreeMap<String, (usize, ConfinementEvent)>;

/// Reports and their places, by process.
fn reports(events: &[AgentEvent]) -> Result<Reports, Doubt> {
    let mut reports = Reports::new();
    let found = (0..).zip(events).filter(|(_, event)| event.kind == agent_event::CONFINEMENT);
    for (place, event) in found {
        let report: ConfinementEvent = serde_json::from_str(&event.content).map_err(|error| {
            Doubt::refuted(says!(
                "a measured confinement is malformed: {error}",
                "un confinement mesuré est mal formé : {error}"
            ))
        })?;
        let process = report.process.clone();
        if reports.insert(process.clone(), (place, report)).is_some() {
            return Err(Doubt::refuted(says!(
                "{process:?} reported its confinement twice: two tables in one boot",
                "{process:?} a déclaré deux fois son confinement : deux tables en un démarrage"
            )));
        }
    }
    Ok(reports)
}

fn check(report: &ConfinementEvent, expected: &Confinement) -> Result<(), Doubt> {
    let (process, found, table) = (&report.process, &report.table_sha256, &expected.table_sha256);
    if !found.eq_ignore_ascii_case(table) {
        return Err(Doubt::refuted(says!(
            "{process} is confined by the table {found:?}; the reference has {table:?}",
            "{process} est confiné par la table {found:?} ; la référence a {table:?}"
        )));
    }
    let (found, tried) = (&report.self_test, &expected.self_test);
    if found != tried {
        return Err(Doubt::refuted(says!(
            "{process} saw {found:?} refused; {tried:?} are expected",
            "{process} a vu refuser {found:?} ; {tried:?} sont attendus"
        )));
    }
    Ok(())
}

fn check_order(events: &[AgentEvent], reports: &Reports) -> Result<(), Doubt> {
    let place = |process| reports.get(process).map(|(place, _)| *place);
    let bundle = events.iter().position(|event| event.kind == agent_event::BUNDLE);
    let first = place(AGENTD).is_none_or(|place| place == AGENTD_AT);
    let before = match (place(ENGINE), bundle) {
        (Some(engine), Some(bundle)) => engine < bundle,
        (None, Some(_)) => false,
        (_, None) => true,
    };
    if first && before {
        return Ok(());
    }
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    Err(Doubt::refuted(says!(
        "the agent's events are {kinds:?}; agentd's confinement is expected at place {AGENTD_AT} from 0, and the engine's before any bundle",
        "les événements de l'agent sont {kinds:?} ; le confinement d'agentd est attendu à la place {AGENTD_AT} à partir de 0, et celui de l'engine avant tout modèle"
    )))
}
