//! Descriptors inherited from systemd, by the names that the units give (`FileDescriptorName=`).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// What systemd passed to this process. Taken once, at start.
#[derive(Debug)]
pub struct Activated(BTreeMap<String, OwnedFd>);

/// Why the inherited descriptors are not usable.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The environment variables of the protocol are malformed.
    #[error("cannot read the descriptors passed by systemd: {0}")]
    Read(#[from] sd_listen_fds::Error),
    /// A descriptor has no name, or two have the same one.
    #[error("descriptor {name:?} was passed without a name or twice; check FileDescriptorName=")]
    Ambiguous {
        /// The name, empty if there was none.
        name: String,
    },
    /// A descriptor that this process needs was not passed.
    #[error("descriptor {name:?} was not passed; found {found:?}; start this process by its unit")]
    Missing {
        /// The name asked for.
        name: String,
        /// The names that were passed.
        found: Vec<String>,
    },
}

impl Activated {
    /// Takes the descriptors of `LISTEN_FDS` (sd_listen_fds_with_names(3)).
    ///
    /// # Errors
    /// If a descriptor has no name, a name is used twice, or the variables are malformed.
    pub fn take() -> Result<Self, ActivationError> {
        let mut by_name = BTreeMap::new();
        for (name, fd) in sd_listen_fds::get()? {
            let name = name.unwrap_or_default();
            if name.is_empty() || by_name.contains_key(&name) {
                return Err(ActivationError::Ambiguous { name });
            }
            by_name.insert(name, fd.into_std());
        }
        Ok(Self(by_name))
    }

    /// Removes and returns the descriptor called `name`, if it was passed.
    pub fn optional(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Removes and returns the descriptor called `name`.
    ///
    /// # Errors
    /// If it was not passed, or was taken before.
    pub fn descriptor(&mut self, name: &str) -> Result<OwnedFd, ActivationError> {
        self.optional(name).ok_or_else(|| ActivationError::Missing {
            name: name.to_owned(),
            found: self.0.keys().cloned().collect(),
        })
    }
}
