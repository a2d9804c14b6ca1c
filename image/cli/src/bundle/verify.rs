//! `casemate bundle verify`.

use std::path::PathBuf;

use anyhow::Context as _;
use evidence::bundle::{KEY_PEM_BYTES_MAX, Verified, quorum, verify_one};
use evidence::format::Policy;

use super::folder;

/// Longest policy file.
const POLICY_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder
    dir: PathBuf,
    /// Signature file; several with --policy
    #[arg(long, required = true)]
    signature: Vec<PathBuf>,
    #[command(flatten)]
    by: By,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct By {
    /// Public key in PEM that must have made the one signature
    #[arg(long)]
    key: Option<PathBuf>,
    /// Quorum policy that the signatures must meet
    #[arg(long)]
    policy: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let signatures = super::read_signatures(&args.signature)?;
    let verified = match (&args.by.key, &args.by.policy, signatures.as_slice()) {
        (Some(key), _, [signature]) => {
            verify_one(&super::read_text(key, KEY_PEM_BYTES_MAX)?, signature)?
        }
        (Some(_), ..) => anyhow::bail!("--key judges one --signature; several need a --policy"),
        (None, Some(policy), _) => by_policy(policy, &signatures)?,
        (None, None, _) => anyhow::bail!("give --key or --policy"),
    };
    // A signature may lie in the folder that it signs.
    let found = folder::read_without(&args.dir, &args.signature)?;
    verified.compare(&found)?;
    let bytes: u64 = found.iter().map(|file| file.bytes).sum();
    println!(
        "verified: {} files, {bytes} bytes, bundle {}, signed by {}",
        found.len(),
        hex::encode(verified.digest()),
        verified.signers().join(", ")
    );
    Ok(())
}

pub(super) fn by_policy(
    path: &std::path::Path,
    signatures: &[Vec<u8>],
) -> anyhow::Result<Verified> {
    Ok(quorum(&policy(path)?, signatures)?)
}

/// Reads a quorum policy.
pub(crate) fn policy(path: &std::path::Path) -> anyhow::Result<Policy> {
    serde_json::from_slice(&super::read(path, POLICY_BYTES_MAX)?)
        .with_context(|| format!("{} is not a quorum policy", path.display()))
}
