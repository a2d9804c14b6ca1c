//! JSON files of ours that strangers may have written: bounded, of one schema, with fields that name machines and disks.
//! What an error says is what was found and what was expected.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde::de::DeserializeOwned;

/// Most characters of a reader's message that are repeated.
const MESSAGE_CHARS_MAX: usize = 200;
/// Most characters of another schema that are repeated.
const SCHEMA_CHARS_MAX: usize = 80;

/// Reads a file of at most `bytes_max` bytes whose schema, `schema_of` it, is `expected`.
pub(crate) fn read<T: DeserializeOwned>(
    file: &[u8],
    bytes_max: usize,
    expected: &str,
    schema_of: fn(&T) -> &str,
) -> Result<T, String> {
    if file.len() > bytes_max {
        return Err(format!("{} bytes; at most {bytes_max} are read", file.len()));
    }
    let value: T = serde_json::from_slice(file)
        .map_err(|error| error.to_string().chars().take(MESSAGE_CHARS_MAX).collect::<String>())?;
    let found = schema_of(&value);
    if found != expected {
        let found: String = found.chars().take(SCHEMA_CHARS_MAX).collect();
        return Err(format!("schema {found:?}; {expected:?} is expected"));
    }
    Ok(value)
}

/// Checks that `text` is so many bytes in hex.
pub(crate) fn check_hex(field: &str, text: &str, bytes: usize) -> Result<(), String> {
    if text.bytes().all(is_digit) && text.len() == bytes.saturating_mul(2) {
        return Ok(());
    }
    Err(format!("{field} is not {bytes} bytes in lower-case hex"))
}

/// Checks that `text` has the form of a UUID, as a LUKS2 header has it.
pub(crate) fn check_uuid(field: &str, text: &str) -> Result<(), String> {
    if text.len() == 36 && text.bytes().all(|byte| is_digit(byte) || byte == b'-') {
        return Ok(());
    }
    Err(format!("{field} is no UUID in lower case"))
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}
