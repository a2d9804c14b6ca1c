//! `serve`: the engine's request socket, without systemd, agentd or confinement.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use engine::server::Server;

use crate::model::ModelArgs;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Where to listen; a socket that is there already is replaced.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let model = args.model.open()?;
    let left_over =
        std::fs::symlink_metadata(&args.socket).is_ok_and(|m| m.file_type().is_socket());
    if left_over {
        std::fs::remove_file(&args.socket)?;
    }
    let listener = UnixListener::bind(&args.socket)
        .with_context(|| format!("cannot listen on {}", args.socket.display()))?;
    eprintln!(
        "casemate-engine: unconfined, for development only; listens on {}",
        args.socket.display()
    );
    Arc::new(Server::with(engine::load::Model::Generator(model.loaded))).serve_requests(&listener)
}
