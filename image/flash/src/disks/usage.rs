//! What uses a block device: mounts, swap, and devices that are made of it.
//! Invariant: a table that cannot be read or understood is an error, never an unused disk.

use std::collections::BTreeMap;
use std::fmt;

/// Devices upon devices: LVM on LUKS on MD on a partition is four.
const DEPTH_MAX: usize = 16;
/// Most uses of one disk that are told apart.
const USES_MAX: usize = 64;

/// Why a table of the kernel is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{table}, line {line}: expected {expected}; this kernel is unknown to casemate, nothing may be written"
)]
pub(crate) struct TableError {
    pub(crate) table: &'static str,
    pub(crate) line: usize,
    pub(crate) expected: &'static str,
}

/// A file system in the mount namespace of this process.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// As in `8:1`; of its own, not the device's, for btrfs and its kin.
    pub(super) dev: String,
    pub(super) at: String,
    pub(super) source: String,
}

/// A block device and what is made of it.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) dev: String,
    /// Name that people know it by, if it is a device-mapper volume.
    pub(super) title: Option<String>,
    /// Devices made of this one.
    pub(super) holders: Vec<String>,
}

/// Everything that can use a block device.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) mounts: Vec<Mount>,
    /// Kernel names of swap devices.
    pub(super) swaps: Vec<String>,
}

/// One use of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    /// From the disk or its partition upwards.
    pub(crate) chain: Vec<String>,
    pub(crate) how: How,
}

/// How the last device of a chain is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Mounted {
        at: String,
    },
    Swap,
    /// By a device of which no use is visible, or none that could be followed.
    Held {
        by: String,
    },
}

impl Usage {
    /// Uses of the device `name`, through whatever is made of it.
    pub(super) fn of(&self, name: &str) -> Vec<Use> {
        let mut uses = Vec::new();
        self.follow(name, &mut Vec::new(), &mut uses);
        uses
    }

    fn follow(&self, name: &str, below: &mut Vec<String>, uses: &mut Vec<Use>) {
        let node = self.nodes.get(name);
        let shown = match node.and_then(|node| node.title.as_ref()) {
            Some(title) => format!("{name} ({title})"),
            None => name.to_owned(),
        };
        below.push(shown.clone());
        let before = uses.len();
        for how in self.direct(name, node) {
            if uses.len() < USES_MAX {
                uses.push(Use { chain: below.clone(), how });
            }
        }
        for holder in node.map(|node| node.holders.as_slice()).unwrap_or_default() {
            if below.len() < DEPTH_MAX && uses.len() < USES_MAX {
                self.follow(holder, below, uses);
            }
        }
        below.pop();
        // A holder is a use even if nobody is seen to use the holder.
        if uses.len() == before && !below.is_empty() && uses.len() < USES_MAX {
            uses.push(Use { chain: below.clone(), how: How::Held { by: shown } });
        }
    }

    fn direct<'a>(
        &'a self,
        name: &'a str,
        node: Option<&'a Node>,
    ) -> impl Iterator<Item = How> + 'a {
        let is_here = move |mount: &&Mount| {
            node.is_some_and(|node| node.dev == mount.dev)
                || mount.source.strip_prefix("/dev/") == Some(name)
                || node
                    .and_then(|node| node.title.as_deref())
                    .is_some_and(|title| mount.source.strip_prefix("/dev/mapper/") == Some(title))
        };
        let mounted =
            self.mounts.iter().filter(is_here).map(|mount| How::Mounted { at: mount.at.clone() });
        let swap = self.swaps.iter().filter(move |swap| *swap == name).map(|_| How::Swap);
        mounted.chain(swap)
    }
}

impl Use {
    /// Whether it is the file system that this machine runs from.
    pub(super) fn is_root(&self) -> bool {
        matches!(&self.how, How::Mounted { at } if at == "/")
    }
}

impl fmt::Display for Use {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.chain.split_first() {
            Some((first, [])) => write!(formatter, "{first}")?,
            Some((first, above)) => write!(formatter, "{first}, through {},", above.join(", "))?,
            None => write!(formatter, "it")?,
        }
        match &self.how {
            How::Mounted { .. } if self.is_root() => {
                write!(formatter, " is mounted at /: the running system")
            }
            How::Mounted { at } => write!(formatter, " is mounted at {at}"),
            How::Swap => write!(formatter, " is swap space in use"),
            How::Held { by } => write!(formatter, " is held by {by}"),
        }
    }
}

/// /proc/self/mountinfo; proc_pid_mountinfo(5).
pub(super) fn mounts(text: &str) -> Result<Vec<Mount>, TableError> {
    let parse = |(index, line): (usize, &str)| {
        let error =
            |expected| TableError { table: "/proc/self/mountinfo", line: index + 1, expected };
        let mut fields = line.split(' ').skip(2);
        let dev = fields.next().filter(|dev| dev.contains(':')).ok_or(error("major:minor"))?;
        let at = fields.nth(1).ok_or(error("a mount point"))?;
        // Optional fields end with a hyphen; then type and source.
        fields.find(|field| *field == "-").ok_or(error("a hyphen"))?;
        let source = fields.nth(1).ok_or(error("a source"))?;
        Ok(Mount { dev: dev.to_owned(), at: unescape(at), source: unescape(source) })
    };
    text.lines().enumerate().map(parse).collect()
}

/// Kernel names of the devices in /proc/swaps; proc_swaps(5). A file in use as swap holds its mount.
pub(super) fn swaps(text: &str) -> Result<Vec<String>, TableError> {
    let error = |line, expected| TableError { table: "/proc/swaps", line, expected };
    let mut lines = text.lines().enumerate();
    match lines.next() {
        Some((_, heading)) if heading.starts_with("Filename") => {}
        _ => return Err(error(1, "the heading `Filename`")),
    }
    let mut names = Vec::new();
    for (index, line) in lines {
        let mut fields = line.split_ascii_whitespace();
        let path = fields.next().ok_or(error(index + 1, "a file name"))?;
        let kind = fields.next().ok_or(error(index + 1, "a type"))?;
        if let ("partition", Some(name)) = (kind, unescape(path).strip_prefix("/dev/")) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Undoes the kernel's `\040` for a space, and its kin.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    super::sysfs::printable(&String::from_utf8_lossy(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "27 1 8:2 / / rw,relatime - ext4 /dev/sda2 rw\n\
        40 27 0:40 /@home /home rw shared:3 master:1 - btrfs /dev/sdb1 rw\n\
        41 27 254:3 / /srv/a\\040b rw - xfs /dev/mapper/vg-data rw\n\
        42 27 0:21 / /proc rw - proc proc rw\n";

    #[test]
    fn mounts_have_device_place_and_source() {
        let mounts = mounts(MOUNTINFO).unwrap();
        assert_eq!(mounts.len(), 4);
        assert_eq!((mounts[0].dev.as_str(), mounts[0].at.as_str()), ("8:2", "/"));
        assert_eq!(mounts[1].source, "/dev/sdb1");
        assert_eq!(mounts[2].at, "/srv/a b");
    }

    #[test]
    fn a_table_that_is_not_understood_is_an_error() {
        for bad in ["", "x", "27 1 8:2 / /", "27 1 8:2 / / rw - ext4", "27 1 sda / / rw - a b c"] {
            let error = mounts(&format!("{MOUNTINFO}{bad}\n")).unwrap_err();
            assert_eq!(error.line, 5, "{bad:?}");
        }
        assert!(swaps("").is_err() && swaps("/dev/sda3 partition 1 1 1\n").is_err());
        assert!(swaps("Filename Type\n/dev/sda3\n").is_err());
    }

    #[test]
    fn swap_files_are_no_devices() {
        let text =
            "Filename\t\tType\tSize\n/dev/sda3   partition 8 0 -2\n/swap\\040file  file 8 0 -3\n";
        assert_eq!(swaps(text).unwrap(), ["sda3"]);
    }

    #[test]
    fn uses_are_followed_through_what_is_made_of_a_device() {
        let node = |dev: &str, title: Option<&str>, holders: &[&str]| Node {
            dev: dev.to_owned(),
            title: title.map(str::to_owned),
            holders: holders.iter().map(|&holder| holder.to_owned()).collect(),
        };
        let usage = Usage {
            nodes: BTreeMap::from([
                ("sda1".to_owned(), node("8:1", None, &[])),
                ("sdb1".to_owned(), node("8:17", None, &[])),
                ("sdc1".to_owned(), node("8:33", None, &["md0"])),
                ("md0".to_owned(), node("9:0", None, &["dm-1", "dm-2"])),
                ("dm-1".to_owned(), node("254:3", Some("vg-data"), &[])),
                ("dm-2".to_owned(), node("254:4", Some("vg-idle"), &[])),
                ("sdd1".to_owned(), node("8:49", None, &["sdd1"])),
            ]),
            mounts: mounts(MOUNTINFO).unwrap(),
            swaps: vec!["sda3".to_owned()],
        };
        let said = |name: &str| {
            usage.of(name).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(said("sda1"), "");
        assert_eq!(said("sdb1"), "sdb1 is mounted at /home");
        assert_eq!(said("sda3"), "sda3 is swap space in use");
        assert_eq!(
            said("sdc1"),
            "sdc1, through md0, dm-1 (vg-data), is mounted at /srv/a b; \
             sdc1, through md0, is held by dm-2 (vg-idle)"
        );
        // A loop, which no kernel makes, ends.
        assert!(usage.of("sdd1").len() <= USES_MAX && !usage.of("sdd1").is_empty());
    }
}
