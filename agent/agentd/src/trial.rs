//! Whether this boot is a try of a new image, which may lead back to the one before: systemd, "Automatic Boot
//! Assessment".

use std::path::{Path, PathBuf};

/// What a boot with a counted entry waits for.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    /// Made by `update bless`; `None` where no tries are counted.
    blessed: Option<PathBuf>,
}

impl Trial {
    /// `counted` is the boot manager's variable with the entry of this boot, which it sets if that counts tries.
    pub(crate) fn of(counted: &Path, blessed: &Path) -> Self {
        Self { blessed: counted.exists().then(|| blessed.to_owned()) }
    }

    /// Whether nothing leads back any more.
    pub(crate) fn is_over(&self) -> bool {
        self.blessed.as_ref().is_none_or(|blessed| blessed.exists())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_boot_is_a_trial_until_it_is_blessed() {
        let folder = tempfile::tempdir().unwrap();
        let (counted, blessed) = (folder.path().join("counted"), folder.path().join("blessed"));
        assert!(Trial::of(&counted, &blessed).is_over());
        std::fs::write(&counted, "").unwrap();
        let trial = Trial::of(&counted, &blessed);
        assert!(!trial.is_over());
        std::fs::write(&blessed, "").unwrap();
        assert!(trial.is_over());
    }
}
