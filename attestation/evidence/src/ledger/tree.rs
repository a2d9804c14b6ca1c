//! Merkle tree of RFC 6962, section 2.1 (SHA-256).

use sha2::{Digest, Sha256};

use super::LedgerError;

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// Most leaves: at 64 bytes each, 4 GiB of memory.
pub const LEAVES_MAX: u64 = 1 << 26;

/// `SHA-256(0x00 || record)`.
#[must_use]
pub fn leaf_hash(record: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(record).finalize().into()
}

/// `SHA-256(0x01 || left || right)`.
fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// An append-only tree over leaf hashes.
///
/// Invariant: `levels[k]` holds the roots of the complete subtrees of 2^k leaves, in order, so that
/// `levels[k].len() == size >> k` and no hash is ever computed twice.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// Appends a leaf and returns its index.
    ///
    /// # Errors
    /// [`LedgerError::Full`] at [`LEAVES_MAX`].
    pub fn push(&mut self, leaf: Hash) -> Result<u64, LedgerError> {
        let index = self.size();
        if index >= LEAVES_MAX {
            return Err(LedgerError::Full);
        }
        let mut carry = Some(leaf);
        for level in &mut self.levels {
            let Some(hash) = carry.take() else { break };
            level.push(hash);
            if level.len().is_multiple_of(2)
                && let [.., left, right] = level.as_slice()
            {
                carry = Some(node_hash(left, right));
            }
        }
        if let Some(hash) = carry {
            self.levels.push(vec![hash]);
        }
        Ok(index)
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// The root; of no leaves, the hash of nothing.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut ragged = None;
        for level in &self.levels {
            ragged = lift(level, ragged);
        }
        ragged.unwrap_or_else(|| Sha256::digest([]).into())
    }

    /// The audit path of leaf `index`, leaf to root; RFC 6962, section 2.1.1.
    ///
    /// # Errors
    /// [`LedgerError::Index`] if there is no such leaf.
    pub fn proof(&self, index: u64) -> Result<Vec<Hash>, LedgerError> {
        let outside = LedgerError::Index { index, size: self.size() };
        if index >= self.size() {
            return Err(outside);
        }
        let mut position = usize::try_from(index).map_err(|_| outside)?;
        let mut path = Vec::with_capacity(self.levels.len());
        // Root of the leaves right of the last complete subtree of this level.
        let mut ragged = None;
        for level in &self.levels {
            let sibling = position ^ 1;
            // Without a sibling the node moves up a level unchanged.
            let hash = level.get(sibling).copied();
            path.extend(hash.or(if sibling == level.len() { ragged } else { None }));
            ragged = lift(level, ragged);
            position >>= 1;
        }
        Ok(path)
    }
}

/// The ragged right edge one level up: joined with the last complete node if that has no partner.
fn lift(level: &[Hash], ragged: Option<Hash>) -> Option<Hash> {
    match level.last() {
        Some(left) if !level.len().is_multiple_of(2) => {
            Some(ragged.map_or(*left, |right| node_hash(left, &right)))
        }
        _ => ragged,
    }
}

/// Checks that `leaf` is at `index` in the tree of `size` leaves with this `root`; RFC 9162,
/// section 2.1.3.2.
///
/// # Errors
/// [`LedgerError::Index`], [`LedgerError::ProofLength`] or [`LedgerError::Inclusion`].
pub fn verify_inclusion(
    leaf: Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: Hash,
) -> Result<(), LedgerError> {
    let Some(last) = size.checked_sub(1).filter(|&last| index <= last) else {
        return Err(LedgerError::Index { index, size });
    };
    let length = LedgerError::ProofLength { index, size, found: proof.len() };
    let (mut node, mut last, mut hash) = (index, last, leaf);
    for sibling in proof {
        if last == 0 {
            return Err(length);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            // A node without a right sibling climbs to the level where it is one.
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(length);
    }
    if hash != root {
        let (computed, root) = (hex::encode(hash), hex::encode(root));
        return Err(LedgerError::Inclusion { index, computed, root });
    }
    Ok(())
}
