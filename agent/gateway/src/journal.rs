//! Log lines on standard error, one per event: `gateway: EVENT key="value"…`.
//!
//! Invariant: a value never starts a new line, never holds a control character, and is at most
//! [`LOG_VALUE_BYTES_MAX`] long, whoever chose it. Callers never pass prompt or answer text.

use std::fmt::Display;
use std::io::Write as _;

use crate::limits::LOG_VALUE_BYTES_MAX;

/// Writes one line.
pub fn log(event: &str, fields: &[(&str, &dyn Display)]) {
    let line = line(event, fields);
    // Nobody is left to tell when the journal itself is gone; `eprintln!` would panic.
    drop(std::io::stderr().write_all(line.as_bytes()));
}

fn line(event: &str, fields: &[(&str, &dyn Display)]) -> String {
    let mut line = format!("gateway: {event}");
    for (key, value) in fields {
        line.push_str(&format!(" {key}=\"{}\"", printable(&value.to_string())));
    }
    line.push('\n');
    line
}

/// Escapes quotes, backslashes and whatever could change how a terminal or a log reader shows the
/// line (control and bidirectional characters); cuts at [`LOG_VALUE_BYTES_MAX`].
#[must_use]
pub fn printable(value: &str) -> String {
    let mut clean = String::new();
    for character in value.chars() {
        let mut piece = String::new();
        if matches!(character, '"' | '\\') || is_invisible(character) {
            piece.extend(character.escape_default());
        } else {
            piece.push(character);
        }
        if clean.len() + piece.len() > LOG_VALUE_BYTES_MAX {
            clean.push('…');
            break;
        }
        clean.push_str(&piece);
    }
    clean
}

fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A chain of causes on one line, as `anyhow` prints it.
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        // Messages of wrapped errors (`#[from]`) often include their source already.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_line_or_drive_a_terminal() {
        let line = line("refused", &[("client", &"a\"\n\u{1b}[2Jgateway: chat\u{202e}")]);
        assert_eq!(line, "gateway: refused client=\"a\\\"\\n\\u{1b}[2Jgateway: chat\\u{202e}\"\n");
    }

    #[test]
    fn a_long_value_is_cut() {
        let cut = printable(&"é".repeat(10_000));
        assert!(cut.ends_with('…') && cut.len() <= LOG_VALUE_BYTES_MAX + '…'.len_utf8());
    }
}
