//! Checking a request for vectors.

use std::sync::PoisonError;

use ipc::{
    EMBED_INPUTS_MAX, EMBED_VECTORS_BYTES_MAX, Embed, EmbedInput, EngineErrorKind, OutOfRange,
};

use super::served::Embedder;
use super::words::WordsError;
use crate::limits::{ENCODER_REQUEST_TOKENS_MAX, PARTITION_BYTES_MAX, PROMPT_BYTES_PER_TOKEN_MAX};

/// Why a request is turned away; shown to the client.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// A parameter is out of range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
    /// A text does not fit.
    #[error("input {number} has {found} tokens; the model takes at most {max}, cut it into parts")]
    TextTooLong {
        /// Which, from 0.
        number: usize,
        /// Its tokens, those around it included.
        found: usize,
        /// Tokens of the context.
        max: usize,
    },
    /// A text is not worth encoding.
    #[error(
        "input {number} has {found} bytes; the model's context of {context} tokens takes no more than {max}, cut it into parts"
    )]
    TextBytes {
        /// Which, from 0.
        number: usize,
        /// Its bytes.
        found: usize,
        /// Tokens of the context.
        context: usize,
        /// Bytes that could fit it.
        max: usize,
    },
    /// All texts together have too many tokens.
    #[error(
        "the inputs have more than {ENCODER_REQUEST_TOKENS_MAX} tokens together; send them in several requests"
    )]
    TooManyTokens,
    /// A text was not encoded.
    #[error(transparent)]
    Words(#[from] WordsError),
}

impl EmbedError {
    /// The kind that clients are told.
    #[must_use]
    pub fn kind(&self) -> EngineErrorKind {
        match self {
            Self::Range(_) => EngineErrorKind::Invalid,
            Self::Words(_) => EngineErrorKind::Internal,
            _ => EngineErrorKind::PromptTooLong,
        }
    }

    /// The parameter of the API that it is about.
    #[must_use]
    pub fn param(&self) -> &'static str {
        match self {
            Self::Range(OutOfRange { param, .. }) => param,
            _ => "input",
        }
    }
}

/// What a request asks for, checked.
#[derive(Debug)]
pub struct Prepared {
    /// Tokens of each text, those around it included.
    pub texts: Vec<Vec<u32>>,
    /// Numbers of each vector.
    pub dimensions: usize,
}

impl Prepared {
    /// Tokens of all texts.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }
}

/// Checks `embed` and encodes its texts.
///
/// # Errors
/// If a parameter is out of range, or a text or all of them are too long.
pub fn prepare(embed: &Embed, model: &Embedder) -> Result<Prepared, EmbedError> {
    let dimensions = dimensions(embed, model)?;
    check(embed, dimensions)?;
    let context = model.info.context_tokens_max as usize;
    let (mut texts, mut left) = (Vec::new(), ENCODER_REQUEST_TOKENS_MAX);
    // The lock guards no data, so it cannot be poisoned in any way that matters.
    let _encoding = model.encoding.lock().unwrap_or_else(PoisonError::into_inner);
    for (number, input) in embed.inputs.iter().enumerate() {
        let tokens = match input {
            EmbedInput::Text(text) => {
                let (found, max) = (text.len(), context * PROMPT_BYTES_PER_TOKEN_MAX);
                if found > max {
                    return Err(EmbedError::TextBytes { number, found, context, max });
                }
                model.words.around(&model.words.encode(text)?)
            }
            EmbedInput::Tokens(tokens) => {
                if let Some(token) =
                    tokens.iter().find(|t| **t as usize >= model.words.vocabulary())
                {
                    return Err(range(
                        "input",
                        format!("token {token} in input {number}"),
                        format!(
                            "tokens below {}, the model's vocabulary",
                            model.words.vocabulary()
                        ),
                    ));
                }
                model.words.around(tokens)
            }
        };
        if tokens.len() > context {
            let found = tokens.len();
            return Err(EmbedError::TextTooLong { number, found, max: context });
        }
        left = left.checked_sub(tokens.len()).ok_or(EmbedError::TooManyTokens)?;
        texts.push(tokens);
    }
    Ok(Prepared { texts, dimensions })
}

fn range(param: &'static str, found: String, expected: String) -> EmbedError {
    EmbedError::Range(OutOfRange { param, found, expected })
}

fn dimensions(embed: &Embed, model: &Embedder) -> Result<usize, EmbedError> {
    let own = model.shape.hidden;
    let Some(asked) = embed.dimensions else { return Ok(own) };
    let asked = asked as usize;
    if asked == own || model.shape.dimensions.contains(&asked) {
        return Ok(asked);
    }
    let expected = match &model.shape.dimensions[..] {
        [] => format!("{own}, since this model was not trained for shorter vectors"),
        shorter => format!("{own} or one of {shorter:?}, for which this model was trained"),
    };
    Err(range("dimensions", asked.to_string(), expected))
}

fn check(embed: &Embed, dimensions: usize) -> Result<(), EmbedError> {
    let count = embed.inputs.len();
    if !(1..=EMBED_INPUTS_MAX).contains(&count) {
        return Err(range("input", format!("{count} inputs"), format!("1 to {EMBED_INPUTS_MAX}")));
    }
    let most = EMBED_VECTORS_BYTES_MAX / (dimensions * size_of::<f32>());
    if count > most {
        let expected = format!("at most {most} with vectors of {dimensions} numbers");
        return Err(range("input", format!("{count} inputs"), expected));
    }
    if let Some(number) = embed.inputs.iter().position(EmbedInput::is_empty) {
        let expected = "at least a character or a token".to_owned();
        return Err(range("input", format!("input {number} is empty"), expected));
    }
    let partition = embed.partition.len();
    if partition > PARTITION_BYTES_MAX {
        let expected = format!("at most {PARTITION_BYTES_MAX} bytes");
        return Err(range("partition", format!("{partition} bytes"), expected));
    }
    Ok(())
}
