//! The keys that a build signs with.

use std::path::Path;

use pkcs11::{Algorithm, Pkcs11Error, Signer};

use super::{
    BUILD_PUBLIC, BUILD_URI, DB_CERTIFICATE, DB_URI, KeySet, KeysError, PCR_EARLIER_PUBLIC,
    PCR_EARLIER_URI, PCR_PUBLIC, PCR_URI, Profile, block, read,
};
use crate::sign::certificate;

/// How the labels of a developer's tokens begin: the mark that stays when files are moved or edited.
pub const DEVELOPER_TOKEN: &str = "casemate development ";

/// The open keys of a build.
#[derive(Debug)]
pub struct Signers {
    pub(crate) db: Signer,
    /// Of PCR policies: the image's own key, then the one before it while a rotation lasts.
    pub(crate) pcr: Vec<Signer>,
    pub(crate) build: Signer,
}

impl KeySet {
    /// Opens the keys of a build in their tokens; `module` is the PKCS#11 module of URIs that name none. PINs that are
    /// in no file are asked for.
    pub fn signers(&self, module: Option<&Path>) -> Result<Signers, KeysError> {
        let rsa = |expected, bits_max| {
            move |signer: Signer| {
                signer.expect(
                    expected,
                    |found| matches!(found, Algorithm::Rsa { bits } if bits <= bits_max),
                )
            }
        };
        let ec = |signer: Signer| {
            signer.expect("EC on P-256 or P-384", |found| {
                matches!(found, Algorithm::P256 | Algorithm::P384)
            })
        };
        let certificate = certificate::public_key(&self.certificate(DB_CERTIFICATE)?)
            .map_err(|cause| KeysError::Certificate { path: self.path(DB_CERTIFICATE), cause })?;
        // TCG PC Client Platform TPM Profile: a TPM need verify no RSA but of 2048 bits.
        let earlier = self.has_earlier_pcr()?.then_some((PCR_EARLIER_URI, PCR_EARLIER_PUBLIC));
        let pcr = [(PCR_URI, PCR_PUBLIC)].into_iter().chain(earlier).map(|(uri, public)| {
            let pcr = rsa("RSA-2048, which every TPM verifies", 2048);
            self.signer(uri, module, pcr)?.of_pem(&self.path(public))
        });
        Ok(Signers {
            db: self
                .signer(DB_URI, module, rsa("RSA of 2048 to 4096 bits", 4096))?
                .of(&certificate, &self.path(DB_CERTIFICATE))?,
            pcr: pcr.collect::<Result<_, _>>()?,
            build: self.signer(BUILD_URI, module, ec)?.of_pem(&self.path(BUILD_PUBLIC))?,
        })
    }

    fn signer(
        &self,
        file: &str,
        module: Option<&Path>,
        expect: impl FnOnce(Signer) -> Result<Signer, Pkcs11Error>,
    ) -> Result<Opened, KeysError> {
        let uri = self.uri(file)?;
        let signer = expect(Signer::open(&uri, module)?)?;
        let token = signer.token_label();
        if self.profile == Profile::Release && token.starts_with(DEVELOPER_TOKEN) {
            return Err(KeysError::Developer { uri: uri.to_string(), token: token.to_owned() });
        }
        Ok(Opened(signer))
    }
}

/// A key that may still be another one than the set says.
struct Opened(Signer);

impl Opened {
    /// The signer, if `path` holds its public key, which is `spki`.
    fn of(self, spki: &[u8], path: &Path) -> Result<Signer, KeysError> {
        if self.0.public_key_der()? == spki {
            return Ok(self.0);
        }
        Err(KeysError::OtherKey { path: path.to_owned(), uri: self.0.uri().to_string() })
    }

    /// The signer, if the PEM file holds its public key.
    fn of_pem(self, path: &Path) -> Result<Signer, KeysError> {
        let spki = block(&read(path)?, "PUBLIC KEY")
            .ok_or_else(|| KeysError::Pem { path: path.to_owned() })?;
        self.of(&spki, path)
    }
}
