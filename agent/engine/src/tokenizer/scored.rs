//! The SentencePiece way (`tokenizer.ggml.model = llama`): of all neighbours that are a token together, those of the
//! highest score are merged first, the leftmost among equals; characters that are no token become their bytes.
//!
//! Invariant: only ordinary tokens are known here, so no text becomes a control token.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

/// Stands for a space in the vocabulary.
pub(super) const SPACE: char = '\u{2581}';

/// An encoder by scores.
#[derive(Debug)]
pub(super) struct Scored {
    /// Number and score of each ordinary token.
    tokens: HashMap<String, (u32, f32)>,
    /// The token of each byte.
    bytes: Vec<u32>,
    /// Whether a text begins with a space that it does not have.
    space_first: bool,
}

/// A part of the text, and its living neighbours.
struct Part {
    start: usize,
    /// 0 once it is merged into its left neighbour.
    bytes: usize,
    left: Option<usize>,
    right: Option<usize>,
}

/// Two neighbours that are a token together; the greatest is merged first.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both when they were found; it is stale if they have changed since.
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Scored {
    /// An encoder of 256 `bytes` and of ordinary `tokens`, none of whose scores is NaN.
    pub(super) fn new(
        tokens: HashMap<String, (u32, f32)>,
        bytes: [u32; 256],
        space_first: bool,
    ) -> Self {
        Self { tokens, bytes: bytes.to_vec(), space_first }
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let mut spaced = String::with_capacity(text.len() * 2);
        if self.space_first && !text.is_empty() {
            spaced.push(SPACE);
        }
        spaced.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut parts: Vec<Part> = spaced
            .char_indices()
            .enumerate()
            .map(|(at, (start, c))| Part {
                start,
                bytes: c.len_utf8(),
                left: at.checked_sub(1),
                right: Some(at + 1).filter(|_| start + c.len_utf8() < spaced.len()),
            })
            .collect();
        self.merge(&spaced, &mut parts);
        let mut tokens = Vec::new();
        for part in parts.iter().filter(|part| part.bytes > 0) {
            let text = &spaced[part.start..part.start + part.bytes];
            match self.tokens.get(text) {
                Some((token, _)) => tokens.push(*token),
                None => tokens.extend(text.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
        }
        tokens
    }

    fn merge(&self, text: &str, parts: &mut [Part]) {
        let mut pairs = BinaryHeap::new();
        for at in 0..parts.len() {
            pairs.extend(self.pair(text, parts, Some(at), parts[at].right));
        }
        while let Some(Pair { left, right, bytes, .. }) = pairs.pop() {
            let fresh = parts[left].bytes > 0 && parts[right].bytes > 0;
            if !fresh || parts[left].bytes + parts[right].bytes != bytes {
                continue;
            }
            let beyond = parts[right].right;
            parts[right].bytes = 0;
            parts[left].bytes = bytes;
            parts[left].right = beyond;
            if let Some(beyond) = beyond {
                parts[beyond].left = Some(left);
            }
            pairs.extend(self.pair(text, parts, parts[left].left, Some(left)));
            pairs.extend(self.pair(text, parts, Some(left), beyond));
        }
    }

    fn pair(
        &self,
        text: &str,
        parts: &[Part],
        left: Option<usize>,
        right: Option<usize>,
    ) -> Option<Pair> {
        let (left, right) = (left?, right?);
        let bytes = parts[left].bytes + parts[right].bytes;
        let start = parts[left].start;
        let (_, score) = self.tokens.get(&text[start..start + bytes])?;
        Some(Pair { score: *score, left, right, bytes })
    }
}
