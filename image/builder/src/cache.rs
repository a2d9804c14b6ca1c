//! Folders kept between builds, each named for the digest of everything that went into it.
//! Invariant: an entry that exists is whole; it is filled aside and renamed.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Hex digits of a key that an entry's name shows; 128 bits.
const NAME_HEX: usize = 32;

/// Collects what an entry depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Key(Sha256);

impl Key {
    /// Adds one input; its length goes in as well, so that inputs do not run together.
    pub(crate) fn input(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    fn name(self) -> String {
        let mut name = hex::encode(self.0.finalize());
        name.truncate(NAME_HEX);
        name
    }
}

/// Returns the entry's folder, calling `fill` with an empty one if there is none yet; and whether there was one.
pub(crate) fn entry<E: From<std::io::Error>>(
    cache: &Path,
    kind: &str,
    key: Key,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(PathBuf, bool), E> {
    let entry = path(cache, kind, key);
    if entry.try_exists()? {
        return Ok((entry, true));
    }
    // The process id keeps two builds with one cache apart; the first to finish wins.
    let aside = cache.join(format!(".{kind}-{}.partial", std::process::id()));
    remove(&aside)?;
    std::fs::create_dir_all(&aside)?;
    fill(&aside)?;
    match std::fs::rename(&aside, &entry) {
        Ok(()) => Ok((entry, false)),
        Err(_) if entry.try_exists()? => {
            remove(&aside)?;
            Ok((entry, true))
        }
        Err(error) => Err(error.into()),
    }
}

/// Where an entry is, if it is there.
pub(crate) fn path(cache: &Path, kind: &str, key: Key) -> PathBuf {
    cache.join(format!("{kind}-{}", key.name()))
}

/// Removes a folder that may not be there.
pub(crate) fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_filled_once_per_key() {
        let cache = tempfile::tempdir().unwrap();
        let fill =
            |value: &'static str| move |folder: &Path| std::fs::write(folder.join("value"), value);
        let (first, cached) =
            entry(cache.path(), "k", Key::default().input(b"a"), fill("1")).unwrap();
        assert!(!cached);
        let (again, cached) =
            entry(cache.path(), "k", Key::default().input(b"a"), fill("2")).unwrap();
        assert!(cached && again == first);
        assert_eq!(std::fs::read(first.join("value")).unwrap(), b"1");
    }

    #[test]
    fn a_failed_fill_leaves_no_entry() {
        let cache = tempfile::tempdir().unwrap();
        let key = || Key::default().input(b"a");
        let failing = |_: &Path| Err(std::io::Error::other("disk full"));
        entry(cache.path(), "k", key(), failing).unwrap_err();
        let (_, cached) = entry(cache.path(), "k", key(), |_| Ok::<_, std::io::Error>(())).unwrap();
        assert!(!cached);
    }

    #[test]
    fn inputs_do_not_run_together() {
        let split = Key::default().input(b"ab").input(b"c").name();
        assert_ne!(split, Key::default().input(b"a").input(b"bc").name());
    }
}
