//! A replay beside its receipt: is it the same question, is it the same answer, and where do they differ?

use ipc::{Receipt, tokens_sha256};

/// Longest receipt, in bytes.
pub(crate) const RECEIPT_BYTES_MAX: u64 = 16 << 20;

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

/// Whether the receipt's tokens, if it has any, are those of its digest.
pub(crate) fn check(receipt: &Receipt) -> Result<(), Difference> {
    match &receipt.output_token_ids {
        Some(ids)
            if ids.len() != receipt.output_tokens
                || tokens_sha256(ids) != receipt.output_tokens_sha256 =>
        {
            Err(Difference::Receipt)
        }
        _ => Ok(()),
    }
}

/// Whether `asked`, a receipt of what is about to be run, asks the same of the same model.
pub(crate) fn same_question(receipt: &Receipt, asked: &Receipt) -> Result<(), Difference> {
    let none = || "none".to_owned();
    let pairs = [
        (
            "the bundle",
            &asked.bundle_digest.clone().unwrap_or_else(none),
            &receipt.bundle_digest.clone().unwrap_or_else(none),
        ),
        ("the model", &asked.model_sha256, &receipt.model_sha256),
        ("the request", &asked.request_sha256, &receipt.request_sha256),
        ("the sampling", &format!("{:?}", asked.sampling), &format!("{:?}", receipt.sampling)),
        ("max_tokens", &asked.max_tokens.to_string(), &receipt.max_tokens.to_string()),
        ("stop", &format!("{:?}", asked.stop), &format!("{:?}", receipt.stop)),
        (
            "the answer's format",
            &format!("{:?}", asked.answer_format),
            &format!("{:?}", receipt.answer_format),
        ),
        ("the prompt's tokens", &asked.prompt_tokens_sha256, &receipt.prompt_tokens_sha256),
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
pub(crate) fn same_answer(receipt: &Receipt, answer: &[u32]) -> Result<(), Difference> {
    if tokens_sha256(answer) == receipt.output_tokens_sha256 {
        return Ok(());
    }
    let (found, expected) = (answer.len(), receipt.output_tokens);
    let Some(ids) = &receipt.output_token_ids else {
        return Err(Difference::Answer { found, expected });
    };
    let position = ids.iter().zip(answer).take_while(|(a, b)| a == b).count();
    let (found, expected) = (answer.get(position).copied(), ids.get(position).copied());
    Err(Difference::Token { position, found, expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::{AnswerFormat, ReceiptFormat, Sampling};

    fn receipt(ids: &[u32]) -> Receipt {
        Receipt {
            format: ReceiptFormat::V1,
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
    fn the_first_difference_is_named() {
        let kept = receipt(&[5, 6, 7]);
        assert_eq!(same_answer(&kept, &[5, 6, 7]), Ok(()));
        let at = |position, found, expected| Err(Difference::Token { position, found, expected });
        assert_eq!(same_answer(&kept, &[5, 9, 7]), at(1, Some(9), Some(6)));
        assert_eq!(same_answer(&kept, &[5, 6]), at(2, None, Some(7)));
        assert_eq!(same_answer(&kept, &[5, 6, 7, 8]), at(3, Some(8), None));
        let without = Receipt { output_token_ids: None, ..kept };
        assert_eq!(same_answer(&without, &[5, 6, 7]), Ok(()));
        let unknown = Err(Difference::Answer { found: 1, expected: 3 });
        assert_eq!(same_answer(&without, &[5]), unknown);
    }

    #[test]
    fn another_question_is_not_compared() {
        let kept = receipt(&[5]);
        assert_eq!(same_question(&kept, &receipt(&[9])), Ok(()), "the answer does not matter here");
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
            let error = same_question(&kept, &other).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_receipt_whose_tokens_were_changed_contradicts_itself() {
        assert_eq!(check(&receipt(&[5, 6])), Ok(()));
        let forged = Receipt { output_token_ids: Some(vec![5, 7]), ..receipt(&[5, 6]) };
        assert_eq!(check(&forged), Err(Difference::Receipt));
        let counted = Receipt { output_tokens: 3, ..receipt(&[5, 6]) };
        assert_eq!(check(&counted), Err(Difference::Receipt));
    }
}
