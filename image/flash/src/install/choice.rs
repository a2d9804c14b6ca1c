//! Which disk is overwritten: the one whose serial number was given, and only if it is one.

use super::words::{Words, made};
use crate::device;
use crate::disks::{Disk, Inventory, Needs, Refusal};

/// What the given serial numbers stand for.
#[derive(Debug)]
pub(super) enum Choice<'a> {
    /// One disk that may be overwritten.
    Disk(&'a Disk),
    /// No disk has one of them.
    None,
    /// Several disks have.
    Several(Vec<String>),
    /// The stick itself.
    Stick,
    /// It may not be overwritten.
    Refused(Vec<Refusal>),
    /// The kernel does not lend it.
    Busy,
}

/// The disk that `names` name: serial numbers, or for disks without one PATH:BYTES as the list shows it.
pub(super) fn choose<'a>(inventory: &'a Inventory, needs: Needs, names: &[String]) -> Choice<'a> {
    let is_named = |disk: &&Disk| {
        let identity = inventory.identity(disk);
        names.iter().any(|name| name == identity.text())
    };
    let named: Vec<&Disk> = inventory.disks.iter().filter(is_named).collect();
    let disk = match named[..] {
        [] => return Choice::None,
        [disk] => disk,
        _ => {
            let paths = named.iter().map(|disk| disk.path().display().to_string());
            return Choice::Several(paths.collect());
        }
    };
    if disk.content.iter().any(|content| content.label.as_deref() == Some(builder::INSTALLER_LABEL))
    {
        return Choice::Stick;
    }
    let refusals = inventory.refusals(disk, Some(needs));
    if !refusals.is_empty() {
        return Choice::Refused(refusals);
    }
    if device::is_busy(&disk.path()) { Choice::Busy } else { Choice::Disk(disk) }
}

impl Choice<'_> {
    /// Why nothing is overwritten. What this machine's disks forbid is said in English, as `casemate flash` says it.
    pub(super) fn words(&self, names: &[String]) -> Words {
        let names = names.join(", ");
        match self {
            Self::Disk(disk) => {
                let path = disk.path().display().to_string();
                made(format!("{path} is {names}"), format!("{path} est {names}"))
            }
            Self::None => made(
                format!("no disk has the serial number {names:?}; nothing was written"),
                format!("aucun disque n'a le numéro de série {names:?} ; rien n'a été écrit"),
            ),
            Self::Several(paths) => {
                let paths = paths.join(", ");
                made(
                    format!(
                        "{names} are the serial numbers of several disks, {paths}; nothing was \
                         written: leave one of them in the machine, or make a stick for one"
                    ),
                    format!(
                        "{names} sont les numéros de série de plusieurs disques, {paths} ; rien n'a \
                         été écrit : n'en laissez qu'un dans la machine, ou faites une clé pour un seul"
                    ),
                )
            }
            Self::Stick => made(
                format!("{names} is this stick; nothing was written"),
                format!("{names} est cette clé ; rien n'a été écrit"),
            ),
            Self::Refused(refusals) => {
                let reasons: Vec<String> = refusals.iter().map(Refusal::to_string).collect();
                let reasons = reasons.join("; ");
                made(
                    format!("{names} is not overwritten: {reasons}"),
                    format!("{names} n'est pas écrasé : {reasons}"),
                )
            }
            Self::Busy => made(
                format!("{names} {}", device::BUSY),
                format!("{names} est utilisé ; rien n'a été écrit"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const NEEDS: Needs = Needs { bytes: 1 << 20, sector_bytes: 512 };

    /// A machine with a disk for each name, serial number and size in bytes.
    fn machine(root: &Path, disks: &[(&str, &str, u64)]) -> Inventory {
        for (index, (name, serial, bytes)) in disks.iter().enumerate() {
            let block = root.join("sys/block").join(name);
            fs::create_dir_all(block.join("queue")).unwrap();
            let sectors = (bytes / 512).to_string();
            for (file, text) in [
                ("dev", format!("254:{}", index * 16)),
                ("size", sectors),
                ("serial", (*serial).to_owned()),
                ("queue/logical_block_size", "512".to_owned()),
                ("ro", "0".to_owned()),
            ] {
                fs::write(block.join(file), text).unwrap();
            }
        }
        fs::create_dir_all(root.join("proc/self")).unwrap();
        fs::write(root.join("proc/self/mountinfo"), "").unwrap();
        Inventory::read(root).unwrap()
    }

    fn check(disks: &[(&str, &str, u64)], names: &[&str], expected: &str) {
        let root = tempfile::tempdir().unwrap();
        let inventory = machine(root.path(), disks);
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let words = choose(&inventory, NEEDS, &names).words(&names).english;
        assert!(words.contains(expected), "{words:?} does not say {expected:?}");
    }

    #[test]
    fn one_disk_must_be_named_and_fit() {
        let disks = [("vdx", "one", 4 << 20), ("vdy", "two", 4 << 20), ("vdz", "small", 1 << 19)];
        check(&disks, &["two"], "/dev/vdy is two");
        check(&disks, &["two", "elsewhere"], "/dev/vdy is two");
        check(&disks, &["one", "two"], "several disks, /dev/vdx, /dev/vdy; nothing was written");
        check(&disks, &["small"], "too small");
        for wrong in ["", "tw", "TWO", "two ", "/dev/vdy"] {
            check(&disks, &[wrong], "nothing was written");
        }
    }

    #[test]
    fn disks_that_share_a_serial_number_are_named_by_path() {
        let disks = [("vdx", "same", 4 << 20), ("vdy", "same", 4 << 20)];
        check(&disks, &["same"], "no disk has");
        check(&disks, &["/dev/vdy:4194304"], "/dev/vdy is");
    }

    #[test]
    fn the_stick_does_not_overwrite_itself() {
        let root = tempfile::tempdir().unwrap();
        machine(root.path(), &[("vdx", "stick", 4 << 20)]);
        let part = root.path().join("sys/block/vdx/vdx1");
        fs::create_dir_all(&part).unwrap();
        for (file, text) in [
            ("dev", "254:1"),
            ("size", "100"),
            ("partition", "1"),
            ("uevent", "PARTNAME=casemate-installer\n"),
        ] {
            fs::write(part.join(file), text).unwrap();
        }
        let inventory = Inventory::read(root.path()).unwrap();
        assert!(matches!(choose(&inventory, NEEDS, &["stick".to_owned()]), Choice::Stick));
    }
}
