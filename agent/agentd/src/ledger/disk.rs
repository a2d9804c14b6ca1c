//! The ledger's files. Nothing here knows what a record says.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use evidence::ledger::{NOTE_BYTES_MAX, RECORD_BYTES_MAX};
use rustix::fs::FlockOperation;

/// One record per line.
const RECORDS: &str = "records";
/// The last signed head.
const CHECKPOINT: &str = "checkpoint";
/// Only the agent reads or writes.
const FILE_MODE: u32 = 0o600;

/// Whole lines of the records' file, and the length of what follows the last one.
#[derive(Debug)]
pub(super) struct Lines {
    reader: BufReader<File>,
    whole_bytes: u64,
    torn_bytes: u64,
}

impl Lines {
    /// The next whole line, without its newline.
    pub(super) fn next_line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        let max = RECORD_BYTES_MAX as u64 + 1;
        self.reader.by_ref().take(max).read_until(b'\n', &mut line)?;
        if line.pop_if(|last| *last == b'\n').is_some() {
            self.whole_bytes += line.len() as u64 + 1;
            let text = String::from_utf8(line).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-8: {error}"))
            })?;
            return Ok(Some(text));
        }
        if line.len() as u64 == max {
            let message = format!("a line has more than {RECORD_BYTES_MAX} bytes: it was edited");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.torn_bytes = line.len() as u64;
        Ok(None)
    }

    /// Bytes of whole lines read so far.
    pub(super) fn whole_bytes(&self) -> u64 {
        self.whole_bytes
    }

    /// Bytes after the last newline.
    pub(super) fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }
}

pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Opens the records for appending, as the only one who does, and a reader from their start.
pub(super) fn open_records(folder: &Path) -> io::Result<(File, Lines)> {
    let path = folder.join(RECORDS);
    let file = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(&path)?;
    // Two writers would fork the tree.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    // The name as well must survive a power cut.
    File::open(folder)?.sync_all()?;
    let reader = BufReader::new(File::open(path)?);
    Ok((file, Lines { reader, whole_bytes: 0, torn_bytes: 0 }))
}

/// Cuts the records to `bytes`.
pub(super) fn cut(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)?;
    file.sync_all()
}

/// The last signed head, if there is one.
pub(super) fn read_checkpoint(folder: &Path) -> io::Result<Option<String>> {
    match crate::files::read_bounded(&folder.join(CHECKPOINT), NOTE_BYTES_MAX as u64) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the last signed head, whole or not at all, also across a power cut.
pub(super) fn write_checkpoint(folder: &Path, note: &str) -> io::Result<()> {
    crate::files::replace(folder, CHECKPOINT, FILE_MODE, note.as_bytes())
}
