//! Exceptions: what a quorum of release keys allows one machine once, against the rule that nothing goes back.
//!
//! Invariants:
//! - Having a [`Granted`] proves that the quorum signed this very exception. The signatures are OMS v1.0 over one
//!   file, [`FILE`], and no other: a bundle is never an exception, since it has a model card beside.
//! - It names the machine and what its counter shows; accepting it makes the counter count, so it works once.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::bundle::{BundleError, Quorum, SignedFile, statement_json};

/// Schema name of [`Exception`].
pub const EXCEPTION_SCHEMA: &str = "casemate-exception-v1";
/// Name of the one signed file.
pub const FILE: &str = "exception.json";
/// Longest file.
pub const BYTES_MAX: usize = 64 << 10;
/// Longest reason, in characters: it goes into the ledger.
pub const REASON_CHARS_MAX: usize = 500;
/// Most model lines in one exception.
pub const BUNDLES_MAX: usize = 64;

/// `exception.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// [`EXCEPTION_SCHEMA`].
    pub schema: String,
    /// Name of the attestation key of the one machine that it is for, hex.
    pub machine: String,
    /// What the machine's counter shows, as the console says; `null` if there is no counter.
    pub counter: Option<u64>,
    /// What is allowed.
    pub allow: Allow,
    /// Why; it goes into the ledger.
    pub reason: String,
}

/// What an exception allows. Each version becomes the new minimum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// Go on with the state that is there, older or empty as it may be, under a counter defined anew.
    #[serde(default)]
    pub state: bool,
    /// Image version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<u64>,
    /// Version of the site configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<u64>,
    /// Bundle versions, by model.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bundles: BTreeMap<String, u64>,
}

/// Why an exception is not one, or not for this machine at this time.
#[derive(Debug, thiserror::Error)]
pub enum ExceptionError {
    /// No quorum.
    #[error("exception: {0}")]
    Quorum(#[from] BundleError),
    /// Signatures over something else.
    #[error("the signatures are not over this exception: they are of {found}; expected {FILE}")]
    Other {
        /// The files that were signed.
        found: String,
    },
    /// Not an exception.
    #[error("{FILE} refused: {reason}")]
    Malformed {
        /// What was found and what was expected.
        reason: String,
    },
    /// For another machine.
    #[error("the exception is for the machine {found:?}; this is {machine}")]
    Machine {
        /// The machine that it names.
        found: String,
        /// This machine.
        machine: String,
    },
    /// For another time: it was used, or something else made the counter count.
    #[error("the exception is for a counter of {}; it shows {}", shown(*found), shown(*counter))]
    Counter {
        /// What it names.
        found: Option<u64>,
        /// What the counter shows.
        counter: Option<u64>,
    },
}

fn shown(counter: Option<u64>) -> String {
    counter.map_or_else(|| "nothing, since there is none".to_owned(), |count| count.to_string())
}

impl Exception {
    /// Reads an exception and checks its form.
    ///
    /// # Errors
    /// [`ExceptionError::Malformed`] says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, ExceptionError> {
        if text.len() > BYTES_MAX {
            return Err(malformed(format!("{} bytes; at most {BYTES_MAX}", text.len())));
        }
        let exception: Self =
            serde_json::from_slice(text).map_err(|error| malformed(error.to_string()))?;
        exception.check()?;
        Ok(exception)
    }

    fn check(&self) -> Result<(), ExceptionError> {
        if self.schema != EXCEPTION_SCHEMA {
            let found: String = self.schema.chars().take(REASON_CHARS_MAX).collect();
            return Err(malformed(format!("schema {found:?}; expected {EXCEPTION_SCHEMA:?}")));
        }
        let length = self.reason.chars().count();
        if length == 0 || length > REASON_CHARS_MAX {
            return Err(malformed(format!(
                "a reason of {length} characters; expected 1 to {REASON_CHARS_MAX}"
            )));
        }
        if self.allow.bundles.len() > BUNDLES_MAX {
            let found = self.allow.bundles.len();
            return Err(malformed(format!("{found} models; at most {BUNDLES_MAX}")));
        }
        if self.allow == Allow::default() {
            return Err(malformed("it allows nothing".to_owned()));
        }
        Ok(())
    }

    /// The file's text.
    ///
    /// # Errors
    /// If [`Exception::parse`] would refuse it.
    pub fn to_json(&self) -> Result<String, ExceptionError> {
        self.check()?;
        let text = serde_json::to_string_pretty(self).map_err(|e| malformed(e.to_string()))?;
        Ok(text + "\n")
    }

    /// Refuses an exception for another machine, or for another count than its counter shows now.
    ///
    /// # Errors
    /// [`ExceptionError::Machine`] or [`ExceptionError::Counter`].
    pub fn check_for(&self, machine: &str, counter: Option<u64>) -> Result<(), ExceptionError> {
        if !self.machine.eq_ignore_ascii_case(machine) {
            let found = self.machine.chars().take(REASON_CHARS_MAX).collect();
            return Err(ExceptionError::Machine { found, machine: machine.to_owned() });
        }
        if self.counter != counter {
            return Err(ExceptionError::Counter { found: self.counter, counter });
        }
        Ok(())
    }
}

/// An exception that the quorum signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    exception: Exception,
    digest: [u8; 32],
    signers: Vec<String>,
}

impl Granted {
    /// Judges `text`, the bytes of [`FILE`], by its signature files.
    ///
    /// # Errors
    /// [`ExceptionError`] if there is no quorum over these bytes and them alone, or they are no exception.
    pub fn admit(
        quorum: &Quorum,
        text: &[u8],
        signatures: &[Vec<u8>],
    ) -> Result<Self, ExceptionError> {
        let verified = quorum.admit(signatures)?;
        if verified.files() != [signed_file(text)] {
            let names: Vec<_> = verified.files().iter().map(|file| file.name.as_str()).collect();
            let found = names.join(", ").chars().take(REASON_CHARS_MAX).collect();
            return Err(ExceptionError::Other { found });
        }
        let (digest, signers) = (Sha256::digest(text).into(), verified.signers().to_vec());
        Ok(Self { exception: Exception::parse(text)?, digest, signers })
    }

    /// What is allowed, to whom, when and why.
    #[must_use]
    pub fn exception(&self) -> &Exception {
        &self.exception
    }

    /// SHA-256 of the file.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Names of the keys whose signatures counted, sorted.
    #[must_use]
    pub fn signers(&self) -> &[String] {
        &self.signers
    }
}

/// What a holder of a release key signs: the OMS statement over the file alone.
///
/// # Errors
/// If `text` is no exception.
pub fn payload(text: &[u8]) -> Result<Vec<u8>, ExceptionError> {
    Exception::parse(text)?;
    Ok(statement_json(&[signed_file(text)])?)
}

fn signed_file(text: &[u8]) -> SignedFile {
    SignedFile { name: FILE.to_owned(), sha256: Sha256::digest(text).into() }
}

fn malformed(reason: String) -> ExceptionError {
    ExceptionError::Malformed { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{policy, sign};

    fn exception() -> Exception {
        Exception {
            schema: EXCEPTION_SCHEMA.to_owned(),
            machine: "000bab".to_owned(),
            counter: Some(12),
            allow: Allow { image: Some(3), ..Allow::default() },
            reason: "version 4 does not start on this board".to_owned(),
        }
    }

    fn quorum() -> Quorum {
        Quorum::parse(&policy()).unwrap()
    }

    #[test]
    fn a_signed_exception_is_granted() {
        let text = exception().to_json().unwrap();
        let payload = payload(text.as_bytes()).unwrap();
        let granted = Granted::admit(&quorum(), text.as_bytes(), &sign(&payload, &[0, 2])).unwrap();
        assert_eq!(granted.exception(), &exception());
        assert_eq!(granted.signers(), ["release-1", "release-3"]);
        assert_eq!(granted.digest(), <[u8; 32]>::from(Sha256::digest(&text)));
    }

    #[test]
    fn one_signature_a_changed_file_and_a_bundle_are_refused() {
        let text = exception().to_json().unwrap();
        let payload = payload(text.as_bytes()).unwrap();
        let admit = |text: &str, signatures: &[Vec<u8>]| {
            Granted::admit(&quorum(), text.as_bytes(), signatures).unwrap_err()
        };
        let error = admit(&text, &sign(&payload, &[1]));
        assert!(matches!(error, ExceptionError::Quorum(BundleError::Quorum { .. })), "{error}");
        let changed = text.replace("12", "13");
        let error = admit(&changed, &sign(&payload, &[0, 1]));
        assert!(matches!(error, ExceptionError::Other { .. }), "{error}");
        // A bundle that has a file of that name.
        let card = SignedFile { name: "casemate.json".to_owned(), sha256: [1; 32] };
        let bundle = statement_json(&[card, signed_file(text.as_bytes())]).unwrap();
        let error = admit(&text, &sign(&bundle, &[0, 1]));
        assert!(error.to_string().contains("casemate.json"), "{error}");
    }

    #[test]
    fn malformed_exceptions_are_refused() {
        let edits: [fn(&mut Exception); 4] = [
            |exception| exception.schema.push('2'),
            |exception| exception.reason.clear(),
            |exception| exception.reason = "é".repeat(REASON_CHARS_MAX + 1),
            |exception| exception.allow.image = None,
        ];
        for edit in edits {
            let mut edited = exception();
            edit(&mut edited);
            assert!(edited.to_json().is_err());
            let text = serde_json::to_vec(&edited).unwrap();
            let error = Exception::parse(&text).unwrap_err();
            assert!(matches!(error, ExceptionError::Malformed { .. }), "{error}");
        }
        assert!(Exception::parse(&vec![b' '; BYTES_MAX + 1]).is_err());
        assert!(Exception::parse(b"{}").is_err());
    }

    #[test]
    fn it_is_for_one_machine_and_one_count() {
        let exception = exception();
        exception.check_for("000BAB", Some(12)).unwrap();
        let error = exception.check_for("000bac", Some(12)).unwrap_err();
        assert!(matches!(error, ExceptionError::Machine { .. }), "{error}");
        for counter in [None, Some(11), Some(13)] {
            let error = exception.check_for("000bab", counter).unwrap_err();
            assert!(matches!(error, ExceptionError::Counter { .. }), "{error}");
        }
        let absent = Exception { counter: None, ..exception };
        absent.check_for("000bab", None).unwrap();
        assert!(absent.check_for("000bab", Some(0)).is_err());
    }
}
