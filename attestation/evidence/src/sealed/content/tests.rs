//! What was encrypted comes back, and nothing else does.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use super::*;

const FULL: usize = CHUNK_BYTES + TAG_BYTES;

fn key(byte: u8) -> ContentKey {
    ContentKey::parse(&[byte; 32]).unwrap()
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| [at / 251, at].map(|part| part.to_le_bytes()[0]))
        .map(|[a, b]| a ^ b)
        .collect()
}

fn encrypt(name: &str, plain: &[u8]) -> Vec<u8> {
    let mut encrypted = Vec::new();
    Encryptor::new(&key(7), name, plain).read_to_end(&mut encrypted).unwrap();
    encrypted
}

fn decrypt(key: &ContentKey, name: &str, encrypted: &[u8]) -> Result<Vec<u8>, ContentError> {
    let mut plain = Vec::new();
    let mut decryptor = Decryptor::new(key, name, encrypted);
    match decryptor.read_to_end(&mut plain) {
        Ok(_) => Ok(plain),
        Err(error) => {
            // It does not pass for the end of the file when it is asked again.
            assert!(decryptor.read(&mut [0; 9]).is_err() && decryptor.read(&mut [0; 9]).is_err());
            Err(error.downcast().unwrap())
        }
    }
}

/// Refused at `chunk`.
#[track_caller]
fn check_refused(encrypted: &[u8], chunk: u64) {
    assert_eq!(decrypt(&key(7), "w", encrypted), Err(ContentError::Chunk { chunk }));
}

#[test]
fn every_length_around_a_chunk_comes_back() {
    for bytes in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 150_000] {
        let plain = content(bytes);
        let encrypted = encrypt("w", &plain);
        assert_eq!(plain_bytes(encrypted.len() as u64), Ok(bytes as u64));
        assert_eq!(decrypt(&key(7), "w", &encrypted).unwrap(), plain, "{bytes} bytes");
        let shown = encrypted.windows(32).any(|window| bytes > 32 && window == &plain[..32]);
        assert!(!shown, "{bytes} bytes");
    }
}

#[test]
fn a_reader_that_gives_single_bytes_gives_the_same() {
    struct Slow<'a>(&'a [u8]);
    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let few = into.len().min(1);
            self.0.read(&mut into[..few])
        }
    }
    let plain = content(CHUNK_BYTES + 9);
    let mut encrypted = Vec::new();
    Encryptor::new(&key(7), "w", Slow(&plain)).read_to_end(&mut encrypted).unwrap();
    assert_eq!(encrypted, encrypt("w", &plain));
}

#[test]
fn a_file_that_is_cut_is_refused_at_every_border() {
    let encrypted = encrypt("w", &content(2 * CHUNK_BYTES + 9));
    check_refused(&encrypted[..FULL], 0);
    check_refused(&encrypted[..2 * FULL], 1);
    check_refused(&encrypted[..encrypted.len() - 1], 2);
    check_refused(&encrypted[..2 * FULL + TAG_BYTES], 2);
    check_refused(&[], 0);
    check_refused(&[encrypted.clone(), vec![0]].concat(), 2);
    // A last chunk that became a middle one.
    check_refused(&[&encrypted[2 * FULL..], &encrypted[..]].concat(), 0);
}

#[test]
fn chunks_have_their_places() {
    let mut encrypted = encrypt("w", &content(3 * CHUNK_BYTES));
    let (first, rest) = encrypted.split_at_mut(FULL);
    first.swap_with_slice(&mut rest[..FULL]);
    check_refused(&encrypted, 0);
}

#[test]
fn every_flipped_bit_is_seen() {
    let encrypted = encrypt("w", &content(CHUNK_BYTES + 3));
    for at in [0, 1, FULL - 1, FULL, FULL + 2, FULL + 3, encrypted.len() - 1] {
        let mut flipped = encrypted.clone();
        flipped[at] ^= 0x80;
        check_refused(&flipped, (at / FULL) as u64);
    }
}

#[test]
fn another_name_or_key_opens_nothing() {
    let encrypted = encrypt("w", b"weights");
    let refused = Err(ContentError::Chunk { chunk: 0 });
    assert_eq!(decrypt(&key(7), "v", &encrypted), refused);
    assert_eq!(decrypt(&key(7), "w\0", &encrypted), refused);
    assert_eq!(decrypt(&key(8), "w", &encrypted), refused);
    assert_ne!(encrypt("v", b"weights"), encrypted);
}

#[test]
fn lengths_that_no_encrypted_file_has_are_refused() {
    for found in [0, 1, 15, FULL as u64 + 1, FULL as u64 + 16, 2 * FULL as u64 + 16] {
        assert_eq!(plain_bytes(found), Err(ContentError::Length { found }));
    }
    assert_eq!(plain_bytes(16), Ok(0));
    assert_eq!(plain_bytes(FULL as u64 + 17), Ok(CHUNK_BYTES as u64 + 1));
    assert!(plain_bytes(u64::MAX).is_ok_and(|plain| plain < u64::MAX));
}

#[test]
fn a_medium_that_fails_is_not_called_damaged() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("unplugged"))
        }
    }
    let error = Decryptor::new(&key(7), "w", Broken).read(&mut [0; 9]).unwrap_err();
    assert_eq!(error.to_string(), "unplugged");
    assert!(error.downcast::<ContentError>().is_err());
}

#[test]
fn a_key_has_32_bytes_and_is_not_shown() {
    assert!(ContentKey::parse(&[0; 31]).is_none() && ContentKey::parse(&[0; 33]).is_none());
    assert_eq!(format!("{:?}", key(0x5e)), "ContentKey(..)");
}
