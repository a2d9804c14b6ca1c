//! The paged cache's blocks: who holds which, whose they are, and which prefix they keep.
//!
//! Invariants:
//! - A block has holders, or it waits in `free`, where the one that was given up longest ago is taken first, and
//!   before it those that keep no prefix.
//! - A block that is taken in a partition was zeroed since it was last another's: [`BlockPool::grow`] is the only way
//!   to a block that may be written, and it calls `zero` at every change of partition.
//! - A block keeps a prefix only while it is full of computed tokens, and nobody writes to it then.
//! - A hash finds a prefix; only the tokens, the partition and the block before it prove one, so that a collision is
//!   a miss.

use std::collections::{BTreeSet, HashMap};

use sha2::{Digest as _, Sha256};

use crate::sequence::Partition;

/// SHA-256 over a partition and all tokens up to the end of a block.
pub type Digest = [u8; 32];

/// The blocks of one cache.
#[derive(Debug)]
pub struct BlockPool {
    block_tokens: usize,
    blocks: Vec<Block>,
    /// Blocks without a holder: whether one keeps a prefix, when it was given up, its number.
    free: BTreeSet<(bool, u64, u32)>,
    by_digest: HashMap<Digest, u32>,
    /// Counts what happens; never repeats.
    clock: u64,
}

#[derive(Debug, Default)]
struct Block {
    holders: u32,
    /// Whose tokens are in it; `None` if it is zeroed.
    owner: Option<Partition>,
    prefix: Option<Prefix>,
    freed_at: u64,
}

/// What a full block holds.
#[derive(Debug)]
struct Prefix {
    digest: Digest,
    tokens: Box<[u32]>,
    /// The prefix that this one continues.
    parent: PrefixId,
    id: PrefixId,
}

/// Names a kept prefix, also after it was evicted; never given twice. The default is the empty prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixId(u64);

/// The blocks of one sequence, in the order of its tokens, and how far they keep its prefix. It only grows, until
/// it is given back by [`BlockPool::release`].
#[derive(Debug, Default)]
#[must_use = "blocks that are not released are lost"]
pub struct BlockTable {
    blocks: Vec<u32>,
    kept: usize,
    last: PrefixId,
}

/// Somebody holds a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{held} cache blocks are in use, expected none")]
pub struct InUse {
    /// Blocks with holders.
    pub held: usize,
}

impl BlockPool {
    /// A pool of zeroed blocks `0..blocks` of `block_tokens` each.
    ///
    /// # Panics
    /// If a block has no token.
    #[must_use]
    pub fn new(blocks: u32, block_tokens: usize) -> Self {
        assert!(block_tokens > 0, "a block holds at least one token");
        Self {
            block_tokens,
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            free: (0..blocks).map(|block| (false, 0, block)).collect(),
            by_digest: HashMap::new(),
            clock: 0,
        }
    }

    /// Blocks that nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// All blocks.
    #[must_use]
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Tokens of a block.
    #[must_use]
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks for `tokens`.
    #[must_use]
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// How many tables have `block`.
    #[must_use]
    pub fn holders(&self, block: u32) -> u32 {
        self.blocks[block as usize].holders
    }

    /// Adds the digests of the full blocks of `tokens` that have none yet, each over the one before it.
    pub fn digest(&self, partition: &Partition, tokens: &[u32], digests: &mut Vec<Digest>) {
        for block in tokens.chunks_exact(self.block_tokens).skip(digests.len()) {
            let before = digests.last().copied();
            let before = before.unwrap_or_else(|| Sha256::digest(partition.as_bytes()).into());
            let mut hash = Sha256::new_with_prefix(before);
            block.iter().for_each(|token| hash.update(token.to_le_bytes()));
            digests.push(hash.finalize().into());
        }
    }

    /// The blocks that keep the longest known prefix of `tokens`, whose digests are `digests`.
    #[must_use]
    pub fn find(&self, partition: &Partition, tokens: &[u32], digests: &[Digest]) -> Vec<u32> {
        let mut parent = PrefixId::default();
        let mut found = Vec::new();
        for (tokens, digest) in tokens.chunks_exact(self.block_tokens).zip(digests) {
            match self.lookup(partition, tokens, digest, parent) {
                Some((block, id)) => (found.push(block), parent = id),
                None => break,
            };
        }
        found
    }

    fn lookup(
        &self,
        partition: &Partition,
        tokens: &[u32],
        digest: &Digest,
        parent: PrefixId,
    ) -> Option<(u32, PrefixId)> {
        let number = *self.by_digest.get(digest)?;
        let block = &self.blocks[number as usize];
        let prefix = block.prefix.as_ref().filter(|_| block.owner.as_ref() == Some(partition))?;
        let same = *prefix.tokens == *tokens && prefix.parent == parent;
        same.then_some((number, prefix.id))
    }

    /// A table of blocks that [`Self::find`] returned, which nobody may write to.
    pub fn hold(&mut self, blocks: Vec<u32>) -> BlockTable {
        let mut last = PrefixId::default();
        for number in &blocks {
            let block = &mut self.blocks[*number as usize];
            if block.holders == 0 {
                self.free.remove(&(block.prefix.is_some(), block.freed_at, *number));
            }
            block.holders += 1;
            last = block.prefix.as_ref().map_or(last, |prefix| prefix.id);
        }
        BlockTable { kept: blocks.len(), blocks, last }
    }

    /// Makes `table` long enough for `tokens` of `partition`; `zero` is called for each block that was another's.
    ///
    /// # Panics
    /// If fewer blocks are free than are needed.
    pub fn grow(
        &mut self,
        table: &mut BlockTable,
        tokens: usize,
        partition: &Partition,
        zero: &mut dyn FnMut(u32),
    ) {
        while table.blocks.len() < self.blocks_for(tokens) {
            let Some((_, _, number)) = self.free.pop_first() else { panic!("no block is free") };
            let block = &mut self.blocks[number as usize];
            if let Some(prefix) = block.prefix.take()
                && self.by_digest.get(&prefix.digest) == Some(&number)
            {
                self.by_digest.remove(&prefix.digest);
            }
            if block.owner.as_ref().is_some_and(|owner| owner != partition) {
                zero(number);
            }
            block.owner = Some(partition.clone());
            block.holders = 1;
            table.blocks.push(number);
        }
    }

    /// Lets others find the full blocks of `table`, all of whose `tokens` are computed.
    pub fn keep(&mut self, table: &mut BlockTable, tokens: &[u32], digests: &[Digest]) {
        let full = tokens.chunks_exact(self.block_tokens).zip(digests).zip(table.blocks.iter());
        for ((tokens, digest), number) in full.skip(table.kept) {
            table.kept += 1;
            let Some(owner) = self.blocks[*number as usize].owner.clone() else { return };
            // Computed twice at the same time: the first is found, what follows continues it.
            if let Some((_, id)) = self.lookup(&owner, tokens, digest, table.last) {
                table.last = id;
                continue;
            }
            self.clock += 1;
            let (parent, id) = (table.last, PrefixId(self.clock));
            let prefix = Prefix { digest: *digest, tokens: tokens.into(), parent, id };
            self.blocks[*number as usize].prefix = Some(prefix);
            self.by_digest.insert(*digest, *number);
            table.last = id;
        }
    }

    /// Takes a table back, last block first: the end of a prefix is of no use without its beginning.
    pub fn release(&mut self, table: BlockTable) {
        for number in table.blocks.into_iter().rev() {
            let block = &mut self.blocks[number as usize];
            block.holders -= 1;
            if block.holders == 0 {
                self.clock += 1;
                block.freed_at = self.clock;
                self.free.insert((block.prefix.is_some(), block.freed_at, number));
            }
        }
    }

    /// Zeroes whatever anybody left and forgets all prefixes.
    ///
    /// # Errors
    /// If a block is in use; then nothing changes.
    pub fn forget(&mut self, zero: &mut dyn FnMut(u32)) -> Result<(), InUse> {
        let held = self.total() - self.free();
        if held > 0 {
            return Err(InUse { held });
        }
        for (number, block) in (0..).zip(&mut self.blocks) {
            if std::mem::take(block).owner.is_some() {
                zero(number);
            }
        }
        self.by_digest.clear();
        self.free = (0..).zip(&self.blocks).map(|(number, _)| (false, 0, number)).collect();
        Ok(())
    }
}

impl BlockTable {
    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool, and the blocks that were zeroed.
    struct Cache {
        pool: BlockPool,
        zeroed: Vec<u32>,
    }

    impl Cache {
        fn new(blocks: u32) -> Self {
            Self { pool: BlockPool::new(blocks, 4), zeroed: Vec::new() }
        }

        /// Holds what is known of `tokens`, computes the rest and keeps it; returns the hits, too.
        fn fill(&mut self, partition: &str, tokens: &[u32]) -> (BlockTable, usize) {
            let (partition, mut digests) = (Partition::from(partition), Vec::new());
            self.pool.digest(&partition, tokens, &mut digests);
            let hits = self.pool.find(&partition, tokens, &digests);
            let hit = hits.len();
            let mut table = self.pool.hold(hits);
            let zero = &mut |block| self.zeroed.push(block);
            self.pool.grow(&mut table, tokens.len(), &partition, zero);
            self.pool.keep(&mut table, tokens, &digests);
            (table, hit)
        }

        fn pass(&mut self, partition: &str, tokens: &[u32]) -> usize {
            let (table, hit) = self.fill(partition, tokens);
            self.pool.release(table);
            hit
        }
    }

    fn tokens(first: u32, count: u32) -> Vec<u32> {
        (first..first + count).collect()
    }

    #[test]
    fn a_table_has_just_enough_blocks_of_its_own() {
        let mut cache = Cache::new(5);
        let (a, _) = cache.fill("p", &tokens(0, 9));
        let (b, _) = cache.fill("p", &tokens(50, 8));
        assert_eq!((a.blocks().len(), b.blocks().len(), cache.pool.free()), (3, 2, 0));
        assert!(a.blocks().iter().all(|block| !b.blocks().contains(block)));
        cache.pool.release(a);
        cache.pool.release(b);
        assert_eq!((cache.pool.free(), cache.zeroed.len()), (5, 0));
    }

    #[test]
    fn a_prefix_is_found_in_whole_blocks_held_or_not() {
        let mut cache = Cache::new(8);
        let (held, _) = cache.fill("p", &tokens(0, 10));
        let (second, hit) = cache.fill("p", &tokens(0, 12));
        assert_eq!((hit, &second.blocks()[..2]), (2, &held.blocks()[..2]));
        assert_eq!(cache.pool.holders(held.blocks()[0]), 2);
        assert_eq!(cache.pool.holders(held.blocks()[2]), 1, "no full block is not shared");
        cache.pool.release(held);
        cache.pool.release(second);
        assert_eq!(cache.pass("p", &tokens(0, 12)), 3);
        let mut other = tokens(0, 12);
        other[5] = 99;
        assert_eq!(cache.pass("p", &other), 1);
        assert_eq!(cache.pool.free(), 8);
    }

    #[test]
    fn a_partition_finds_nothing_of_another_and_gets_its_blocks_zeroed() {
        let mut cache = Cache::new(2);
        cache.pass("p", &tokens(0, 8));
        assert_eq!(cache.pass("p", &tokens(50, 8)), 0);
        assert!(cache.zeroed.is_empty(), "they stayed in their partition");
        assert_eq!(cache.pass("q", &tokens(50, 8)), 0);
        cache.zeroed.sort_unstable();
        assert_eq!(cache.zeroed, [0, 1]);
        assert_eq!(cache.pass("p", &tokens(50, 4)), 0);
    }

    #[test]
    fn a_collision_of_hashes_is_a_miss() {
        let mut cache = Cache::new(8);
        let (p, q, forged) = (Partition::from("p"), Partition::from("q"), [[7; 32], [8; 32]]);
        let mut table = BlockTable::default();
        cache.pool.grow(&mut table, 8, &p, &mut |_| ());
        cache.pool.keep(&mut table, &tokens(0, 8), &forged);
        assert_eq!(cache.pool.find(&p, &tokens(0, 8), &forged), table.blocks());
        assert!(cache.pool.find(&p, &tokens(1, 8), &forged).is_empty(), "other tokens");
        assert!(cache.pool.find(&q, &tokens(0, 8), &forged).is_empty(), "another partition");
        // The second block alone is right, but continues something else.
        let mut other = tokens(0, 8);
        other[0] = 99;
        assert!(cache.pool.find(&p, &other, &forged).is_empty());
        let mut lone = BlockTable::default();
        cache.pool.grow(&mut lone, 4, &p, &mut |_| ());
        cache.pool.keep(&mut lone, &other[..4], &[[9; 32]]);
        assert_eq!(cache.pool.find(&p, &other, &[[9; 32], [8; 32]]), lone.blocks());
        cache.pool.release(table);
        cache.pool.release(lone);
    }

    #[test]
    fn digests_cover_the_partition_and_all_tokens_before() {
        let pool = BlockPool::new(1, 4);
        let digests = |partition: &str, tokens: &[u32]| {
            let mut digests = Vec::new();
            pool.digest(&Partition::from(partition), tokens, &mut digests);
            digests
        };
        let mut changed = tokens(0, 9);
        changed[0] = 99;
        let (a, b, c) =
            (digests("p", &tokens(0, 9)), digests("p", &changed), digests("q", &tokens(0, 9)));
        assert_eq!(a.len(), 2);
        assert!((0..2).all(|i| a[i] != b[i] && a[i] != c[i]));
        let mut grown = digests("p", &tokens(0, 5));
        pool.digest(&Partition::from("p"), &tokens(0, 9), &mut grown);
        assert_eq!(grown, a);
    }

    #[test]
    fn the_tail_of_the_least_recently_used_is_evicted_first() {
        let mut cache = Cache::new(5);
        cache.pass("p", &tokens(0, 8));
        cache.pass("p", &tokens(50, 8));
        // Used again, so the other is older now.
        assert_eq!(cache.pass("p", &tokens(0, 8)), 2);
        // One block is free, one has to be evicted: the end of the older prefix.
        cache.pass("p", &tokens(80, 8));
        assert_eq!(cache.pass("p", &tokens(0, 8)), 2);
        assert_eq!(cache.pass("p", &tokens(50, 4)), 1);
    }

    #[test]
    fn what_keeps_no_prefix_is_taken_before_any_prefix() {
        let mut cache = Cache::new(3);
        cache.pass("p", &tokens(0, 8));
        for first in [50, 60, 70] {
            cache.pass("p", &tokens(first, 3));
        }
        assert_eq!(cache.pass("p", &tokens(0, 8)), 2);
    }

    #[test]
    fn the_same_prefix_computed_twice_is_kept_once() {
        let mut cache = Cache::new(8);
        let (p, mut digests) = (Partition::from("p"), Vec::new());
        cache.pool.digest(&p, &tokens(0, 8), &mut digests);
        let mut tables = [BlockTable::default(), BlockTable::default()];
        for table in &mut tables {
            cache.pool.grow(table, 8, &p, &mut |_| ());
        }
        for count in [4, 8] {
            for table in &mut tables {
                cache.pool.keep(table, &tokens(0, count), &digests);
            }
        }
        let [first, second] = tables;
        assert_eq!(cache.pool.find(&p, &tokens(0, 8), &digests), first.blocks());
        cache.pool.release(first);
        cache.pool.release(second);
        assert_eq!((cache.pass("p", &tokens(0, 8)), cache.pool.free()), (2, 8));
    }

    #[test]
    fn an_evicted_beginning_makes_the_rest_a_miss_until_it_is_kept_again() {
        let mut cache = Cache::new(4);
        let (table, _) = cache.fill("p", &tokens(0, 8));
        let first = table.blocks()[0];
        cache.pool.release(table);
        cache.pool.blocks[first as usize].prefix.as_mut().unwrap().id = PrefixId(u64::MAX);
        assert_eq!(cache.pass("p", &tokens(0, 8)), 1, "the second continued what is gone");
        assert_eq!(cache.pass("p", &tokens(0, 8)), 2);
    }

    #[test]
    fn nothing_is_forgotten_while_it_is_in_use() {
        let mut cache = Cache::new(4);
        let (table, _) = cache.fill("p", &tokens(0, 5));
        assert_eq!(cache.pool.forget(&mut |_| ()), Err(InUse { held: 2 }));
        cache.pool.release(table);
        let mut zeroed = Vec::new();
        cache.pool.forget(&mut |block| zeroed.push(block)).unwrap();
        assert_eq!((zeroed.len(), cache.pool.free()), (2, 4));
        assert_eq!(cache.pass("q", &tokens(0, 5)), 0);
        assert!(cache.zeroed.is_empty(), "they were zeroed before");
    }
}
