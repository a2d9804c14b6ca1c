//! A receipt: what makes an answer, and the digest of the answer, so that anybody with the same bundle can make it
//! again and compare.
//!
//! Invariant: everything that the answer depends on is in it, in full or as a digest. The kernel set is in it for the
//! record: all of them give the same bits.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{AnswerFormat, LoadFile, Sampling};

/// Most tokens that a receipt holds; of a longer answer it has the digest alone. With their commas they take less than
/// half a frame.
pub const RECEIPT_TOKENS_MAX: usize = 64 << 10;

/// What was asked of which model, and what it answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The one format there is.
    pub format: ReceiptFormat,
    /// SHA-256 of the bundle's DSSE payload, lower-case hex; `null` for a model that came in no bundle.
    pub bundle_digest: Option<String>,
    /// As [`model_sha256`].
    pub model_sha256: String,
    /// SHA-256 of the request's exact bytes, lower-case hex.
    pub request_sha256: String,
    /// How tokens were chosen, defaults filled in; a parameter that is absent had no effect.
    pub sampling: Sampling,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// What the answer had to be like; `null` if it could be any text.
    pub answer_format: Option<AnswerFormat>,
    /// Kernel set that ran.
    pub kernels: String,
    /// Tokens of the prompt, chat template included.
    pub prompt_tokens: usize,
    /// As [`tokens_sha256`].
    pub prompt_tokens_sha256: String,
    /// Tokens of the answer, the one that ends it included.
    pub output_tokens: usize,
    /// As [`tokens_sha256`].
    pub output_tokens_sha256: String,
    /// The tokens themselves, at most [`RECEIPT_TOKENS_MAX`]. May be left out, since they are the answer; then a
    /// difference has no place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_token_ids: Option<Vec<u32>>,
}

/// The formats of receipts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReceiptFormat {
    /// The first.
    #[serde(rename = "casemate-receipt-v1")]
    V1,
}

impl Receipt {
    /// SHA-256 of the receipt without its tokens, as compact JSON with the members in the order of this type;
    /// lower-case hex. It is the same however a client has spelt the receipt since, and whether or not it kept the
    /// tokens, whose own digest is in it.
    ///
    /// # Errors
    /// None is known: all of it can be JSON.
    pub fn digest(&self) -> Result<String, serde_json::Error> {
        let bare = Self { output_token_ids: None, ..self.clone() };
        Ok(hex::encode(Sha256::digest(serde_json::to_vec(&bare)?)))
    }
}

/// SHA-256 over token numbers, 32 bits little-endian each; lower-case hex.
#[must_use]
pub fn tokens_sha256(tokens: &[u32]) -> String {
    let mut hash = Sha256::new();
    tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    hex::encode(hash.finalize())
}

/// Which weights they are, whatever bundle they came in: the SHA-256 of a single file; of several, that of the lines
/// that `sha256sum` prints of them in the order of their names without folders. Lower-case hex.
#[must_use]
pub fn model_sha256(files: &[LoadFile]) -> String {
    if let [file] = files {
        return file.sha256.clone();
    }
    let name = |file: &LoadFile| file.name.rsplit('/').next().unwrap_or_default().to_owned();
    let mut lines: Vec<(String, &str)> =
        files.iter().map(|file| (name(file), file.sha256.as_str())).collect();
    lines.sort();
    let lines: String = lines.iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect();
    hex::encode(Sha256::digest(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt() -> Receipt {
        Receipt {
            format: ReceiptFormat::V1,
            bundle_digest: Some("b".to_owned()),
            model_sha256: "m".to_owned(),
            request_sha256: "r".to_owned(),
            sampling: Sampling { temperature: 0.7, seed: u64::MAX, ..Sampling::default() },
            max_tokens: 9,
            stop: vec!["\u{e9}".to_owned()],
            answer_format: None,
            kernels: "scalar".to_owned(),
            prompt_tokens: 2,
            prompt_tokens_sha256: "p".to_owned(),
            output_tokens: 2,
            output_tokens_sha256: tokens_sha256(&[1, 2]),
            output_token_ids: Some(vec![1, 2]),
        }
    }

    #[test]
    fn a_receipt_round_trips_and_knows_its_fields() {
        let text = serde_json::to_string(&receipt()).unwrap();
        assert_eq!(serde_json::from_str::<Receipt>(&text).unwrap(), receipt());
        assert!(text.contains("casemate-receipt-v1"));
        let other = text.replace("receipt-v1", "receipt-v2");
        assert!(serde_json::from_str::<Receipt>(&other).is_err());
        let more = text.replace("\"kernels\"", "\"more\":1,\"kernels\"");
        assert!(serde_json::from_str::<Receipt>(&more).is_err());
    }

    #[test]
    fn a_digest_is_of_what_is_said_however_it_is_spelt() {
        let digest = receipt().digest().unwrap();
        let value: serde_json::Value = serde_json::to_value(receipt()).unwrap();
        let spelt = serde_json::to_string_pretty(&value).unwrap().replace('\u{e9}', "\\u00e9");
        let read: Receipt = serde_json::from_str(&spelt).unwrap();
        assert_eq!(read.digest().unwrap(), digest);
        assert_eq!(Receipt { output_token_ids: None, ..receipt() }.digest().unwrap(), digest);
        let other = Receipt { output_tokens_sha256: tokens_sha256(&[1, 3]), ..receipt() };
        assert_ne!(other.digest().unwrap(), digest);
        assert_ne!(Receipt { kernels: "avx2".to_owned(), ..receipt() }.digest().unwrap(), digest);
    }

    #[test]
    fn a_model_of_several_files_is_what_sha256sum_says_of_them() {
        let file = |name: &str, sha256: &str| LoadFile {
            name: name.to_owned(),
            bytes: 1,
            sha256: sha256.to_owned(),
        };
        assert_eq!(model_sha256(&[file("weights/a.gguf", "aa")]), "aa");
        let listed = hex::encode(Sha256::digest("cc  config.json\naa  w.safetensors\n"));
        let (weights, config) = (file("x/w.safetensors", "aa"), file("y/config.json", "cc"));
        assert_eq!(model_sha256(&[weights.clone(), config.clone()]), listed);
        assert_eq!(model_sha256(&[config, weights]), listed);
    }
}
