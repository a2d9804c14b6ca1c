//! An update: one image for machines that run an older one, signed by the key that signs what leaves a build.
//!
//! `update.json` names the parts that a machine writes; the build's provenance names `update.json`, so one signature
//! covers all. Invariant: an [`Approved`] exists only by that signature.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::bundle::{BundleError, PublicKey};
use crate::provenance::{ProvenanceError, Statement};

/// Schema name of `update.json`.
pub const UPDATE_SCHEMA: &str = "casemate-update-v1";
/// Name of the statement, beside the other files of a build and on the medium.
pub const UPDATE_FILE: &str = "update.json";
/// Longest statement.
pub const UPDATE_BYTES_MAX: usize = 16 << 10;
/// Longest part: as a root partition.
pub const PART_BYTES_MAX: u64 = 256 << 20;
/// Label of the partition of an update's medium, and the folder in it that holds everything.
pub const LABEL: &str = "casemate-update";
/// The parts' files on the medium: root file system, its hash tree, UKI, boot manager.
pub const PARTS: [&str; 4] = ["root.img", "verity.img", "casemate.efi", "systemd-boot.efi"];
/// Digits of the root hash in the name of a boot entry.
const NAME_HASH_DIGITS: usize = 16;
/// Tries of a new image before the boot manager goes back to the last that was healthy.
pub const TRIES: u32 = 3;

/// Content of `update.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// [`UPDATE_SCHEMA`].
    pub schema: String,
    /// `IMAGE_ID`.
    pub image_id: String,
    /// `IMAGE_VERSION`.
    pub image_version: String,
    /// `development` or `release`.
    pub profile: String,
    /// `CASEMATE_VERSION_INDEX`.
    pub version_index: u64,
    /// Root hash of the hash tree, 64 hex digits; also the identifiers of both partitions.
    pub root_hash: String,
    /// Root file system; after these bytes its partition is zero.
    pub root: Part,
    /// Hash tree; likewise.
    pub verity: Part,
    /// Signed UKI.
    pub uki: Part,
    /// Signed boot manager.
    pub boot_manager: Part,
}

/// One part of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Length.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// Why there is no update, or none for this machine.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The key is none.
    #[error("the build key")]
    Key(#[from] BundleError),
    /// Not signed, or otherwise.
    #[error("not signed by the build key")]
    Provenance(#[from] ProvenanceError),
    /// The signature is over another one.
    #[error("{UPDATE_FILE} differs from the signed one: SHA-256 {found}; {expected} was signed")]
    Differs {
        /// Its digest.
        found: String,
        /// The signed digest.
        expected: String,
    },
    /// No such statement.
    #[error("{UPDATE_FILE} is no update: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// Another product, or a development image for a release machine.
    #[error("the update is for {found}; this machine runs {expected}")]
    Other {
        /// Image and profile of the update.
        found: String,
        /// Those that run.
        expected: String,
    },
    /// Nothing older comes back, and nothing else of the same version.
    #[error(
        "the update has version {found}, and version {running} runs here; only a later one is \
         taken (an older image needs an exception, see `casemate exception`)"
    )]
    Older {
        /// Of the update.
        found: u64,
        /// Of the running image.
        running: u64,
    },
}

/// What runs on the machine that judges an update.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    /// `IMAGE_ID`.
    pub image_id: &'a str,
    /// `VARIANT_ID`.
    pub profile: &'a str,
    /// `CASEMATE_VERSION_INDEX`.
    pub version_index: u64,
    /// Root hash of the running root.
    pub root_hash: &'a str,
}

/// An update that the build key signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approved(Update);

/// What a machine does with an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it runs already.
    Runs,
    /// Write it beside the running image.
    Apply,
}

impl Update {
    /// Reads the statement.
    pub fn parse(file: &[u8]) -> Result<Self, UpdateError> {
        let malformed = |reason: String| UpdateError::Malformed { reason };
        if file.len() > UPDATE_BYTES_MAX {
            return Err(malformed(format!("longer than {UPDATE_BYTES_MAX} bytes")));
        }
        let update: Self =
            serde_json::from_slice(file).map_err(|error| malformed(error.to_string()))?;
        if update.schema != UPDATE_SCHEMA {
            let schema = update.schema;
            return Err(malformed(format!("schema {schema:?}; expected {UPDATE_SCHEMA:?}")));
        }
        if !is_sha256(&update.root_hash) {
            return Err(malformed(format!("root hash {:?}", update.root_hash)));
        }
        for (name, part) in update.parts() {
            if part.bytes == 0 || part.bytes > PART_BYTES_MAX || !is_sha256(&part.sha256) {
                return Err(malformed(format!(
                    "{name} of {} bytes, SHA-256 {:?}",
                    part.bytes, part.sha256
                )));
            }
        }
        Ok(update)
    }

    /// The parts, by their files' names.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, &Part); 4] {
        let [root, verity, uki, boot_manager] = PARTS;
        [
            (root, &self.root),
            (verity, &self.verity),
            (uki, &self.uki),
            (boot_manager, &self.boot_manager),
        ]
    }

    /// Name of its entry for the boot manager, without the counter of tries.
    #[must_use]
    pub fn entry(&self) -> String {
        entry_name(self.version_index, &self.root_hash)
    }
}

/// Name of an image's entry for the boot manager, without suffix and counter.
#[must_use]
pub fn entry_name(version_index: u64, root_hash: &str) -> String {
    format!("casemate-{version_index}-{}", root_hash.get(..NAME_HASH_DIGITS).unwrap_or(root_hash))
}

/// Checks the signature over `statement`, the content of `update.json`, by the key `pem`.
pub fn approve(envelope: &[u8], statement: &[u8], pem: &str) -> Result<Approved, UpdateError> {
    let key = PublicKey::from_pem("build", pem)?;
    let signed = Statement::open(envelope, &key)?;
    let (expected, found) = (signed.digest(UPDATE_FILE)?, hex::encode(Sha256::digest(statement)));
    if found != expected {
        return Err(UpdateError::Differs { found, expected: expected.to_owned() });
    }
    Update::parse(statement).map(Approved)
}

impl Approved {
    /// The statement.
    #[must_use]
    pub fn update(&self) -> &Update {
        &self.0
    }

    /// What the machine that runs `running` does with it.
    pub fn judge(&self, running: Running<'_>) -> Result<Step, UpdateError> {
        let Update { image_id, profile, version_index, root_hash, .. } = &self.0;
        if (image_id.as_str(), profile.as_str()) != (running.image_id, running.profile) {
            return Err(UpdateError::Other {
                found: format!("{image_id:?}, profile {profile:?}"),
                expected: format!("{:?}, profile {:?}", running.image_id, running.profile),
            });
        }
        if root_hash == running.root_hash {
            return Ok(Step::Runs);
        }
        if *version_index <= running.version_index {
            let (found, running) = (*version_index, running.version_index);
            return Err(UpdateError::Older { found, running });
        }
        Ok(Step::Apply)
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::Signer as _;
    use p256::pkcs8::{EncodePublicKey as _, LineEnding};
    use serde_json::json;

    use super::*;
    use crate::bundle::pae;
    use crate::provenance::{self, PREDICATE_TYPE, STATEMENT_TYPE};

    fn update() -> Update {
        let part = || Part { bytes: 4096, sha256: "ab".repeat(32) };
        Update {
            schema: UPDATE_SCHEMA.to_owned(),
            image_id: "casemate".to_owned(),
            image_version: "0.1.0".to_owned(),
            profile: "release".to_owned(),
            version_index: 2,
            root_hash: "cd".repeat(32),
            root: part(),
            verity: part(),
            uki: part(),
            boot_manager: part(),
        }
    }

    fn key(fill: u8) -> (SigningKey, String) {
        let key = SigningKey::from_slice(&[fill; 32]).unwrap();
        let pem = key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
        (key, pem)
    }

    fn signed(statement: &[u8], name: &str, by: u8) -> Vec<u8> {
        let (key, pem) = key(by);
        let payload = json!({
            "_type": STATEMENT_TYPE,
            "predicateType": PREDICATE_TYPE,
            "subject": [{"name": name, "digest": {"sha256": hex::encode(Sha256::digest(statement))}}],
            "predicate": {"buildDefinition": {"externalParameters": {"profile": "release"}}},
        })
        .to_string();
        let signature: p256::ecdsa::Signature = key.sign(&pae(payload.as_bytes()));
        let public = PublicKey::from_pem("build", &pem).unwrap();
        provenance::envelope(payload.as_bytes(), &public, signature.to_der().as_bytes()).unwrap()
    }

    #[test]
    fn only_the_key_s_statement_is_an_update() {
        let text = serde_json::to_vec(&update()).unwrap();
        let pem = key(7).1;
        let approved = approve(&signed(&text, UPDATE_FILE, 7), &text, &pem).unwrap();
        assert_eq!(approved.update(), &update());
        let refused = |envelope: &[u8], text: &[u8]| approve(envelope, text, &pem).unwrap_err();
        let error = refused(&signed(&text, UPDATE_FILE, 8), &text);
        assert!(matches!(error, UpdateError::Provenance(_)), "{error}");
        let error = refused(&signed(&text, "casemate.raw", 7), &text);
        assert!(matches!(error, UpdateError::Provenance(_)), "{error}");
        let other = [&text[..], b" "].concat();
        let error = refused(&signed(&text, UPDATE_FILE, 7), &other);
        assert!(matches!(error, UpdateError::Differs { .. }), "{error}");
    }

    #[test]
    fn a_machine_takes_a_later_image_of_its_own_kind() {
        let hash = "ef".repeat(32);
        let own = Running {
            image_id: "casemate",
            profile: "release",
            version_index: 1,
            root_hash: &hash,
        };
        let approved = Approved(update());
        assert_eq!(approved.judge(own).unwrap(), Step::Apply);
        for version_index in [2, 3] {
            let error = approved.judge(Running { version_index, ..own }).unwrap_err();
            assert!(matches!(error, UpdateError::Older { found: 2, .. }), "{error}");
        }
        let root_hash = &update().root_hash;
        let same = Running { root_hash, version_index: 2, ..own };
        assert_eq!(approved.judge(same).unwrap(), Step::Runs);
        for other in [
            Running { profile: "development", ..own },
            Running { image_id: "other", ..own },
            Running { profile: "development", ..same },
        ] {
            let error = approved.judge(other).unwrap_err();
            assert!(matches!(error, UpdateError::Other { .. }), "{error}");
        }
    }

    #[test]
    fn a_malformed_statement_is_refused() {
        let check = |change: &dyn Fn(&mut Update)| {
            let mut update = update();
            change(&mut update);
            let text = serde_json::to_vec(&update).unwrap();
            assert!(matches!(Update::parse(&text), Err(UpdateError::Malformed { .. })));
        };
        check(&|update| update.schema.push('2'));
        check(&|update| update.root_hash.push('0'));
        check(&|update| update.root_hash = "CD".repeat(32));
        check(&|update| update.root.bytes = 0);
        check(&|update| update.verity.bytes = PART_BYTES_MAX + 1);
        check(&|update| update.uki.sha256.clear());
        assert!(Update::parse(&vec![b' '; UPDATE_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn an_entry_is_named_for_version_and_root() {
        assert_eq!(update().entry(), "casemate-2-cdcdcdcdcdcdcdcd");
    }
}
