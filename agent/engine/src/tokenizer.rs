//! Text to tokens and back, by the vocabulary inside the model's file.
//!
//! Invariant: the encoders know no control token (their vocabulary leaves them out), so text can never become one,
//! whatever it says. Of the whole words that the model's author added, text may become those of whitespace alone,
//! which indentation is made of; any other could be markup with a meaning, such as `<tool_call>`, and is encoded by its
//! parts. Control tokens and added words come from [`Tokenizer::special`] alone, which is used for the template's own
//! text.

pub(crate) mod pieces;
mod scored;

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Encoder};

use crate::constraint::{ConstraintError, Constraints};
use crate::gguf::{Gguf, GgufError, Value};
use scored::{SPACE, Scored};

/// GGUF token types (ggml, `docs/gguf.md`, `tokenizer.ggml.token_type`).
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// Longest token that a constrained answer may have, in bytes.
const SPELLING_BYTES_MAX: usize = 1024;

/// Encoder, decoder and control tokens.
#[derive(Debug)]
pub struct Tokenizer {
    way: Way,
    /// The bytes of each token; a control token has none.
    bytes: Vec<Vec<u8>>,
    /// Text of each control token.
    controls: BTreeMap<String, u32>,
    /// Text of each word that the model's author added.
    added: BTreeMap<String, u32>,
    /// Those of whitespace alone, longest first.
    blanks: Vec<(String, u32)>,
    /// Tokens that end an answer.
    ends: Vec<u32>,
    /// Begins each text.
    start: Option<u32>,
    /// What chat templates know as `bos_token` and `eos_token`; empty if the file names none.
    names: [String; 2],
    /// Whether white space after a control token belongs to it.
    control_takes_space: bool,
    constraints: OnceLock<Result<Constraints, ConstraintError>>,
}

/// How text becomes tokens.
#[derive(Debug)]
enum Way {
    /// Merges of byte pairs.
    Merges(Box<Encoder>),
    /// Merges by score.
    Scores(Scored),
}

/// Why a vocabulary is not usable.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A value is missing or has another type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A kind of tokenizer that this engine does not have.
    #[error("the tokenizer's {what} is {found:?}, supported: {supported}")]
    Unsupported {
        /// Which part.
        what: &'static str,
        /// What was found.
        found: String,
        /// What there is.
        supported: &'static str,
    },
    /// The vocabulary contradicts itself.
    #[error("the vocabulary is damaged: {problem}")]
    Damaged {
        /// What is wrong.
        problem: String,
    },
    /// The encoder failed on a text.
    #[error("a text was not encoded: {reason}")]
    Encode {
        /// What the encoder said.
        reason: String,
    },
}

fn damaged<T>(problem: String) -> Result<T, TokenizerError> {
    Err(TokenizerError::Damaged { problem })
}

impl Tokenizer {
    /// Reads the vocabulary of a file.
    ///
    /// # Errors
    /// If it is of another kind, or incomplete, or contradicts itself.
    pub fn read(gguf: &Gguf<'_>) -> Result<Self, TokenizerError> {
        let scores = match gguf.text("tokenizer.ggml.model")? {
            "gpt2" => false,
            "llama" => true,
            other => {
                let (what, found) = ("model", other.to_owned());
                let supported = "gpt2 (byte-level BPE), llama (SentencePiece)";
                return Err(TokenizerError::Unsupported { what, found, supported });
            }
        };
        let words = Words::read(gguf, scores)?;
        let count = words.bytes.len();
        let ends = ends(gguf, &words.controls, count)?;
        let start = start(gguf, scores, count)?;
        let way = if scores {
            Way::Scores(by_score(gguf, &words)?)
        } else {
            Way::Merges(Box::new(by_merges(gguf, words.ordinary, &words.added)?))
        };
        let Words { bytes, controls, added, .. } = words;
        let blank = |(text, _): &(&String, &u32)| text.chars().all(char::is_whitespace);
        let mut blanks: Vec<(String, u32)> =
            added.iter().filter(blank).map(|(text, id)| (text.clone(), *id)).collect();
        blanks.sort_by_key(|(text, id)| (usize::MAX - text.len(), *id));
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let names = ["bos", "eos"].map(|name| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = gguf.integer(&key, 0, u64::MAX).ok().and_then(|id| usize::try_from(id).ok());
            id.and_then(|id| tokens.get(id)).map_or_else(String::new, |text| (*text).to_owned())
        });
        let control_takes_space = gguf.text("general.name").is_ok_and(is_phi_3);
        Ok(Self {
            way,
            bytes,
            controls,
            added,
            blanks,
            ends,
            start,
            names,
            control_takes_space,
            constraints: OnceLock::new(),
        })
    }

    /// Encodes text; control tokens have no meaning in it. A byte that a byte-level vocabulary lacks is left out, as by
    /// the models' own tokenizers: SmolLM2 has none for U+0004 and some other control characters, nor for planes that
    /// Unicode does not use.
    ///
    /// # Errors
    /// If the encoder fails, which it has no reason to.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = Vec::new();
        let (mut done, mut at) = (0, 0);
        while at < text.len() && !self.blanks.is_empty() {
            let rest = &text[at..];
            match self.blanks.iter().find(|(blank, _)| rest.starts_with(blank.as_str())) {
                Some((blank, id)) => {
                    tokens.extend(self.encode_part(&text[done..at])?);
                    tokens.push(*id);
                    at += blank.len();
                    done = at;
                }
                None => at += rest.chars().next().map_or(1, char::len_utf8),
            }
        }
        tokens.extend(self.encode_part(&text[done..])?);
        Ok(tokens)
    }

    fn encode_part(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.way {
            Way::Merges(encoder) => {
                let encoding = encoder.encode_fast(text, false);
                let encoding =
                    encoding.map_err(|e| TokenizerError::Encode { reason: e.to_string() })?;
                Ok(encoding.get_ids().to_vec())
            }
            Way::Scores(scored) => Ok(scored.encode(text)),
        }
    }

    /// Finds the first control token or added word in `text`: its place, its text's length and its number. The longest
    /// wins.
    #[must_use]
    pub fn special(&self, text: &str) -> Option<(usize, usize, u32)> {
        let found = self.controls.iter().chain(&self.added).filter_map(|(special, id)| {
            text.find(special.as_str()).map(|at| (at, special.len(), *id))
        });
        found.min_by_key(|(at, len, _)| (*at, usize::MAX - len))
    }

    /// The bytes of a token; none for control tokens and numbers that are no token.
    #[must_use]
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], Vec::as_slice)
    }

    /// The name of a control token; it stands for no text.
    #[must_use]
    pub fn name(&self, token: u32) -> Option<&str> {
        self.controls.iter().find(|(_, id)| **id == token).map(|(name, _)| name.as_str())
    }

    /// The token that the model expects before a text, if any.
    #[must_use]
    pub fn start(&self) -> Option<u32> {
        self.start
    }

    /// What chat templates know as `bos_token` and `eos_token`.
    #[must_use]
    pub fn names(&self) -> [&str; 2] {
        self.names.each_ref().map(String::as_str)
    }

    /// Whether white space that follows `token` belongs to it: so do the models of Phi-3's kind read their control
    /// tokens (`rstrip` in their `tokenizer.json`).
    #[must_use]
    pub fn takes_space(&self, token: u32) -> bool {
        let name = self.name(token).filter(|_| self.control_takes_space);
        name.is_some_and(|name| !matches!(name, "<unk>" | "<s>" | "<|endoftext|>"))
    }

    /// The tokens that end an answer; at least one.
    #[must_use]
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// What each token stands for: its bytes, and for a control token `mark` and its name. One that begins with `mark` or
    /// is very long has none, since no text needs it.
    #[must_use]
    pub fn spellings(&self, mark: u8) -> Vec<Vec<u8>> {
        let usable =
            |bytes: &&Vec<u8>| bytes.first() != Some(&mark) && bytes.len() <= SPELLING_BYTES_MAX;
        let spelling = |bytes| Some(bytes).filter(usable).cloned().unwrap_or_default();
        let mut spellings: Vec<Vec<u8>> = self.bytes.iter().map(spelling).collect();
        for (name, id) in &self.controls {
            spellings[*id as usize] = [&[mark], name.as_bytes()].concat();
        }
        spellings
    }

    /// What makes constraints of answers for this vocabulary; made when it is first asked for.
    ///
    /// # Errors
    /// If the vocabulary does not suit the grammar's parser.
    pub fn constraints(&self) -> Result<&Constraints, ConstraintError> {
        let constraints = self.constraints.get_or_init(|| Constraints::new(self));
        constraints.as_ref().map_err(Clone::clone)
    }

    /// Whether `token` ends an answer.
    #[must_use]
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// Tokens of vocabulary.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }
}

/// A vocabulary by kinds of tokens.
struct Words {
    /// Tokens that text becomes.
    ordinary: Vocab,
    controls: BTreeMap<String, u32>,
    added: BTreeMap<String, u32>,
    /// The bytes of each token; a control token has none.
    bytes: Vec<Vec<u8>>,
}

impl Words {
    fn read(gguf: &Gguf<'_>, scores: bool) -> Result<Self, TokenizerError> {
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let kinds = gguf.integers("tokenizer.ggml.token_type")?;
        if kinds.len() != tokens.len() {
            return damaged(format!("{} tokens have {} types", tokens.len(), kinds.len()));
        }
        let byte_of = bytes_by_character();
        let mut words = Self {
            ordinary: Vocab::new(),
            controls: BTreeMap::new(),
            added: BTreeMap::new(),
            bytes: Vec::with_capacity(tokens.len()),
        };
        for ((id, token), kind) in (0_u32..).zip(tokens).zip(kinds) {
            let known = match *kind {
                NORMAL => words.ordinary.insert((*token).to_owned(), id),
                CONTROL => words.controls.insert((*token).to_owned(), id),
                USER_DEFINED => words.added.insert((*token).to_owned(), id),
                // Unknown and unused: no encoder of ours makes them. Bytes have a table of their own.
                _ => None,
            };
            if known.is_some() || token.is_empty() {
                return damaged(format!("token {id} ({token:?}) is empty or there twice"));
            }
            words.bytes.push(match *kind {
                NORMAL | USER_DEFINED if scores => token.replace(SPACE, " ").into_bytes(),
                NORMAL => decode(token, &byte_of),
                USER_DEFINED => token.as_bytes().to_vec(),
                BYTE => vec![byte(token, id)?],
                _ => Vec::new(),
            });
        }
        Ok(words)
    }
}

/// As llama.cpp tells them (`llama_vocab::impl::load`): the file does not say what white space belongs to.
fn is_phi_3(name: &str) -> bool {
    let name = name.to_lowercase();
    ["phi-3", "phi 3", "phi3"].iter().any(|part| name.contains(part))
}

/// Control tokens that end a turn of one model or another, whatever its file names as such.
const END_NAMES: [&str; 8] = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
];

/// Ends are what the file names as such, and the control tokens that models use for it.
fn ends(
    gguf: &Gguf<'_>,
    controls: &BTreeMap<String, u32>,
    tokens: usize,
) -> Result<Vec<u32>, TokenizerError> {
    let last = (tokens as u64).saturating_sub(1);
    let mut ends = Vec::new();
    for key in ["eos", "eot", "eom"].map(|name| format!("tokenizer.ggml.{name}_token_id")) {
        if gguf.value(&key).is_some() {
            // Tokens are fewer than 2²², the most items that an array has.
            ends.push(u32::try_from(gguf.integer(&key, 0, last)?).unwrap_or(u32::MAX));
        }
    }
    if ends.is_empty() {
        return damaged("no token ends an answer (tokenizer.ggml.eos_token_id)".to_owned());
    }
    for name in END_NAMES {
        ends.extend(controls.get(name));
    }
    Ok(ends)
}

/// SentencePiece models begin with it unless they say that they do not; others only if they say so (llama.cpp,
/// `llama_vocab::impl::load`).
fn start(gguf: &Gguf<'_>, scores: bool, tokens: usize) -> Result<Option<u32>, TokenizerError> {
    let wanted = match gguf.value("tokenizer.ggml.add_bos_token") {
        Some(Value::Bool(wanted)) => *wanted,
        _ => scores || gguf.text("tokenizer.ggml.pre").is_ok_and(pieces::begins),
    };
    if !wanted {
        return Ok(None);
    }
    let last = (tokens as u64).saturating_sub(1);
    let start = gguf.integer("tokenizer.ggml.bos_token_id", 0, last)?;
    Ok(Some(u32::try_from(start).unwrap_or(u32::MAX)))
}

/// The encoder by merges of a byte-level vocabulary.
fn by_merges(
    gguf: &Gguf<'_>,
    ordinary: Vocab,
    added: &BTreeMap<String, u32>,
) -> Result<Encoder, TokenizerError> {
    let needed =
        bytes_by_character().into_iter().filter(|(_, byte)| matches!(byte, b'\n' | b' '..=b'~'));
    for (character, byte) in needed {
        if !ordinary.contains_key(&character.to_string()) {
            return damaged(format!("no token stands for byte {byte:#04x}"));
        }
    }
    let found = gguf.text("tokenizer.ggml.pre")?;
    let Some(pieces) = pieces::named(found) else {
        let (what, supported) = ("pre-tokenizer", pieces::KNOWN);
        return Err(TokenizerError::Unsupported { what, found: found.to_owned(), supported });
    };
    let fail = |e: tokenizers::Error| TokenizerError::Damaged { problem: e.to_string() };
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in pieces.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(fail)?;
        steps.push(split.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    let mut merges = Vec::new();
    for merge in gguf.texts("tokenizer.ggml.merges")? {
        match merge.split_once(' ') {
            // Added words are not made of merges; where a file has both, the word is what counts.
            Some((left, right)) if added.contains_key(&format!("{left}{right}")) => {}
            Some((left, right)) => merges.push((left.to_owned(), right.to_owned())),
            None => return damaged(format!("merge {merge:?} is not two parts")),
        }
    }
    // No cache: how long a text takes must not tell what others wrote.
    let bpe = BPE::builder().vocab_and_merges(ordinary, merges).cache_capacity(0);
    let mut encoder = Encoder::new(bpe.ignore_merges(pieces.whole_first).build().map_err(fail)?);
    encoder.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(encoder)
}

/// The encoder by scores of a SentencePiece vocabulary.
fn by_score(gguf: &Gguf<'_>, words: &Words) -> Result<Scored, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.scores";
    let scores = match gguf.value(KEY) {
        Some(Value::Floats(scores)) if scores.len() == words.bytes.len() => scores,
        _ => {
            return damaged(format!(
                "{KEY} is not a number for each of {} tokens",
                words.bytes.len()
            ));
        }
    };
    let mut tokens = HashMap::new();
    for (text, id) in &words.ordinary {
        #[expect(clippy::cast_possible_truncation, reason = "what the file has as f32")]
        let score = scores[*id as usize] as f32;
        if score.is_nan() {
            return damaged(format!("the score of token {id} is not a number"));
        }
        tokens.insert(text.clone(), (*id, score));
    }
    let kinds = gguf.integers("tokenizer.ggml.token_type")?;
    let mut of_byte = [None; 256];
    for ((id, kind), bytes) in (0_u32..).zip(kinds).zip(&words.bytes) {
        if let (BYTE, [byte]) = (*kind, bytes.as_slice()) {
            of_byte[usize::from(*byte)] = Some(id);
        }
    }
    let mut bytes = [0; 256];
    for (byte, (to, found)) in bytes.iter_mut().zip(of_byte).enumerate() {
        match found {
            Some(id) => *to = id,
            None => return damaged(format!("no token stands for byte {byte:#04x}")),
        }
    }
    let space = gguf.value("tokenizer.ggml.add_space_prefix");
    Ok(Scored::new(tokens, bytes, !matches!(space, Some(Value::Bool(false)))))
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte(token: &str, id: u32) -> Result<u8, TokenizerError> {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    let byte =
        digits.filter(|digits| digits.len() == 2).and_then(|d| u8::from_str_radix(d, 16).ok());
    byte.map_or_else(|| damaged(format!("token {id} ({token:?}) stands for no byte")), Ok)
}

/// Byte-level vocabularies write bytes as characters: printable ones as themselves, the others, in order, as
/// U+0100 and up (GPT-2, `bytes_to_unicode`).
fn bytes_by_character() -> BTreeMap<char, u8> {
    let mut others = '\u{100}'..;
    let character = |byte: u8| match byte {
        33..=126 | 161..=172 | 174..=255 => char::from(byte),
        _ => others.next().unwrap_or('\u{100}'),
    };
    (0..=255).map(character).zip(0..=255).collect()
}

/// The bytes that a token's characters stand for. No text becomes a token with other characters, which some vocabularies
/// have all the same; if the model says it, it is read as it is written.
fn decode(token: &str, byte_of: &BTreeMap<char, u8>) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| byte_of.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests;
