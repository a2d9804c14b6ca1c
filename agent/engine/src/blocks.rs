//! The paged cache's blocks: who holds which.
//!
//! Invariants: a block is free, or in exactly one [`BlockTable`], or dirty on its way back; a block that was
//! written to is free again only after it was zeroed, since a [`Clean`] comes from zeroing alone.

/// The blocks of one cache.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    block_tokens: usize,
}

/// The blocks of one sequence, in the order of its tokens. Given back by [`BlockPool::release`].
#[derive(Debug, Default)]
#[must_use = "blocks that are not released are lost"]
pub struct BlockTable(Vec<u32>);

/// Blocks that hold what a request left in them.
#[derive(Debug, Default)]
#[must_use = "dirty blocks must be zeroed and recycled"]
pub struct Dirty(Vec<u32>);

/// Blocks that were zeroed.
#[derive(Debug)]
#[must_use = "clean blocks must be recycled"]
pub struct Clean(Vec<u32>);

impl BlockPool {
    /// A pool of blocks `0..blocks` of `block_tokens` each.
    ///
    /// # Panics
    /// If a block has no token.
    #[must_use]
    pub fn new(blocks: u32, block_tokens: usize) -> Self {
        assert!(block_tokens > 0, "a block holds at least one token");
        Self { free: (0..blocks).rev().collect(), block_tokens }
    }

    /// Blocks that can be reserved.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Blocks for `tokens`.
    #[must_use]
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Takes blocks for `tokens`, or none if there are too few.
    pub fn reserve(&mut self, tokens: usize) -> Option<BlockTable> {
        let rest = self.free.len().checked_sub(self.blocks_for(tokens))?;
        Some(BlockTable(self.free.split_off(rest)))
    }

    /// Takes a table back. The blocks of its first `written` tokens come out dirty; the others, never
    /// touched, are free at once.
    pub fn release(&mut self, table: BlockTable, written: usize) -> Dirty {
        let mut dirty = table.0;
        let untouched = dirty.split_off(self.blocks_for(written).min(dirty.len()));
        self.free.extend(untouched);
        Dirty(dirty)
    }

    /// Makes zeroed blocks free again.
    pub fn recycle(&mut self, clean: Clean) {
        self.free.extend(clean.0);
    }
}

impl BlockTable {
    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.0
    }
}

impl Dirty {
    /// Zeroes each block by `zero`.
    pub fn zero(self, zero: impl FnMut(u32)) -> Clean {
        self.0.iter().copied().for_each(zero);
        Clean(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_round_and_only_written_ones_are_zeroed() {
        let mut pool = BlockPool::new(5, 16);
        let a = pool.reserve(33).unwrap();
        let b = pool.reserve(32).unwrap();
        assert_eq!((a.blocks().len(), b.blocks().len(), pool.free()), (3, 2, 0));
        assert!(a.blocks().iter().all(|block| !b.blocks().contains(block)));
        assert!(pool.reserve(1).is_none());
        let dirty = pool.release(a, 17);
        assert_eq!(pool.free(), 1);
        let mut zeroed = Vec::new();
        let clean = dirty.zero(|block| zeroed.push(block));
        assert_eq!((zeroed.len(), pool.free()), (2, 1));
        pool.recycle(clean);
        assert_eq!(pool.free(), 3);
    }
}
