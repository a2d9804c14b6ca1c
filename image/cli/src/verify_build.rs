//! `casemate verify-build`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use evidence::bundle::KEY_PEM_BYTES_MAX;

use crate::bundle;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder that `casemate build` wrote
    dir: PathBuf,
    /// Public half of the builder's key (build.pub.pem of the key set), got by another way than the folder
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let found = builder::verify_build(&args.dir, &key(&args.key)?)?;
    println!(
        "verified: {} files of a {} build, signed by the key {}",
        found.files, found.profile, found.key
    );
    Ok(())
}

/// Reads the builder's public key, PEM.
pub(crate) fn key(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(bundle::read(path, KEY_PEM_BYTES_MAX)?)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
