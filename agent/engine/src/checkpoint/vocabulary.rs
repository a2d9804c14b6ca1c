//! `tokenizer.json` of a byte-level vocabulary, in the words of GGUF's metadata.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::{CONFIG_BYTES_MAX, Checkpoint, CheckpointError, Owned, Texts, json};
use crate::gguf::Value;
use crate::tokenizer::pieces;

const FILE: &str = "tokenizer.json";
/// GGUF token types (ggml, `docs/gguf.md`, `tokenizer.ggml.token_type`).
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

fn wrong<T>(key: &str, found: impl ToString, expected: &'static str) -> Result<T, CheckpointError> {
    let (key, found) = (key.to_owned(), found.to_string());
    Err(CheckpointError::Value { file: FILE, key, found, expected })
}

/// Fills the vocabulary's metadata; `count` tokens, those that the file lacks are unused.
pub(super) fn read(
    tokenizer: &Json,
    count: usize,
    config: &Json,
    texts: &Texts<'_>,
    out: &mut Checkpoint,
) -> Result<(), CheckpointError> {
    let model = &tokenizer["model"];
    if model["type"] != "BPE" || model["byte_fallback"] == true {
        return wrong("model", &model["type"], "byte-level BPE; convert others to GGUF");
    }
    let (tokens, kinds) = tokens(tokenizer, count)?;
    let whole_first = model["ignore_merges"] == true;
    let pre = pre_tokenizer(&tokenizer["pre_tokenizer"], whole_first)?;
    ends(config, &tokens, out)?;
    template(texts, &tokens, out)?;
    let mut set = |key: &str, value| out.metadata.insert(format!("tokenizer.{key}"), value);
    set("ggml.model", Owned::Text("gpt2".to_owned()));
    set("ggml.pre", Owned::Text(pre.to_owned()));
    set("ggml.merges", Owned::Texts(merges(&model["merges"])?));
    set("ggml.token_type", Owned::Plain(Value::Integers(kinds)));
    set("ggml.tokens", Owned::Texts(tokens));
    Ok(())
}

fn tokens(tokenizer: &Json, count: usize) -> Result<(Vec<String>, Vec<i64>), CheckpointError> {
    let mut tokens: BTreeMap<usize, (String, i64)> = BTreeMap::new();
    let id = |id: &Json| {
        let number = id.as_u64().and_then(|id| usize::try_from(id).ok());
        match number.filter(|id| *id < count) {
            Some(id) => Ok(id),
            None => wrong("id", id, "a number below config.json's vocab_size"),
        }
    };
    let Some(ordinary) = tokenizer["model"]["vocab"].as_object() else {
        return wrong("model.vocab", "no object", "an object of numbers");
    };
    for (text, number) in ordinary {
        if tokens.insert(id(number)?, (text.clone(), NORMAL)).is_some() {
            return wrong("model.vocab", number, "each number once");
        }
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let Some(text) = added["content"].as_str() else {
            return wrong("added_tokens", added, "a content");
        };
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
        tokens.insert(id(&added["id"])?, (text.to_owned(), kind));
    }
    let all =
        (0..count).map(|id| tokens.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)));
    Ok(all.unzip())
}

/// Pairs, since transformers 4.45 as arrays of two.
fn merges(merges: &Json) -> Result<Vec<String>, CheckpointError> {
    let merge = |merge: &Json| match merge {
        Json::String(merge) => Ok(merge.clone()),
        Json::Array(pair) => match &pair[..] {
            [Json::String(a), Json::String(b)] => Ok(format!("{a} {b}")),
            _ => wrong("model.merges", merge, "pairs of texts"),
        },
        _ => wrong("model.merges", merge, "pairs of texts"),
    };
    match merges.as_array() {
        Some(merges) => merges.iter().map(merge).collect(),
        None => wrong("model.merges", merges, "an array"),
    }
}

/// The name of a way to cut text that has the same patterns.
fn pre_tokenizer(json: &Json, whole_first: bool) -> Result<&'static str, CheckpointError> {
    let steps = match json["type"].as_str() {
        Some("Sequence") => json["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice),
        _ => std::slice::from_ref(json),
    };
    let mut patterns = Vec::new();
    for step in steps {
        match step["type"].as_str() {
            Some("Split") if step["behavior"] == "Isolated" && step["invert"] != true => {
                match step["pattern"]["Regex"].as_str() {
                    Some(pattern) => patterns.push(pattern),
                    None => return wrong("pre_tokenizer", step, "a Regex"),
                }
            }
            Some("Digits") if step["individual_digits"] == true => patterns.push(r"\p{N}"),
            Some("ByteLevel") if step["add_prefix_space"] != true => {
                // Its own pattern is GPT-2's.
                if step["use_regex"] != false {
                    patterns.push(pieces::GPT2);
                }
            }
            _ => {
                return wrong(
                    "pre_tokenizer",
                    step,
                    "Split, Digits or ByteLevel without a prefix space",
                );
            }
        }
    }
    match pieces::name_of(&patterns, whole_first) {
        Some(name) => Ok(name),
        None => wrong("pre_tokenizer", json, "the patterns of a known family"),
    }
}

/// `eos_token_id` may be an array; the first three have keys of their own.
fn ends(config: &Json, tokens: &[String], out: &mut Checkpoint) -> Result<(), CheckpointError> {
    let ids = match &config["eos_token_id"] {
        Json::Array(ids) => ids.as_slice(),
        id => std::slice::from_ref(id),
    };
    let ids: Option<Vec<u64>> = ids.iter().map(Json::as_u64).collect();
    let ids = ids.filter(|ids| ids.len() <= 3 && ids.iter().all(|id| *id < tokens.len() as u64));
    let Some(ids) = ids else {
        return wrong("eos_token_id", &config["eos_token_id"], "1 to 3 tokens in config.json");
    };
    for (name, id) in ["eos", "eot", "eom"].iter().zip(ids) {
        out.set_number(format!("tokenizer.ggml.{name}_token_id"), id);
    }
    if let Some(id) = config["bos_token_id"].as_u64() {
        out.set_number("tokenizer.ggml.bos_token_id", id);
    }
    Ok(())
}

/// The chat template, and whether texts begin with a start token.
fn template(
    texts: &Texts<'_>,
    tokens: &[String],
    out: &mut Checkpoint,
) -> Result<(), CheckpointError> {
    let config = match texts.tokenizer_config {
        Some(bytes) => json("tokenizer_config.json", bytes, CONFIG_BYTES_MAX)?,
        None => Json::Null,
    };
    let template = match texts.chat_template {
        Some(bytes) => {
            let file = "chat_template.jinja";
            Some(std::str::from_utf8(bytes).map_err(|_| CheckpointError::NotText { file })?)
        }
        None => config["chat_template"].as_str(),
    };
    if let Some(template) = template {
        out.metadata.insert("tokenizer.chat_template".to_owned(), Owned::Text(template.to_owned()));
    }
    let start = config["bos_token"].as_str().or_else(|| config["bos_token"]["content"].as_str());
    let id = start.and_then(|start| tokens.iter().position(|token| token == start));
    if let Some(id) = id {
        out.set_number("tokenizer.ggml.bos_token_id", id as u64);
    }
    // If it is not said, the way that text is cut tells it, as with GGUF.
    if let Json::Bool(wanted) = config["add_bos_token"] {
        out.set("tokenizer.ggml.add_bos_token", Value::Bool(wanted));
    }
    Ok(())
}
