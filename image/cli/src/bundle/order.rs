//! An order to one machine, from the folder that a quorum signs as a model to the medium: `casemate reseal pack`,
//! `casemate reset pack`.

use std::path::PathBuf;

use anyhow::bail;
use evidence::bundle::Quorum;

use super::medium::{self, Medium};
use super::{folder, read_signatures, verify};

#[derive(Debug, clap::Args)]
pub(crate) struct Pack {
    /// The folder with the order
    pub(crate) dir: PathBuf,
    /// Signature files to put on the medium
    #[arg(long)]
    signature: Vec<PathBuf>,
    /// Disk image to make
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Fail if the signatures do not meet this quorum policy
    #[arg(long)]
    policy: Option<PathBuf>,
}

impl Pack {
    /// The quorum that must have signed and the signature files, if a policy was given.
    pub(crate) fn quorum(&self) -> anyhow::Result<Option<(Quorum, Vec<Vec<u8>>)>> {
        let Some(policy) = &self.policy else { return Ok(None) };
        Ok(Some((Quorum::parse(&verify::policy(policy)?)?, read_signatures(&self.signature)?)))
    }

    /// Makes the medium of the folder, which holds the order alone.
    pub(crate) fn pack(&self, medium: &Medium) -> anyhow::Result<()> {
        let found = folder::read(&self.dir)?;
        if found.len() != 1 {
            bail!("{} holds {} files; an order is one", self.dir.display(), found.len());
        }
        medium::pack(medium, (&self.dir, &found), &self.signature, &self.out)
    }
}
