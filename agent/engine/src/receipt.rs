//! Receipts, from what is run.

use ipc::{RECEIPT_TOKENS_MAX, Receipt, ReceiptFormat, tokens_sha256};

use crate::load::Loaded;
use crate::request::Prepared;

/// The receipt of a request that has no answer yet.
#[must_use]
pub fn question(
    model: &Loaded,
    bundle_digest: Option<String>,
    request_sha256: String,
    prepared: &Prepared,
) -> Receipt {
    Receipt {
        format: ReceiptFormat::V1,
        bundle_digest,
        model_sha256: model.sha256.clone(),
        request_sha256,
        sampling: prepared.sampling.clone(),
        max_tokens: prepared.answer_max,
        stop: prepared.stops.clone(),
        answer_format: prepared.format.clone(),
        kernels: model.info.kernels.clone(),
        prompt_tokens: prepared.prompt.len(),
        prompt_tokens_sha256: tokens_sha256(&prepared.prompt),
        output_tokens: 0,
        output_tokens_sha256: tokens_sha256(&[]),
        output_token_ids: None,
    }
}

/// The receipt of `question` with its answer, the token that ends it included.
#[must_use]
pub fn answered(question: Receipt, tokens: Vec<u32>) -> Receipt {
    Receipt {
        output_tokens: tokens.len(),
        output_tokens_sha256: tokens_sha256(&tokens),
        output_token_ids: (tokens.len() <= RECEIPT_TOKENS_MAX).then_some(tokens),
        ..question
    }
}
