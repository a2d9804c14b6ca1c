//! The serial console: what a person at the machine would read.
//!
//! Invariants: text is only appended; a search by [`Transcript::advance`] never looks back before the last
//! match; at most [`CONSOLE_BYTES_MAX`] are kept.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most console text that is read from one boot.
pub const CONSOLE_BYTES_MAX: usize = 16 << 20;

/// The guest's kernel says so when the emulator, on a busy host, lost a timer interrupt of one of its processors: the
/// machine stands still, whatever it boots.
pub const LOST_TIMER: &str = "kthread timer wakeup didn't happen";
/// After one of these nothing good follows: a wait for anything else ends at once.
/// "Boot failed" is our emergency.service.
pub const FATAL: &[&str] =
    &["Kernel panic", "Access Denied", "emergency mode", "Boot failed", LOST_TIMER];

/// Failures of the console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The serial log could not be read.
    #[error("cannot read the serial log {path}: {cause}")]
    Read {
        /// The log.
        path: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// The guest writes without end.
    #[error(
        "the serial log {path} is over {CONSOLE_BYTES_MAX} bytes: the guest writes without end"
    )]
    TooLong {
        /// The log.
        path: PathBuf,
    },
}

/// Console text without terminal control sequences.
#[derive(Debug, Default)]
pub struct Transcript {
    text: String,
    /// Everything before it was matched already.
    mark: usize,
    escape: Escape,
    /// Bytes of an unfinished UTF-8 character.
    partial: Vec<u8>,
}

/// Where in a control sequence (ECMA-48) the input is.
#[derive(Debug, Default, Clone, Copy)]
enum Escape {
    #[default]
    None,
    Started,
    /// `ESC [ … final`
    Control,
    /// `ESC ] … BEL`, or `ESC \`
    Text,
}

impl Transcript {
    /// Appends raw console bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.escape = match (self.escape, byte) {
                // A sequence that nobody ends must not swallow the rest of the console.
                (_, b'\n') => {
                    self.partial.push(byte);
                    Escape::None
                }
                (_, 0x1b) => Escape::Started,
                (Escape::Started, b'[') => Escape::Control,
                (Escape::Started, b']') => Escape::Text,
                (Escape::Control, 0x40..=0x7e) | (Escape::Text, 7) | (Escape::Started, _) => {
                    Escape::None
                }
                (Escape::None, _) => {
                    self.partial.push(byte);
                    Escape::None
                }
                (within, _) => within,
            };
        }
        self.take_whole_characters();
    }

    fn take_whole_characters(&mut self) {
        let mut bytes = std::mem::take(&mut self.partial);
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
        {
            self.partial = bytes.split_off(error.valid_up_to());
        }
        self.text.extend(String::from_utf8_lossy(&bytes).chars().filter(|&c| c != '\r'));
    }

    /// All text so far.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first whole line with `pattern` in it, wherever the mark is.
    #[must_use]
    pub fn find(&self, pattern: &str) -> Option<&str> {
        whole_lines(&self.text).map(|(_, line)| line).find(|line| line.contains(pattern))
    }

    /// The first whole line after the mark that holds one of `patterns`, with the pattern's index; moves the
    /// mark behind that line.
    pub fn advance(&mut self, patterns: &[&str]) -> Option<(usize, String)> {
        for (end, line) in whole_lines(&self.text[self.mark..]) {
            if let Some(index) = patterns.iter().position(|pattern| line.contains(pattern)) {
                let line = line.to_owned();
                self.mark += end;
                return Some((index, line));
            }
        }
        None
    }

    /// A line after the mark that holds one of [`FATAL`].
    #[must_use]
    pub fn fatal(&self) -> Option<&str> {
        self.text[self.mark..].lines().find(|line| FATAL.iter().any(|fatal| line.contains(fatal)))
    }
}

/// Lines that ended, each with the offset behind its line feed.
fn whole_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).scan(0, |end, line| {
        *end += line.len();
        Some((*end, line.trim_end()))
    })
}

/// The serial log of one boot, read while QEMU writes it.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    file: Option<File>,
    bytes_read: usize,
    /// What was read so far.
    pub transcript: Transcript,
}

impl Console {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, file: None, bytes_read: 0, transcript: Transcript::default() }
    }

    /// The serial log.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what the guest has written since, and returns it raw.
    pub fn poll(&mut self) -> Result<Vec<u8>, ConsoleError> {
        let read_error = |cause| ConsoleError::Read { path: self.path.clone(), cause };
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Ok(file) => Some(file),
                // QEMU makes it when it starts.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(read_error(error)),
            };
        }
        let mut fresh = Vec::new();
        if let Some(file) = &mut self.file {
            let room = (CONSOLE_BYTES_MAX - self.bytes_read) as u64;
            file.take(room).read_to_end(&mut fresh).map_err(read_error)?;
        }
        self.bytes_read += fresh.len();
        if self.bytes_read >= CONSOLE_BYTES_MAX {
            return Err(ConsoleError::TooLong { path: self.path.clone() });
        }
        self.transcript.push(&fresh);
        Ok(fresh)
    }

    /// The last lines, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        crate::process::last_lines(self.transcript.text(), 15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(pieces: &[&[u8]]) -> Transcript {
        let mut transcript = Transcript::default();
        for piece in pieces {
            transcript.push(piece);
        }
        transcript
    }

    #[test]
    fn control_sequences_are_dropped_even_when_cut() {
        let t =
            transcript(&[b"\x1b[0;3", b"2m[  OK  ]\x1b", b"[0m Star\x1b]0;title\x07ted\r\n\x1bMx"]);
        assert_eq!(t.text(), "[  OK  ] Started\nx");
        assert_eq!(transcript(&[b"\x1b[!pa\x1b]104\nb"]).text(), "a\nb", "ended by the line");
    }

    #[test]
    fn characters_may_be_cut_and_bad_bytes_do_not_hurt() {
        assert_eq!(transcript(&[b"d\xc3", b"\xa9j\xc3", b"\xa0\n"]).text(), "déjà\n");
        assert_eq!(transcript(&[b"a\xffb\n"]).text(), "a\u{fffd}b\n");
    }

    #[test]
    fn advance_takes_whole_lines_in_order_and_never_looks_back() {
        let mut t = transcript(&[b"agentd: attestation key 00ab\nagentd: ready\nagentd: attes"]);
        assert_eq!(t.advance(&["nothing", "ready"]), Some((1, "agentd: ready".to_owned())));
        assert_eq!(
            t.advance(&["attestation key"]),
            None,
            "before the mark, and an unfinished line"
        );
        assert_eq!(t.find("attestation key"), Some("agentd: attestation key 00ab"));
        t.push(b"tation key 00cd\n");
        assert_eq!(
            t.advance(&["attestation key"]),
            Some((0, "agentd: attestation key 00cd".into()))
        );
    }

    #[test]
    fn fatal_lines_are_seen_after_the_mark_only() {
        let mut t = transcript(&[b"BdsDxe: failed to load: Access Denied\n"]);
        assert!(t.fatal().is_some());
        t.advance(&["Access Denied"]).unwrap();
        assert_eq!(t.fatal(), None);
        t.push(b"Kernel panic - not sync");
        assert_eq!(t.fatal(), Some("Kernel panic - not sync"), "an unfinished line counts");
    }

    #[test]
    fn the_log_is_read_while_it_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        let mut console = Console::new(path.clone());
        assert_eq!(console.poll().unwrap(), b"");
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(console.poll().unwrap(), b"one\n");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(console.poll().unwrap(), b"two\n");
        assert_eq!(console.transcript.text(), "one\ntwo\n");
    }
}
