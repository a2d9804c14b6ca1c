//! A plan in the making, and what the blocks would be once it is done.

use std::collections::BTreeMap;

use super::{Admission, Plan, Scheduler, Work};
use crate::sequence::{Partition, Sequence};

/// The plan so far; nothing of the scheduler changes.
#[derive(Clone)]
struct Draft<'a> {
    scheduler: &'a Scheduler,
    plan: Plan,
    /// Tokens that the step still has room for.
    budget: usize,
    /// Blocks without a holder.
    free: usize,
    /// Holders of the blocks whose holders the plan changes.
    holders: BTreeMap<u32, u32>,
    /// Tokens that the plan gives each partition.
    planned: BTreeMap<&'a Partition, usize>,
}

pub(super) fn draft(scheduler: &Scheduler) -> Plan {
    let mut draft = Draft {
        scheduler,
        plan: Plan::default(),
        budget: scheduler.limits.step_tokens,
        free: scheduler.pool.free(),
        holders: BTreeMap::new(),
        planned: BTreeMap::new(),
    };
    draft.continue_running();
    if draft.plan.preempt.is_empty() && draft.plan.fail.is_none() {
        draft.admit_waiting();
    }
    draft.plan
}

impl<'a> Draft<'a> {
    fn continue_running(&mut self) {
        let mut running: Vec<&Sequence> = self.scheduler.running.iter().collect();
        // One token each first, so that no long prompt holds up an answer.
        running.sort_by_key(|s| (s.pending() != 1, self.scheduler.turn(s, 0)));
        for sequence in running {
            if !self.plan.preempt.contains(&sequence.id) && self.plan.fail.is_none() {
                self.advance(sequence);
            }
        }
    }

    /// Gives a running sequence its next tokens, at the cost of those of lower rank.
    fn advance(&mut self, sequence: &'a Sequence) {
        let pool = &self.scheduler.pool;
        loop {
            let end = sequence.computed + sequence.pending().min(self.budget);
            if pool.blocks_for(end) > pool.total() {
                self.plan.fail = Some(sequence.id);
                return;
            }
            if pool.blocks_for(end) - self.held(sequence) <= self.free {
                return self.grant(sequence, sequence.computed, end);
            }
            // It is one of them, so that there is always one.
            let Some(victim) = self.last_in_rank() else { return };
            self.preempt(victim);
            if victim.id == sequence.id {
                return;
            }
        }
    }

    fn admit_waiting(&mut self) {
        let mut waiting: Vec<&Sequence> = self.scheduler.waiting.iter().collect();
        while self.budget > 0 {
            let turn = |s: &&Sequence| {
                self.scheduler.turn(s, self.planned.get(&s.partition).copied().unwrap_or(0))
            };
            let next = (0..waiting.len()).min_by_key(|i| turn(&waiting[*i]));
            let Some(next) = next.map(|i| waiting.swap_remove(i)) else { return };
            let pool = &self.scheduler.pool;
            if pool.blocks_for(next.tokens.len()) > pool.total() {
                self.plan.fail = Some(next.id);
                return;
            }
            // The last token is computed in any case: its logits are what is wanted.
            let whole = (next.tokens.len() - 1) / pool.block_tokens();
            let digests = &next.digests[..whole.min(next.digests.len())];
            let hits = pool.find(&next.partition, &next.tokens, digests);
            // Who was preempted for one more urgent does not come after its equals.
            let displaced = self.plan.preempt.iter().filter_map(|id| self.scheduler.running(*id));
            let first = displaced.map(|victim| victim.priority).min();
            if first.is_some_and(|victim| victim <= next.priority) || !self.make_room(next, &hits) {
                return;
            }
            self.admit(next, hits);
        }
    }

    /// Preempts the less urgent until `next` fits, or nobody if it would not even then.
    fn make_room(&mut self, next: &Sequence, hits: &[u32]) -> bool {
        if self.fits(next, hits) {
            return true;
        }
        let mut without = self.clone();
        while let Some(victim) = without.last_in_rank().filter(|v| v.priority > next.priority) {
            without.preempt(victim);
            if without.fits(next, hits) {
                *self = without;
                return true;
            }
        }
        false
    }

    /// Whether there is a place and, beside what the prompts that run will need, blocks for all its tokens: a
    /// prompt that is preempted half-way was computed for nothing.
    fn fits(&self, next: &Sequence, hits: &[u32]) -> bool {
        let running = self.running().count() + self.plan.admit.len();
        let admitted =
            self.plan.admit.iter().filter_map(|admission| {
                self.scheduler.waiting.iter().find(|s| s.id == admission.id)
            });
        let pool = &self.scheduler.pool;
        let lacks = |s: &Sequence| pool.blocks_for(s.tokens.len()).saturating_sub(self.held(s));
        let promised: usize = self.running().chain(admitted).map(lacks).sum();
        let unheld = hits.iter().filter(|block| self.holders(**block) == 0).count();
        let needed = pool.blocks_for(next.tokens.len()) - hits.len() + unheld;
        running < self.scheduler.limits.running && needed + promised <= self.free
    }

    fn admit(&mut self, next: &'a Sequence, hits: Vec<u32>) {
        for block in &hits {
            let holders = self.holders(*block);
            self.free -= usize::from(holders == 0);
            self.holders.insert(*block, holders + 1);
        }
        let computed = hits.len() * self.scheduler.pool.block_tokens();
        let end = computed + (next.tokens.len() - computed).min(self.budget);
        self.plan.admit.push(Admission { id: next.id, hits });
        self.grant(next, computed, end);
    }

    fn grant(&mut self, sequence: &'a Sequence, start: usize, end: usize) {
        if start == end {
            return;
        }
        self.free -= self.scheduler.pool.blocks_for(end) - self.held(sequence);
        self.budget -= end - start;
        *self.planned.entry(&sequence.partition).or_default() += end - start;
        let last = sequence.tokens.len() - 1;
        let boundary = last - last % self.scheduler.pool.block_tokens();
        let cut = boundary.clamp(start, end);
        for tokens in [start..cut, cut..end] {
            if !tokens.is_empty() {
                let sample = tokens.end == sequence.tokens.len();
                self.plan.work.push(Work { id: sequence.id, tokens, sample });
            }
        }
    }

    /// Takes a running sequence's blocks, and what the plan had for it.
    fn preempt(&mut self, victim: &'a Sequence) {
        let planned: usize = self.works(victim).map(|work| work.tokens.len()).sum();
        self.budget += planned;
        *self.planned.entry(&victim.partition).or_default() -= planned;
        self.free += self.held(victim) - victim.table.blocks().len();
        self.plan.work.retain(|work| work.id != victim.id);
        for block in victim.table.blocks() {
            let holders = self.holders(*block) - 1;
            self.free += usize::from(holders == 0);
            self.holders.insert(*block, holders);
        }
        self.plan.preempt.push(victim.id);
    }

    fn running(&self) -> impl Iterator<Item = &'a Sequence> {
        self.scheduler.running.iter().filter(|s| !self.plan.preempt.contains(&s.id))
    }

    fn last_in_rank(&self) -> Option<&'a Sequence> {
        self.running().max_by_key(|s| s.rank())
    }

    fn works(&self, sequence: &Sequence) -> impl Iterator<Item = &Work> {
        self.plan.work.iter().filter(|work| work.id == sequence.id)
    }

    /// Blocks that a sequence has after what is planned so far.
    fn held(&self, sequence: &Sequence) -> usize {
        let hits = self.plan.admit.iter().find(|admission| admission.id == sequence.id);
        let has = hits.map_or(sequence.table.blocks().len(), |admission| admission.hits.len());
        let end = self.works(sequence).map(|work| work.tokens.end).max();
        has.max(self.scheduler.pool.blocks_for(end.unwrap_or(0)))
    }

    fn holders(&self, block: u32) -> u32 {
        let planned = self.holders.get(&block).copied();
        planned.unwrap_or_else(|| self.scheduler.pool.holders(block))
    }
}
