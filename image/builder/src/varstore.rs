//! Makes the variable store of an OVMF machine that trusts the certificates of one key set alone, Secure Boot on.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::enrolment::Content;
use crate::keys::Guid;
use crate::tool::{Tool, ToolError};

/// Debian's empty store (package ovmf), for `OVMF_CODE_4M.secboot.fd`.
const TEMPLATE: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Why there is no variable store.
#[derive(Debug, thiserror::Error)]
pub enum VarstoreError {
    /// virt-fw-vars failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The store could not be read.
    #[error("{path}: {cause}")]
    Read {
        /// The store.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// virt-fw-vars wrote something else than what PCR 7 is predicted from.
    #[error(
        "{path}: the variable {variable} is not what PCR 7 is predicted from; \
         this version of virt-fw-vars is not known"
    )]
    Unexpected {
        /// The store.
        path: PathBuf,
        /// The variable.
        variable: &'static str,
    },
    /// The template is missing.
    #[error("{} is missing; install Debian's package ovmf", path.display())]
    Template {
        /// Where it should be.
        path: PathBuf,
    },
}

/// Makes the store at `output`. Each of `pk`, `kek` and `db` is the path of a certificate in PEM.
pub(crate) fn make(
    owner: &Guid,
    certificates: (&Path, &Path, &[PathBuf]),
    content: &Content,
    output: &Path,
    logs: &Path,
) -> Result<(), VarstoreError> {
    let template = Path::new(TEMPLATE);
    if !template.exists() {
        return Err(VarstoreError::Template { path: template.to_owned() });
    }
    let (pk, kek, db) = certificates;
    let mut tool = Tool::new("virt-fw-vars", "virt-fw-vars", logs)
        .arg("--input")
        .arg(template)
        .arg("--output")
        .arg(output)
        .arg("--secure-boot")
        .args([OsStr::new("--set-pk"), owner.text().as_ref(), pk.as_ref()])
        .args([OsStr::new("--add-kek"), owner.text().as_ref(), kek.as_ref()]);
    for certificate in db {
        tool = tool.args([OsStr::new("--add-db"), owner.text().as_ref(), certificate.as_ref()]);
    }
    tool.run()?;
    let store = std::fs::read(output)
        .map_err(|cause| VarstoreError::Read { path: output.to_owned(), cause })?;
    // PCR 7 is predicted from them.
    let absent = |content: &[u8]| !store.windows(content.len()).any(|window| window == content);
    match content.variables().into_iter().find(|(_, content)| absent(content)) {
        Some((variable, _)) => {
            Err(VarstoreError::Unexpected { path: output.to_owned(), variable: variable.name })
        }
        None => Ok(()),
    }
}
