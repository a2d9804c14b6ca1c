//! Makes the variable store of an OVMF machine that trusts our keys alone, Secure Boot on.

use std::path::{Path, PathBuf};

use crate::keys::KeySet;
use crate::tool::{Tool, ToolError};

/// Debian's empty store (package ovmf), for `OVMF_CODE_4M.secboot.fd`.
pub const TEMPLATE: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Why there is no variable store.
#[derive(Debug, thiserror::Error)]
pub enum VarstoreError {
    /// virt-fw-vars failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
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
    Ok(())
}
