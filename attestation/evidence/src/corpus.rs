//! Finds real test material that lives beside the checkout; tests only.

use std::path::PathBuf;

/// The corpus folder: `CASEMATE_CORPUS`, or `shared/corpus` beside the checkout. Says so where it is absent.
pub(crate) fn find(part: &str) -> Option<PathBuf> {
    let beside = |folder: &std::path::Path| folder.join("shared/corpus");
    let root = std::env::var_os("CASEMATE_CORPUS").map(PathBuf::from).or_else(|| {
        let crate_folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        crate_folder.ancestors().map(beside).find(|folder| folder.is_dir())
    });
    let found = root.map(|root| root.join(part)).filter(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: no test material at {part:?}; set CASEMATE_CORPUS");
    }
    found
}
