//! The parameters of a chat request that say how tokens are chosen, and what is told of them.
//!
//! `top_k`, `min_p` and `repetition_penalty` are no parameters of OpenAI's; the names are vLLM's.

use std::collections::BTreeMap;
use std::fmt;

use ipc::{LOGIT_BIAS_MAX, OutOfRange, Sampling, TOP_LOGPROBS_MAX};
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::error::ApiError;
use super::request::Fields;

/// Reads the sampler's parameters; the seed is another matter, since it may be left to the appliance.
pub(super) fn sampling(fields: &mut Fields<'_>) -> Result<Sampling, ApiError> {
    let neutral = Sampling::default();
    let mut number = |name: &str, neutral: f32| Ok(fields.take(name)?.unwrap_or(neutral));
    let sampling = Sampling {
        temperature: number("temperature", neutral.temperature)?,
        top_p: number("top_p", neutral.top_p)?,
        min_p: number("min_p", neutral.min_p)?,
        presence_penalty: number("presence_penalty", neutral.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", neutral.frequency_penalty)?,
        repetition_penalty: number("repetition_penalty", neutral.repetition_penalty)?,
        top_k: fields.take("top_k")?.unwrap_or(neutral.top_k),
        logit_bias: fields.take::<Biases>("logit_bias")?.map_or(neutral.logit_bias, |b| b.0),
        seed: neutral.seed,
    };
    sampling.check().map_err(|OutOfRange { param, found, expected }| {
        ApiError::invalid(param, format!("found {found}, expected {expected}"))
    })?;
    Ok(sampling)
}

/// OpenAI documents a signed 64-bit integer; what matters is that equal seeds stay equal.
pub(super) fn seed(fields: &mut Fields<'_>) -> Result<Option<u64>, ApiError> {
    Ok(fields.take::<i64>("seed")?.map(i64::cast_unsigned))
}

/// Whether logprobs are wanted, and of how many of the likeliest tokens.
pub(super) fn logprobs(fields: &mut Fields<'_>) -> Result<Option<u8>, ApiError> {
    let wanted = fields.take("logprobs")?.unwrap_or(false);
    let top = fields.take::<u64>("top_logprobs")?;
    if let Some(found) = top.filter(|top| *top > TOP_LOGPROBS_MAX.into()) {
        let message = format!("found {found}, expected 0 to {TOP_LOGPROBS_MAX}");
        return Err(ApiError::invalid("top_logprobs", message));
    }
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(ApiError::invalid("top_logprobs", "only allowed when logprobs is true"));
    }
    let top = u8::try_from(top.unwrap_or(0)).unwrap_or(TOP_LOGPROBS_MAX);
    Ok(wanted.then_some(top))
}

/// Token numbers, each once, and what is added to their logits.
struct Biases(BTreeMap<u32, f32>);

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = BTreeMap<u32, f32>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of token numbers and their biases")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut biases = BTreeMap::new();
                while let Some((token, bias)) = map.next_entry::<String, f32>()? {
                    let number = token.parse().ok().filter(|n: &u32| n.to_string() == token);
                    let Some(number) = number else {
                        return Err(A::Error::custom("a member's name is no token number"));
                    };
                    if biases.len() == LOGIT_BIAS_MAX {
                        let message = format!("expected at most {LOGIT_BIAS_MAX} tokens");
                        return Err(A::Error::custom(message));
                    }
                    if biases.insert(number, bias).is_some() {
                        return Err(A::Error::custom("a token occurs twice"));
                    }
                }
                Ok(biases)
            }
        }
        deserializer.deserialize_map(Members).map(Self)
    }
}
