//! One line per event on standard error, which the journal keeps.

use std::fmt::Arguments;
use std::io::Write;

/// Writes one line. Control characters of what was found in files are escaped, so that nothing can forge a
/// second line.
pub fn line(text: Arguments<'_>) {
    let text = text.to_string();
    let mut line = String::with_capacity(text.len() + 9);
    line.push_str("engine: ");
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    match std::io::stderr().write_all(line.as_bytes()) {
        // Without a journal there is nobody to tell.
        Ok(()) | Err(_) => {}
    }
}
