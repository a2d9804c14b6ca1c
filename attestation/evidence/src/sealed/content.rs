//! Encrypted files: AES-256-GCM over chunks of 64 KiB in the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár,
//! "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015), a key for each name.
//!
//! Invariants: a [`Decryptor`] gives out no byte of a chunk that did not open under the file's name and the chunk's
//! place, and ends only after the chunk that was encrypted as the last; neither side holds more than two chunks.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use std::io::{self, Read};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead;
use aes_gcm::aead::stream::{DecryptorBE32, EncryptorBE32};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes of a file in one chunk; the last one has what is left, and only an empty file has an empty one.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Bytes that encryption adds to a chunk.
pub const TAG_BYTES: usize = 16;
/// Bytes of the key that all files' keys are derived from.
pub const CONTENT_KEY_BYTES: usize = 32;

/// First bytes of HKDF's `info`; the file's name follows.
const INFO: &[u8] = b"casemate-sealed-file-v1\0";
/// STREAM's constant part of the nonces: each key encrypts one file once, so nothing has to be told apart here.
const NONCE: [u8; 7] = [0; 7];

/// A file cannot be decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// A chunk did not open.
    #[error(
        "does not open with the bundle's key at chunk {chunk} (of {CHUNK_BYTES} bytes, from 0): it is damaged, cut, \
         or was not encrypted under this name with this key; pack the medium again"
    )]
    Chunk {
        /// Its number.
        chunk: u64,
    },
    /// No file has this length when it is encrypted.
    #[error(
        "has {found} bytes, a length that no encrypted file has: it is cut or not encrypted; pack the medium again"
    )]
    Length {
        /// Bytes on the medium.
        found: u64,
    },
}

/// The key of a bundle's content: fresh for each medium, gone from memory when it is dropped.
#[derive(Clone)]
pub struct ContentKey(Zeroizing<[u8; CONTENT_KEY_BYTES]>);

/// Nothing of a key goes into a log.
impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey(..)")
    }
}

impl ContentKey {
    /// What a TPM unsealed, if it has a key's length.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; CONTENT_KEY_BYTES]);
        if bytes.len() != key.len() {
            return None;
        }
        key.copy_from_slice(bytes);
        Some(Self(key))
    }

    pub(super) fn new(bytes: &[u8; CONTENT_KEY_BYTES]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// The key of the file called `name`: HKDF with SHA-256, RFC 5869.
    #[expect(clippy::expect_used, reason = "HKDF gives up to 255 digests, and this asks for one")]
    fn of_file(&self, name: &str) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, self.0.as_slice())
            .expand_multi_info(&[INFO, name.as_bytes()], key.as_mut_slice())
            .expect("32 bytes");
        key
    }
}

/// Length of a file that has `encrypted` bytes on the medium.
///
/// # Errors
/// [`ContentError::Length`] if no file has that length there.
pub fn plain_bytes(encrypted: u64) -> Result<u64, ContentError> {
    let (plain, tag) = (CHUNK_BYTES as u64, TAG_BYTES as u64);
    let chunk = plain.saturating_add(tag);
    let (whole, rest) = (encrypted.div_euclid(chunk), encrypted.rem_euclid(chunk));
    let last = match (whole, rest) {
        (1.., 0) => Some(0),
        (0, rest) => rest.checked_sub(tag),
        // An empty chunk after others is never written.
        (_, rest) => rest.checked_sub(tag).filter(|&bytes| bytes > 0),
    };
    // Less than `encrypted`, so nothing overflows.
    let bytes = last.map(|last| whole.saturating_mul(plain).saturating_add(last));
    bytes.ok_or(ContentError::Length { found: encrypted })
}

/// Reads a file and gives out what goes onto the medium.
pub struct Encryptor<R>(Chunked<R, EncryptorBE32<Aes256Gcm>>);

impl<R: Read> Encryptor<R> {
    /// Encrypts `from` as the file called `name`. Nothing else may be encrypted under that name with this key.
    pub fn new(key: &ContentKey, name: &str, from: R) -> Self {
        let key = key.of_file(name);
        Self(Chunked::new(from, EncryptorBE32::new(key.as_ref().into(), &NONCE.into())))
    }
}

impl<R: Read> Read for Encryptor<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

/// Reads what lies on the medium and gives out the file. What does not open is an error of kind
/// [`io::ErrorKind::InvalidData`] with a [`ContentError`] inside, and stays one.
pub struct Decryptor<R>(Chunked<R, DecryptorBE32<Aes256Gcm>>);

impl<R: Read> Decryptor<R> {
    /// Decrypts `from`, which was encrypted as the file called `name`.
    pub fn new(key: &ContentKey, name: &str, from: R) -> Self {
        let key = key.of_file(name);
        Self(Chunked::new(from, DecryptorBE32::new(key.as_ref().into(), &NONCE.into())))
    }
}

impl<R: Read> Read for Decryptor<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl<R> fmt::Debug for Encryptor<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encryptor(..)")
    }
}

impl<R> fmt::Debug for Decryptor<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decryptor(..)")
    }
}

/// One direction of STREAM.
trait Direction: Sized {
    /// Bytes of every chunk but the last, before it is changed.
    const BYTES: usize;
    fn next(&mut self, chunk: &mut Vec<u8>) -> Result<(), aead::Error>;
    fn last(self, chunk: &mut Vec<u8>) -> Result<(), aead::Error>;
}

impl Direction for EncryptorBE32<Aes256Gcm> {
    const BYTES: usize = CHUNK_BYTES;

    fn next(&mut self, chunk: &mut Vec<u8>) -> Result<(), aead::Error> {
        self.encrypt_next_in_place(&[], chunk)
    }

    fn last(self, chunk: &mut Vec<u8>) -> Result<(), aead::Error> {
        self.encrypt_last_in_place(&[], chunk)
    }
}

impl Direction for DecryptorBE32<Aes256Gcm> {
    const BYTES: usize = CHUNK_BYTES.saturating_add(TAG_BYTES);

    fn next(&mut self, chunk: &mut Vec<u8>) -> Result<(), aead::Error> {
        self.decrypt_next_in_place(&[], chunk)
    }

    fn last(self, chunk: &mut Vec<u8>) -> Result<(), aead::Error> {
        self.decrypt_last_in_place(&[], chunk)
    }
}

/// Where a [`Chunked`] is.
enum State<D> {
    /// There are chunks to come.
    Open(D),
    /// The last one was changed.
    Ended,
    /// One did not open.
    Failed(ContentError),
}

/// Changes what it reads chunk by chunk. Which chunk is the last is seen by one byte that follows or does not.
struct Chunked<R, D> {
    from: R,
    state: State<D>,
    /// Read and not changed yet: up to one chunk and one byte.
    ahead: Vec<u8>,
    /// Changed, given out up to `at`.
    chunk: Vec<u8>,
    at: usize,
    number: u64,
}

impl<R: Read, D: Direction> Chunked<R, D> {
    fn new(from: R, direction: D) -> Self {
        let (ahead, chunk, state) = (Vec::new(), Vec::new(), State::Open(direction));
        Self { from, state, ahead, chunk, at: 0, number: 0 }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.chunk.len() {
            self.advance()?;
        }
        let left = self.chunk.get(self.at..).unwrap_or_default();
        let count = left.len().min(into.len());
        into.iter_mut().zip(left).for_each(|(to, from)| *to = *from);
        self.at = self.at.saturating_add(count);
        Ok(count)
    }

    /// Takes the next chunk; leaves an empty one at the end.
    fn advance(&mut self) -> io::Result<()> {
        (self.chunk, self.at) = (Vec::new(), 0);
        let mut direction = match std::mem::replace(&mut self.state, State::Ended) {
            State::Open(direction) => direction,
            State::Ended => return Ok(()),
            State::Failed(error) => return Err(self.fail(error)),
        };
        let wanted = D::BYTES.saturating_add(1).saturating_sub(self.ahead.len());
        self.ahead.reserve_exact(wanted);
        if let Err(error) = (&mut self.from).take(wanted as u64).read_to_end(&mut self.ahead) {
            // What was read stays ahead: the caller may go on.
            self.state = State::Open(direction);
            return Err(error);
        }
        let mut chunk = std::mem::take(&mut self.ahead);
        let changed = if chunk.len() > D::BYTES {
            self.ahead = chunk.split_off(D::BYTES);
            let changed = direction.next(&mut chunk);
            self.state = State::Open(direction);
            changed
        } else {
            direction.last(&mut chunk)
        };
        if changed.is_err() {
            return Err(self.fail(ContentError::Chunk { chunk: self.number }));
        }
        (self.chunk, self.number) = (chunk, self.number.saturating_add(1));
        Ok(())
    }

    fn fail(&mut self, error: ContentError) -> io::Error {
        self.state = State::Failed(error);
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

#[cfg(test)]
mod tests;
