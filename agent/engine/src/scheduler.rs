//! What the next step computes. No clock, no model, no I/O.
//!
//! [`Scheduler::schedule`] decides and changes nothing; [`Scheduler::apply`] does what was decided.
//!
//! Invariants:
//! - A step has at most `step_tokens` tokens; at most `running` sequences run; a sequence holds less than one
//!   block beyond what is computed.
//! - Those that run go before those that wait, which are admitted only if no one was preempted for want of blocks.
//! - Who lacks blocks takes them from the one of lowest rank, perhaps itself: the one of highest rank always
//!   goes on, so that each ends in the end. Equals are not preempted to admit another; less urgent ones are.
//! - Among equally urgent ones, the partition that had least goes first.
//! - One sequence per step fails at most, and only if the whole cache is too small for it.

use std::ops::Range;

use crate::blocks::{BlockPool, InUse};
use crate::sequence::{Sequence, SequenceId};
use crate::shares::Shares;

mod draft;

/// Maxima of a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of one step.
    pub step_tokens: usize,
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait when one more arrives; those that are preempted may come on top.
    pub waiting: usize,
    /// Sequences of one partition that wait.
    pub waiting_per_partition: usize,
}

/// Sequences that wait and run, and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    waiting: Vec<Sequence>,
    running: Vec<Sequence>,
    pool: BlockPool,
    shares: Shares,
}

/// The next step, to be done in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Whom the whole cache is too small for. The caller removes it.
    pub fail: Option<SequenceId>,
    /// Who gives all blocks back and waits again.
    pub preempt: Vec<SequenceId>,
    /// Who starts to run.
    pub admit: Vec<Admission>,
    /// What is computed; the entries of one sequence follow each other.
    pub work: Vec<Work>,
}

/// A sequence that starts to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The sequence.
    pub id: SequenceId,
    /// Blocks with the beginning of its tokens, at least one of which is left to compute.
    pub hits: Vec<u32>,
}

/// Tokens of one sequence that a step computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The sequence.
    pub id: SequenceId,
    /// Positions of the tokens. They do not go on beyond the last block boundary before the last token, where a hit
    /// would end at most, so that the rest has the same shape with a hit and without.
    pub tokens: Range<usize>,
    /// Whether the last of them is the sequence's last, so that a token is to be sampled.
    pub sample: bool,
}

/// No more may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the waiting queue is full")]
pub struct QueueFull;

impl Scheduler {
    /// A scheduler without sequences.
    ///
    /// # Panics
    /// If every running sequence cannot get a token in one step.
    #[must_use]
    pub fn new(limits: Limits, pool: BlockPool) -> Self {
        assert!(limits.running > 0 && limits.running <= limits.step_tokens, "steps are too small");
        Self { limits, waiting: Vec::new(), running: Vec::new(), pool, shares: Shares::default() }
    }

    /// Lets a sequence wait for its turn.
    ///
    /// # Errors
    /// If the queue, or its partition's part of it, is full.
    pub fn enqueue(&mut self, mut sequence: Sequence) -> Result<(), QueueFull> {
        let of_partition = self.waiting.iter().filter(|s| s.partition == sequence.partition);
        if self.waiting.len() >= self.limits.waiting
            || of_partition.count() >= self.limits.waiting_per_partition
        {
            return Err(QueueFull);
        }
        self.shares.arrive(&sequence.partition);
        self.pool.digest(&sequence.partition, &sequence.tokens, &mut sequence.digests);
        self.waiting.push(sequence);
        Ok(())
    }

    /// Decides the next step and changes nothing.
    #[must_use]
    pub fn schedule(&self) -> Plan {
        draft::draft(self)
    }

    /// Does what `plan` says and counts its tokens as computed; the caller computes them before it schedules again.
    /// `zero` is called, before that, for blocks that go from one partition to another.
    ///
    /// # Panics
    /// If `plan` is not from [`Self::schedule`] on this very state.
    pub fn apply(&mut self, plan: &Plan, zero: &mut dyn FnMut(u32)) {
        for id in &plan.preempt {
            let mut sequence = take(&mut self.running, *id);
            self.pool.release(std::mem::take(&mut sequence.table));
            sequence.computed = 0;
            self.waiting.push(sequence);
        }
        // All hits are held before any block is taken, so that none of them is evicted.
        for Admission { id, hits } in &plan.admit {
            let mut sequence = take(&mut self.waiting, *id);
            sequence.computed = hits.len() * self.pool.block_tokens();
            sequence.cached.get_or_insert(sequence.computed);
            sequence.table = self.pool.hold(hits.clone());
            self.running.push(sequence);
        }
        for Work { id, tokens, .. } in &plan.work {
            let found = self.running.iter_mut().find(|s| s.id == *id);
            let Some(sequence) = found.filter(|s| s.computed == tokens.start) else {
                panic!("a plan was applied to another state than it was made for")
            };
            sequence.computed = tokens.end;
            let Sequence { partition, table, digests, .. } = sequence;
            self.pool.grow(table, tokens.end, partition, zero);
            self.pool.keep(table, &sequence.tokens[..tokens.end], digests);
            self.shares.charge(partition, tokens.len());
        }
    }

    /// A running sequence.
    #[must_use]
    pub fn running(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().find(|s| s.id == id)
    }

    /// Adds a sampled token; whether there is room for another.
    pub fn append(&mut self, id: SequenceId, token: u32) -> bool {
        let found = self.running.iter_mut().find(|s| s.id == id);
        found.is_some_and(|sequence| {
            sequence.tokens.push(token);
            let Sequence { partition, tokens, digests, .. } = sequence;
            self.pool.digest(partition, tokens, digests);
            tokens.len() < sequence.tokens_max
        })
    }

    /// Removes a sequence, at any moment between two steps.
    pub fn remove(&mut self, id: SequenceId) {
        for sequences in [&mut self.waiting, &mut self.running] {
            if let Some(at) = sequences.iter().position(|s| s.id == id) {
                let sequence = sequences.swap_remove(at);
                self.shares.leave(&sequence.partition);
                self.pool.release(sequence.table);
            }
        }
    }

    /// Forgets all prefixes; `zero` is called for each block that anybody left something in.
    ///
    /// # Errors
    /// If a sequence holds a block.
    pub fn forget(&mut self, zero: &mut dyn FnMut(u32)) -> Result<(), InUse> {
        self.pool.forget(zero)
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// The cache's blocks.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Whose turn it is, the smallest first.
    fn turn(&self, sequence: &Sequence, planned: usize) -> (u8, u64, SequenceId) {
        let had = self.shares.tokens(&sequence.partition).saturating_add(planned as u64);
        (sequence.priority, had, sequence.id)
    }
}

fn take(sequences: &mut Vec<Sequence>, id: SequenceId) -> Sequence {
    match sequences.iter().position(|s| s.id == id) {
        Some(at) => sequences.swap_remove(at),
        None => panic!("a plan was applied to another state than it was made for"),
    }
}
