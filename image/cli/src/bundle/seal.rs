//! `casemate bundle pack --seal-…`: a medium that one machine alone can read, in the boot that its builder predicted.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use evidence::sealed::{ContentKey, Draw, SealedKey};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::de::DeserializeOwned;

/// Longest `machine.json` or `reference.json`.
const TRUST_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Encrypt the model to the machine with this identity (GET /casemate/identity)
    #[arg(long, value_name = "identity.json", requires_all = ["seal_machine", "seal_reference"])]
    seal_identity: Option<PathBuf>,
    /// What an auditor's enrolment of that machine pinned
    #[arg(long, value_name = "machine.json", requires = "seal_identity")]
    seal_machine: Option<PathBuf>,
    /// Reference values of the image in which alone the machine may decrypt
    #[arg(long, value_name = "reference.json", requires = "seal_identity")]
    seal_reference: Option<PathBuf>,
}

/// What encrypts a medium.
pub(super) struct Seal {
    /// Content of `sealed/key.json`.
    pub(super) key_file: String,
    pub(super) content_key: ContentKey,
    /// Where it can be read, for the operator.
    pub(super) shown: String,
}

/// Seals a fresh key to the machine that the arguments name, if they name one.
pub(super) fn seal(options: &Options) -> anyhow::Result<Option<Seal>> {
    let Options { seal_identity, seal_machine, seal_reference } = options;
    let (identity, machine, reference) = match (seal_identity, seal_machine, seal_reference) {
        (None, None, None) => return Ok(None),
        (Some(identity), Some(machine), Some(reference)) => (identity, machine, reference),
        // Never a plain medium where an encrypted one was wanted.
        _ => bail!("give --seal-identity, --seal-machine and --seal-reference together"),
    };
    let identity = read_json(identity, evidence::enrol::FILE_BYTES_MAX)?;
    let machine: evidence::format::Machine = read_json(machine, TRUST_BYTES_MAX)?;
    let reference: evidence::format::Reference = read_json(reference, TRUST_BYTES_MAX)?;
    let draw = Draw::new(fill).context("the system gives no random bytes")?;
    let (sealed, content_key) = SealedKey::seal(&identity, &machine, &reference, &draw)
        .context("the bundle cannot be sealed to this machine")?;
    let shown = format!(
        "the machine with the attestation key {}, on image {} {}",
        machine.ak_name, reference.image_id, reference.image_version
    );
    Ok(Some(Seal { key_file: sealed.to_json()?, content_key, shown }))
}

fn read_json<T: DeserializeOwned>(path: &Path, bytes_max: usize) -> anyhow::Result<T> {
    serde_json::from_slice(&super::read(path, bytes_max)?)
        .with_context(|| format!("{} is not the expected JSON", path.display()))
}

/// Fills it all: the kernel may give less at once.
fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += match getrandom(rest, GetRandomFlags::empty()) {
            Err(Errno::INTR) => 0,
            drawn => drawn?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_the_randomness_stays_zero() {
        let mut bytes = [0; 300];
        fill(&mut bytes).unwrap();
        assert!(bytes.chunks(20).all(|chunk| chunk.iter().any(|&byte| byte != 0)));
    }
}
