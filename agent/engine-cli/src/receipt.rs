//! A receipt: what makes an answer, and the digest of the answer, so that anybody with the same bundle can make it
//! again and compare.
//!
//! Invariant: everything that the answer depends on is in it, in full or as a digest. The kernel set is in it for the
//! record: all of them give the same bits.

use ipc::{AnswerFormat, Sampling};
use serde::{Deserialize, Serialize};

use crate::model::tokens_sha256;

/// Longest receipt, in bytes.
pub(crate) const RECEIPT_BYTES_MAX: u64 = 16 << 20;

/// What was asked of which model, and what it answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Receipt {
    pub(crate) format: Format,
    /// SHA-256 of the bundle's DSSE payload, lower-case hex; `null` for a model that came in no bundle.
    pub(crate) bundle_digest: Option<String>,
    /// SHA-256 of the model file, lower-case hex.
    pub(crate) model_sha256: String,
    /// SHA-256 of the request's exact bytes, lower-case hex.
    pub(crate) request_sha256: String,
    /// How tokens were chosen, defaults filled in; a parameter that is absent had no effect.
    pub(crate) sampling: Sampling,
    /// Most tokens of the answer.
    pub(crate) max_tokens: usize,
    pub(crate) stop: Vec<String>,
    /// What the answer had to be like; `null` if it could be any text.
    pub(crate) answer_format: Option<AnswerFormat>,
    /// Kernel set that ran.
    pub(crate) kernels: String,
    /// Tokens of the prompt, chat template included, and their digest (numbers as 32 bits little-endian).
    pub(crate) prompt_tokens: usize,
    pub(crate) prompt_tokens_sha256: String,
    /// Tokens of the answer, the one that ends it included, and their digest.
    pub(crate) output_tokens: usize,
    pub(crate) output_tokens_sha256: String,
    /// The tokens themselves. May be left out, since they are the answer; then a difference has no place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) output_token_ids: Option<Vec<u32>>,
}

/// The one format there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Format {
    #[serde(rename = "casemate-receipt-v1")]
    V1,
}

/// Where a replay first differs from its receipt.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Difference {
    /// Another bundle, model, request, prompt or parameter: the answers cannot be compared.
    #[error("{what} differs: found {found}, the receipt says {expected}")]
    Asked { what: &'static str, found: String, expected: String },
    /// Another answer to the same question.
    #[error(
        "the answers differ from token {position} on: found {found:?}, the receipt says {expected:?}"
    )]
    Token { position: usize, found: Option<u32>, expected: Option<u32> },
    /// Another answer; the receipt does not hold its tokens.
    #[error(
        "the answers differ: found {found} tokens, the receipt says {expected}, and does not hold them, so that the \
         first difference is not known"
    )]
    Answer { found: usize, expected: usize },
    /// The receipt's own tokens are not those of its digest.
    #[error("the receipt contradicts itself: its tokens do not have its digest")]
    Receipt,
}

impl Receipt {
    /// Whether the receipt's tokens, if it has any, are those of its digest.
    pub(crate) fn check(&self) -> Result<(), Difference> {
        match &self.output_token_ids {
            Some(ids)
                if ids.len() != self.output_tokens
                    || tokens_sha256(ids) != self.output_tokens_sha256 =>
            {
                Err(Difference::Receipt)
            }
            _ => Ok(()),
        }
    }

    /// Whether `asked`, a receipt of what is about to be run, asks the same of the same model.
    pub(crate) fn same_question(&self, asked: &Self) -> Result<(), Difference> {
        let none = || "none".to_owned();
        let pairs = [
            (
                "the bundle",
                &asked.bundle_digest.clone().unwrap_or_else(none),
                &self.bundle_digest.clone().unwrap_or_else(none),
            ),
            ("the model", &asked.model_sha256, &self.model_sha256),
            ("the request", &asked.request_sha256, &self.request_sha256),
            ("the sampling", &format!("{:?}", asked.sampling), &format!("{:?}", self.sampling)),
            ("max_tokens", &asked.max_tokens.to_string(), &self.max_tokens.to_string()),
            ("stop", &format!("{:?}", asked.stop), &format!("{:?}", self.stop)),
            (
                "the answer's format",
                &format!("{:?}", asked.answer_format),
                &format!("{:?}", self.answer_format),
            ),
            ("the prompt's tokens", &asked.prompt_tokens_sha256, &self.prompt_tokens_sha256),
        ];
        for (what, found, expected) in pairs {
            if found != expected {
                let (found, expected) = (found.clone(), expected.clone());
                return Err(Difference::Asked { what, found, expected });
            }
        }
        Ok(())
    }

    /// Whether `answer` is the receipt's.
    pub(crate) fn same_answer(&self, answer: &[u32]) -> Result<(), Difference> {
        if tokens_sha256(answer) == self.output_tokens_sha256 {
            return Ok(());
        }
        let (found, expected) = (answer.len(), self.output_tokens);
        let Some(ids) = &self.output_token_ids else {
            return Err(Difference::Answer { found, expected });
        };
        let position = ids.iter().zip(answer).take_while(|(a, b)| a == b).count();
        let (found, expected) = (answer.get(position).copied(), ids.get(position).copied());
        Err(Difference::Token { position, found, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(ids: &[u32]) -> Receipt {
        Receipt {
            format: Format::V1,
            bundle_digest: None,
            model_sha256: "m".to_owned(),
            request_sha256: "r".to_owned(),
            sampling: Sampling { temperature: 0.7, seed: u64::MAX, ..Sampling::default() },
            max_tokens: 9,
            stop: vec![],
            answer_format: None,
            kernels: "scalar".to_owned(),
            prompt_tokens: 2,
            prompt_tokens_sha256: "p".to_owned(),
            output_tokens: ids.len(),
            output_tokens_sha256: tokens_sha256(ids),
            output_token_ids: Some(ids.to_vec()),
        }
    }

    #[test]
    fn a_receipt_round_trips_and_knows_its_fields() {
        let text = serde_json::to_string(&receipt(&[1, 2])).unwrap();
        assert_eq!(serde_json::from_str::<Receipt>(&text).unwrap(), receipt(&[1, 2]));
        assert!(text.contains("casemate-receipt-v1"));
        let other = text.replace("receipt-v1", "receipt-v2");
        assert!(serde_json::from_str::<Receipt>(&other).is_err());
        let more = text.replace("\"kernels\"", "\"more\":1,\"kernels\"");
        assert!(serde_json::from_str::<Receipt>(&more).is_err());
    }

    #[test]
    fn the_first_difference_is_named() {
        let kept = receipt(&[5, 6, 7]);
        assert_eq!(kept.same_answer(&[5, 6, 7]), Ok(()));
        let at = |position, found, expected| Err(Difference::Token { position, found, expected });
        assert_eq!(kept.same_answer(&[5, 9, 7]), at(1, Some(9), Some(6)));
        assert_eq!(kept.same_answer(&[5, 6]), at(2, None, Some(7)));
        assert_eq!(kept.same_answer(&[5, 6, 7, 8]), at(3, Some(8), None));
        let without = Receipt { output_token_ids: None, ..kept };
        assert_eq!(without.same_answer(&[5, 6, 7]), Ok(()));
        let unknown = Err(Difference::Answer { found: 1, expected: 3 });
        assert_eq!(without.same_answer(&[5]), unknown);
    }

    #[test]
    fn another_question_is_not_compared() {
        let kept = receipt(&[5]);
        assert_eq!(kept.same_question(&receipt(&[9])), Ok(()), "the answer does not matter here");
        let with = |change: fn(&mut Sampling)| {
            let mut other = receipt(&[5]);
            change(&mut other.sampling);
            other
        };
        for (word, other) in [
            ("bundle", Receipt { bundle_digest: Some("x".into()), ..receipt(&[5]) }),
            ("model", Receipt { model_sha256: "x".into(), ..receipt(&[5]) }),
            ("request", Receipt { request_sha256: "x".into(), ..receipt(&[5]) }),
            ("sampling", with(|s| s.seed = 1)),
            ("sampling", with(|s| s.temperature = 0.5)),
            ("sampling", with(|s| s.top_k = 1)),
            ("sampling", with(|s| s.top_p = 0.5)),
            ("sampling", with(|s| s.min_p = 0.5)),
            ("sampling", with(|s| s.presence_penalty = 0.5)),
            ("sampling", with(|s| s.frequency_penalty = 0.5)),
            ("sampling", with(|s| s.repetition_penalty = 0.5)),
            ("sampling", with(|s| s.logit_bias.extend([(1, 0.5)]))),
            ("max_tokens", Receipt { max_tokens: 8, ..receipt(&[5]) }),
            ("stop", Receipt { stop: vec!["x".into()], ..receipt(&[5]) }),
            ("format", Receipt { answer_format: Some(AnswerFormat::JsonObject), ..receipt(&[5]) }),
            ("prompt", Receipt { prompt_tokens_sha256: "x".into(), ..receipt(&[5]) }),
        ] {
            let error = kept.same_question(&other).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_receipt_whose_tokens_were_changed_contradicts_itself() {
        assert_eq!(receipt(&[5, 6]).check(), Ok(()));
        let forged = Receipt { output_token_ids: Some(vec![5, 7]), ..receipt(&[5, 6]) };
        assert_eq!(forged.check(), Err(Difference::Receipt));
        let counted = Receipt { output_tokens: 3, ..receipt(&[5, 6]) };
        assert_eq!(counted.check(), Err(Difference::Receipt));
    }
}
