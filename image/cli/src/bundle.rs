//! `casemate bundle`: model bundles from the folder to the medium.

pub(crate) mod folder;
pub(crate) mod medium;
mod model;
pub(crate) mod order;
mod seal;
pub(crate) mod sign;
pub(crate) mod verify;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a model folder: the weights and their card
    Model(model::Args),
    /// Sign a model folder with one key behind PKCS#11 (OMS v1.0)
    Sign(sign::Args),
    /// Check a model folder against signatures, by one key or by a quorum policy
    Verify(verify::Args),
    /// Pack a model folder and its signatures into the disk image of a bundle medium
    Pack(medium::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Model(args) => model::run(args),
        Command::Sign(args) => sign::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Pack(args) => medium::run(args),
    }
}

/// Reads a file that must not be longer than `bytes_max`.
pub(crate) fn read(path: &Path, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut bytes))
        .with_context(|| path.display().to_string())?;
    if bytes.len() > bytes_max {
        bail!("{} is longer than {bytes_max} bytes", path.display());
    }
    Ok(bytes)
}

fn read_text(path: &Path, bytes_max: usize) -> anyhow::Result<String> {
    String::from_utf8(read(path, bytes_max)?)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

pub(crate) fn read_signatures(paths: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    let bytes_max = evidence::bundle::SIGNATURE_BYTES_MAX;
    paths.iter().map(|path| read(path, bytes_max)).collect()
}
