//! What tests through the real binary need of their machine.

use std::fs;
use std::path::{Path, PathBuf};

/// Whether all of these programs and files are here; says so, where they are not.
pub(crate) fn are_there(needed: &[&str]) -> bool {
    let missing: Vec<_> = needed.iter().filter(|path| !Path::new(path).exists()).collect();
    if !missing.is_empty() {
        eprintln!("skipped: missing {missing:?}; run it in the tools tree");
    }
    missing.is_empty()
}

/// An empty folder of one test of a suite.
pub(crate) fn scratch(suite: &str, name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(suite).join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    dir
}
