//! Who a client is: the certificate that rustls verified in the handshake.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::limits::CLIENT_NAME_BYTES_MAX;

/// A client whose certificate was verified. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    name: String,
    cert_sha256: String,
}

/// Why a verified certificate does not name a client.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The handshake ended without a certificate; the verifier should not have let it.
    #[error("the client sent no certificate")]
    NoCertificate,
    /// The certificate is not X.509.
    #[error("the client's certificate cannot be parsed: {0}")]
    Malformed(String),
    /// Subject without exactly one usable common name.
    #[error(
        "the client's certificate has {found} common names; expected one, of 1 to \
         {CLIENT_NAME_BYTES_MAX} printable bytes: issue it again with a common name"
    )]
    Name {
        /// Number of common names found.
        found: usize,
    },
}

impl Client {
    /// Reads the end-entity certificate of a finished handshake.
    ///
    /// # Errors
    /// If there is none, or its subject does not have exactly one printable common name.
    pub fn from_chain(chain: Option<&[CertificateDer<'_>]>) -> Result<Self, IdentityError> {
        let der = chain.and_then(<[_]>::first).ok_or(IdentityError::NoCertificate)?;
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| IdentityError::Malformed(error.to_string()))?;
        let names: Vec<_> = certificate.subject().iter_common_name().collect();
        let wrong = IdentityError::Name { found: names.len() };
        let [name] = names.as_slice() else { return Err(wrong) };
        let Ok(name) = name.as_str() else { return Err(wrong) };
        if name.is_empty()
            || name.len() > CLIENT_NAME_BYTES_MAX
            || name.chars().any(char::is_control)
        {
            return Err(wrong);
        }
        let cert_sha256 = hex::encode(Sha256::digest(der));
        Ok(Self(Arc::new(Inner { name: name.to_owned(), cert_sha256 })))
    }

    /// Subject common name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// SHA-256 of the certificate (DER), lower-case hex. It is also the client's cache partition.
    #[must_use]
    pub fn cert_sha256(&self) -> &str {
        &self.0.cert_sha256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str]) -> Result<Client, IdentityError> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(rcgen::DnType::CommonName, *name);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        Client::from_chain(Some(&[params.self_signed(&key).unwrap().der().clone()]))
    }

    #[test]
    fn the_common_name_is_the_client() {
        let client = check(&["núcleo bancário"]).unwrap();
        assert_eq!(client.name(), "núcleo bancário");
        assert_eq!(client.cert_sha256().len(), 64);
    }

    #[test]
    fn a_certificate_that_names_nobody_is_refused() {
        assert!(matches!(check(&[]), Err(IdentityError::Name { found: 0 })));
        for name in ["", "a\nb", &"x".repeat(CLIENT_NAME_BYTES_MAX + 1)] {
            assert!(matches!(check(&[name]), Err(IdentityError::Name { found: 1 })), "{name:.9}");
        }
        assert!(matches!(Client::from_chain(None), Err(IdentityError::NoCertificate)));
        let garbage = CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff]);
        assert!(matches!(Client::from_chain(Some(&[garbage])), Err(IdentityError::Malformed(_))));
    }
}
