//! Folders kept between builds, each named for the digest of everything that went into it.
//! Invariants: an entry that exists is whole, since it is filled aside and renamed; one process at a time fills entries
//! of a kind in a cache.

use std::fs::File;
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
    // Ends with this function or the process. A process id would not keep two builds apart: each may be the first process
    // of a namespace.
    let lock = File::create(cache.join(format!(".{kind}.lock")))?;
    if lock.try_lock().is_err() {
        eprintln!("    another build fills {}; waiting", entry.display());
        lock.lock()?;
    }
    // Filled by another build since.
    if entry.try_exists()? {
        return Ok((entry, true));
    }
    // What an interrupted build left.
    let aside = cache.join(format!(".{kind}.partial"));
    remove(&aside)?;
    std::fs::create_dir_all(&aside)?;
    fill(&aside)?;
    std::fs::rename(&aside, &entry)?;
    Ok((entry, false))
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
    fn of_two_builds_at_once_one_fills_the_entry() {
        let cache = tempfile::tempdir().unwrap();
        let filled = std::sync::atomic::AtomicU32::new(0);
        let fill = |folder: &Path| {
            filled.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // Long enough for the other to come to the lock.
            std::thread::sleep(std::time::Duration::from_millis(50));
            std::fs::write(folder.join("value"), "1")
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let key = Key::default().input(b"a");
                    let (entry, _) = entry(cache.path(), "k", key, fill).unwrap();
                    assert_eq!(std::fs::read(entry.join("value")).unwrap(), b"1");
                });
            }
        });
        assert_eq!(filled.into_inner(), 1);
    }

    #[test]
    fn inputs_do_not_run_together() {
        let split = Key::default().input(b"ab").input(b"c").name();
        assert_ne!(split, Key::default().input(b"a").input(b"bc").name());
    }
}
