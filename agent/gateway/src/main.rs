//! `gateway`: started by `casemate-gateway.service` with the listening socket as descriptor `https`.

use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gateway::agent::{self, Agent};
use gateway::engine::{self, Engine};
use gateway::exchange::Peers;
use gateway::journal::log;
use gateway::listener::serve;
use gateway::routes::App;
use gateway::stop;
use gateway::tls::Credentials;
use ipc::Confinement;
use sandbox::{Confined, GATEWAY, confine};
use tokio::signal::unix::{SignalKind, signal};

/// Name of the inherited listening socket (`FileDescriptorName=`).
const LISTENER: &str = "https";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log("failed", &[("error", &format!("{error:#}"))]);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let peers = parse_args(env::args().skip(1))?;
    let directory = env::var_os("CREDENTIALS_DIRECTORY")
        .context("CREDENTIALS_DIRECTORY is not set; start the gateway by its unit")?;
    let tls = Credentials::read(Path::new(&directory))?.server_config()?;
    let listener = TcpListener::from(ipc::Activated::take()?.descriptor(LISTENER)?);
    // One thread: the work is done elsewhere, and a process that never clones has the smaller filter.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)
            .context("descriptor https is not a listening TCP socket")?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (caller, stop) = stop::pair();
        let agent = peers.agent.clone();
        let app = App::new(peers, stop.clone());
        // All files are read and all descriptors are here: from now on only sockets are used.
        let confined = confine(&GATEWAY)?;
        // Measured before the first client is heard.
        agent.confined(report(&confined)).await?;
        sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
        log("ready", &[("address", &listener.local_addr()?)]);
        tokio::spawn(async move {
            terminate.recv().await;
            log("stopping", &[]);
            caller.call();
        });
        serve(listener, tls, &app, stop).await;
        app.finish().await;
        Ok(())
    })
}

fn report(confined: &Confined) -> Confinement {
    Confinement {
        process: confined.process().to_owned(),
        table_sha256: confined.table_sha256().to_owned(),
        self_test: confined.self_test().iter().map(|&name| name.to_owned()).collect(),
    }
}

/// `--engine PATH` and `--agent PATH`, for tests; the appliance uses the defaults.
fn parse_args(mut args: impl Iterator<Item = String>) -> Result<Peers> {
    let mut engine = PathBuf::from(engine::SOCKET);
    let mut agent = PathBuf::from(agent::SOCKET);
    while let Some(flag) = args.next() {
        let path = match flag.as_str() {
            "--engine" => &mut engine,
            "--agent" => &mut agent,
            _ => bail!("unknown argument {flag:?}; expected --engine PATH or --agent PATH"),
        };
        *path = args.next().with_context(|| format!("{flag} needs a path"))?.into();
    }
    Ok(Peers { engine: Engine::new(engine), agent: Agent::new(agent) })
}
