//! Text to tokens by a WordPiece vocabulary, as `tokenizer.json` of a BERT describes it.
//!
//! Invariant: the encoder knows no control token but the one of unknown words, so text can never become one. The two
//! that stand around each text are put there by [`Words::around`] alone.
//!
//! What the file says of truncation and padding is not read: a text that is too long is refused, and none is padded.

use std::collections::HashMap;

use serde_json::Value as Json;
use tokenizers::Tokenizer as Encoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

/// Longest word that is looked up, whatever the file says.
const WORD_CHARACTERS_MAX: u64 = 1000;

/// Encoder, and the tokens around each text.
#[derive(Debug)]
pub struct Words {
    encoder: Box<Encoder>,
    first: u32,
    last: u32,
    count: usize,
}

/// Why a vocabulary is not usable.
#[derive(Debug, thiserror::Error)]
pub enum WordsError {
    /// A value is missing, of another type, or asks for what is not offered.
    #[error("tokenizer.json: {key:?} is {found}, expected {expected}")]
    Value {
        /// Where it stands.
        key: &'static str,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The encoder failed on a text.
    #[error("a text was not encoded: {reason}")]
    Encode {
        /// What the encoder said.
        reason: String,
    },
}

fn wrong<T>(key: &'static str, found: &Json, expected: &'static str) -> Result<T, WordsError> {
    let found = found.to_string().chars().take(200).collect();
    Err(WordsError::Value { key, found, expected })
}

impl Words {
    /// Reads a vocabulary of `count` tokens.
    ///
    /// # Errors
    /// If it is of another kind, or incomplete, or contradicts itself.
    pub fn read(json: &Json, count: usize) -> Result<Self, WordsError> {
        let model = &json["model"];
        if model["type"] != "WordPiece" {
            return wrong("model.type", &model["type"], "WordPiece");
        }
        let mut tokens = vocabulary(&model["vocab"], count)?;
        let (first, last) = around(&json["post_processor"])?;
        let find = |text: &str| tokens.get(text).copied();
        let (Some(first), Some(last)) = (find(first), find(last)) else {
            return wrong("post_processor", &json["post_processor"], "tokens of model.vocab");
        };
        let Some(unknown) = model["unk_token"].as_str().filter(|text| find(text).is_some()) else {
            return wrong("model.unk_token", &model["unk_token"], "a token of model.vocab");
        };
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            match added["content"].as_str() {
                Some(text) if added["special"] == true => {
                    if text != unknown {
                        tokens.remove(text);
                    }
                }
                _ => return wrong("added_tokens", added, "control tokens alone"),
            }
        }
        let longest = model["max_input_chars_per_word"].as_u64();
        let Some(longest) = longest.filter(|longest| *longest <= WORD_CHARACTERS_MAX) else {
            let found = &model["max_input_chars_per_word"];
            return wrong("model.max_input_chars_per_word", found, "at most 1000");
        };
        let Some(prefix) = model["continuing_subword_prefix"].as_str() else {
            let found = &model["continuing_subword_prefix"];
            return wrong("model.continuing_subword_prefix", found, "a text");
        };
        let pieces = WordPiece::builder()
            .vocab(tokens.into_iter().collect::<HashMap<_, _, _>>())
            .unk_token(unknown.to_owned())
            .continuing_subword_prefix(prefix.to_owned())
            .max_input_chars_per_word(usize::try_from(longest).unwrap_or(100))
            .build();
        let pieces = pieces.map_err(|e| WordsError::Encode { reason: e.to_string() })?;
        let mut encoder = Encoder::new(pieces);
        encoder.with_normalizer(Some(normalizer(&json["normalizer"])?));
        if json["pre_tokenizer"]["type"] != "BertPreTokenizer" {
            return wrong("pre_tokenizer", &json["pre_tokenizer"], "BertPreTokenizer");
        }
        encoder.with_pre_tokenizer(Some(BertPreTokenizer));
        Ok(Self { encoder: Box::new(encoder), first, last, count })
    }

    /// Tokens of the vocabulary.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.count
    }

    /// Encodes a text, without the tokens around it; control tokens have no meaning in it.
    ///
    /// # Errors
    /// If the encoder fails, which it has no reason to.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, WordsError> {
        let encoding = self.encoder.encode_fast(text, false);
        let encoding = encoding.map_err(|e| WordsError::Encode { reason: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `tokens` as the model reads them.
    #[must_use]
    pub fn around(&self, tokens: &[u32]) -> Vec<u32> {
        [&[self.first], tokens, &[self.last]].concat()
    }
}

fn vocabulary(vocab: &Json, count: usize) -> Result<HashMap<String, u32>, WordsError> {
    const KEY: &str = "model.vocab";
    let Some(vocab) = vocab.as_object() else {
        return wrong(KEY, &Json::Null, "an object of numbers");
    };
    let mut tokens = HashMap::new();
    for (text, number) in vocab {
        let id = number.as_u64().filter(|id| *id < count as u64);
        let Some(id) = id.and_then(|id| u32::try_from(id).ok()) else {
            return wrong(KEY, number, "numbers below config.json's vocab_size");
        };
        tokens.insert(text.clone(), id);
    }
    Ok(tokens)
}

/// The texts of the tokens before and behind each text.
fn around(json: &Json) -> Result<(&str, &str), WordsError> {
    const EXPECTED: &str = "one token before a text and one behind it";
    let found = match json["type"].as_str() {
        Some("TemplateProcessing") => {
            let token = |at: usize| json["single"][at]["SpecialToken"]["id"].as_str();
            let three = json["single"].as_array().is_some_and(|single| single.len() == 3);
            let kind = |at: usize, what: &str| json["single"][at][what]["type_id"] == 0;
            let kinds = kind(0, "SpecialToken") && kind(1, "Sequence") && kind(2, "SpecialToken");
            let text = json["single"][1]["Sequence"]["id"] == "A";
            token(0).zip(token(2)).filter(|_| three && kinds && text)
        }
        Some("BertProcessing") => json["cls"][0].as_str().zip(json["sep"][0].as_str()),
        _ => None,
    };
    found.map_or_else(|| wrong("post_processor", json, EXPECTED), Ok)
}

fn normalizer(json: &Json) -> Result<BertNormalizer, WordsError> {
    let flag = |key: &str| json[key].as_bool();
    let flags = (flag("clean_text"), flag("handle_chinese_chars"), flag("lowercase"));
    let accents = match &json["strip_accents"] {
        Json::Null => Some(None),
        Json::Bool(strip) => Some(Some(*strip)),
        _ => None,
    };
    match (json["type"].as_str(), flags, accents) {
        (Some("BertNormalizer"), (Some(clean), Some(chinese), Some(lower)), Some(accents)) => {
            Ok(BertNormalizer::new(clean, chinese, accents, lower))
        }
        _ => wrong("normalizer", json, "BertNormalizer with its four values"),
    }
}
