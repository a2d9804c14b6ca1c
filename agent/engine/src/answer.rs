//! Tokens to text as they come: whole characters only, up to a stop string.

use crate::tokenizer::Tokenizer;

/// The text of one answer.
#[derive(Debug)]
pub struct Answer {
    stops: Vec<String>,
    /// Bytes that may still be part of a character.
    bytes: Vec<u8>,
    /// Text that may still be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl Answer {
    /// An answer that ends before the first of `stops`, none of which is empty.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, bytes: Vec::new(), held: String::new(), stopped: false }
    }

    /// Adds a token; returns the text that is certain now, perhaps none.
    pub fn push(&mut self, token: u32, tokenizer: &Tokenizer) -> String {
        self.bytes.extend_from_slice(tokenizer.bytes(token));
        let whole = whole_characters(&self.bytes);
        let rest = self.bytes.split_off(whole);
        let whole = std::mem::replace(&mut self.bytes, rest);
        self.release(&whole, false)
    }

    /// Ends the answer; returns what was held back.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.bytes);
        self.release(&rest, true)
    }

    /// Whether a stop string was met.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    fn release(&mut self, bytes: &[u8], last: bool) -> String {
        if self.stopped {
            return String::new();
        }
        // What is no UTF-8 at all becomes U+FFFD.
        self.held.push_str(&String::from_utf8_lossy(bytes));
        let stop = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = stop {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = if last { 0 } else { self.possible_stop() };
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Bytes at the end of what is held that may begin a stop string.
    fn possible_stop(&self) -> usize {
        let begins = |stop: &String| {
            let lengths = (1..stop.len()).rev().filter(|n| stop.is_char_boundary(*n));
            lengths.into_iter().find(|n| self.held.ends_with(&stop[..*n])).unwrap_or(0)
        };
        self.stops.iter().map(begins).max().unwrap_or(0)
    }
}

/// How many of `bytes` no later byte can change: all but an unfinished character at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(_) => return bytes.len(),
            Err(error) => match error.error_len() {
                Some(bad) => at += error.valid_up_to() + bad,
                None => return at + error.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::synthetic;

    /// Feeds bytes one token each; returns the pieces, the last one from `finish`.
    fn pieces(bytes: &[u8], stops: &[&str]) -> (Vec<String>, bool) {
        let tokenizer =
            Tokenizer::read(&Gguf::parse(&synthetic::model().build()).unwrap()).unwrap();
        let mut answer = Answer::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut pieces: Vec<_> =
            bytes.iter().map(|b| answer.push(u32::from(*b) + 3, &tokenizer)).collect();
        pieces.push(answer.finish());
        (pieces, answer.stopped())
    }

    #[test]
    fn characters_come_whole() {
        let text = "é🦀x";
        let (pieces, _) = pieces(text.as_bytes(), &[]);
        assert_eq!(pieces, ["", "é", "", "", "", "🦀", "x", ""]);
    }

    #[test]
    fn what_is_no_character_is_replaced_not_held_for_ever() {
        assert_eq!(pieces(&[0xff, b'a', 0xf0, 0x9f], &[]).0, ["\u{fffd}", "a", "", "", "\u{fffd}"]);
        assert_eq!(pieces(&[0xe2, b'a'], &[]).0.concat(), "\u{fffd}a");
    }

    #[test]
    fn a_stop_string_is_found_across_tokens_and_not_shown() {
        let (shown, stopped) = pieces(b"one\n\ntwo", &["\n\n"]);
        assert!(stopped);
        assert_eq!(shown.concat(), "one");
        let (shown, stopped) = pieces(b"one\ntwo\n", &["\n\n"]);
        assert!(!stopped);
        assert_eq!(shown.concat(), "one\ntwo\n");
        assert_eq!(pieces(b"abcabd", &["abd"]).0.concat(), "abc");
        assert_eq!(pieces("aéb".as_bytes(), &["éx", "b"]).0.concat(), "aé");
    }
}
