//! Watches for the engine and a medium, admits its bundle once per boot, and keeps the engine supplied with it.
//!
//! Invariant: no medium is judged before an engine's confinement is measured, so that the bundle's event follows it.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use evidence::bundle::Quorum;
use evidence::format::Policy;
use evidence::sealed::{ContentKey, SealedKey};

use crate::admission::{self, Admissible, Refusal};
use crate::agent::{Agent, AgentError};
use crate::attestor::AttestorError;
use crate::engine::{Link, LoadError, Met};
use crate::exceptions;
use crate::journal::say;
use crate::measured::MeasuredError;
use crate::medium::{Identity, Medium};
use crate::trial::Trial;

/// The process at the other end of the control socket.
const ENGINE: &str = "engine";
/// How often medium and engine are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Where bundles come from and go to, and by which rule.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) medium: PathBuf,
    pub(crate) engine: PathBuf,
    pub(crate) policy: Policy,
    pub(crate) quorum: Quorum,
    pub(crate) bytes_max: u64,
    pub(crate) trial: Trial,
}

/// The watching thread's state.
#[derive(Debug)]
pub(crate) struct Importer {
    agent: Arc<Agent>,
    route: Route,
    /// The medium that was judged last: it is not judged again until it goes away.
    judged: Option<Identity>,
    /// Last trouble that was printed, so that it is printed once.
    trouble: Option<String>,
    bundle: Option<Admissible>,
    engine: Engine,
    /// Whether nothing older than the bundle that runs, and than this image, runs any more.
    raised: bool,
}

/// What is known of the engine.
#[derive(Debug)]
enum Engine {
    /// Nobody is there (any more).
    Absent,
    /// Its confinement is measured; it has no bundle.
    Met(Met),
    /// It has it.
    Loaded(Link),
    /// It judged the bundle and does not want it.
    Refused,
}

impl Importer {
    pub(crate) fn new(agent: Arc<Agent>, route: Route) -> Self {
        let (judged, trouble, bundle, engine) = (None, None, None, Engine::Absent);
        Self { agent, route, judged, trouble, bundle, engine, raised: false }
    }

    /// Never returns but with what stops the agent: a measurement or a record that cannot be made.
    pub(crate) fn watch(mut self) -> AgentError {
        loop {
            if let Err(error) = self.meet().and_then(|()| self.look()).and_then(|()| self.supply())
            {
                return error;
            }
            thread::sleep(TICK);
        }
    }

    /// Notices an engine that left, and measures one that came.
    fn meet(&mut self) -> Result<(), AgentError> {
        match &self.engine {
            Engine::Met(met) if met.is_alive() => return Ok(()),
            Engine::Loaded(link) if link.is_alive() => return Ok(()),
            Engine::Refused => return Ok(()),
            Engine::Absent => {}
            Engine::Met(_) => say("the engine is gone before it had a bundle"),
            Engine::Loaded(_) => {
                say("the engine is gone; its successor gets the bundle");
                self.agent.run(None);
            }
        }
        self.engine = Engine::Absent;
        let met = match Met::meet(&self.route.engine) {
            Ok(met) => met,
            // It may be starting: the next tick tries again.
            Err(error) => {
                self.report(error.to_string());
                return Ok(());
            }
        };
        match self.agent.confined(ENGINE, met.confinement.clone()) {
            Ok(()) => {
                self.trouble = None;
                self.engine = Engine::Met(met);
                Ok(())
            }
            // An engine that is not what this boot measured is given nothing; its successor may be right.
            Err(
                error @ (AgentError::Confinement { .. }
                | AgentError::Attestor(AttestorError::Measured(MeasuredError::Differs {
                    ..
                }))),
            ) => {
                self.report(format!("the engine is given nothing: {error}"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Judges a medium that was not judged before.
    fn look(&mut self) -> Result<(), AgentError> {
        if !self.agent.is_confined(ENGINE)? {
            return Ok(());
        }
        let medium = match Medium::find(&self.route.medium) {
            Ok(medium) => medium,
            Err(error) => {
                self.report(error.to_string());
                return Ok(());
            }
        };
        let Some(medium) = medium else {
            self.judged = None;
            return Ok(());
        };
        if self.judged == Some(medium.identity()) {
            return Ok(());
        }
        self.judged = Some(medium.identity());
        match exceptions::read(&medium, &self.route.quorum) {
            Ok(None) => {}
            Ok(Some(granted)) => self.agent.except(&granted)?,
            Err(error) => self.agent.refuse_exception(&error.to_string())?,
        }
        if !medium.has_bundle() {
            return Ok(());
        }
        match self.admit(&medium)? {
            Ok(Some(bundle)) => {
                self.agent.admit(&bundle.event, &bundle.signatures)?;
                say(&format!(
                    "bundle admitted {} {} version {} signers {}",
                    bundle.event.model_id,
                    bundle.event.bundle_digest,
                    bundle.event.version,
                    bundle.event.signers.join(", ")
                ));
                self.bundle = Some(bundle);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(refusal) => self.agent.refuse(&refusal.to_string()),
        }
    }

    /// `Ok(None)` is the bundle that runs already.
    fn admit(&self, medium: &Medium) -> Result<Result<Option<Admissible>, Refusal>, AgentError> {
        let measured = self.agent.measured_bundle()?;
        let (verified, signatures) =
            match admission::verify(medium, &self.route.quorum, measured.as_deref()) {
                Ok(verified) => verified,
                Err(refusal) => return Ok(Err(refusal)),
            };
        if self.bundle.is_some() {
            return Ok(Ok(None));
        }
        let key = match self.content_key(medium)? {
            Ok(key) => key,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let Route { policy, bytes_max, .. } = &self.route;
        let key = key.as_ref();
        let bundle = admission::admit(medium, key, &verified, &signatures, policy, *bytes_max);
        Ok(bundle.and_then(|bundle| {
            self.agent.check_version(&bundle.event).map_err(Refusal::Rollback)?;
            Ok(Some(bundle))
        }))
    }

    /// The key of encrypted files, which the TPM gives out only after the quorum was seen; `Ok(None)` if they are plain.
    fn content_key(
        &self,
        medium: &Medium,
    ) -> Result<Result<Option<ContentKey>, Refusal>, AgentError> {
        let sealed = match medium.sealed_key() {
            Ok(Some(text)) => SealedKey::parse(&text).map_err(Refusal::KeyFile),
            Ok(None) => return Ok(Ok(None)),
            Err(error) => Err(Refusal::Medium(error)),
        };
        match sealed {
            Ok(sealed) => Ok(self.agent.unseal(&sealed)?.map(Some).map_err(Refusal::Unseal)),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Once the bundle runs, and the image is no try that may lead back to the one before.
    fn raise(&mut self) -> Result<(), AgentError> {
        match (&self.engine, &self.bundle) {
            (Engine::Loaded(_), Some(bundle)) if !self.raised && self.route.trial.is_over() => {
                self.agent.raise(&bundle.event)?;
                self.raised = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Gives the engine the admitted bundle if it has not got it.
    fn supply(&mut self) -> Result<(), AgentError> {
        let Some(bundle) = &self.bundle else { return Ok(()) };
        let met = match std::mem::replace(&mut self.engine, Engine::Absent) {
            Engine::Met(met) => met,
            other => {
                self.engine = other;
                return self.raise();
            }
        };
        match met.load(bundle) {
            Ok(link) => {
                say(&format!("engine loaded {} with {}", link.model.model_id, link.model.kernels));
                let model = link.model.clone();
                self.engine = Engine::Loaded(link);
                self.raise()?;
                self.agent.run(Some(model));
                self.trouble = None;
            }
            Err(LoadError::Refused { reason }) => {
                self.engine = Engine::Refused;
                self.agent.refuse(&Refusal::Engine { reason }.to_string())?;
            }
            // It went away: the next tick meets its successor.
            Err(error) => self.report(error.to_string()),
        }
        Ok(())
    }

    fn report(&mut self, trouble: String) {
        if self.trouble.as_ref() != Some(&trouble) {
            say(&trouble);
            self.trouble = Some(trouble);
        }
    }
}
