//! The ledger: records in an RFC 6962 Merkle tree, its head in a C2SP signed note.
//!
//! Invariants:
//! - The root of a [`Tree`] depends on every byte, the order and the number of its leaves.
//! - [`Checkpoint::parse`] is the only way from a note to a [`Checkpoint`] that somebody signed, and
//!   [`Checkpoint::open`] the only way from text to a [`Record`] that is proven to be in the ledger.
//! - A record has one spelling: what is parsed is exactly what would be written.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod note;
mod record;
mod tree;

pub use self::note::{
    Checkpoint, NOTE_BYTES_MAX, NOTE_SIGNATURES_MAX, ORIGIN_PREFIX, ecdsa_key_id, sign_note,
};
pub use self::record::{Count, Event, Exchange, RECORD_BYTES_MAX, Record};
pub use self::tree::{Hash, LEAVES_MAX, Tree, leaf_hash, verify_inclusion};

/// Why a record, a proof or a checkpoint was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The tree holds as many leaves as it may.
    #[error("the ledger is full: {LEAVES_MAX} records; export it and start a new one")]
    Full,
    /// An index that the tree does not have.
    #[error("index {index} is not in a ledger of {size} records")]
    Index {
        /// Index asked for.
        index: u64,
        /// Records in the tree.
        size: u64,
    },
    /// An audit path of a length that no tree of this size has.
    #[error("the proof of record {index} in {size} has {found} hashes, which does not fit")]
    ProofLength {
        /// Index of the record.
        index: u64,
        /// Records in the tree.
        size: u64,
        /// Hashes in the proof.
        found: usize,
    },
    /// The record and its proof lead to another root.
    #[error("record {index}: it and its proof give the root {computed}; the checkpoint has {root}")]
    Inclusion {
        /// Index of the record.
        index: u64,
        /// Root that follows from record and proof, hex.
        computed: String,
        /// Root in the checkpoint, hex.
        root: String,
    },
    /// A text that is not a signed note with a checkpoint.
    #[error("checkpoint refused: {reason}")]
    Note {
        /// What was found and what was expected.
        reason: String,
    },
    /// The signature on the checkpoint does not verify.
    #[error("checkpoint of {origin}: the signature does not verify")]
    NoteSignature {
        /// Origin in the checkpoint.
        origin: String,
    },
    /// A text that is not a record.
    #[error("record refused: {reason}")]
    Record {
        /// What was found and what was expected.
        reason: String,
    },
    /// A record that says it has another index.
    #[error("the record at index {index} says that it is record {seq}")]
    Sequence {
        /// Index proven.
        index: u64,
        /// Index that the record claims.
        seq: u64,
    },
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic fails the test"
)]
mod tests;
