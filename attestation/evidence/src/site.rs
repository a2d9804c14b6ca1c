//! The site configuration: read by the builder, which signs it into the image, and by the agent, which measures it.

use std::net::IpAddr;

use sha2::{Digest as _, Sha256};

use crate::format::{SITE_SCHEMA, Site};
use crate::recovery::{EscrowKey, RecoveryError};

/// Longest site configuration, in bytes.
pub const SITE_BYTES_MAX: usize = 64 << 10;
/// Most names of one gateway.
pub const SERVER_NAMES_MAX: usize = 16;
/// Longest name; RFC 1035, "2.3.4. Size limits".
const NAME_BYTES_MAX: usize = 253;

/// Why a text is no site configuration.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// Too long.
    #[error("the site configuration has {found} bytes; at most {SITE_BYTES_MAX} are read")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// Not the JSON that it should be.
    #[error("the site configuration is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// Of another version of this software.
    #[error("the site configuration has schema {found:?}; {SITE_SCHEMA:?} is expected")]
    Schema {
        /// The schema.
        found: String,
    },
    /// Versions count from 1.
    #[error("the site configuration has version 0; versions count from 1")]
    Version,
    /// No names, or too many.
    #[error(
        "the site configuration has {found} server_names; 1 to {SERVER_NAMES_MAX} are expected"
    )]
    Names {
        /// How many.
        found: usize,
    },
    /// Neither a host name nor an address.
    #[error("server_names has {found:?}, which is neither a host name nor an IP address")]
    Name {
        /// The name.
        found: String,
    },
    /// No key to which anything can be encrypted.
    #[error("recovery_escrow: {0}")]
    Escrow(#[from] RecoveryError),
    /// Another authority than the one beside it.
    #[error("client-ca.pem has SHA-256 {found}; the site configuration names {expected:?}")]
    ClientCa {
        /// Of the file.
        found: String,
        /// In the configuration.
        expected: String,
    },
}

impl Site {
    /// Reads a site configuration and sees that `client_ca` is the file that it names.
    ///
    /// # Errors
    /// If anything in it is not usable.
    pub fn parse(text: &str, client_ca: &[u8]) -> Result<Self, SiteError> {
        if text.len() > SITE_BYTES_MAX {
            return Err(SiteError::TooLong { found: text.len() });
        }
        let site: Self = serde_json::from_str(text)?;
        if site.schema != SITE_SCHEMA {
            return Err(SiteError::Schema { found: site.schema });
        }
        if site.version == 0 {
            return Err(SiteError::Version);
        }
        if !(1..=SERVER_NAMES_MAX).contains(&site.server_names.len()) {
            return Err(SiteError::Names { found: site.server_names.len() });
        }
        if let Some(found) = site.server_names.iter().find(|name| !is_name(name)) {
            return Err(SiteError::Name { found: found.clone() });
        }
        site.escrow_key()?;
        let found = hex::encode(Sha256::digest(client_ca));
        if found != site.client_ca_sha256 {
            return Err(SiteError::ClientCa { found, expected: site.client_ca_sha256 });
        }
        Ok(site)
    }

    /// The key to which the recovery key is encrypted, if there is one.
    ///
    /// # Errors
    /// If it is none; a site that was parsed has one or none.
    pub fn escrow_key(&self) -> Result<Option<EscrowKey>, RecoveryError> {
        self.recovery_escrow.as_deref().map(EscrowKey::from_pem).transpose()
    }
}

/// Lower case only, so that two spellings are not two names.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    name.parse::<IpAddr>().is_ok() || (name.len() <= NAME_BYTES_MAX && name.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(edit: impl FnOnce(&mut Site)) -> String {
        let mut site = Site {
            schema: SITE_SCHEMA.to_owned(),
            version: 1,
            server_names: vec!["casemate.bank.example".to_owned(), "10.1.2.3".to_owned()],
            client_ca_sha256: hex::encode(Sha256::digest(b"ca")),
            recovery_escrow: None,
        };
        edit(&mut site);
        serde_json::to_string(&site).unwrap()
    }

    #[test]
    fn a_site_with_its_authority_is_read() {
        assert_eq!(Site::parse(&text(|_| ()), b"ca").unwrap().server_names.len(), 2);
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        let error = |edit: fn(&mut Site)| Site::parse(&text(edit), b"ca").unwrap_err();
        assert!(matches!(error(|site| site.schema.clear()), SiteError::Schema { .. }));
        assert!(matches!(error(|site| site.version = 0), SiteError::Version));
        assert!(matches!(error(|site| site.server_names.clear()), SiteError::Names { found: 0 }));
        let many = |site: &mut Site| site.server_names = vec!["a".to_owned(); 17];
        assert!(matches!(error(many), SiteError::Names { found: 17 }));
        for name in ["", "*.example", "Upper", "a..b", "-a", "a/b", "10.1.2.3:8443", "é"] {
            let found = Site::parse(&text(|site| site.server_names = vec![name.to_owned()]), b"ca");
            assert!(matches!(found, Err(SiteError::Name { .. })), "{name}");
        }
        let rsa = |site: &mut Site| {
            site.recovery_escrow = Some(include_str!("fixture/pcr.pub.pem").to_owned());
        };
        assert!(matches!(error(rsa), SiteError::Escrow(_)));
        let other = Site::parse(&text(|_| ()), b"another ca");
        assert!(matches!(other, Err(SiteError::ClientCa { .. })));
        assert!(matches!(Site::parse("{}", b"ca"), Err(SiteError::Json(_))));
        let long = " ".repeat(SITE_BYTES_MAX + 1);
        assert!(matches!(Site::parse(&long, b"ca"), Err(SiteError::TooLong { .. })));
    }
}
