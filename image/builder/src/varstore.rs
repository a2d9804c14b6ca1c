//! Makes the variable store of an OVMF machine that trusts our keys alone, Secure Boot on.

use std::path::{Path, PathBuf};

use crate::keys::{KeySet, KeysError};
use crate::predict::SecureBoot;
use crate::tool::{Tool, ToolError};

/// Debian's empty store (package ovmf), for `OVMF_CODE_4M.secboot.fd`.
const TEMPLATE: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Why there is no variable store.
#[derive(Debug, thiserror::Error)]
pub enum VarstoreError {
    /// virt-fw-vars failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A certificate could not be read.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The store could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The store.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
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

/// Makes the store at `output`.
pub(crate) fn make(keys: &KeySet, output: &Path, logs: &Path) -> Result<(), VarstoreError> {
    let template = Path::new(TEMPLATE);
    if !template.exists() {
        return Err(VarstoreError::Template { path: template.to_owned() });
    }
    let mut tool = Tool::new("virt-fw-vars", "virt-fw-vars", logs)
        .arg("--input")
        .arg(template)
        .arg("--output")
        .arg(output)
        .arg("--secure-boot");
    for (option, certificate) in [("--set-pk", "PK"), ("--add-kek", "KEK"), ("--add-db", "db")] {
        let file = keys.path(&format!("secureboot/{certificate}.crt"));
        tool = tool.arg(option).arg(keys.owner().text()).arg(file);
    }
    tool.run()?;
    let store = std::fs::read(output)
        .map_err(|source| VarstoreError::Read { path: output.to_owned(), source })?;
    match absent_variable(&store, keys)? {
        Some(variable) => Err(VarstoreError::Unexpected { path: output.to_owned(), variable }),
        None => Ok(()),
    }
}

/// First variable whose content is not in the store.
fn absent_variable(store: &[u8], keys: &KeySet) -> Result<Option<&'static str>, VarstoreError> {
    let (pk, kek, db) = (
        keys.certificate("secureboot/PK.crt")?,
        keys.certificate("secureboot/KEK.crt")?,
        keys.certificate("secureboot/db.crt")?,
    );
    let enrolled = SecureBoot { owner: keys.owner(), pk: &pk, kek: &kek, db: &db };
    let contents = [
        ("PK", enrolled.pk()),
        ("KEK", enrolled.kek()),
        ("db", enrolled.db()),
        ("dbx", SecureBoot::dbx()),
    ];
    let absent = |content: &[u8]| !store.windows(content.len()).any(|window| window == content);
    Ok(contents.iter().find(|(_, content)| absent(content)).map(|(variable, _)| *variable))
}
