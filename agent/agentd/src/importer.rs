//! Watches for a medium, admits its bundle once per boot, and keeps the engine supplied with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use evidence::bundle::Quorum;
use evidence::format::Policy;

use crate::admission::{self, Admissible, Refusal};
use crate::agent::{Agent, AgentError};
use crate::engine::{Link, LoadError};
use crate::journal::say;
use crate::medium::{Identity, Medium};

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
}

/// What is known of the engine.
#[derive(Debug)]
enum Engine {
    /// It has not the bundle (any more).
    Empty,
    /// It has it.
    Loaded(Link),
    /// It judged the bundle and does not want it.
    Refused,
}

impl Importer {
    pub(crate) fn new(agent: Arc<Agent>, route: Route) -> Self {
        let (judged, trouble, bundle, engine) = (None, None, None, Engine::Empty);
        Self { agent, route, judged, trouble, bundle, engine }
    }

    /// Never returns but with what stops the agent: a measurement or a record that cannot be made.
    pub(crate) fn watch(mut self) -> AgentError {
        loop {
            if let Err(error) = self.look().and_then(|()| self.supply()) {
                return error;
            }
            thread::sleep(TICK);
        }
    }

    /// Judges a medium that was not judged before.
    fn look(&mut self) -> Result<(), AgentError> {
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
        match self.admit(&medium)? {
            Ok(Some(bundle)) => {
                self.agent.admit(&bundle.event, &bundle.signatures)?;
                say(&format!(
                    "bundle admitted {} {} signers {}",
                    bundle.event.model_id,
                    bundle.event.bundle_digest,
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
        let Route { policy, bytes_max, .. } = &self.route;
        let bundle = admission::admit(medium, &verified, &signatures, policy, *bytes_max);
        Ok(bundle.map(Some))
    }

    /// Gives the engine the admitted bundle if it has not got it.
    fn supply(&mut self) -> Result<(), AgentError> {
        let Some(bundle) = &self.bundle else { return Ok(()) };
        match &self.engine {
            Engine::Refused => return Ok(()),
            Engine::Loaded(link) if link.is_alive() => return Ok(()),
            Engine::Loaded(_) => {
                say("the engine is gone; its successor gets the bundle");
                self.agent.run(None);
                self.engine = Engine::Empty;
            }
            Engine::Empty => {}
        }
        match Link::load(&self.route.engine, bundle) {
            Ok(link) => {
                say(&format!("engine loaded {} with {}", link.model.model_id, link.model.kernels));
                self.agent.run(Some(link.model.clone()));
                self.trouble = None;
                self.engine = Engine::Loaded(link);
            }
            Err(LoadError::Refused { reason }) => {
                self.engine = Engine::Refused;
                self.agent.refuse(&Refusal::Engine { reason }.to_string())?;
            }
            // It may be starting: the next tick tries again.
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
