//! A profile as canonical text, so that what a process enforced can be measured and predicted.
//!
//! Invariant: two profiles have the same text if and only if [`crate::confine`] enforces and tries the same. The
//! reasons are not part of it: a reworded one is no other table.

use landlock::{ABI, Access as _, AccessFs, AccessNet, Scope};
use sha2::{Digest as _, Sha256};

use crate::confine::{LANDLOCK_ABI_MIN, rights};
use crate::profile::{Arg, Profile};
use crate::self_test;

/// First line: names what [`crate::confine`] does for every profile alike, and this text's form.
const FORM: &str = "casemate-sandbox-v1";

impl Profile<'_> {
    /// One line per rule, in an order that does not depend on the table's.
    #[must_use]
    pub fn table(&self) -> String {
        let mut lines = Vec::new();
        for rule in self.allow {
            lines.push(format!("allow {}{}", rule.syscall, arguments(rule.when)));
        }
        for rule in self.refuse {
            let when = arguments(rule.when);
            lines.push(format!("refuse {} errno {}{when}", rule.syscall, rule.errno));
        }
        for rule in self.paths {
            // Quoted: a path cannot break the line.
            lines.push(format!("path {:?} {:#x}", rule.path, rights(rule.access).bits()));
        }
        for limit in self.limits {
            lines.push(format!("limit {:?} {}", limit.resource, limit.max));
        }
        for name in self_test::names() {
            lines.push(format!("try {name}"));
        }
        lines.sort_unstable();
        format!("{}{}\n", self.head(), lines.join("\n"))
    }

    /// SHA-256 of [`Self::table`], lower-case hex.
    #[must_use]
    pub fn table_sha256(&self) -> String {
        Sha256::digest(self.table()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What Landlock handles, and what holds for every process.
    fn head(&self) -> String {
        let abi = ABI::V6;
        format!(
            "{FORM}\nprocess {}\ncapabilities none\nno-new-privs\nnot-dumpable\notherwise kill-process\n\
             landlock {LANDLOCK_ABI_MIN} fs {:#x} net {:#x} scope {:#x}\n",
            self.name,
            AccessFs::from_all(abi).bits(),
            AccessNet::from_all(abi).bits(),
            Scope::from_all(abi).bits(),
        )
    }
}

fn arguments(when: &[Arg]) -> String {
    when.iter().fold(String::new(), |text, arg| {
        text + &match *arg {
            Arg::Is(index, value) => format!(" arg{index} is {value:#x}"),
            Arg::IsNot(index, value) => format!(" arg{index} is-not {value:#x}"),
            Arg::Lacks(index, bits) => format!(" arg{index} lacks {bits:#x}"),
            Arg::Has(index, bits) => format!(" arg{index} has {bits:#x}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::profile::{Access, Allow, Limit, PathRule};
    use crate::{AGENTD, ENGINE, GATEWAY, appliance_tables};

    #[test]
    fn each_process_has_a_table_of_its_own() {
        let mut digests = appliance_tables().map(|(_, digest)| digest).to_vec();
        // The agent without its paths is another one.
        digests.push(AGENTD.table_sha256());
        assert_eq!(digests[1..3], [ENGINE.table_sha256(), GATEWAY.table_sha256()]);
        digests.sort_unstable();
        assert!(digests.windows(2).all(|pair| pair[0] != pair[1]), "{digests:?}");
        assert!(digests.iter().all(|digest| digest.len() == 64));
    }

    #[test]
    fn whatever_is_enforced_is_in_the_table() {
        const LESS: &[Allow] = ENGINE.allow.split_at(1).1;
        const WIDER: &[Allow] = &[Allow { when: &[], ..ENGINE.allow[1] }];
        const LOOSER: &[Limit] = &[Limit { max: 1, ..ENGINE.limits[0] }];
        let path = |path, access| [PathRule { path: Path::new(path), access, why: "" }];
        let (read, write) = (path("/a", Access::Read), path("/a", Access::ReadWrite));
        let other = path("/a\npath \"/b\" 0x0", Access::Read);
        let variants = [
            ENGINE,
            Profile { name: "other", ..ENGINE },
            Profile { allow: LESS, ..ENGINE },
            Profile { allow: WIDER, ..ENGINE },
            Profile { allow: ENGINE.allow.split_at(2).0.split_at(1).1, ..ENGINE },
            Profile { refuse: &[], ..ENGINE },
            Profile { limits: &[], ..ENGINE },
            Profile { limits: LOOSER, ..ENGINE },
            Profile { paths: &read, ..ENGINE },
            Profile { paths: &write, ..ENGINE },
            Profile { paths: &other, ..ENGINE },
        ];
        let tables: std::collections::BTreeSet<_> =
            variants.iter().map(Profile::table_sha256).collect();
        assert_eq!(tables.len(), variants.len());
        let lines = |profile: &Profile<'_>| profile.table().lines().count();
        assert_eq!(lines(&Profile { paths: &other, ..ENGINE }), lines(&ENGINE) + 1);
    }

    #[test]
    fn reasons_and_order_are_not_part_of_the_table() {
        const REORDERED: &[Limit] = &[
            Limit { why: "another reason", ..ENGINE.limits[2] },
            ENGINE.limits[0],
            ENGINE.limits[1],
        ];
        let reordered = Profile { limits: REORDERED, ..ENGINE };
        assert_eq!(reordered.table(), ENGINE.table());
    }
}
