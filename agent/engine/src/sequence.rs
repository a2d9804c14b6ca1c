//! One request's tokens and how far they are computed.
//!
//! There is no prefill or decode phase: `computed` catches up with `tokens`.

use crate::blocks::BlockTable;

/// Names a sequence for its lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// Prompt and answer of one request.
#[derive(Debug)]
pub struct Sequence {
    /// Its name.
    pub id: SequenceId,
    /// Prompt, then answer.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Most tokens, prompt and answer together.
    pub tokens_max: usize,
    /// Tokens whose keys and values are in the cache.
    pub computed: usize,
    /// Cache blocks; empty until it is admitted.
    pub table: BlockTable,
}

impl Sequence {
    /// A sequence that nothing was computed of yet.
    #[must_use]
    pub fn new(id: SequenceId, prompt: Vec<u32>, answer_max: usize) -> Self {
        let tokens_max = prompt.len().saturating_add(answer_max);
        let table = BlockTable::default();
        Self { id, prompt: prompt.len(), tokens: prompt, tokens_max, computed: 0, table }
    }

    /// Tokens that wait to be computed.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens of the answer so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.tokens.len() - self.prompt
    }
}
