//! `engine`: takes its listening sockets from systemd, confines itself, and waits for a bundle.

use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;

use engine::limits::THREADS_MAX;
use engine::load::Machine;
use engine::log;
use engine::server::Server;
use ipc::{Activated, Confinement};
use kernels::Isa;
use sandbox::{Confined, ENGINE, confine};

fn main() -> ExitCode {
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            log::line(format_args!("stops: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<std::convert::Infallible, Box<dyn std::error::Error>> {
    let mut activated = Activated::take()?;
    let control = UnixListener::from(activated.descriptor("control")?);
    let requests = UnixListener::from(activated.descriptor("requests")?);
    // Asks the system, which a confined process cannot.
    let threads = std::thread::available_parallelism()?.get().min(THREADS_MAX);
    let machine = Machine { isa: Isa::detect(), threads };
    // Before any byte from a peer is read.
    let confined = confine(&ENGINE)?;
    log::line(format_args!(
        "confined: no path, no socket but the inherited ones; waits for a bundle ({} kernels, {threads} threads)",
        machine.isa.name()
    ));
    let server = Arc::new(Server::default());
    let clients = Arc::clone(&server);
    std::thread::Builder::new()
        .name("requests".to_owned())
        .spawn(move || clients.serve_requests(&requests))?;
    server.serve_control(&control, machine, &report(&confined))
}

/// What agentd measures before it hands anything over.
fn report(confined: &Confined) -> Confinement {
    Confinement {
        process: confined.process().to_owned(),
        table_sha256: confined.table_sha256().to_owned(),
        self_test: confined.self_test().iter().map(|&name| name.to_owned()).collect(),
    }
}
