//! A throw-away RSA key of openssl's, for tests.

use std::fs;
use std::process::Command;

use pkcs11::Pkcs11Error;
use tempfile::TempDir;

/// Runs openssl; what it wrote, or what it complained of.
pub(crate) fn openssl(args: &[&str]) -> Result<String, String> {
    let output = Command::new("openssl").args(args).output().map_err(|error| error.to_string())?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The key, and a folder for what it signs.
pub(crate) struct Key(TempDir);

impl Key {
    /// `None`, saying so, where there is no openssl.
    pub(crate) fn new() -> Option<Self> {
        if openssl(&["version"]).is_err() {
            eprintln!("skipped: no openssl here (Debian package openssl)");
            return None;
        }
        let key = Self(tempfile::tempdir().unwrap());
        let (private, public) = (key.private(), key.public());
        openssl(&["genpkey", "-algorithm", "RSA", "-out", &private]).unwrap();
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]).unwrap();
        Some(key)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn private(&self) -> String {
        self.path("key.pem")
    }

    pub(crate) fn public(&self) -> String {
        self.path("key.pub")
    }

    /// Path of a new file beside the key.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> String {
        fs::write(self.0.path().join(name), content).unwrap();
        self.path(name)
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        let der = self.path("key.der");
        openssl(&["pkey", "-in", &self.private(), "-pubout", "-outform", "DER", "-out", &der])
            .unwrap();
        fs::read(der).unwrap()
    }

    pub(crate) fn signer(&self) -> impl Fn(&[u8]) -> Result<Vec<u8>, Pkcs11Error> {
        |message| {
            let (message, signature) = (self.file("to-sign", message), self.path("signature.raw"));
            let args = ["dgst", "-sha256", "-sign", &self.private(), "-out", &signature, &message];
            openssl(&args).unwrap();
            Ok(fs::read(signature).unwrap())
        }
    }
}
