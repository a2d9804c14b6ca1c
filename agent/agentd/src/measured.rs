//! What agentd has extended into its PCR since the boot began.
//!
//! Invariant: a [`Measured`] folds to the value of the PCR. The file is written before the register is extended,
//! so after a crash the register holds the fold of the file's events, or of all but the last; anything else means
//! that somebody else extended it or edited the file, and only a reboot helps.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use evidence::format::{AgentEvent, ConfinementEvent, agent_event};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Name of the file in the runtime folder.
const FILE: &str = "agent-log.json";
/// Longest file: policy and site, small events, one bundle event and its signatures.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Policy, site, TLS key, three confinements, bundle.
const EVENTS_MAX: usize = 7;

/// agentd's own event log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    /// In order of extension.
    pub(crate) events: Vec<AgentEvent>,
    /// Signature files of the measured bundle, so that evidence can state it after a restart.
    pub(crate) signatures: Vec<String>,
}

/// Why the log and the register do not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasuredError {
    /// The file cannot be read or written.
    #[error("cannot keep the agent's event log {path}: {cause}")]
    File { path: String, cause: io::Error },
    /// The file is not an event log.
    #[error("{path} is not the agent's event log ({reason}); reboot")]
    Malformed { path: String, reason: String },
    /// The register is not the fold of the log.
    #[error(
        "PCR 14 holds {found}, and the agent's {events} logged measurements give {expected}: \
         it was extended by somebody else, or the log was edited; reboot"
    )]
    Mismatch { found: String, expected: String, events: usize },
    /// This boot measured something else of that kind.
    #[error("this boot measured another {what} than the one that is found now; reboot")]
    Differs { what: String },
    /// There is room for what one boot measures, once.
    #[error("this boot measured {EVENTS_MAX} events already, and {kind} is one more; reboot")]
    Full { kind: String },
}

impl Measured {
    /// Reads the log of this boot; of a boot that measured nothing yet, an empty one.
    pub(crate) fn load(runtime: &Path) -> Result<Self, MeasuredError> {
        let path = runtime.join(FILE);
        let shown = path.display().to_string();
        let text = match crate::files::read_bounded(&path, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(cause) => return Err(MeasuredError::File { path: shown, cause }),
        };
        let malformed = |reason: String| MeasuredError::Malformed { path: shown.clone(), reason };
        let log: Self =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        if log.events.len() > EVENTS_MAX {
            return Err(malformed(format!("{} events; at most {EVENTS_MAX}", log.events.len())));
        }
        Ok(log)
    }

    /// Writes the log, whole or not at all.
    pub(crate) fn save(&self, runtime: &Path) -> Result<(), MeasuredError> {
        let path = runtime.join(FILE);
        let write = || {
            let new = runtime.join(format!("{FILE}.new"));
            let text = serde_json::to_vec(self)?;
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            io::Write::write_all(&mut file, &text)?;
            fs::rename(&new, &path)
        };
        write().map_err(|cause: io::Error| MeasuredError::File {
            path: path.display().to_string(),
            cause,
        })
    }

    /// Fits the log to the register: drops a last event that was written but never extended.
    pub(crate) fn resume(mut self, pcr: [u8; 32]) -> Result<Self, MeasuredError> {
        let expected = fold(&self.events);
        if expected == pcr {
            return Ok(self);
        }
        if let Some(last) = self.events.pop() {
            if fold(&self.events) == pcr {
                if last.kind == agent_event::BUNDLE {
                    self.signatures.clear();
                }
                return Ok(self);
            }
            self.events.push(last);
        }
        Err(MeasuredError::Mismatch {
            found: hex::encode(pcr),
            expected: hex::encode(expected),
            events: self.events.len(),
        })
    }

    /// Whether this boot has measured `event` already.
    ///
    /// # Errors
    /// If it has measured another one in its place, or has no room for one more.
    pub(crate) fn has(&self, event: &AgentEvent) -> Result<bool, MeasuredError> {
        let what = subject(event);
        match self.events.iter().find(|measured| subject(measured) == what) {
            Some(measured) if measured == event => Ok(true),
            Some(_) => Err(MeasuredError::Differs { what }),
            None if self.events.len() >= EVENTS_MAX => {
                Err(MeasuredError::Full { kind: event.kind.clone() })
            }
            None => Ok(false),
        }
    }

    /// Whether this boot has measured the confinement of `process`.
    pub(crate) fn is_confined(&self, process: &str) -> bool {
        let what = confinement_of(process);
        self.events.iter().any(|event| subject(event) == what)
    }

    /// Content of the bundle event, if this boot has one.
    pub(crate) fn bundle(&self) -> Option<&str> {
        let event = self.events.iter().find(|event| event.kind == agent_event::BUNDLE)?;
        Some(&event.content)
    }
}

/// What is measured once: a kind, and of confinements one per process.
fn subject(event: &AgentEvent) -> String {
    if event.kind != agent_event::CONFINEMENT {
        return event.kind.clone();
    }
    // Written by this agent; a report that is none stands for itself.
    let report = serde_json::from_str::<ConfinementEvent>(&event.content);
    confinement_of(report.as_ref().map_or(&event.content, |report| &report.process))
}

fn confinement_of(process: &str) -> String {
    format!("{} of {process}", agent_event::CONFINEMENT)
}

/// The register after `events`, from zero.
fn fold(events: &[AgentEvent]) -> [u8; 32] {
    events.iter().fold([0; 32], |pcr, event| {
        Sha256::new().chain_update(pcr).chain_update(digest(event)).finalize().into()
    })
}

/// What the register is extended by for `event`.
pub(crate) fn digest(event: &AgentEvent) -> [u8; 32] {
    Sha256::digest(&event.content).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(contents: &[&str]) -> Measured {
        let kinds = [agent_event::POLICY, agent_event::BUNDLE];
        let events = kinds
            .iter()
            .zip(contents)
            .map(|(kind, content)| AgentEvent {
                kind: (*kind).to_owned(),
                content: (*content).to_owned(),
            })
            .collect();
        Measured { events, signatures: vec!["signature".to_owned()] }
    }

    #[test]
    fn a_boot_without_measurements_starts_empty() {
        assert!(Measured::default().resume([0; 32]).unwrap().events.is_empty());
    }

    #[test]
    fn a_restart_goes_on_where_the_register_is() {
        let two = log(&["p", "b"]);
        assert_eq!(two.clone().resume(fold(&two.events)).unwrap(), two);
    }

    #[test]
    fn an_event_written_but_not_extended_is_dropped() {
        let resumed = log(&["p", "b"]).resume(fold(&log(&["p"]).events)).unwrap();
        assert_eq!((resumed.events.len(), resumed.signatures.len()), (1, 0));
        assert!(log(&["p"]).resume([0; 32]).unwrap().events.is_empty());
    }

    #[test]
    fn anything_else_in_the_register_is_a_mismatch() {
        let two = log(&["p", "b"]);
        for pcr in [[0; 32], [1; 32], fold(&log(&["q", "b"]).events)] {
            let error = two.clone().resume(pcr).unwrap_err();
            assert!(matches!(error, MeasuredError::Mismatch { events: 2, .. }), "{error}");
        }
        assert!(Measured::default().resume([1; 32]).is_err());
    }

    fn event(kind: &str, content: &str) -> AgentEvent {
        AgentEvent { kind: kind.to_owned(), content: content.to_owned() }
    }

    fn confined(process: &str, table: &str) -> AgentEvent {
        let report = ConfinementEvent {
            process: process.to_owned(),
            table_sha256: table.to_owned(),
            self_test: Vec::new(),
        };
        event(agent_event::CONFINEMENT, &serde_json::to_string(&report).unwrap())
    }

    #[test]
    fn an_equal_event_is_measured_already_and_a_differing_one_is_refused() {
        let log = log(&["p"]);
        assert!(log.has(&event(agent_event::POLICY, "p")).unwrap());
        assert!(!log.has(&event(agent_event::SITE, "p")).unwrap());
        let error = log.has(&event(agent_event::POLICY, "q")).unwrap_err();
        assert!(matches!(error, MeasuredError::Differs { .. }), "{error}");
    }

    #[test]
    fn each_process_is_confined_once() {
        let mut log = Measured::default();
        log.events.push(confined("engine", "a"));
        assert!(log.is_confined("engine") && !log.is_confined("gateway"));
        assert!(log.has(&confined("engine", "a")).unwrap());
        assert!(!log.has(&confined("gateway", "a")).unwrap());
        let error = log.has(&confined("engine", "b")).unwrap_err();
        assert!(error.to_string().contains("confinement of engine"), "{error}");
    }

    #[test]
    fn a_boot_measures_so_much_and_no_more() {
        let events = (0..EVENTS_MAX).map(|n| event(&n.to_string(), "")).collect();
        let log = Measured { events, signatures: Vec::new() };
        assert!(matches!(log.has(&event("x", "")), Err(MeasuredError::Full { .. })));
    }

    #[test]
    fn the_file_round_trips_and_an_edit_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Measured::load(folder.path()).unwrap(), Measured::default());
        log(&["p", "b"]).save(folder.path()).unwrap();
        assert_eq!(Measured::load(folder.path()).unwrap(), log(&["p", "b"]));
        fs::write(folder.path().join(FILE), "{}").unwrap();
        let error = Measured::load(folder.path()).unwrap_err();
        assert!(matches!(error, MeasuredError::Malformed { .. }), "{error}");
    }
}
