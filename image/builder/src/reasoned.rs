//! Configuration lists: fields, then `#` and the reason why the entry is there.
//! Invariant: an entry without a reason does not parse, so none can be added without one.

use std::path::{Path, PathBuf};

/// Most bytes of a list.
const LIST_BYTES_MAX: u64 = 1 << 20;

/// One entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) fields: Vec<String>,
    pub(crate) reason: String,
}

/// Why a list could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file could not be read.
    #[error("{path}: {cause}")]
    Read {
        /// The list.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The file is longer than any list of ours.
    #[error("{path} has {bytes} bytes, more than the {LIST_BYTES_MAX} of a list")]
    TooLong {
        /// The list.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// An entry does not say why it is there.
    #[error("{path}:{line}: `{entry}` has no reason; write one after `#`")]
    NoReason {
        /// The list.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The entry.
        entry: String,
    },
    /// An entry has too few or too many fields.
    #[error("{path}: `{entry}` has {found} fields, expected {expected}: {meaning}")]
    Fields {
        /// The list.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// Fields found.
        found: usize,
        /// Fields expected.
        expected: usize,
        /// What they are.
        meaning: &'static str,
    },
    /// A field has a value that means nothing.
    #[error("{path}: `{found}` in `{entry}`; expected {expected}")]
    Value {
        /// The list.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// The field.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
}

/// Reads a list whose entries all have as many fields as `meaning` has words.
pub(crate) fn read(path: &Path, meaning: &'static str) -> Result<Vec<Entry>, ListError> {
    checked(path, meaning, |found, expected| found == expected)
}

/// As [`read`], but the last of `meaning` may have several words.
pub(crate) fn read_open(path: &Path, meaning: &'static str) -> Result<Vec<Entry>, ListError> {
    checked(path, meaning, |found, expected| found >= expected)
}

fn checked(
    path: &Path,
    meaning: &'static str,
    fits: fn(usize, usize) -> bool,
) -> Result<Vec<Entry>, ListError> {
    let error = |cause| ListError::Read { path: path.to_owned(), cause };
    let bytes = std::fs::metadata(path).map_err(error)?.len();
    if bytes > LIST_BYTES_MAX {
        return Err(ListError::TooLong { path: path.to_owned(), bytes });
    }
    let entries = parse(path, &std::fs::read_to_string(path).map_err(error)?)?;
    let expected = meaning.split_whitespace().count();
    for entry in &entries {
        if !fits(entry.fields.len(), expected) {
            return Err(ListError::Fields {
                path: path.to_owned(),
                entry: entry.fields.join(" "),
                found: entry.fields.len(),
                expected,
                meaning,
            });
        }
    }
    Ok(entries)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, ListError> {
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (entry, reason) = line.split_once('#').unwrap_or((line, ""));
        let (entry, reason) = (entry.trim(), reason.trim());
        if entry.is_empty() {
            continue;
        }
        if reason.is_empty() {
            return Err(ListError::NoReason {
                path: path.to_owned(),
                line: index + 1,
                entry: entry.to_owned(),
            });
        }
        entries.push(Entry {
            fields: entry.split_whitespace().map(str::to_owned).collect(),
            reason: reason.to_owned(),
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_are_no_entries() {
        let entries = parse(Path::new("l"), "# head\n\n a  b # why\n").unwrap();
        assert_eq!(entries, [Entry { fields: vec!["a".into(), "b".into()], reason: "why".into() }]);
    }

    #[test]
    fn an_entry_without_a_reason_is_refused_with_its_line() {
        for text in ["# head\nsystemd\n", "# head\nsystemd #  \n"] {
            let error = parse(Path::new("l"), text).unwrap_err();
            assert!(matches!(error, ListError::NoReason { line: 2, .. }), "{error}");
        }
    }
}
