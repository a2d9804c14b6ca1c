//! Lines for the operator. The unit sends standard error to the journal and to the console.

/// Most characters of one line: a hostile medium chooses file names, not how much is printed.
const LINE_CHARS_MAX: usize = 2000;

/// Prints one line.
pub(crate) fn say(text: &str) {
    eprintln!("{}: {}", env!("CARGO_BIN_NAME"), printable(text));
}

/// One line without control characters, so that nothing that is quoted moves the console's cursor.
pub(crate) fn printable(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(LINE_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(LINE_CHARS_MAX).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_bounded() {
        assert_eq!(printable("a\nb\x1b[2J"), "a\u{fffd}b\u{fffd}[2J");
        assert_eq!(printable(&"x".repeat(5000)).chars().count(), LINE_CHARS_MAX + 1);
    }
}
