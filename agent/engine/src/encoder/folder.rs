//! The files of an encoder, read and checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::config::{self, Shape, Texts};
use super::words::{Words, WordsError};
use crate::checkpoint::{CheckpointError, TOKENIZER_BYTES_MAX, json, tensor};
use crate::gguf::Tensor;
use crate::safetensors::{SafetensorsError, parse_without};
use crate::weights::{FileBytes, WeightsError};

/// The file with the weights.
const WEIGHTS: &str = "model.safetensors";

/// Tensors that no vector depends on: the numbers of positions, and the part that BERT was trained with.
const UNUSED: [&str; 3] = ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"];

/// Why a folder is not usable.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// A file is missing.
    #[error("an encoder, which a folder with modules.json is, needs {file}")]
    Missing {
        /// Its path in the folder.
        file: &'static str,
    },
    /// A small file is not usable.
    #[error(transparent)]
    Config(#[from] CheckpointError),
    /// The vocabulary is not usable.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// The weights file is damaged.
    #[error("{WEIGHTS}: {0}")]
    File(#[from] SafetensorsError),
    /// The tensors are not those of the model.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// An encoder's folder.
pub struct Folder {
    /// What is computed.
    pub shape: Shape,
    /// How texts become tokens.
    pub words: Words,
    pub(super) tensors: BTreeMap<String, Tensor>,
    pub(super) weights: FileBytes,
}

impl Folder {
    /// Reads the files, which `open` finds by their paths in the folder.
    ///
    /// # Errors
    /// If `open` fails, or a file is missing, damaged, or asks for what this engine does not compute.
    pub fn read<E: From<EncoderError>>(
        mut open: impl FnMut(&'static str) -> Result<Option<FileBytes>, E>,
    ) -> Result<Self, E> {
        let mut needed = |file| open(file)?.ok_or_else(|| E::from(EncoderError::Missing { file }));
        let (config, modules) = (needed("config.json")?, needed("modules.json")?);
        let (pooling, tokenizer) = (needed("1_Pooling/config.json")?, needed("tokenizer.json")?);
        let weights = needed(WEIGHTS)?;
        let sentence = open("sentence_bert_config.json")?;
        let prompts = open("config_sentence_transformers.json")?;
        let texts = Texts {
            config: &config,
            modules: &modules,
            pooling: &pooling,
            sentence: sentence.as_deref().map(|file| &**file),
            prompts: prompts.as_deref().map(|file| &**file),
        };
        Ok(Self::of(&texts, &tokenizer, weights)?)
    }

    fn of(texts: &Texts<'_>, tokenizer: &[u8], weights: FileBytes) -> Result<Self, EncoderError> {
        let shape = config::read(texts)?;
        let tokenizer = json("tokenizer.json", tokenizer, TOKENIZER_BYTES_MAX)?;
        let words = Words::read(&tokenizer, shape.vocabulary)?;
        let entries = parse_without(&weights, &UNUSED)?;
        let tensors = entries.into_iter().map(|(name, entry)| {
            let (columns, rows) = match entry.shape.split_last() {
                Some((columns, rows)) => (*columns, rows.iter().product()),
                None => (1, 1),
            };
            (name, tensor(0, entry.format, rows, columns, entry.extent))
        });
        Ok(Self { shape, words, tensors: tensors.collect(), weights: Arc::clone(&weights) })
    }
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folder").field("shape", &self.shape).finish_non_exhaustive()
    }
}
