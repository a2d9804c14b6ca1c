//! What changed between two locks, for the person who has to agree to it.

use std::collections::BTreeMap;
use std::fmt;

use crate::fetch::{self, FetchError};
use crate::lock::{Lock, Locked};

/// The packages that are not the same in two locks, in order of their names.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference<'a> {
    changes: Vec<(Option<&'a Locked>, Option<&'a Locked>)>,
}

impl<'a> Difference<'a> {
    /// Compares what was locked with what would be locked now.
    #[must_use]
    pub fn between(old: &'a Lock, new: &'a Lock) -> Self {
        let mut pairs: BTreeMap<&str, (Option<&Locked>, Option<&Locked>)> = BTreeMap::new();
        for package in &old.packages {
            pairs.entry(&package.name).or_default().0 = Some(package);
        }
        for package in &new.packages {
            pairs.entry(&package.name).or_default().1 = Some(package);
        }
        Self { changes: pairs.into_values().filter(|(old, new)| old != new).collect() }
    }

    /// Is it the same set?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Packages of the old lock, not of the new one, that the mirror has no more.
    pub fn gone(&self, mirror: &str) -> Result<Vec<&'a Locked>, FetchError> {
        fetch::absent(self.superseded(), mirror)
    }

    /// Packages of the old lock that the new one has not, or has in another version.
    fn superseded(&self) -> impl Iterator<Item = &'a Locked> {
        self.changes.iter().filter_map(|(old, _)| *old)
    }
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |wanted: (bool, bool)| {
            let is_wanted =
                |(old, new): &&(Option<_>, Option<_>)| (old.is_some(), new.is_some()) == wanted;
            self.changes.iter().filter(is_wanted).count()
        };
        for change in &self.changes {
            match change {
                (Some(old), Some(new)) => {
                    writeln!(formatter, "  ~ {:<28} {}", old.name, step(old, new))?
                }
                (Some(old), None) => writeln!(formatter, "  - {:<28} {}", old.name, old.version)?,
                (None, Some(new)) => writeln!(
                    formatter,
                    "  + {:<28} {} ({} bytes)",
                    new.name, new.version, new.bytes
                )?,
                (None, None) => {}
            }
        }
        let (changed, added, removed) =
            (count((true, true)), count((false, true)), count((true, false)));
        write!(formatter, "{changed} changed, {added} added, {removed} removed")
    }
}

/// What changed in a package that both locks have.
fn step(old: &Locked, new: &Locked) -> String {
    if old.version != new.version {
        format!("{} -> {}", old.version, new.version)
    } else if old.sha256 != new.sha256 {
        // Debian never does this: it would be a mirror that serves something else under the same name.
        format!("{}: SAME VERSION, OTHER CONTENT: {} -> {}", old.version, old.sha256, new.sha256)
    } else if old.role != new.role {
        format!("{}: {:?} -> {:?}", old.version, old.role, new.role)
    } else {
        format!("{}: moved from {} to {}", old.version, old.path, new.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Role;
    use crate::lock::tests::locked;

    fn lock(packages: Vec<Locked>) -> Lock {
        Lock { releases: Vec::new(), packages }
    }

    #[test]
    fn changes_are_shown_one_a_line_and_counted() {
        let old = lock(vec![
            locked(Role::Needed, "gone", "1"),
            locked(Role::Needed, "moved", "1"),
            locked(Role::Needed, "same", "1"),
        ]);
        let new = lock(vec![
            locked(Role::Needed, "added", "3"),
            locked(Role::Needed, "moved", "1.1"),
            locked(Role::Needed, "same", "1"),
        ]);
        let difference = Difference::between(&old, &new);
        let names: Vec<_> = difference.superseded().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["gone", "moved"]);
        let text = difference.to_string();
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "+ added 3 (4 bytes)",
                "- gone 1",
                "~ moved 1 -> 1.1",
                "1 changed, 1 added, 1 removed"
            ]
        );
        assert!(Difference::between(&old, &old.clone()).is_empty());
    }

    #[test]
    fn other_content_under_the_same_version_stands_out() {
        let old = lock(vec![locked(Role::Needed, "a", "1")]);
        let mut new = old.clone();
        new.packages[0].sha256 = "0".repeat(64);
        let text = Difference::between(&old, &new).to_string();
        assert!(text.contains("SAME VERSION, OTHER CONTENT"), "{text}");
    }
}
