//! How the tokens of an answer are chosen.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Most tokens that one request may bias.
pub const LOGIT_BIAS_MAX: usize = 300;
/// Most of the likeliest tokens that are told of each token of an answer, as in OpenAI's API.
pub const TOP_LOGPROBS_MAX: u8 = 20;

/// Parameters of the sampler. What it does with them, and in which order, stands in `engine::sampler`. Absent ones
/// have the value that changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0 takes the likeliest token; at most 2.
    pub temperature: f32,
    /// So many of the likeliest tokens are kept; 0 keeps all.
    pub top_k: u32,
    /// The likeliest tokens that have this probability together are kept; in (0, 1].
    pub top_p: f32,
    /// Tokens at least this likely, as a share of the likeliest one's probability, are kept; in [0, 1].
    pub min_p: f32,
    /// Subtracted from the logit of each token that the answer has; in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted once for each time that the answer has the token; in [-2, 2].
    pub frequency_penalty: f32,
    /// Divides the positive logits, and multiplies the others, of tokens of prompt and answer; in [0.1, 10].
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens; each in [-100, 100], at most [`LOGIT_BIAS_MAX`].
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed; the same request with the same seed gives the same answer.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

/// A parameter that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{param}: found {found}, expected {expected}")]
pub struct OutOfRange {
    /// Its name in the API.
    pub param: &'static str,
    /// What was found.
    pub found: String,
    /// What is accepted.
    pub expected: String,
}

impl Sampling {
    /// The likeliest token each time.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether every parameter is in its range; the one place where the ranges stand.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), OutOfRange> {
        within("temperature", self.temperature, 0.0..=2.0)?;
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let (param, found) = ("top_p", self.top_p.to_string());
            return Err(OutOfRange { param, found, expected: "above 0, at most 1".to_owned() });
        }
        within("min_p", self.min_p, 0.0..=1.0)?;
        within("presence_penalty", self.presence_penalty, -2.0..=2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.1..=10.0)?;
        if self.logit_bias.len() > LOGIT_BIAS_MAX {
            let (param, found) = ("logit_bias", format!("{} tokens", self.logit_bias.len()));
            let expected = format!("at most {LOGIT_BIAS_MAX}");
            return Err(OutOfRange { param, found, expected });
        }
        self.logit_bias.values().try_for_each(|bias| within("logit_bias", *bias, -100.0..=100.0))
    }
}

fn within(param: &'static str, found: f32, range: RangeInclusive<f32>) -> Result<(), OutOfRange> {
    // NaN is in no range.
    if range.contains(&found) {
        return Ok(());
    }
    let expected = format!("{} to {}", range.start(), range.end());
    Err(OutOfRange { param, found: found.to_string(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_changes_nothing() {
        let read: Sampling = serde_json::from_str("{}").unwrap();
        assert_eq!(read, Sampling::default());
        assert_eq!(read.check(), Ok(()));
        assert!(serde_json::from_str::<Sampling>(r#"{"top_q":1}"#).is_err());
    }

    #[test]
    fn a_message_round_trips_to_the_bit() {
        let sampling = Sampling {
            temperature: 0.1 + 0.2,
            min_p: f32::MIN_POSITIVE,
            logit_bias: BTreeMap::from([(7, -0.1), (u32::MAX, 100.0)]),
            seed: u64::MAX,
            ..Sampling::default()
        };
        let text = serde_json::to_string(&sampling).unwrap();
        assert_eq!(serde_json::from_str::<Sampling>(&text).unwrap(), sampling);
    }

    #[test]
    fn a_parameter_out_of_range_is_named_with_its_range() {
        let good = Sampling::default;
        let bias = |count: u32, bias: f32| (0..count).map(|token| (token, bias)).collect();
        for (bad, param) in [
            (Sampling { temperature: -0.1, ..good() }, "temperature"),
            (Sampling { temperature: 2.1, ..good() }, "temperature"),
            (Sampling { temperature: f32::NAN, ..good() }, "temperature"),
            (Sampling { top_p: 0.0, ..good() }, "top_p"),
            (Sampling { top_p: 1.01, ..good() }, "top_p"),
            (Sampling { top_p: f32::NAN, ..good() }, "top_p"),
            (Sampling { min_p: -0.1, ..good() }, "min_p"),
            (Sampling { min_p: 1.1, ..good() }, "min_p"),
            (Sampling { presence_penalty: 2.1, ..good() }, "presence_penalty"),
            (Sampling { frequency_penalty: -2.1, ..good() }, "frequency_penalty"),
            (Sampling { repetition_penalty: 0.0, ..good() }, "repetition_penalty"),
            (Sampling { repetition_penalty: f32::INFINITY, ..good() }, "repetition_penalty"),
            (Sampling { logit_bias: bias(1, 100.5), ..good() }, "logit_bias"),
            (Sampling { logit_bias: bias(1, f32::NAN), ..good() }, "logit_bias"),
            (Sampling { logit_bias: bias(301, 1.0), ..good() }, "logit_bias"),
        ] {
            assert_eq!(bad.check().unwrap_err().param, param, "{bad:?}");
        }
        let error = Sampling { min_p: 1.5, ..good() }.check().unwrap_err();
        assert_eq!(error.to_string(), "min_p: found 1.5, expected 0 to 1");
        assert_eq!(Sampling { logit_bias: bias(300, -100.0), ..good() }.check(), Ok(()));
    }
}
