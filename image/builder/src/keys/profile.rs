//! What keys and images are for.

use std::fmt;
use std::str::FromStr;

/// What keys and images are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Keys made in a developer's own software token; everything says that it is no release.
    Development,
    /// Keys in tokens of their holders.
    Release,
}

impl Profile {
    /// Its word in key sets, os-release and evidence.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Release => "release",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "development" => Ok(Self::Development),
            "release" => Ok(Self::Release),
            _ => Err(format!("profile `{text}`; expected development or release")),
        }
    }
}
