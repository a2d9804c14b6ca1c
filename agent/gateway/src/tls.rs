//! TLS: version 1.3 only, and no connection without a certificate of the clients' authority.
//!
//! No resumption and no early data: every connection proves anew that the client holds its key, and that
//! its certificate is valid now.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::limits::CREDENTIAL_BYTES_MAX;

/// Certificate chain of this server, end entity first.
const SERVER_CHAIN: &str = "server.pem";
/// Private key of this server.
const SERVER_KEY: &str = "server.key";
/// Authorities whose certificates make a client.
const CLIENT_CA: &str = "client-ca.pem";

/// Why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A credential file is not readable.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A credential file is longer than any honest one.
    #[error("{} is longer than {CREDENTIAL_BYTES_MAX} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A credential file does not hold what its name says.
    #[error("{name} holds no usable {expected}: {found}")]
    Pem {
        /// The file's name.
        name: &'static str,
        /// What should be in it.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// Key and certificate do not fit, or the provider refuses them.
    #[error("server.pem and server.key cannot be used: {0}")]
    Config(#[from] rustls::Error),
    /// The authorities cannot verify a client.
    #[error("client-ca.pem cannot be used: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

/// The bytes of the three credential files.
#[derive(Clone)]
pub struct Credentials {
    server_chain: Vec<u8>,
    server_key: Vec<u8>,
    client_ca: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Credentials { .. }")
    }
}

impl Credentials {
    /// Reads `server.pem`, `server.key` and `client-ca.pem` of `directory`.
    ///
    /// # Errors
    /// If one is missing or longer than [`CREDENTIAL_BYTES_MAX`].
    pub fn read(directory: &Path) -> Result<Self, TlsError> {
        let read = |name| read(directory.join(name));
        Ok(Self {
            server_chain: read(SERVER_CHAIN)?,
            server_key: read(SERVER_KEY)?,
            client_ca: read(CLIENT_CA)?,
        })
    }

    /// What every connection is accepted with.
    ///
    /// # Errors
    /// If a file does not hold what it should, or key and certificate do not belong together.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.client_ca, CLIENT_CA)? {
            roots.add(root)?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()?;
        let key = PrivateKeyDer::from_pem_slice(&self.server_key).map_err(|error| {
            TlsError::Pem { name: SERVER_KEY, expected: "private key", found: error.to_string() }
        })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.server_chain, SERVER_CHAIN)?, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn read(path: PathBuf) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let file = File::open(&path);
    match file.and_then(|file| file.take(CREDENTIAL_BYTES_MAX + 1).read_to_end(&mut bytes)) {
        Err(cause) => Err(TlsError::Read { path, cause }),
        Ok(_) if bytes.len() as u64 > CREDENTIAL_BYTES_MAX => Err(TlsError::TooLong { path }),
        Ok(_) => Ok(bytes),
    }
}

fn certificates(pem: &[u8], name: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |found| TlsError::Pem { name, expected: "certificate", found };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Err(error) => Err(wrong(error.to_string())),
        Ok(found) if found.is_empty() => Err(wrong("no CERTIFICATE section".to_owned())),
        Ok(found) => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Credentials {
            server_chain: pem.clone(),
            server_key: key.serialize_pem().into_bytes(),
            client_ca: pem,
        }
    }

    #[test]
    fn only_whole_credentials_make_a_server() {
        credentials().server_config().unwrap();
        let error = |change: fn(&mut Credentials)| {
            let mut changed = credentials();
            change(&mut changed);
            changed.server_config().unwrap_err().to_string()
        };
        assert!(error(|c| c.client_ca = b"hello".to_vec()).starts_with("client-ca.pem"));
        assert!(error(|c| c.server_chain.clear()).starts_with("server.pem"));
        assert!(error(|c| c.server_key = c.client_ca.clone()).starts_with("server.key"));
        let foreign = |c: &mut Credentials| {
            c.server_key = rcgen::KeyPair::generate().unwrap().serialize_pem().into_bytes();
        };
        assert!(error(foreign).starts_with("server.pem and server.key"));
    }

    #[test]
    fn reading_is_bounded_and_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let error = Credentials::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("server.pem"), "{error}");
        let long = vec![b'x'; usize::try_from(CREDENTIAL_BYTES_MAX).unwrap() + 1];
        std::fs::write(directory.path().join(SERVER_CHAIN), long).unwrap();
        let error = Credentials::read(directory.path()).unwrap_err();
        assert!(matches!(error, TlsError::TooLong { .. }), "{error}");
    }
}
