//! The ledger on disk: `records`, one JSON object per line, and `checkpoint`, the last head that the TPM signed.
//!
//! Invariants:
//! - An index is returned only after its record is on disk (`fdatasync`).
//! - Only the bytes after the last newline may be cut at start: a record without its newline was never
//!   acknowledged. Anything else that does not parse, and a tree that does not have the checkpoint's root at
//!   its size, stops the agent.
//! - A checkpoint exists before the first record, so records without one mean that it was removed.

mod disk;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use evidence::format::ProvenRecord;
use evidence::ledger::{Checkpoint, Event, Hash, LedgerError, Record, Tree, leaf_hash};

/// Newest records kept in memory for evidence.
const RECENT_MAX: u64 = ipc::EVIDENCE_RECORDS_MAX;

/// The open ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: File,
    bytes: u64,
    tree: Tree,
    recent: VecDeque<String>,
    /// The newest record with a count, and its index.
    counted: Option<(u64, String)>,
    folder: PathBuf,
    boot: String,
    /// Size of the last checkpoint on disk; `None` before the first.
    signed: Option<u64>,
    /// A failed write whose extent is unknown: nothing is appended after it.
    failed: bool,
    /// Bytes of an unacknowledged record that were cut at start.
    cut: u64,
}

/// Why the ledger does not open or grow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The disk failed.
    #[error("the ledger in {folder} cannot be {doing}: {cause}")]
    Disk { folder: String, doing: &'static str, cause: io::Error },
    /// A record that is not one, or not the one that belongs there.
    #[error("the ledger was edited: line {line} is no record of it: {cause}")]
    Edited { line: u64, cause: LedgerError },
    /// The checkpoint is not one that this TPM signed.
    #[error(
        "the ledger's checkpoint is refused ({cause}); this TPM did not sign it, or it was edited"
    )]
    Checkpoint { cause: LedgerError },
    /// The checkpoint is of another ledger.
    #[error("the ledger's checkpoint is of {found}, this TPM signs {expected}")]
    Origin { found: String, expected: String },
    /// Fewer records than the TPM has signed.
    #[error("the ledger was cut: {found} records, and the TPM signed {signed}")]
    Cut { found: u64, signed: u64 },
    /// Other records than the TPM has signed.
    #[error("the ledger was edited: its first {signed} records give another root than was signed")]
    Root { signed: u64 },
    /// Records, and no checkpoint.
    #[error("the ledger has {found} records and no checkpoint: it was removed")]
    NoCheckpoint { found: u64 },
    /// A record that cannot be written.
    #[error(transparent)]
    Record(#[from] LedgerError),
    /// An earlier failure.
    #[error("the ledger takes no records since a write failed; see the journal")]
    Failed,
}

/// Makes `folder` if it is not there.
pub(crate) fn make_folder(folder: &Path) -> Result<(), StoreError> {
    disk::make_folder(folder).map_err(|cause| StoreError::Disk {
        folder: folder.display().to_string(),
        doing: "made",
        cause,
    })
}

/// What was found at start, before a checkpoint judged it.
#[derive(Debug)]
pub(crate) struct Unjudged {
    ledger: Ledger,
    note: Option<String>,
    /// Root at the checkpoint's claimed size, taken while the tree grew through it.
    root_then: Option<Hash>,
}

impl Unjudged {
    /// Reads the ledger in `folder`; an empty folder is an empty ledger.
    pub(crate) fn read(folder: &Path, boot: &str) -> Result<Self, StoreError> {
        let failed = |doing| {
            move |cause| StoreError::Disk { folder: folder.display().to_string(), doing, cause }
        };
        let note = disk::read_checkpoint(folder).map_err(failed("read"))?;
        // Only where to look: the claim is worth nothing until the signature is judged.
        let claimed = note.as_deref().and_then(claimed_size);
        let (file, mut lines) = disk::open_records(folder).map_err(failed("opened"))?;
        let mut tree = Tree::default();
        let (mut recent, mut counted) = (VecDeque::new(), None);
        let mut root_then = (claimed == Some(0)).then(|| tree.root());
        while let Some(line) = lines.next_line().map_err(failed("read"))? {
            let index = tree.size();
            let edited = |cause| StoreError::Edited { line: index.saturating_add(1), cause };
            let record = Record::parse(&line).map_err(edited)?;
            if record.seq != index {
                return Err(edited(LedgerError::Sequence { index, seq: record.seq }));
            }
            tree.push(leaf_hash(line.as_bytes()))?;
            if claimed == Some(tree.size()) {
                root_then = Some(tree.root());
            }
            if record.event.count().is_some() {
                counted = Some((index, line.clone()));
            }
            remember(&mut recent, line);
        }
        let (bytes, cut) = (lines.whole_bytes(), lines.torn_bytes());
        let ledger = Ledger {
            file,
            bytes,
            tree,
            recent,
            counted,
            folder: folder.to_owned(),
            boot: boot.to_owned(),
            signed: None,
            failed: false,
            cut,
        };
        Ok(Self { ledger, note, root_then })
    }

    /// Judges what was read by the stored checkpoint; `open` verifies a note.
    pub(crate) fn judge(
        self,
        origin: &str,
        open: impl FnOnce(&str) -> Result<Checkpoint, LedgerError>,
    ) -> Result<Ledger, StoreError> {
        let Self { mut ledger, note, root_then } = self;
        ledger.signed = judge(&ledger, note.as_deref(), root_then, origin, open)?;
        // Only now: a ledger that is refused stays as it was found.
        if ledger.cut > 0 {
            disk::cut(&ledger.file, ledger.bytes).map_err(|cause| StoreError::Disk {
                folder: ledger.folder.display().to_string(),
                doing: "cut to its last whole record",
                cause,
            })?;
        }
        Ok(ledger)
    }
}

impl Ledger {
    /// Records in it.
    pub(crate) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Bytes of an unacknowledged record that were cut at start.
    pub(crate) fn cut(&self) -> u64 {
        self.cut
    }

    /// Whether records were added since the last checkpoint, or there is none.
    pub(crate) fn has_unsigned(&self) -> bool {
        self.signed != Some(self.size())
    }

    /// The head, to be signed.
    pub(crate) fn head(&self, origin: &str) -> Checkpoint {
        Checkpoint { origin: origin.to_owned(), size: self.tree.size(), root: self.tree.root() }
    }

    /// Appends a record and returns its index once it is on disk.
    pub(crate) fn append(&mut self, time: String, event: Event) -> Result<u64, StoreError> {
        if self.failed {
            return Err(StoreError::Failed);
        }
        let counts = event.count().is_some();
        let record = Record { seq: self.tree.size(), time, boot: self.boot.clone(), event };
        let text = record.to_json()?;
        if let Err(cause) = self.write(&text) {
            let doing = "written";
            return Err(StoreError::Disk {
                folder: self.folder.display().to_string(),
                doing,
                cause,
            });
        }
        let index = self.tree.push(leaf_hash(text.as_bytes()))?;
        if counts {
            self.counted = Some((index, text.clone()));
        }
        remember(&mut self.recent, text);
        Ok(index)
    }

    /// Puts a signed head on disk.
    pub(crate) fn keep_checkpoint(&mut self, note: &str, size: u64) -> Result<(), StoreError> {
        disk::write_checkpoint(&self.folder, note).map_err(|cause| StoreError::Disk {
            folder: self.folder.display().to_string(),
            doing: "checkpointed",
            cause,
        })?;
        self.signed = Some(size);
        Ok(())
    }

    /// The newest records with their proofs under the present head, oldest first.
    pub(crate) fn proven(&self) -> Result<Vec<ProvenRecord>, StoreError> {
        let first = self.size() - self.recent.len() as u64;
        (first..).zip(&self.recent).map(|(index, record)| self.prove(index, record)).collect()
    }

    /// The newest record with a count, with its proof under the present head; after a start there is one.
    pub(crate) fn counted(&self) -> Result<Option<ProvenRecord>, StoreError> {
        self.counted.as_ref().map(|(index, record)| self.prove(*index, record)).transpose()
    }

    fn prove(&self, index: u64, record: &str) -> Result<ProvenRecord, StoreError> {
        let proof = self.tree.proof(index)?.iter().map(hex::encode).collect();
        Ok(ProvenRecord { index, record: record.to_owned(), proof })
    }

    /// Writes one line and syncs it. A part that was written is taken back; after a failed sync nobody knows
    /// what is on disk, so that is final.
    fn write(&mut self, text: &str) -> io::Result<()> {
        let line = [text.as_bytes(), b"\n"].concat();
        if let Err(error) = self.file.write_all(&line) {
            self.failed = disk::cut(&self.file, self.bytes).is_err();
            return Err(error);
        }
        if let Err(error) = self.file.sync_data() {
            self.failed = true;
            return Err(error);
        }
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// Compares what is on disk with what the TPM signed; returns the size that it signed.
fn judge(
    ledger: &Ledger,
    note: Option<&str>,
    root_then: Option<Hash>,
    origin: &str,
    open: impl FnOnce(&str) -> Result<Checkpoint, LedgerError>,
) -> Result<Option<u64>, StoreError> {
    let found = ledger.tree.size();
    let Some(note) = note else {
        return if found > 0 { Err(StoreError::NoCheckpoint { found }) } else { Ok(None) };
    };
    let checkpoint = open(note).map_err(|cause| StoreError::Checkpoint { cause })?;
    if checkpoint.origin != origin {
        let (found, expected) = (checkpoint.origin, origin.to_owned());
        return Err(StoreError::Origin { found, expected });
    }
    if found < checkpoint.size {
        return Err(StoreError::Cut { found, signed: checkpoint.size });
    }
    if root_then != Some(checkpoint.root) {
        return Err(StoreError::Root { signed: checkpoint.size });
    }
    Ok(Some(checkpoint.size))
}

fn remember(recent: &mut VecDeque<String>, record: String) {
    if recent.len() as u64 >= RECENT_MAX {
        recent.pop_front();
    }
    recent.push_back(record);
}

/// The size that an unverified note claims.
fn claimed_size(note: &str) -> Option<u64> {
    note.lines().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests;
