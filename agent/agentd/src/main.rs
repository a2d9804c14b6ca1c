//! Measures, verifies bundles, hands out weights, keeps the ledger.
//!
//! Invariants: an unmeasured boot, a ledger that does not fit its checkpoint, or a register that somebody else
//! extended stops the agent before it serves; a bundle is measured and on record before any byte of it reaches
//! the engine; nothing here opens an IP socket; the process is confined before it has a second thread and before
//! it reads a byte that a medium, the gateway or the state partition chose.

mod admission;
mod agent;
mod attestor;
mod boot;
mod confinement;
mod engine;
mod exceptions;
mod exchange;
mod files;
mod gateway;
mod image;
mod importer;
mod journal;
mod ledger;
mod measured;
mod medium;
mod options;
mod policy;
mod report;
mod rollback;
mod sealed;
mod site;
mod tls;
mod trial;
mod versions;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use evidence::bundle::Quorum;
use evidence::exception::Granted;
use evidence::format::{ConfinementEvent, agent_event};
use evidence::ledger::Count;
use evidence::recovery::{self, Recovery};
use ipc::Activated;
use sandbox::Confined;

use crate::agent::{Agent, AgentError, Appliance};
use crate::attestor::Attestor;
use crate::boot::EventLogs;
use crate::exchange::Exchange;
use crate::image::Image;
use crate::importer::{Importer, Route};
use crate::journal::say;
use crate::ledger::Unjudged;
use crate::options::Options;
use crate::rollback::{Opening, Rollback};
use crate::trial::Trial;
use crate::versions::Installed;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("stopped: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let mut passed = Activated::take()?;
    let listener = UnixListener::from(passed.descriptor("gateway")?);
    let logs =
        EventLogs::new(passed.descriptor("firmware-log")?, passed.descriptor("userspace-log")?);
    let recovery = passed.optional("recovery").map(read_recovery).transpose()?;
    // Made now: a confined agent makes sockets to peers only.
    let (stop, stopper) = UnixStream::pair().context("cannot make a socket pair")?;
    // Asked now as well: a confined agent cannot.
    let user = rustix::process::geteuid().as_raw();
    let (agent, route) = start(options, logs)?;
    let agent = Arc::new(agent);
    // The handler only writes a byte; the loop that serves reads it.
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, stopper)
        .context("cannot handle SIGTERM")?;
    let importer = Importer::new(Arc::clone(&agent), route);
    thread::Builder::new()
        .name("importer".to_owned())
        .spawn(move || {
            let error = importer.watch();
            // After SIGTERM the main thread ends the process, once the last head is signed.
            if !matches!(error, AgentError::Stopping) {
                say(&format!("stopped: {error}"));
                std::process::exit(1);
            }
        })
        .context("cannot start a thread")?;
    let exchange = Exchange::new(Arc::clone(&agent), options.exchange.clone(), recovery, user);
    thread::Builder::new()
        .name("exchange".to_owned())
        .spawn(move || exchange.watch())
        .context("cannot start a thread")?;
    say("ready");
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("cannot tell systemd")?;
    gateway::serve(&agent, &listener, &stop)?;
    say("stopping");
    agent.stop().context("cannot sign the ledger's last head")
}

/// Everything that must hold before anybody is served.
fn start(options: &Options, logs: EventLogs) -> anyhow::Result<(Agent, Route)> {
    logs.firmware()?;
    logs.userspace()?;
    let (text, policy) = policy::read(&options.policy)?;
    let quorum = Quorum::parse(&policy)?;
    let (site_text, site) = site::read(&options.site)?;
    let image = read_image(options)?;
    // Asks the system, which a confined process cannot.
    let bytes_max = options.bundle_bytes_max.unwrap_or_else(memory_share);
    let mut attestor = Attestor::start(&options.tcti, &options.runtime)?;
    say(&format!("image {} profile {}", image.version, image.profile));
    say(&format!("attestation key {}", attestor.key_name()));
    ledger::make_folder(&options.state)?;
    ledger::make_folder(&options.tls)?;
    let confined = confinement::confine(options)?;
    say(
        "confined: the ledger, the gateway's key, the medium, what was measured; no program, no IP socket",
    );
    let installed = Installed { image: image.index, site: site.version };
    let rollback = open_state(options, &mut attestor, &quorum, installed)?;
    let ledger = Unjudged::read(&options.state, &options.boot)?
        .judge(attestor.origin(), |note| attestor.open_checkpoint(note))?;
    say(&format!("ledger opened with {} records", ledger.size()));
    let tls = tls::open_or_make(&options.tls, &site).context("the gateway's key")?;
    say(&format!("gateway key {} ({:?})", tls.spki_sha256, tls.origin));
    attestor.measure_once(agent_event::POLICY, &text)?;
    attestor.measure_once(agent_event::SITE, &site_text)?;
    attestor.measure_once(agent_event::TLS_KEY, &tls.spki_sha256)?;
    attestor.measure_once(agent_event::CONFINEMENT, &own_report(&confined)?)?;
    let appliance = Appliance { image, installed, csr: tls.csr };
    let agent = Agent::start(appliance, logs, attestor, rollback, ledger)?;
    let route = Route {
        medium: options.bundle.clone(),
        engine: options.engine_control.clone(),
        policy,
        quorum,
        bytes_max,
        trial: Trial::of(&options.counted, &options.blessed),
    };
    Ok((agent, route))
}

/// The state of now, on an image that is not below what has run; or what a quorum allows instead.
fn open_state(
    options: &Options,
    attestor: &mut Attestor,
    quorum: &Quorum,
    installed: Installed,
) -> anyhow::Result<Rollback> {
    let machine = attestor.key_name();
    let (tpm, _) = attestor.counting();
    let longest = Duration::from_secs(options.exception_wait_s);
    let mut rollback = match Rollback::open(tpm, &options.state, &options.boot)? {
        Opening::Open(rollback) => rollback,
        Opening::Refused(closed) => {
            say(&format!("{}; waiting for an exception", closed.misfit));
            let fits = |granted: &Granted| closed.check(&machine, granted);
            match exceptions::wait(&options.bundle, quorum, longest, fits) {
                Some(granted) => closed.adopt(tpm, &machine, &granted)?,
                None => return Err(closed.misfit.into()),
            }
        }
    };
    if let Err(refused) = rollback.check_installed(installed) {
        let shown = rollback.count().value;
        say(&format!("{refused}; the TPM's counter shows {shown}; waiting for an exception"));
        let fits = |granted: &Granted| rollback.check_exception(&machine, granted, installed);
        match exceptions::wait(&options.bundle, quorum, longest, fits) {
            Some(granted) => rollback.accept(tpm, &machine, &granted)?,
            None => return Err(refused.into()),
        }
    }
    rollback.count_boot(tpm, &options.boot)?;
    let Count { began, value } = rollback.count();
    say(&format!("counter {value}, state began at {began}"));
    Ok(rollback)
}

/// What became of the state partition's recovery key: `state` keeps it, and a medium takes it along.
fn read_recovery(file: OwnedFd) -> anyhow::Result<String> {
    let text =
        files::read_all(File::from(file), recovery::BYTES_MAX as u64).context(recovery::FILE)?;
    Ok(Recovery::parse(&text)?.to_json()?)
}

/// What agentd measures of itself.
fn own_report(confined: &Confined) -> serde_json::Result<String> {
    serde_json::to_string(&ConfinementEvent {
        process: confined.process().to_owned(),
        table_sha256: confined.table_sha256().to_owned(),
        self_test: confined.self_test().iter().map(|&name| name.to_owned()).collect(),
    })
}

fn read_image(options: &Options) -> anyhow::Result<Image> {
    let shown = options.os_release.display();
    let bytes = files::read_bounded(&options.os_release, image::OS_RELEASE_BYTES_MAX)
        .with_context(|| format!("cannot read {shown}"))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{shown} is not UTF-8"))?;
    Ok(Image::parse(&text)?)
}

/// Three quarters of the memory: the rest is for the engine's cache and the system.
fn memory_share() -> u64 {
    let info = rustix::system::sysinfo();
    let total = info.totalram.saturating_mul(u64::from(info.mem_unit));
    total / 4 * 3
}
