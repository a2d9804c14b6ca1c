//! An encoder's tensors, used where they lie in the file.

use std::collections::BTreeMap;

use kernels::Matrix;

use super::folder::Folder;
use crate::gguf::Gguf;
use crate::weights::finder::Finder;
use crate::weights::{FileBytes, Stored, WeightsError};

/// All tensors, shapes checked.
pub(super) struct Weights {
    files: [FileBytes; 1],
    words: Stored,
    positions: Stored,
    /// What each token has because of its kind.
    pub(super) kind: Vec<f32>,
    /// Of the sum of those three.
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
}

/// A layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) query: Part,
    pub(super) key: Part,
    pub(super) value: Part,
    pub(super) attention_output: Part,
    pub(super) attention_norm: Norm,
    pub(super) up: Part,
    pub(super) down: Part,
    pub(super) output_norm: Norm,
}

/// A matrix and what is added.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) matrix: Stored,
    pub(super) bias: Vec<f32>,
}

/// A norm's two vectors.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl Weights {
    pub(super) fn find(folder: &Folder) -> Result<Self, WeightsError> {
        let shape = &folder.shape;
        let (hidden, wide) = (shape.hidden, shape.feed_forward);
        let tensors = folder.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone()));
        let gguf = Gguf::of_parts(BTreeMap::new(), tensors.collect());
        let files = [folder.weights.clone()];
        let mut finder = Finder::new(&gguf, &files);
        finder.within("embeddings.".to_owned());
        let words = finder.matrix("word_embeddings.weight", shape.vocabulary, hidden)?;
        let positions = finder.matrix("position_embeddings.weight", shape.positions, hidden)?;
        let kinds = finder.matrix("token_type_embeddings.weight", shape.kinds, hidden)?;
        let mut kind = vec![0.0; hidden];
        kinds.matrix(&files).decode_row(0, &mut kind);
        let norm = find_norm(&mut finder, "LayerNorm", hidden)?;
        let layers = (0..shape.layers).map(|number| {
            finder.within(format!("encoder.layer.{number}."));
            let mut part = |name: &str, rows, columns| {
                let matrix = finder.matrix(&format!("{name}.weight"), rows, columns)?;
                let bias = finder.vector(&format!("{name}.bias"), rows)?;
                Ok::<_, WeightsError>(Part { matrix, bias })
            };
            Ok(Layer {
                query: part("attention.self.query", hidden, hidden)?,
                key: part("attention.self.key", hidden, hidden)?,
                value: part("attention.self.value", hidden, hidden)?,
                attention_output: part("attention.output.dense", hidden, hidden)?,
                up: part("intermediate.dense", wide, hidden)?,
                down: part("output.dense", hidden, wide)?,
                attention_norm: find_norm(&mut finder, "attention.output.LayerNorm", hidden)?,
                output_norm: find_norm(&mut finder, "output.LayerNorm", hidden)?,
            })
        });
        let layers = layers.collect::<Result<_, WeightsError>>()?;
        finder.end()?;
        Ok(Self { files, words, positions, kind, norm, layers })
    }

    pub(super) fn matrix(&self, stored: &Stored) -> Matrix<'_> {
        stored.matrix(&self.files)
    }

    pub(super) fn word(&self, token: u32, out: &mut [f32]) {
        self.matrix(&self.words).decode_row(token as usize, out);
    }

    pub(super) fn position(&self, position: usize, out: &mut [f32]) {
        self.matrix(&self.positions).decode_row(position, out);
    }
}

fn find_norm(finder: &mut Finder<'_, '_>, name: &str, hidden: usize) -> Result<Norm, WeightsError> {
    Ok(Norm {
        weight: finder.vector(&format!("{name}.weight"), hidden)?,
        bias: finder.vector(&format!("{name}.bias"), hidden)?,
    })
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}
