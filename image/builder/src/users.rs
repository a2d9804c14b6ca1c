//! Users of the appliance: made at build time from sysusers.d, none able to log in.

use std::fs;
use std::path::{Path, PathBuf};

use crate::tool::{Tool, ToolError};

/// Debian's accounts for services that are not here go away; systemd-sysusers starts from nothing.
const DATABASES: &[&str] = &["etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"];
/// Matches no password, and is not systemd's `!unprovisioned`.
const LOCKED: &str = "!*";
/// Not in the image: whoever is given this shell is given none.
const NO_SHELL: &str = "/usr/sbin/nologin";

/// Why the users could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// systemd-sysusers failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
}

/// Makes the users of `tree`'s sysusers.d; `source_date_s` dates their entries.
pub(crate) fn make(tree: &Path, source_date_s: u32, logs: &Path) -> Result<(), UsersError> {
    for database in DATABASES {
        edit(tree, database, |_| String::new())?;
    }
    Tool::new("systemd-sysusers", "systemd-sysusers", logs)
        .path_arg("--root=", tree)
        .env("SOURCE_DATE_EPOCH", source_date_s.to_string())
        .run()?;
    for database in DATABASES {
        remove_backup(tree, database)?;
    }
    edit(tree, "etc/shadow", |text| with_field(text, 1, LOCKED))?;
    edit(tree, "etc/passwd", |text| with_field(text, 6, NO_SHELL))
}

/// systemd-sysusers keeps the database before its change as `passwd-`.
fn remove_backup(tree: &Path, database: &str) -> Result<(), UsersError> {
    let path = tree.join(format!("{database}-"));
    match fs::remove_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|cause| UsersError::File { path, cause }),
    }
}

fn edit(tree: &Path, name: &str, change: impl Fn(&str) -> String) -> Result<(), UsersError> {
    let path = tree.join(name);
    let work = || fs::write(&path, change(&fs::read_to_string(&path)?));
    work().map_err(|cause| UsersError::File { path: path.clone(), cause })
}

/// Every line of a colon-separated database with one field replaced.
fn with_field(text: &str, index: usize, value: &str) -> String {
    let replaced = |line: &str| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if let Some(field) = fields.get_mut(index) {
            *field = value;
        }
        fields.join(":") + "\n"
    };
    text.lines().map(replaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_account_is_locked() {
        let shadow = "root:!unprovisioned:20000::::::\nagent:$y$hash:20000::::::\n";
        let locked = "root:!*:20000::::::\nagent:!*:20000::::::\n";
        assert_eq!(with_field(shadow, 1, LOCKED), locked);
    }
}
