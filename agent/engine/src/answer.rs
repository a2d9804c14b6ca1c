//! Tokens to text as they come: whole characters only, up to a stop string.

use std::collections::VecDeque;

use crate::tokenizer::Tokenizer;

/// What is certain of an answer since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Text, perhaps none.
    pub text: String,
    /// How many more tokens have begun in the text so far, in the order in which they came. Those that begin behind
    /// the end of the answer are never counted.
    pub tokens: usize,
}

/// The text of one answer.
#[derive(Debug, Default)]
pub struct Answer {
    stops: Vec<String>,
    /// Bytes that may still be part of a character.
    bytes: Vec<u8>,
    /// Text that may still be the beginning of a stop string.
    held: String,
    /// Bytes of text shown.
    shown: usize,
    /// Where in the text the tokens begin that were not counted yet.
    begins: VecDeque<usize>,
    stopped: bool,
}

impl Answer {
    /// An answer that ends before the first of `stops`, none of which is empty.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// Adds a token; returns what is certain now.
    pub fn push(&mut self, token: u32, tokenizer: &Tokenizer) -> Shown {
        self.begins.push_back(self.shown + self.held.len());
        self.bytes.extend_from_slice(tokenizer.bytes(token));
        let whole = whole_characters(&self.bytes);
        let rest = self.bytes.split_off(whole);
        let whole = std::mem::replace(&mut self.bytes, rest);
        self.release(&whole, false)
    }

    /// Ends the answer; returns what was held back.
    pub fn finish(&mut self) -> Shown {
        let rest = std::mem::take(&mut self.bytes);
        self.release(&rest, true)
    }

    /// Whether a stop string was met.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    fn release(&mut self, bytes: &[u8], last: bool) -> Shown {
        if self.stopped {
            return Shown::default();
        }
        // What is no UTF-8 at all becomes U+FFFD.
        self.held.push_str(&String::from_utf8_lossy(bytes));
        let stop = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = stop {
            self.stopped = true;
            self.held.truncate(at);
        }
        let keep = if last || self.stopped { 0 } else { self.possible_stop() };
        let rest = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, rest);
        self.shown += text.len();
        // A token without text, such as a control token, begins where the next one does.
        let whole = last && !self.stopped;
        let tokens = self.begins.iter().take_while(|at| **at < self.shown || whole).count();
        self.begins.drain(..tokens);
        Shown { text, tokens }
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
            bytes.iter().map(|b| answer.push(u32::from(*b) + 3, &tokenizer).text).collect();
        pieces.push(answer.finish().text);
        (pieces, answer.stopped())
    }

    #[test]
    fn tokens_are_counted_with_the_first_of_their_text() {
        let tokenizer =
            Tokenizer::read(&Gguf::parse(&synthetic::model().build()).unwrap()).unwrap();
        let counts = |text: &str, stop: &str| {
            let mut answer = Answer::new(vec![stop.to_owned()]);
            let push = |b| answer.push(u32::from(b) + 3, &tokenizer).tokens;
            let mut counts: Vec<usize> = text.bytes().map(push).collect();
            counts.push(answer.finish().tokens);
            counts
        };
        assert_eq!(counts("aé🦀x", "\n\n"), [1, 0, 2, 0, 0, 0, 4, 1, 0]);
        assert_eq!(counts("a\nb\n", "\n\n"), [1, 0, 2, 0, 1], "held back, then shown");
        assert_eq!(counts("a\n\nb", "\n\n"), [1, 0, 0, 0, 0], "those of the stop never are");
        // A control token in the middle of an answer and at its end.
        let mut answer = Answer::new(Vec::new());
        let mut counts = [3 + 97, 1, 3 + 98, 1].map(|t| answer.push(t, &tokenizer).tokens).to_vec();
        counts.push(answer.finish().tokens);
        assert_eq!(counts, [1, 0, 2, 0, 1]);
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
