//! C2SP tlog-checkpoint in a C2SP signed-note.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::tree::{Hash, leaf_hash, verify_inclusion};
use super::{LedgerError, Record};

/// Origin of an appliance's ledger: this, then the TPM Name of its attestation key in hex.
pub const ORIGIN_PREFIX: &str = "casemate-ledger/";
/// Longest note that is read: [`NOTE_SIGNATURES_MAX`] ordinary signatures fit.
pub const NOTE_BYTES_MAX: usize = 8192;
/// Most signature lines; signed-note asks verifiers to accept 16.
pub const NOTE_SIGNATURES_MAX: usize = 16;

/// Bytes of the key ID before each signature.
const KEY_ID_BYTES: usize = 4;

/// Head of a ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which ledger: [`ORIGIN_PREFIX`] and the attestation key's Name.
    pub origin: String,
    /// Records in it.
    pub size: u64,
    /// Root of its tree.
    pub root: Hash,
}

impl Checkpoint {
    /// The text that is signed, final newline included.
    #[must_use]
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// Reads a note and checks the signature of the ledger's own key: exactly one line must be in the
    /// origin's name, and `verify(message, signature)` judges it. Lines in other names are cosignatures
    /// of witnesses and are not judged. The key ID is a hint and is not judged either. Whether the
    /// origin is the expected one is for the caller to check.
    ///
    /// # Errors
    /// [`LedgerError::Note`] if it is no such note, [`LedgerError::NoteSignature`] if `verify` says no.
    pub fn parse(
        note: &str,
        verify: impl FnOnce(&[u8], &[u8]) -> bool,
    ) -> Result<Self, LedgerError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(refused(format!(
                "{} bytes; at most {NOTE_BYTES_MAX} are read",
                note.len()
            )));
        }
        if note.chars().any(|c| c.is_ascii_control() && c != '\n') {
            return Err(refused("has a control character".to_owned()));
        }
        let (text, signatures) = note
            .rsplit_once("\n\n")
            .ok_or_else(|| refused("no empty line before the signatures".to_owned()))?;
        let checkpoint = Self::parse_text(text)?;
        let signature = own_signature(signatures, &checkpoint.origin)?;
        // Equal to the note's text with its newline, since `parse_text` admits one spelling only.
        if !verify(checkpoint.body().as_bytes(), &signature) {
            return Err(LedgerError::NoteSignature { origin: checkpoint.origin });
        }
        Ok(checkpoint)
    }

    /// Reads `origin\nsize\nroot` in the one spelling that [`Self::body`] writes.
    fn parse_text(text: &str) -> Result<Self, LedgerError> {
        let lines: Vec<_> = text.splitn(4, '\n').collect();
        let [origin, size, root] = lines.as_slice() else {
            return Err(refused(format!("{} lines of text or more; expected 3", lines.len())));
        };
        check_key_name(origin)?;
        let size = size
            .parse()
            .map_err(|_| refused(format!("tree size {size:?} is not a decimal number")))?;
        let root = STANDARD
            .decode(root)
            .ok()
            .and_then(|bytes| Hash::try_from(bytes).ok())
            .ok_or_else(|| refused(format!("root {root:?} is not base64 of 32 bytes")))?;
        let checkpoint = Self { origin: (*origin).to_owned(), size, root };
        if checkpoint.body().trim_end() != text {
            return Err(refused("written in another spelling than the canonical one".to_owned()));
        }
        Ok(checkpoint)
    }

    /// Opens a record: proves that these exact bytes are at `index` under this checkpoint, and reads
    /// them.
    ///
    /// # Errors
    /// [`LedgerError`] names the index where it goes wrong.
    pub fn open(&self, index: u64, record: &str, proof: &[Hash]) -> Result<Record, LedgerError> {
        verify_inclusion(leaf_hash(record.as_bytes()), index, self.size, proof, self.root)?;
        let record = Record::parse(record)?;
        if record.seq != index {
            return Err(LedgerError::Sequence { index, seq: record.seq });
        }
        Ok(record)
    }
}

/// The note: `body` and one signature line.
#[must_use]
pub fn sign_note(body: &str, key_name: &str, key_id: [u8; 4], signature: &[u8]) -> String {
    let line = STANDARD.encode([key_id.as_slice(), signature].concat());
    format!("{body}\n\u{2014} {key_name} {line}\n")
}

/// Key ID of an ECDSA key in a note: signed-note, signature type 0x02.
#[must_use]
pub fn ecdsa_key_id(spki_der: &[u8]) -> [u8; KEY_ID_BYTES] {
    let [a, b, c, d, ..]: Hash = Sha256::digest(spki_der).into();
    [a, b, c, d]
}

fn own_signature(lines: &str, origin: &str) -> Result<Vec<u8>, LedgerError> {
    let Some(lines) = lines.strip_suffix('\n') else {
        return Err(refused("the last line has no newline".to_owned()));
    };
    let mut own = None;
    for (count, line) in lines.split('\n').enumerate() {
        if count >= NOTE_SIGNATURES_MAX {
            return Err(refused(format!("more than {NOTE_SIGNATURES_MAX} signatures")));
        }
        let (name, signature) = signature_line(line)?;
        if name == origin && own.replace(signature).is_some() {
            return Err(refused(format!("two signatures in the name of {origin:?}")));
        }
    }
    own.ok_or_else(|| refused(format!("no signature in the name of the origin {origin:?}")))
}

fn signature_line(line: &str) -> Result<(&str, Vec<u8>), LedgerError> {
    let malformed = || refused(format!("signature line {line:?} is malformed"));
    let rest = line.strip_prefix("\u{2014} ").ok_or_else(malformed)?;
    let (name, encoded) = rest.split_once(' ').ok_or_else(malformed)?;
    check_key_name(name)?;
    let bytes = STANDARD.decode(encoded).map_err(|_| malformed())?;
    match bytes.split_at_checked(KEY_ID_BYTES) {
        Some((_key_id, signature)) if !signature.is_empty() => Ok((name, signature.to_vec())),
        _ => Err(malformed()),
    }
}

/// signed-note: "Key names MUST be non-empty and MUST NOT contain any Unicode spaces or plus".
fn check_key_name(name: &str) -> Result<(), LedgerError> {
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c == '+') {
        return Err(refused(format!("{name:?} is not a key name")));
    }
    Ok(())
}

fn refused(reason: String) -> LedgerError {
    LedgerError::Note { reason }
}
