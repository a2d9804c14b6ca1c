//! What puts the keys of a set into firmware: certificates, signature lists, signed changes of variables, and a variable
//! store for QEMU.
//! Invariant: every file is made from the certificates that lie in the folder, so that all of them say the same.

use std::fs;
use std::path::{Path, PathBuf};

use pkcs11::Signer;

use crate::keys::{self, Guid, KeysError};
use crate::sign::variable::{self, DB, DBX, KEK, PK, Variable, Write, authenticated};
use crate::sign::{SignError, certificate};
use crate::varstore::{self, VarstoreError};

/// Most certificates of earlier db keys that stay enrolled.
const EARLIER_MAX: usize = 8;

/// Why there is no enrolment material.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// A file of the key set.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A signature.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The variable store.
    #[error(transparent)]
    Varstore(#[from] VarstoreError),
    /// Keys were rotated too often.
    #[error("db holds {EARLIER_MAX} earlier certificates already; enrol a new key set instead")]
    Earlier,
    /// A file could not be written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
}

type Result<T> = std::result::Result<T, EnrolmentError>;

/// The content of each variable.
#[derive(Debug)]
pub(crate) struct Content {
    pk: Vec<u8>,
    kek: Vec<u8>,
    db: Vec<u8>,
    dbx: Vec<u8>,
}

impl Content {
    pub(crate) fn variables(&self) -> [(Variable, &[u8]); 4] {
        [(PK, &self.pk), (KEK, &self.kek), (DB, &self.db), (DBX, &self.dbx)]
    }
}

/// The folder `secureboot` of a key set, with `owner.guid` in it, and the date of what is signed.
#[derive(Debug)]
pub struct Enrolment<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// Seconds since 1970; firmware takes a change only if it is younger than the one before.
    pub now_s: u64,
    /// Folder for the logs of tools.
    pub logs: &'a Path,
}

impl Enrolment<'_> {
    /// Writes `NAME.crt`, the self-signed certificate of a key: of `PK`, `KEK` or `db`.
    pub fn certify(&self, name: &str, common_name: &str, signer: &Signer) -> Result<()> {
        let spki = signer.public_key_der().map_err(SignError::from)?;
        let sign = |message: &[u8]| signer.sign(message);
        let pem = certificate::self_signed(common_name, &spki, self.now_s, &sign)?;
        self.write(&format!("{name}.crt"), pem.as_bytes())
    }

    /// Writes lists, signed changes and the variable store for the certificates that are there: of `PK`, `KEK`, `db`,
    /// and `db-1` and so on, which are enrolled before it.
    pub fn write_all(&self, pk: &Signer, kek: &Signer) -> Result<()> {
        let owner = keys::owner(self.folder)?;
        let (pk_file, kek_file, db_files) = (self.file("PK.crt"), self.file("KEK.crt"), self.db());
        let list = |file: &Path| -> Result<Vec<u8>> {
            Ok(variable::x509_list(&owner, &keys::read_certificate(file)?)?)
        };
        let content = Content {
            pk: list(&pk_file)?,
            kek: list(&kek_file)?,
            db: db_files.iter().map(|file| list(file)).collect::<Result<Vec<_>>>()?.concat(),
            dbx: variable::dbx_list()?,
        };
        for (variable, content) in content.variables() {
            self.write(&format!("{}.esl", variable.name), content)?;
            // PK and KEK are changed by PK, the databases by KEK; UEFI Specification 2.10, section 32.3.
            let (signer, certificate) = match variable.name {
                "PK" | "KEK" => (pk, &pk_file),
                _ => (kek, &kek_file),
            };
            self.change(variable, Write::Replace, content, (signer, certificate), "")?;
        }
        if let (Some(newest), 2..) = (db_files.last(), db_files.len()) {
            self.change(DB, Write::Append, &list(newest)?, (kek, &kek_file), "-append")?;
        }
        self.store(&owner, (&pk_file, &kek_file, &db_files), &content)
    }

    /// Name under which the certificate and the URI of the present db key are kept when another takes its place.
    pub fn earlier_name(&self) -> Result<String> {
        (1..=EARLIER_MAX)
            .map(|number| format!("db-{number}"))
            .find(|name| !self.file(&format!("{name}.crt")).exists())
            .ok_or(EnrolmentError::Earlier)
    }

    fn change(
        &self,
        variable: Variable,
        write: Write,
        content: &[u8],
        (signer, certificate): (&Signer, &Path),
        suffix: &str,
    ) -> Result<()> {
        let certificate = keys::read_certificate(certificate)?;
        let sign = |message: &[u8]| signer.sign(message);
        let file = authenticated(variable, write, content, self.now_s, &certificate, &sign)?;
        self.write(&format!("{}{suffix}.auth", variable.name), &file)
    }

    fn store(
        &self,
        owner: &Guid,
        certificates: (&Path, &Path, &[PathBuf]),
        content: &Content,
    ) -> Result<()> {
        let store = self.file("OVMF_VARS.fd");
        Ok(varstore::make(owner, certificates, content, &store, self.logs)?)
    }

    /// Certificates in db, the present one last.
    fn db(&self) -> Vec<PathBuf> {
        let earlier = (1..=EARLIER_MAX).map(|number| self.file(&format!("db-{number}.crt")));
        earlier.filter(|file| file.exists()).chain([self.file("db.crt")]).collect()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, content).map_err(|cause| EnrolmentError::File { path, cause })
    }
}
