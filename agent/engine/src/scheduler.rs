//! What the next step computes. No clock, no model, no I/O.
//!
//! Invariants: a step has at most `step_tokens` tokens; at most `running` sequences run; a sequence runs only
//! with blocks for all that it may ever need, so that none is preempted; those that run go before those that
//! wait; those that wait are admitted in order of arrival.

use std::collections::VecDeque;
use std::ops::Range;

use crate::blocks::{BlockPool, Clean, Dirty};
use crate::sequence::{Sequence, SequenceId};

/// Maxima of a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of one step.
    pub step_tokens: usize,
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
}

/// Sequences that wait and run, and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    pool: BlockPool,
}

/// The next step.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How many of those that wait start to run.
    pub admit: usize,
    /// What is computed, at most one entry per sequence.
    pub work: Vec<Work>,
}

/// Tokens of one sequence that a step computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The sequence.
    pub id: SequenceId,
    /// Positions of the tokens.
    pub tokens: Range<usize>,
    /// Whether the last of them is the sequence's last, so that a token is to be sampled.
    pub sample: bool,
}

impl Scheduler {
    /// A scheduler without sequences.
    ///
    /// # Panics
    /// If every running sequence cannot get a token in one step.
    #[must_use]
    pub fn new(limits: Limits, pool: BlockPool) -> Self {
        assert!(limits.running > 0 && limits.running <= limits.step_tokens, "steps are too small");
        Self { limits, waiting: VecDeque::new(), running: Vec::new(), pool }
    }

    /// Puts a sequence at the end of the queue.
    ///
    /// # Errors
    /// Gives it back if the queue is full.
    pub fn enqueue(&mut self, sequence: Sequence) -> Result<(), Sequence> {
        if self.waiting.len() >= self.limits.waiting {
            return Err(sequence);
        }
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Decides the next step and changes nothing.
    #[must_use]
    pub fn schedule(&self) -> Plan {
        let mut plan = Plan::default();
        let mut budget = self.limits.step_tokens;
        // One token each first, so that no long prompt holds up an answer.
        for decoding in [true, false] {
            for sequence in self.running.iter().filter(|s| (s.pending() == 1) == decoding) {
                plan.take(sequence, &mut budget);
            }
        }
        let mut free = self.pool.free();
        for sequence in &self.waiting {
            let needed = self.pool.blocks_for(sequence.tokens_max);
            let full = self.running.len() + plan.admit >= self.limits.running;
            if budget == 0 || full || needed > free {
                break;
            }
            free -= needed;
            plan.admit += 1;
            plan.take(sequence, &mut budget);
        }
        plan
    }

    /// Admits and counts as computed what `plan` says; the caller computes it before it schedules again.
    ///
    /// # Panics
    /// If `plan` is not from [`Self::schedule`] on this very state.
    pub fn apply(&mut self, plan: &Plan) {
        for _ in 0..plan.admit {
            let admitted = self.waiting.pop_front().and_then(|mut sequence| {
                sequence.table = self.pool.reserve(sequence.tokens_max)?;
                Some(sequence)
            });
            match admitted {
                Some(sequence) => self.running.push(sequence),
                None => panic!("a plan was applied to another state than it was made for"),
            }
        }
        for work in &plan.work {
            let found = self.running.iter_mut().find(|s| s.id == work.id);
            match found.filter(|s| s.computed == work.tokens.start) {
                Some(sequence) => sequence.computed = work.tokens.end,
                None => panic!("a plan was applied to another state than it was made for"),
            }
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
            sequence.tokens.len() < sequence.tokens_max
        })
    }

    /// Removes a sequence, at any moment; its blocks must be zeroed and given to [`Self::recycle`].
    pub fn remove(&mut self, id: SequenceId) -> Dirty {
        self.waiting.retain(|s| s.id != id);
        match self.running.iter().position(|s| s.id == id) {
            // Order is arrival: what comes later moves up.
            Some(at) => {
                let sequence = self.running.remove(at);
                self.pool.release(sequence.table, sequence.computed)
            }
            None => Dirty::default(),
        }
    }

    /// Makes zeroed blocks free again.
    pub fn recycle(&mut self, clean: Clean) {
        self.pool.recycle(clean);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Blocks that nobody holds.
    #[must_use]
    pub fn blocks_free(&self) -> usize {
        self.pool.free()
    }
}

impl Plan {
    fn take(&mut self, sequence: &Sequence, budget: &mut usize) {
        let count = sequence.pending().min(*budget);
        if count > 0 {
            *budget -= count;
            let tokens = sequence.computed..sequence.computed + count;
            let sample = tokens.end == sequence.tokens.len();
            self.work.push(Work { id: sequence.id, tokens, sample });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { step_tokens: 8, running: 3, waiting: 4 };

    fn scheduler(blocks: u32) -> Scheduler {
        Scheduler::new(LIMITS, BlockPool::new(blocks, 4))
    }

    fn sequence(id: u64, prompt: usize, answer: usize) -> Sequence {
        Sequence::new(SequenceId(id), vec![1; prompt], answer)
    }

    fn work(id: u64, tokens: Range<usize>, sample: bool) -> Work {
        Work { id: SequenceId(id), tokens, sample }
    }

    fn step(scheduler: &mut Scheduler) -> Plan {
        let plan = scheduler.schedule();
        scheduler.apply(&plan);
        plan
    }

    #[test]
    fn a_long_prompt_is_prefilled_in_chunks_beside_answers() {
        let mut s = scheduler(100);
        s.enqueue(sequence(1, 3, 5)).unwrap();
        s.enqueue(sequence(2, 20, 5)).unwrap();
        assert_eq!(step(&mut s).work, [work(1, 0..3, true), work(2, 0..5, false)]);
        assert!(s.append(SequenceId(1), 9));
        assert_eq!(step(&mut s).work, [work(1, 3..4, true), work(2, 5..12, false)]);
        assert!(s.append(SequenceId(1), 9));
        assert_eq!(step(&mut s).work, [work(1, 4..5, true), work(2, 12..19, false)]);
        // The last token of the prompt alone counts as decoding.
        assert_eq!(step(&mut s).work, [work(2, 19..20, true)]);
    }

    #[test]
    fn a_full_queue_gives_the_sequence_back() {
        let mut s = scheduler(100);
        for id in 0..4 {
            s.enqueue(sequence(id, 1, 1)).unwrap();
        }
        assert_eq!(s.enqueue(sequence(4, 1, 1)).unwrap_err().id, SequenceId(4));
    }

    #[test]
    fn admission_waits_for_blocks_and_keeps_the_order() {
        let mut s = scheduler(4);
        s.enqueue(sequence(1, 2, 10)).unwrap();
        s.enqueue(sequence(2, 2, 6)).unwrap();
        s.enqueue(sequence(3, 1, 1)).unwrap();
        let plan = step(&mut s);
        assert_eq!((plan.admit, plan.work.len()), (1, 1), "3 would fit but 2 is before it");
        let clean = s.remove(SequenceId(1)).zero(|_| ());
        s.recycle(clean);
        assert_eq!(step(&mut s).admit, 2);
    }

    #[test]
    fn a_sequence_knows_when_it_is_full() {
        let mut s = scheduler(4);
        s.enqueue(sequence(1, 2, 2)).unwrap();
        step(&mut s);
        assert!(s.append(SequenceId(1), 5));
        step(&mut s);
        assert!(!s.append(SequenceId(1), 5));
        assert_eq!(s.running(SequenceId(1)).map(Sequence::answered), Some(2));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Arrive { prompt: usize, answer: usize },
        Step,
        Cancel { which: usize },
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            2 => (1..30_usize, 1..12_usize).prop_map(|(prompt, answer)| Act::Arrive { prompt, answer }),
            5 => Just(Act::Step),
            1 => (0..8_usize).prop_map(|which| Act::Cancel { which }),
        ]
    }

    /// One step under every invariant; sequences that are full leave.
    fn checked_step(s: &mut Scheduler, live: &mut Vec<SequenceId>) {
        let before: Vec<_> = s.running.iter().map(|r| (r.id, r.computed, r.pending())).collect();
        let plan = s.schedule();
        assert_eq!(plan, s.schedule(), "scheduling changed something");
        let total: usize = plan.work.iter().map(|w| w.tokens.len()).sum();
        assert!(total <= LIMITS.step_tokens && s.running.len() + plan.admit <= LIMITS.running);
        for (id, computed, pending) in before {
            if pending == 1 {
                let decoded = plan.work.iter().any(|w| w.id == id && w.tokens.start == computed);
                assert!(decoded, "an answer was held up");
            }
        }
        s.apply(&plan);
        assert!(total > 0 || s.is_idle(), "work is left but nothing is done");
        for work in plan.work.iter().filter(|w| w.sample) {
            if !s.append(work.id, 2) {
                let clean = s.remove(work.id).zero(|_| ());
                s.recycle(clean);
                live.retain(|id| *id != work.id);
            }
        }
        let mut held: Vec<u32> = s.running.iter().flat_map(|r| r.table.blocks()).copied().collect();
        assert_eq!(held.len() + s.blocks_free(), 20);
        held.sort_unstable();
        held.dedup();
        assert_eq!(held.len() + s.blocks_free(), 20, "two sequences share a block");
    }

    proptest! {
        #[test]
        fn all_blocks_are_free_when_everything_has_ended(acts in prop::collection::vec(act(), 0..120)) {
            let mut s = scheduler(20);
            let mut live: Vec<SequenceId> = Vec::new();
            for (id, act) in (0_u64..).zip(acts) {
                match act {
                    Act::Arrive { prompt, answer } => {
                        if s.enqueue(sequence(id, prompt, answer)).is_ok() {
                            live.push(SequenceId(id));
                        }
                    }
                    Act::Step => checked_step(&mut s, &mut live),
                    Act::Cancel { which } if !live.is_empty() => {
                        let clean = s.remove(live.remove(which % live.len())).zero(|_| ());
                        s.recycle(clean);
                    }
                    Act::Cancel { .. } => {}
                }
            }
            for _ in 0..2000 {
                checked_step(&mut s, &mut live);
            }
            prop_assert!(s.is_idle() && live.is_empty());
            prop_assert_eq!(s.blocks_free(), 20);
        }
    }
}
