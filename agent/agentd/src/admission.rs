//! From a medium to a bundle that may run: quorum, sealed copy, comparison.
//!
//! Invariant: an [`Admissible`] is a bundle whose every file is in sealed memory with the digest that the quorum
//! signed, and beside which nothing unsigned lies. Nothing of it was parsed before that but signatures.

use std::io;

use evidence::bundle::{BundleError, Differences, Found, Quorum, SignedFile, Verified, quorum};
use evidence::format::{BundleEvent, ModelCard, Policy};
use evidence::sealed::{ContentKey, Decryptor, KeyFileError, plain_bytes};

use crate::attestor::UnsealError;
use crate::medium::{Medium, MediumError, MediumFile};
use crate::rollback::RollbackError;
use crate::sealed::{SealedError, SealedFile};

/// The signed description of the model.
const CARD: &str = "casemate.json";
/// Longest such description.
const CARD_BYTES_MAX: u64 = 64 << 10;
/// Longest name of a model.
const MODEL_ID_BYTES_MAX: usize = 64;
/// Most bytes of counted signatures: they travel in every evidence file.
const SIGNATURES_BYTES_MAX: usize = 2 << 20;

/// A bundle that may be measured and run.
#[derive(Debug)]
pub(crate) struct Admissible {
    /// What will be measured.
    pub(crate) event: BundleEvent,
    /// One signature file per counted key.
    pub(crate) signatures: Vec<String>,
    /// The signed files, in the statement's order.
    pub(crate) files: Vec<(String, SealedFile)>,
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not a bundle medium.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// No quorum.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The key of its encrypted files is none.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The key of its encrypted files does not come out here.
    #[error("the bundle is encrypted: {0}")]
    Unseal(#[from] UnsealError),
    /// Other files than were signed.
    #[error(transparent)]
    Differs(#[from] Differences),
    /// A file that cannot be taken into memory.
    #[error("file {name:?} {cause}")]
    File { name: String, cause: SealedError },
    /// More files than the engine takes.
    #[error("{found} files; the engine takes {}", ipc::FDS_MAX)]
    TooManyFiles { found: usize },
    /// More bytes than the machine has room for.
    #[error("{found} bytes in {files} files; this machine has room for {max}")]
    TooLarge { found: u64, files: usize, max: u64 },
    /// Signature files that would not fit into evidence.
    #[error("{found} bytes of signatures; at most {SIGNATURES_BYTES_MAX} travel in evidence")]
    Signatures { found: usize },
    /// The description of the model is not one.
    #[error("{CARD} refused: {reason}")]
    Card { reason: String },
    /// This boot has measured another bundle.
    #[error("this boot has measured the bundle {measured}; reboot to change to {found}")]
    Another { measured: String, found: String },
    /// An older one than has run.
    #[error("{0}; a quorum can allow it once: casemate exception")]
    Rollback(RollbackError),
    /// The engine does not take it.
    #[error("the engine refused it: {reason}")]
    Engine { reason: String },
    /// What this boot has measured cannot be read back.
    #[error("this boot's bundle measurement is malformed: {0}")]
    Measured(#[from] serde_json::Error),
    /// A descriptor could not be made.
    #[error("cannot open sealed memory for reading: {0}")]
    Reader(#[from] io::Error),
}

/// Judges the signatures of a medium; `measured` is the content of this boot's bundle event, if there is one.
pub(crate) fn verify(
    medium: &Medium,
    judge: &Quorum,
    measured: Option<&str>,
) -> Result<(Verified, Vec<Vec<u8>>), Refusal> {
    let signatures = medium.signatures()?;
    let verified = judge.admit(&signatures)?;
    if let Some(measured) = measured {
        let measured = serde_json::from_str::<BundleEvent>(measured)?.bundle_digest;
        let found = hex::encode(verified.digest());
        if measured != found {
            return Err(Refusal::Another { measured, found });
        }
    }
    Ok((verified, signatures))
}

/// Takes a verified medium's files into sealed memory, decrypted if there is a key, and compares them with what was
/// signed.
pub(crate) fn admit(
    medium: &Medium,
    key: Option<&ContentKey>,
    verified: &Verified,
    signatures: &[Vec<u8>],
    policy: &Policy,
    bytes_max: u64,
) -> Result<Admissible, Refusal> {
    if verified.files().len() > ipc::FDS_MAX {
        return Err(Refusal::TooManyFiles { found: verified.files().len() });
    }
    let signatures = counted(policy, signatures)?;
    let mut files = medium.files()?;
    check_names(verified, &files)?;
    if key.is_some() {
        files.iter_mut().try_for_each(measure_content)?;
    }
    check_room(&files, bytes_max)?;
    let mut sealed = Vec::with_capacity(files.len());
    for mut file in files {
        let memory = match key {
            Some(key) => {
                let mut content = Decryptor::new(key, &file.name, &mut file.file);
                SealedFile::copy(&mut content, file.bytes)
            }
            None => SealedFile::copy(&mut file.file, file.bytes),
        };
        let memory = memory.map_err(|cause| Refusal::File { name: file.name.clone(), cause })?;
        sealed.push((file.name, memory));
    }
    verified.compare(&found(&sealed))?;
    let files = in_order(verified.files(), sealed);
    let card = card(&files)?;
    let event = BundleEvent {
        bundle_digest: hex::encode(verified.digest()),
        model_id: card.model_id,
        version: card.version,
        signers: verified.signers().to_vec(),
    };
    Ok(Admissible { event, signatures, files })
}

/// One signature file per key of the policy, so that evidence carries nothing that does not count.
fn counted(policy: &Policy, signatures: &[Vec<u8>]) -> Result<Vec<String>, Refusal> {
    let alone = Policy { threshold: 1, ..policy.clone() };
    let (mut names, mut counted, mut bytes) = (Vec::new(), Vec::new(), 0);
    for signature in signatures {
        let one = std::slice::from_ref(signature);
        let (Ok(verified), Ok(text)) = (quorum(&alone, one), str::from_utf8(signature)) else {
            continue;
        };
        if verified.signers().iter().all(|name| !names.contains(name)) {
            names.extend_from_slice(verified.signers());
            bytes += text.len();
            counted.push(text.to_owned());
        }
    }
    if bytes > SIGNATURES_BYTES_MAX {
        return Err(Refusal::Signatures { found: bytes });
    }
    Ok(counted)
}

/// Compares the names alone, so that gigabytes are not copied to find that a file is missing or extra.
fn check_names(verified: &Verified, files: &[MediumFile]) -> Result<(), Differences> {
    let as_signed = |file: &MediumFile| {
        let signed = verified.files().iter().find(|signed| signed.name == file.name);
        let sha256 = signed.map_or([0; 32], |signed| signed.sha256);
        Found { name: file.name.clone(), sha256, bytes: file.bytes }
    };
    verified.compare(&files.iter().map(as_signed).collect::<Vec<_>>())
}

/// From here on the file's length is that of its content: it is what memory must hold.
fn measure_content(file: &mut MediumFile) -> Result<(), Refusal> {
    let content = plain_bytes(file.bytes);
    file.bytes =
        content.map_err(|error| Refusal::File { name: file.name.clone(), cause: error.into() })?;
    Ok(())
}

fn check_room(files: &[MediumFile], max: u64) -> Result<(), Refusal> {
    let found = files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
    if found > max {
        return Err(Refusal::TooLarge { found, files: files.len(), max });
    }
    Ok(())
}

fn found(sealed: &[(String, SealedFile)]) -> Vec<Found> {
    sealed
        .iter()
        .map(|(name, file)| Found {
            name: name.clone(),
            sha256: file.sha256(),
            bytes: file.bytes(),
        })
        .collect()
}

/// The sealed files in the statement's order; the names were compared before.
fn in_order(
    signed: &[SignedFile],
    mut sealed: Vec<(String, SealedFile)>,
) -> Vec<(String, SealedFile)> {
    sealed.sort_by_key(|(name, _)| signed.iter().position(|file| file.name == *name));
    sealed
}

fn card(files: &[(String, SealedFile)]) -> Result<ModelCard, Refusal> {
    let refuse = |reason: String| Refusal::Card { reason };
    let (_, file) = files
        .iter()
        .find(|(name, _)| name == CARD)
        .ok_or_else(|| refuse("it is not among the signed files".to_owned()))?;
    let text = file.read(CARD_BYTES_MAX).map_err(|error| refuse(error.to_string()))?;
    let card: ModelCard =
        serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
    if !is_model_id(&card.model_id) {
        return Err(refuse(format!(
            "model_id {:?}; expected 1 to {MODEL_ID_BYTES_MAX} of a-z, 0-9, '.', '_', '-'",
            card.model_id.chars().take(MODEL_ID_BYTES_MAX).collect::<String>()
        )));
    }
    if !files.iter().any(|(name, _)| *name == card.weights) {
        return Err(refuse(format!("weights {:?} is not among the signed files", card.weights)));
    }
    Ok(card)
}

fn is_model_id(text: &str) -> bool {
    (1..=MODEL_ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(card: &str) -> Vec<(String, SealedFile)> {
        let seal = |bytes: &[u8]| SealedFile::copy(&mut &*bytes, bytes.len() as u64).unwrap();
        vec![
            ("weights.gguf".to_owned(), seal(b"weights")),
            (CARD.to_owned(), seal(card.as_bytes())),
        ]
    }

    #[test]
    fn a_card_names_a_model_and_signed_weights() {
        let text = r#"{"model_id":"smollm2-135m","version":1,"weights":"weights.gguf"}"#;
        assert_eq!(card(&files(text)).unwrap().model_id, "smollm2-135m");
    }

    #[test]
    fn a_card_that_names_neither_is_refused() {
        for text in [
            "",
            r#"{"model_id":"","version":1,"weights":"weights.gguf"}"#,
            r#"{"model_id":"Über","version":1,"weights":"weights.gguf"}"#,
            r#"{"model_id":"m","version":1,"weights":"../weights.gguf"}"#,
            r#"{"model_id":"m","version":1,"weights":"weights.gguf","extra":1}"#,
            r#"{"model_id":"m","weights":"weights.gguf"}"#,
            r#"{"model_id":"m","version":-1,"weights":"weights.gguf"}"#,
        ] {
            let error = card(&files(text)).unwrap_err();
            assert!(matches!(error, Refusal::Card { .. }), "{text}: {error}");
        }
        assert!(matches!(card(&[]), Err(Refusal::Card { .. })));
    }

    #[test]
    fn files_come_in_the_statement_s_order() {
        let signed = |name: &str| SignedFile { name: name.to_owned(), sha256: [0; 32] };
        let ordered = in_order(&[signed(CARD), signed("weights.gguf")], files("{}"));
        assert_eq!(ordered[0].0, CARD);
    }

    #[test]
    fn more_than_there_is_room_for_is_refused_before_it_is_read() {
        let file = || tempfile::tempfile().unwrap();
        let files: Vec<_> = [u64::MAX, 2]
            .map(|bytes| MediumFile { name: String::new(), bytes, file: file() })
            .into();
        assert!(matches!(check_room(&files, 1 << 40), Err(Refusal::TooLarge { .. })));
        check_room(&files[1..], 2).unwrap();
    }

    #[test]
    fn the_content_of_an_encrypted_file_is_what_needs_room() {
        let medium = |bytes| {
            let file = tempfile::tempfile().unwrap();
            MediumFile { name: "weights.gguf".to_owned(), bytes, file }
        };
        let mut file = medium(18);
        measure_content(&mut file).unwrap();
        assert_eq!(file.bytes, 2);
        check_room(&[file], 2).unwrap();
        let error = measure_content(&mut medium(2)).unwrap_err().to_string();
        assert!(error.contains("\"weights.gguf\" has 2 bytes, a length that no"), "{error}");
    }
}
