//! Fairness between partitions: whose turn it is, by the tokens computed for each so far.
//!
//! A virtual token counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): the partition with
//! the smallest count goes first; one that comes back is lifted to the smallest count of those present, so that
//! nobody saves up time while away; what it had beyond that stays held against it.
//!
//! Invariant: partitions that are present have at least one sequence; at most [`PARTITIONS_ABSENT_MAX`] absent
//! ones are remembered, those that had most.

use std::collections::BTreeMap;

use crate::limits::PARTITIONS_ABSENT_MAX;
use crate::sequence::Partition;

/// What each partition had.
#[derive(Debug, Default)]
pub struct Shares {
    present: BTreeMap<Partition, Share>,
    /// Counts of partitions that left with more than the others had.
    absent: BTreeMap<Partition, u64>,
}

#[derive(Debug, Default)]
struct Share {
    tokens: u64,
    sequences: usize,
}

impl Shares {
    /// Tokens computed for a partition, counted from where it came in.
    #[must_use]
    pub fn tokens(&self, partition: &Partition) -> u64 {
        self.present.get(partition).map_or(0, |share| share.tokens)
    }

    /// Sequences of a partition.
    #[must_use]
    pub fn sequences(&self, partition: &Partition) -> usize {
        self.present.get(partition).map_or(0, |share| share.sequences)
    }

    /// One more sequence of `partition`.
    pub fn arrive(&mut self, partition: &Partition) {
        let smallest = self.smallest();
        let absent = self.absent.remove(partition).unwrap_or(0);
        let new = || Share { tokens: absent.max(smallest), sequences: 0 };
        self.present.entry(partition.clone()).or_insert_with(new).sequences += 1;
    }

    /// `tokens` were computed for `partition`.
    pub fn charge(&mut self, partition: &Partition, tokens: usize) {
        if let Some(share) = self.present.get_mut(partition) {
            share.tokens = share.tokens.saturating_add(tokens as u64);
        }
    }

    /// One sequence of `partition` less.
    pub fn leave(&mut self, partition: &Partition) {
        let Some(share) = self.present.get_mut(partition) else { return };
        share.sequences = share.sequences.saturating_sub(1);
        if share.sequences == 0 {
            let tokens = share.tokens;
            self.present.remove(partition);
            self.absent.insert(partition.clone(), tokens);
        }
        // Without anybody there is nobody to be unfair to.
        let smallest = if self.present.is_empty() { u64::MAX } else { self.smallest() };
        self.absent.retain(|_, tokens| *tokens > smallest);
        if self.absent.len() > PARTITIONS_ABSENT_MAX {
            let least = self.absent.iter().min_by_key(|(_, tokens)| **tokens);
            if let Some(least) = least.map(|(partition, _)| partition.clone()) {
                self.absent.remove(&least);
            }
        }
    }

    fn smallest(&self) -> u64 {
        self.present.values().map(|share| share.tokens).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_late_or_back_starts_where_the_others_are() {
        let (a, b) = (Partition::from("a"), Partition::from("b"));
        let mut shares = Shares::default();
        shares.arrive(&a);
        shares.charge(&a, 100);
        shares.arrive(&b);
        assert_eq!(shares.tokens(&b), 100, "no credit for the time before");
        shares.charge(&b, 50);
        shares.leave(&b);
        shares.charge(&a, 20);
        shares.arrive(&b);
        assert_eq!(shares.tokens(&b), 150, "leaving does not clear what it had");
        shares.leave(&b);
        shares.charge(&a, 200);
        shares.arrive(&b);
        assert_eq!(shares.tokens(&b), 320);
    }

    #[test]
    fn nothing_is_remembered_for_ever() {
        let mut shares = Shares::default();
        let stays = Partition::from("stays");
        shares.arrive(&stays);
        for i in 0..PARTITIONS_ABSENT_MAX + 10 {
            let partition = Partition::from(i.to_string().as_str());
            shares.arrive(&partition);
            shares.charge(&partition, 1 + i);
            shares.leave(&partition);
        }
        assert_eq!((shares.absent.len(), shares.present.len()), (PARTITIONS_ABSENT_MAX, 1));
        assert!(!shares.absent.contains_key(&Partition::from("0")), "the smallest went");
        shares.charge(&stays, usize::MAX);
        shares.arrive(&stays);
        shares.leave(&stays);
        assert!(shares.absent.is_empty());
        shares.leave(&stays);
        assert!(shares.present.is_empty() && shares.absent.is_empty());
    }
}
