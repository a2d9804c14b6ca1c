//! One request's tokens and how far they are computed.
//!
//! There is no prefill or decode phase: `computed` catches up with `tokens`, at first and after a preemption.

use std::sync::Arc;

use crate::blocks::{BlockTable, Digest};

/// Names a sequence for its lifetime; a later arrival has a larger number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// Whose tokens they are: blocks are shared within a partition only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition(Arc<str>);

impl Partition {
    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl From<&str> for Partition {
    fn from(key: &str) -> Self {
        Self(key.into())
    }
}

/// Prompt and answer of one request.
#[derive(Debug)]
pub struct Sequence {
    /// Its name.
    pub id: SequenceId,
    /// Whose it is.
    pub partition: Partition,
    /// Lower goes first, and may take the place of a higher one.
    pub priority: u8,
    /// Prompt, then answer.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Most tokens, prompt and answer together.
    pub tokens_max: usize,
    /// Tokens whose keys and values are in the cache.
    pub computed: usize,
    /// Tokens that the cache had when it first ran.
    pub cached: Option<usize>,
    /// Cache blocks, enough for what is computed; empty while it waits.
    pub table: BlockTable,
    /// Digests of its full blocks.
    pub digests: Vec<Digest>,
}

impl Sequence {
    /// A sequence that nothing was computed of yet.
    #[must_use]
    pub fn new(
        id: SequenceId,
        partition: Partition,
        priority: u8,
        prompt: Vec<u32>,
        answer_max: usize,
    ) -> Self {
        Self {
            id,
            partition,
            priority,
            prompt: prompt.len(),
            tokens_max: prompt.len().saturating_add(answer_max),
            tokens: prompt,
            computed: 0,
            cached: None,
            table: BlockTable::default(),
            digests: Vec::new(),
        }
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

    /// Who is preempted last: the most urgent, then the first to arrive. As long as it runs, it is never preempted by
    /// its equals, so it ends, and then the next does.
    #[must_use]
    pub fn rank(&self) -> (u8, SequenceId) {
        (self.priority, self.id)
    }
}
