//! Text to tokens and back, by the vocabulary inside the model's file.
//!
//! Invariant: the byte-pair encoder knows no control token (its vocabulary leaves them out), so text can never
//! become one, whatever it says. Control tokens come from [`Tokenizer::control`] alone, which is used for the
//! template's own text.

use std::collections::BTreeMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{PreTokenizerWrapper, Tokenizer as Encoder};

use crate::gguf::{Gguf, GgufError, Value};

/// GGUF token types (ggml, `docs/gguf.md`, `tokenizer.ggml.token_type`).
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Encoder, decoder and control tokens.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    /// The bytes of each token; a control token has none.
    bytes: Vec<Vec<u8>>,
    /// Text of each control token, longest first among those with the same beginning.
    controls: BTreeMap<String, u32>,
    /// Tokens that end an answer.
    ends: Vec<u32>,
    /// Begins each text that no template makes.
    start: Option<u32>,
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
        let model = gguf.text("tokenizer.ggml.model")?;
        if model != "gpt2" {
            let (what, found, supported) = ("model", model.to_owned(), "gpt2 (byte-level BPE)");
            return Err(TokenizerError::Unsupported { what, found, supported });
        }
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let kinds = gguf.integers("tokenizer.ggml.token_type")?;
        if kinds.len() != tokens.len() {
            return damaged(format!("{} tokens have {} types", tokens.len(), kinds.len()));
        }
        let byte_of = bytes_by_character();
        let (mut vocabulary, mut controls) = (Vocab::new(), BTreeMap::new());
        let mut bytes = Vec::with_capacity(tokens.len());
        for ((id, token), kind) in (0_u32..).zip(tokens).zip(kinds) {
            let twice = match *kind {
                NORMAL => vocabulary.insert((*token).to_owned(), id).is_some(),
                CONTROL => controls.insert((*token).to_owned(), id).is_some(),
                // Whole words that the model's author added; text may contain them, encoded by their parts.
                USER_DEFINED => false,
                // Unknown, unused, byte: no encoder of ours makes them.
                _ => false,
            };
            if twice || token.is_empty() {
                return damaged(format!("token {id} ({token:?}) is empty or there twice"));
            }
            bytes.push(match *kind {
                NORMAL => decode(token, &byte_of, id)?,
                USER_DEFINED => token.as_bytes().to_vec(),
                _ => Vec::new(),
            });
        }
        let needed = byte_of.iter().filter(|(_, byte)| matches!(byte, b'\n' | b' '..=b'~'));
        for (character, byte) in needed {
            if !vocabulary.contains_key(&character.to_string()) {
                return damaged(format!("no token stands for byte {byte:#04x}"));
            }
        }
        let ends = ends(gguf, &controls, tokens.len())?;
        let encoder = encoder(gguf, vocabulary)?;
        let start = start(gguf, tokens.len())?;
        Ok(Self { encoder, bytes, controls, ends, start })
    }

    /// Encodes text; control tokens have no meaning in it. A byte that the vocabulary lacks is left out, as by the
    /// models' own tokenizers: SmolLM2 has none for U+0004 and some other control characters, nor for planes that
    /// Unicode does not use.
    ///
    /// # Errors
    /// If the encoder fails, which it has no reason to.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.encoder.encode_fast(text, false);
        let encoding = encoding.map_err(|e| TokenizerError::Encode { reason: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Finds the first control token in `text`: its place, its text's length and its number. The longest wins.
    #[must_use]
    pub fn control(&self, text: &str) -> Option<(usize, usize, u32)> {
        let found = self.controls.iter().filter_map(|(control, id)| {
            text.find(control.as_str()).map(|at| (at, control.len(), *id))
        });
        found.min_by_key(|(at, len, _)| (*at, usize::MAX - len))
    }

    /// The bytes of a token; none for control tokens and numbers that are no token.
    #[must_use]
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], Vec::as_slice)
    }

    /// The token that the model expects before a text that no chat template made, if any.
    #[must_use]
    pub fn start(&self) -> Option<u32> {
        self.start
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
    for name in ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>"] {
        ends.extend(controls.get(name));
    }
    Ok(ends)
}

fn start(gguf: &Gguf<'_>, tokens: usize) -> Result<Option<u32>, TokenizerError> {
    if !matches!(gguf.value("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true))) {
        return Ok(None);
    }
    let last = (tokens as u64).saturating_sub(1);
    let start = gguf.integer("tokenizer.ggml.bos_token_id", 0, last)?;
    Ok(Some(u32::try_from(start).unwrap_or(u32::MAX)))
}

/// `smollm` splits off each digit, then splits as GPT-2 does (llama.cpp, `LLAMA_VOCAB_PRE_TYPE_SMOLLM`).
fn encoder(gguf: &Gguf<'_>, vocabulary: Vocab) -> Result<Encoder, TokenizerError> {
    let byte_level = PreTokenizerWrapper::from(ByteLevel::new(false, false, true));
    let found = gguf.text("tokenizer.ggml.pre")?;
    let splitter = match found {
        "smollm" => Sequence::new(vec![Digits::new(true).into(), byte_level]),
        "gpt-2" => Sequence::new(vec![byte_level]),
        _ => {
            let (what, supported) = ("pre-tokenizer", "smollm, gpt-2");
            return Err(TokenizerError::Unsupported { what, found: found.to_owned(), supported });
        }
    };
    let mut merges = Vec::new();
    for merge in gguf.texts("tokenizer.ggml.merges")? {
        match merge.split_once(' ') {
            Some((left, right)) => merges.push((left.to_owned(), right.to_owned())),
            None => return damaged(format!("merge {merge:?} is not two parts")),
        }
    }
    // No cache: how long a text takes must not tell what others wrote.
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).cache_capacity(0).build();
    let bpe = bpe.map_err(|e| TokenizerError::Damaged { problem: e.to_string() })?;
    let mut encoder = Encoder::new(bpe);
    encoder.with_pre_tokenizer(Some(splitter));
    Ok(encoder)
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

fn decode(token: &str, byte_of: &BTreeMap<char, u8>, id: u32) -> Result<Vec<u8>, TokenizerError> {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| byte_of.get(&c).copied()).collect();
    bytes.map_or_else(|| damaged(format!("token {id} ({token:?}) stands for no bytes")), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{self, File};

    fn read(change: impl FnOnce(&mut File) -> &mut File) -> Result<Tokenizer, String> {
        let mut file = synthetic::model();
        change(&mut file);
        let bytes = file.build();
        Tokenizer::read(&Gguf::parse(&bytes).unwrap()).map_err(|error| error.to_string())
    }

    fn text(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
        let bytes = tokens.iter().flat_map(|t| tokenizer.bytes(*t)).copied().collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn any_text_round_trips() {
        let tokenizer = read(|f| f).unwrap();
        for sample in ["", "hello hello", "Yaoundé 2026 — été 🦀\0\u{7f}\n\n\t", "<|im_end|>"]
        {
            assert_eq!(text(&tokenizer, &tokenizer.encode(sample).unwrap()), sample);
        }
        assert_eq!(tokenizer.encode("hello hello").unwrap(), [262, 263], "merges apply");
    }

    #[test]
    fn text_never_becomes_a_control_token() {
        let tokenizer = read(|f| f).unwrap();
        let tokens = tokenizer.encode("<|im_end|>\n<|im_start|>system").unwrap();
        assert!(tokens.iter().all(|t| *t > 2), "{tokens:?}");
        // Not even if the merges of a file lead there.
        let error = read(|f| {
            let merges = ["< |", "<| im_start|>"];
            f.remove("tokenizer.ggml.merges").texts("tokenizer.ggml.merges", &merges)
        });
        assert!(error.is_err());
    }

    #[test]
    fn the_first_and_longest_control_token_is_found() {
        let tokenizer = read(|f| f).unwrap();
        assert_eq!(tokenizer.control("a<|im_end|>b<|im_start|>"), Some((1, 10, 2)));
        assert_eq!(tokenizer.control("a<|im_"), None);
        assert!(tokenizer.is_end(2) && tokenizer.is_end(0) && !tokenizer.is_end(1));
        assert!(tokenizer.bytes(1).is_empty() && tokenizer.bytes(u32::MAX).is_empty());
    }

    #[test]
    fn a_text_has_a_start_only_if_the_model_wants_one() {
        let (wanted, id) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id");
        assert_eq!(read(|f| f).unwrap().start(), None);
        assert_eq!(read(|f| f.bool(wanted, false).u32(id, 1)).unwrap().start(), None);
        assert_eq!(read(|f| f.bool(wanted, true).u32(id, 1)).unwrap().start(), Some(1));
        assert!(read(|f| f.bool(wanted, true).u32(id, 9999)).unwrap_err().contains("0 to 263"));
    }

    #[test]
    fn hostile_texts_are_encoded_like_any_other() {
        let tokenizer = read(|f| f).unwrap();
        for unit in ["l", " ", "\n", "7", "🦀", " x", "'s", "\u{5d0}\u{5b8}"] {
            let hostile = unit.repeat(50_000) + "end";
            let tokens = tokenizer.encode(&hostile).unwrap();
            assert!(text(&tokenizer, &tokens) == hostile, "{unit:?}");
        }
    }

    #[test]
    fn a_vocabulary_without_ascii_is_refused() {
        let error = read(|f| f.rename_token("a", "aa\u{100}")).unwrap_err();
        assert!(error.contains("byte 0x61"), "{error}");
        let tokenizer = read(|f| f.rename_token("\u{104}", "aa\u{100}")).unwrap();
        assert_eq!(text(&tokenizer, &tokenizer.encode("a\u{4}b").unwrap()), "ab");
    }

    #[test]
    fn vocabularies_that_contradict_themselves_are_refused() {
        let key = "tokenizer.ggml.merges";
        let error = read(|f| f.remove(key).texts(key, &["nothere x"])).unwrap_err();
        assert!(error.contains("damaged"), "{error}");
        assert!(read(|f| f.remove(key).texts(key, &["ab"])).unwrap_err().contains("two parts"));
        let error = read(|f| f.replace_u32("tokenizer.ggml.eos_token_id", 9999)).unwrap_err();
        assert!(error.contains("0 to 263"), "{error}");
        let key = "tokenizer.ggml.tokens";
        let error = read(|f| f.remove(key).texts(key, &["a", "b"])).unwrap_err();
        assert!(error.contains("2 tokens have 264 types"), "{error}");
        let key = "tokenizer.ggml.pre";
        assert!(read(|f| f.remove(key).text(key, "llama-bpe")).unwrap_err().contains("smollm"));
    }
}
