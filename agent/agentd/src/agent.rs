//! What the threads of agentd share.
//!
//! Invariants: locks are taken in the order attestor, rollback, ledger, running, and never while one that comes later is
//! held; a thread that panics with a lock takes the process with it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use evidence::exception::Granted;
use evidence::format::{
    AgentEvent, BundleEvent, BundleStatement, Challenge, ConfinementEvent, agent_event,
};
use evidence::ledger::Event;
use evidence::sealed::{ContentKey, SealedKey};
use evidence::verify::qualifying_data;
use ipc::{AgentStatus, ModelInfo};

use crate::attestor::{Attestor, AttestorError, UnsealError};
use crate::boot::{BootError, EventLogs};
use crate::image::Image;
use crate::journal::{printable, say};
use crate::ledger::{Ledger, StoreError};
use crate::measured;
use crate::report::{self, Attested, ReportError};
use crate::rollback::{Rollback, RollbackError};
use crate::versions::{Accepted, Installed};

/// Shortest time between two checkpoints that nobody asked for: a TPM signs a few times per second at best.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);

/// Shortest time between two challenges: each keeps the TPM from quotes and checkpoints for a while.
const CHALLENGE_EVERY: Duration = Duration::from_secs(3);

/// What this appliance is, as long as it runs.
#[derive(Debug)]
pub(crate) struct Appliance {
    pub(crate) image: Image,
    pub(crate) installed: Installed,
    /// The certificate signing request of the gateway's key, PEM.
    pub(crate) csr: String,
}

/// The running agent.
#[derive(Debug)]
pub(crate) struct Agent {
    appliance: Appliance,
    logs: EventLogs,
    /// `None` once the agent is stopping.
    attestor: Mutex<Option<Attestor>>,
    rollback: Mutex<Rollback>,
    ledger: Mutex<Ledger>,
    running: Mutex<Running>,
    checkpointed: Mutex<Instant>,
    challenged: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Running {
    model: Option<ModelInfo>,
    refusal: Option<String>,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// SIGTERM came.
    #[error("the agent is stopping")]
    Stopping,
    /// The TPM, or what was measured with it.
    #[error(transparent)]
    Attestor(#[from] AttestorError),
    /// The ledger.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An event log.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// What keeps the state from going back.
    #[error(transparent)]
    Rollback(#[from] RollbackError),
    /// A start puts a count on record before anybody asks.
    #[error("the ledger has no record of the TPM's counter; restart")]
    Uncounted,
    /// The evidence file.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A measured event cannot be written or read.
    #[error("an event is malformed: {0}")]
    Event(#[from] serde_json::Error),
    /// Not what a process may report of itself.
    #[error("a report of {found:?} with {tests} tests came from the {expected}")]
    Confinement { found: String, tests: usize, expected: &'static str },
    /// A challenge is no JSON, or too long.
    #[error("the challenge is no challenge.json: {reason}")]
    Challenge { reason: String },
    /// Another challenge was answered just now.
    #[error("the TPM answered a challenge just now; ask again in {seconds} s")]
    Busy { seconds: u64 },
}

impl Agent {
    /// Starts with a judged ledger; signs its first checkpoint before any record, then records the start.
    pub(crate) fn start(
        appliance: Appliance,
        logs: EventLogs,
        attestor: Attestor,
        rollback: Rollback,
        ledger: Ledger,
    ) -> Result<Self, AgentError> {
        let (first, cut_bytes) = (ledger.size() == 0, ledger.cut());
        let agent = Self {
            appliance,
            logs,
            attestor: Mutex::new(Some(attestor)),
            rollback: Mutex::new(rollback),
            ledger: Mutex::new(ledger),
            running: Mutex::default(),
            checkpointed: Mutex::new(Instant::now()),
            challenged: Mutex::default(),
        };
        if first {
            agent.checkpoint()?;
        }
        if cut_bytes > 0 {
            say(&format!("ledger: {cut_bytes} bytes of an unacknowledged record were cut"));
            agent.append(Event::Recovered { cut_bytes })?;
        }
        agent.record_exception(&mut lock(&agent.rollback))?;
        let Image { version: image_version, profile, .. } = agent.appliance.image.clone();
        let count = Some(lock(&agent.rollback).count());
        agent.append(Event::Boot { image_version, profile, count })?;
        agent.checkpoint()?;
        Ok(agent)
    }

    /// State for the gateway.
    pub(crate) fn status(&self) -> AgentStatus {
        let ledger_records = lock(&self.ledger).size();
        let running = lock(&self.running);
        AgentStatus {
            profile: self.appliance.image.profile.clone(),
            model: running.model.clone(),
            refusal: running.refusal.clone(),
            ledger_records,
        }
    }

    /// Puts an event on record; returns its index once it is on disk.
    pub(crate) fn append(&self, event: Event) -> Result<u64, AgentError> {
        Ok(lock(&self.ledger).append(now(), event)?)
    }

    /// Measures how `process` confined itself, unless this boot has done so already.
    pub(crate) fn confined(
        &self,
        process: &'static str,
        report: ipc::Confinement,
    ) -> Result<(), AgentError> {
        let ipc::Confinement { process: found, table_sha256, self_test } = report;
        let tests = self_test.len();
        if found != process || tests > ipc::SELF_TEST_MAX {
            return Err(AgentError::Confinement { found, tests, expected: process });
        }
        let event = ConfinementEvent { process: found, table_sha256, self_test };
        let content = serde_json::to_string(&event)?;
        let mut attestor = lock(&self.attestor);
        let attestor = attestor.as_mut().ok_or(AgentError::Stopping)?;
        Ok(attestor.measure_once(agent_event::CONFINEMENT, &content)?)
    }

    /// Whether this boot has measured the confinement of `process`.
    pub(crate) fn is_confined(&self, process: &str) -> Result<bool, AgentError> {
        let attestor = lock(&self.attestor);
        let attestor = attestor.as_ref().ok_or(AgentError::Stopping)?;
        Ok(attestor.measured().is_confined(process))
    }

    /// The certificate signing request of the gateway's key, PEM.
    pub(crate) fn csr(&self) -> String {
        self.appliance.csr.clone()
    }

    /// Measures an admitted bundle, unless this boot has done so already, and puts it on record.
    pub(crate) fn admit(
        &self,
        event: &BundleEvent,
        signatures: &[String],
    ) -> Result<(), AgentError> {
        let content = serde_json::to_string(event)?;
        {
            let mut attestor = lock(&self.attestor);
            let attestor = attestor.as_mut().ok_or(AgentError::Stopping)?;
            if attestor.measured().bundle().is_none() {
                let kind = agent_event::BUNDLE.to_owned();
                attestor.measure(AgentEvent { kind, content }, signatures.to_vec())?;
            }
        }
        self.append(Event::BundleAdmitted {
            bundle_digest: event.bundle_digest.clone(),
            model_id: event.model_id.clone(),
            signers: event.signers.clone(),
        })?;
        lock(&self.running).refusal = None;
        Ok(())
    }

    /// Refuses a bundle below the one that has run.
    pub(crate) fn check_version(&self, event: &BundleEvent) -> Result<(), RollbackError> {
        lock(&self.rollback).check_bundle(&event.model_id, event.version)
    }

    /// The bundle runs, on this image: nothing below either will any more.
    pub(crate) fn raise(&self, event: &BundleEvent) -> Result<(), AgentError> {
        // Held to the end, so that no evidence has the new count without its record.
        let mut attestor = lock(&self.attestor);
        let attestor = attestor.as_mut().ok_or(AgentError::Stopping)?;
        let installed @ Installed { image, site } = self.appliance.installed;
        let (model_id, version) = (event.model_id.clone(), event.version);
        let (tpm, _) = attestor.counting();
        let raised = lock(&self.rollback).raise(tpm, installed, &model_id, version)?;
        if let Some(count) = raised {
            let line = format!("versions raised: image {image}, site {site}, {model_id} {version}");
            self.append(Event::VersionsRaised { image, site, model_id, version, count })?;
            say(&line);
        }
        Ok(())
    }

    /// Accepts an exception once, or puts its refusal on record.
    pub(crate) fn except(&self, granted: &Granted) -> Result<(), AgentError> {
        let mut attestor = lock(&self.attestor);
        let attestor = attestor.as_mut().ok_or(AgentError::Stopping)?;
        let machine = attestor.key_name();
        let (tpm, _) = attestor.counting();
        let mut rollback = lock(&self.rollback);
        match rollback.accept(tpm, &machine, granted) {
            Ok(()) => self.record_exception(&mut rollback),
            Err(RollbackError::Exception(refused)) => self.refuse_exception(&refused.to_string()),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a refused exception on record and on the console.
    pub(crate) fn refuse_exception(&self, reason: &str) -> Result<(), AgentError> {
        let reason = printable(reason);
        self.append(Event::exception_refused(&reason))?;
        say(&format!("exception refused: {reason}"));
        Ok(())
    }

    /// Puts an accepted exception on record, if it has none yet.
    fn record_exception(&self, rollback: &mut Rollback) -> Result<(), AgentError> {
        let Some(accepted) = rollback.unrecorded().cloned() else { return Ok(()) };
        let Accepted { digest, signers, reason } = accepted;
        let line = format!("exception accepted: {reason} signers {}", signers.join(", "));
        let count = rollback.count();
        self.append(Event::ExceptionAccepted { exception_digest: digest, signers, reason, count })?;
        rollback.recorded()?;
        say(&line);
        Ok(())
    }

    /// Content of this boot's bundle event, if there is one.
    pub(crate) fn measured_bundle(&self) -> Result<Option<String>, AgentError> {
        let attestor = lock(&self.attestor);
        let attestor = attestor.as_ref().ok_or(AgentError::Stopping)?;
        Ok(attestor.measured().bundle().map(str::to_owned))
    }

    /// Has the TPM give out the key of an encrypted bundle. A TPM that refuses is no reason to stop: whoever made the
    /// medium chose what it was asked.
    pub(crate) fn unseal(
        &self,
        sealed: &SealedKey,
    ) -> Result<Result<ContentKey, UnsealError>, AgentError> {
        let mut attestor = lock(&self.attestor);
        let attestor = attestor.as_mut().ok_or(AgentError::Stopping)?;
        Ok(attestor.unseal(sealed))
    }

    /// Puts a refused bundle on record, on the console and into the status.
    pub(crate) fn refuse(&self, reason: &str) -> Result<(), AgentError> {
        let reason = printable(reason);
        self.append(Event::BundleRefused { reason: reason.clone() })?;
        lock(&self.running).refusal = Some(reason.clone());
        // Last: whoever reads it finds record and status.
        say(&format!("bundle refused: {reason}"));
        Ok(())
    }

    /// Which model the engine answers for from now on.
    pub(crate) fn run(&self, model: Option<ModelInfo>) {
        lock(&self.running).model = model;
    }

    /// Evidence under a nonce, as JSON.
    pub(crate) fn evidence(&self, nonce: &str) -> Result<String, AgentError> {
        let nonce_bytes = report::parse_nonce(nonce)?;
        let (firmware_log, userspace_log) = (self.logs.firmware()?, self.logs.userspace()?);
        let mut attestor = lock(&self.attestor);
        let attestor = attestor.as_mut().ok_or(AgentError::Stopping)?;
        let (checkpoint, records, counted) = {
            let ledger = lock(&self.ledger);
            (ledger.head(attestor.origin()), ledger.proven()?, ledger.counted()?)
        };
        let note = attestor.sign_checkpoint(&checkpoint)?;
        self.keep(&note, checkpoint.size)?;
        let qualifying = qualifying_data(nonce_bytes, &note);
        let (quote, pcrs) = attestor.quote(qualifying)?;
        let certified = {
            let (tpm, key) = attestor.counting();
            lock(&self.rollback).certify(tpm, key, qualifying)?
        };
        let attested = Attested {
            nonce,
            created: now(),
            profile: &self.appliance.image.profile,
            quote: &quote,
            public: attestor.public(),
            pcrs: &pcrs,
            firmware_log: &firmware_log,
            userspace_log: &userspace_log,
            agent_log: &attestor.measured().events,
            bundle: statement(attestor.measured())?,
            note,
            certified: &certified,
            counted: counted.ok_or(AgentError::Uncounted)?,
        };
        Ok(attested.report(records)?)
    }

    /// What an auditor enrols, as JSON.
    pub(crate) fn identity(&self) -> Result<String, AgentError> {
        let mut attestor = lock(&self.attestor);
        let identity = attestor.as_mut().ok_or(AgentError::Stopping)?.identity()?;
        Ok(serde_json::to_string(&identity)?)
    }

    /// Answers a challenge (JSON) with the TPM's help, as JSON.
    pub(crate) fn enrol(&self, challenge: &str) -> Result<String, AgentError> {
        let refuse = |reason: String| AgentError::Challenge { reason };
        if challenge.len() > ipc::CHALLENGE_BYTES_MAX {
            let (found, max) = (challenge.len(), ipc::CHALLENGE_BYTES_MAX);
            return Err(refuse(format!("{found} bytes; at most {max} are read")));
        }
        let challenge: Challenge =
            serde_json::from_str(challenge).map_err(|error| refuse(error.to_string()))?;
        let mut attestor = lock(&self.attestor);
        let attestor = attestor.as_mut().ok_or(AgentError::Stopping)?;
        self.pace()?;
        let response = attestor.answer(&challenge)?;
        say("a challenge for this machine's enrolment was answered");
        Ok(serde_json::to_string(&response)?)
    }

    /// Refuses a challenge that comes too soon after the last one.
    fn pace(&self) -> Result<(), AgentError> {
        let mut last = lock(&self.challenged);
        let left = last.and_then(|last| CHALLENGE_EVERY.checked_sub(last.elapsed()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            return Err(AgentError::Busy { seconds: left.as_secs().saturating_add(1) });
        }
        *last = Some(Instant::now());
        Ok(())
    }

    /// Signs the head if records were added and the last signature is old enough.
    pub(crate) fn checkpoint_if_due(&self) -> Result<(), AgentError> {
        let due = lock(&self.checkpointed).elapsed() >= CHECKPOINT_EVERY;
        if due && lock(&self.ledger).has_unsigned() { self.checkpoint() } else { Ok(()) }
    }

    /// Signs the head for the last time and lets go of the TPM; later requests are refused.
    pub(crate) fn stop(&self) -> Result<(), AgentError> {
        let unsigned = lock(&self.ledger).has_unsigned();
        let signed = if unsigned { self.checkpoint() } else { Ok(()) };
        drop(lock(&self.attestor).take());
        signed
    }

    fn checkpoint(&self) -> Result<(), AgentError> {
        let mut attestor = lock(&self.attestor);
        let attestor = attestor.as_mut().ok_or(AgentError::Stopping)?;
        let head = lock(&self.ledger).head(attestor.origin());
        let note = attestor.sign_checkpoint(&head)?;
        self.keep(&note, head.size)
    }

    /// Called with the attestor locked, so that a smaller head never replaces a larger one.
    fn keep(&self, note: &str, size: u64) -> Result<(), AgentError> {
        lock(&self.ledger).keep_checkpoint(note, size)?;
        *lock(&self.checkpointed) = Instant::now();
        Ok(())
    }
}

fn statement(measured: &measured::Measured) -> Result<Option<BundleStatement>, AgentError> {
    let Some(content) = measured.bundle() else { return Ok(None) };
    let event: BundleEvent = serde_json::from_str(content)?;
    let signatures = measured.signatures.clone();
    Ok(Some(BundleStatement { model_id: event.model_id, signatures }))
}

/// RFC 3339, UTC.
fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking thread left half-done is not to be attested.
    mutex.lock().unwrap_or_else(|_| std::process::abort())
}
