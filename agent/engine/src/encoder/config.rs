//! What the small files say of an encoder. A value that would be computed in another way is refused by its name.

use serde_json::Value as Json;

use super::folder::EncoderError;
use crate::checkpoint::object::Object;
use crate::checkpoint::{CONFIG_BYTES_MAX, CheckpointError, json};
use crate::limits::ENCODER_STEP_TOKENS_MAX;

/// Largest numbers that buffers are made for.
const HIDDEN_MAX: usize = 4096;
const FEED_FORWARD_MAX: usize = 16_384;
const LAYERS_MAX: usize = 128;

/// An encoder, as data.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Width of a token's state, and of a vector.
    pub hidden: usize,
    /// Heads, each `hidden / heads` wide.
    pub heads: usize,
    /// Width within the feed-forward part.
    pub feed_forward: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Positions that were learned.
    pub positions: usize,
    /// Kinds of tokens, of which the first is used.
    pub kinds: usize,
    /// Tokens of the longest text, the two around it included.
    pub context: usize,
    /// Of the norms.
    pub epsilon: f32,
    /// What becomes the vector.
    pub pooling: Pooling,
    /// Whether vectors have length 1.
    pub normalise: bool,
    /// Lengths to which a vector may be cut, besides its own.
    pub dimensions: Vec<usize>,
}

/// How the states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    First,
}

impl Shape {
    /// Width of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }
}

/// The small files, as bytes.
#[derive(Debug)]
pub(super) struct Texts<'a> {
    pub(super) config: &'a [u8],
    pub(super) modules: &'a [u8],
    pub(super) pooling: &'a [u8],
    pub(super) sentence: Option<&'a [u8]>,
    pub(super) prompts: Option<&'a [u8]>,
}

/// Reads all of them.
pub(super) fn read(texts: &Texts<'_>) -> Result<Shape, EncoderError> {
    let normalise = modules(texts.modules)?;
    let file = "config.json";
    let config = json(file, texts.config, CONFIG_BYTES_MAX)?;
    let config = Object { file, json: &config, at: "" };
    refuse(&config)?;
    let within = |key: &str, max: usize, expected: &'static str| match config.size(key)? {
        found if found <= max => Ok(found),
        _ => config.wrong(key, expected),
    };
    let hidden = within("hidden_size", HIDDEN_MAX, "at most 4096")?;
    let heads = config.size("num_attention_heads")?;
    if !hidden.is_multiple_of(heads) || !(hidden / heads).is_multiple_of(2) {
        config.wrong("num_attention_heads", "heads of a whole and even width")?;
    }
    let positions = config.size("max_position_embeddings")?;
    let epsilon = config.needed_float("layer_norm_eps")?;
    if !(0.0..=1e-3).contains(&epsilon) {
        config.wrong("layer_norm_eps", "0 to 0.001")?;
    }
    let dimensions = dimensions(&config, hidden)?;
    let context = sentence(texts.sentence)?.unwrap_or(positions).min(positions);
    let context = context.min(ENCODER_STEP_TOKENS_MAX);
    if context < 3 {
        config.wrong("max_position_embeddings", "room for a token between two others")?;
    }
    prompts(texts.prompts)?;
    Ok(Shape {
        layers: within("num_hidden_layers", LAYERS_MAX, "at most 128")?,
        hidden,
        heads,
        feed_forward: within("intermediate_size", FEED_FORWARD_MAX, "at most 16384")?,
        vocabulary: config.size("vocab_size")?,
        positions,
        kinds: config.size("type_vocab_size")?,
        context,
        #[expect(clippy::cast_possible_truncation, reason = "as it is computed")]
        epsilon: epsilon as f32,
        pooling: pooling(texts.pooling, hidden)?,
        normalise,
        dimensions,
    })
}

fn refuse(config: &Object<'_>) -> Result<(), CheckpointError> {
    if config.text("model_type") != Some("bert") {
        return config.wrong("model_type", "bert, for a folder with modules.json");
    }
    if config.text("hidden_act") != Some("gelu") {
        return config.wrong("hidden_act", "gelu");
    }
    config.must_be("position_embedding_type", &"absolute".into(), "absolute")?;
    config.must_be("is_decoder", &false.into(), "false")?;
    config.must_be("add_cross_attention", &false.into(), "false")?;
    match config.get("quantization_config") {
        Some(_) => config.wrong("quantization_config", "none: plain F32, F16 or BF16"),
        None => Ok(()),
    }
}

/// Shorter vectors that the model was trained for (`matryoshka_dimensions`, as vLLM reads it).
fn dimensions(config: &Object<'_>, hidden: usize) -> Result<Vec<usize>, CheckpointError> {
    const KEY: &str = "matryoshka_dimensions";
    const EXPECTED: &str = "an array of at most 32 numbers from 1 to hidden_size";
    let Some(found) = config.get(KEY) else { return Ok(Vec::new()) };
    let sizes: Option<Vec<usize>> = found
        .as_array()
        .filter(|all| all.len() <= 32)
        .and_then(|all| all.iter().map(|size| usize::try_from(size.as_u64()?).ok()).collect());
    match sizes.filter(|sizes| sizes.iter().all(|size| (1..=hidden).contains(size))) {
        Some(sizes) => Ok(sizes),
        None => config.wrong(KEY, EXPECTED),
    }
}

/// The steps of sentence-transformers; whether the last one is a norm.
fn modules(bytes: &[u8]) -> Result<bool, CheckpointError> {
    const EXPECTED: &str = "Transformer in \"\", Pooling in \"1_Pooling\", and perhaps Normalize";
    let file = "modules.json";
    let modules = json(file, bytes, CONFIG_BYTES_MAX)?;
    let step = |module: &Json| {
        let kind = module["type"].as_str()?.rsplit('.').next()?.to_owned();
        Some((kind, module["path"].as_str()?.to_owned()))
    };
    let steps: Option<Vec<_>> =
        modules.as_array().and_then(|modules| modules.iter().map(step).collect());
    let steps = steps.unwrap_or_default();
    let names: Vec<(&str, &str)> = steps.iter().map(|(k, p)| (k.as_str(), p.as_str())).collect();
    match &names[..] {
        [("Transformer", ""), ("Pooling", "1_Pooling")] => Ok(false),
        [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", _)] => Ok(true),
        _ => {
            let (key, found) = ("the list".to_owned(), format!("{names:?}"));
            Err(CheckpointError::Value { file, key, found, expected: EXPECTED })
        }
    }
}

fn pooling(bytes: &[u8], hidden: usize) -> Result<Pooling, CheckpointError> {
    const MODE: &str = "pooling_mode_";
    let file = "1_Pooling/config.json";
    let config = json(file, bytes, CONFIG_BYTES_MAX)?;
    let object = Object { file, json: &config, at: "" };
    object.must_be("word_embedding_dimension", &hidden.into(), "as hidden_size")?;
    let mut mode = None;
    for (key, value) in config.as_object().into_iter().flatten() {
        match (key.strip_prefix(MODE), value) {
            (None, _) if !key.starts_with("pooling_mode") => {}
            (Some(_), Json::Bool(false)) => {}
            (Some("mean_tokens"), Json::Bool(true)) if mode.is_none() => mode = Some(Pooling::Mean),
            (Some("cls_token"), Json::Bool(true)) if mode.is_none() => mode = Some(Pooling::First),
            _ => return object.wrong(key, "false: one of mean_tokens and cls_token is offered"),
        }
    }
    mode.map_or_else(|| object.wrong("pooling_mode_mean_tokens", "true, or that of cls_token"), Ok)
}

/// The longest text of `sentence_bert_config.json`.
fn sentence(bytes: Option<&[u8]>) -> Result<Option<usize>, CheckpointError> {
    let Some(bytes) = bytes else { return Ok(None) };
    let file = "sentence_bert_config.json";
    let config = json(file, bytes, CONFIG_BYTES_MAX)?;
    let config = Object { file, json: &config, at: "" };
    // It would lower the text before the tokenizer does.
    config.must_be("do_lower_case", &false.into(), "false: the tokenizer says it")?;
    match config.get("max_seq_length") {
        Some(_) => config.size("max_seq_length").map(Some),
        None => Ok(None),
    }
}

/// A prompt that is put before each text; a client writes its own.
fn prompts(bytes: Option<&[u8]>) -> Result<(), CheckpointError> {
    let Some(bytes) = bytes else { return Ok(()) };
    let file = "config_sentence_transformers.json";
    let config = json(file, bytes, CONFIG_BYTES_MAX)?;
    let config = Object { file, json: &config, at: "" };
    config.must_be("default_prompt_name", &Json::Null, "null: clients write their own prompts")
}
