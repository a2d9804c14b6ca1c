//! `state reset`: destroys the state that a signed order names, its keys first.
//!
//! Each step leaves a machine that does not open its state and goes on with the same order when it starts again with the
//! medium: the header names the state until the partition is gone from the table, and then the next boot makes a new one.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use evidence::bundle::Quorum;
use evidence::reset::{Approved, ORDER_BYTES_MAX, ORDER_FILE, approve};
use sandbox::{AGENTD, Access, PathRule, Profile};
use tpm::{AttestationKey, Tpm};

use crate::gpt::{self, Table};
use crate::journal::say;
use crate::options::{self, Options};
use crate::{files, luks, policy, signed};

/// Bytes that are overwritten at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Unit of the sizes in sysfs, whatever the disk's.
const SYSFS_SECTOR_BYTES: u64 = 512;

/// A disk that is written by lseek and write: the table of the confinement is agentd's, which has no pwrite64.
struct Disk(File);

impl FileExt for Disk {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(bytes, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        (&self.0).seek(SeekFrom::Start(at))?;
        (&self.0).write(bytes)
    }
}

/// The partition on its disk, and how to take it off.
struct Partition {
    disk: Disk,
    start: u64,
    /// End of the header's two copies, and of the key slots, from `start`.
    copies_bytes: u64,
    slots_end: u64,
    uuid: String,
    /// The disk's partition table without it.
    without: Table,
}

pub(crate) fn run(options: &Options, paths: &options::Reset) -> anyhow::Result<()> {
    let quorum = Quorum::parse(&policy::read(&paths.policy)?.1)?;
    let partition = Partition::open(&options.device, paths)?;
    let mut tpm = Tpm::open(&options.tcti)?;
    let machine = hex::encode(AttestationKey::create(&mut tpm)?.name());
    confine(&paths.medium)?;
    let signed = signed::read(&paths.medium, ORDER_FILE, ORDER_BYTES_MAX)?;
    let order = approve(&quorum, &signed.signatures, &signed.order)?;
    order.check(&machine, &partition.uuid)?;
    announce(&order, &partition.uuid);
    tpm.clear().context(
        "nothing is changed; if the TPM's lockout hierarchy has a password, clear the TPM in the firmware's menu",
    )?;
    say("factory reset: the TPM is cleared; no copy of the state opens any more");
    partition.destroy().context(
        "the TPM is cleared and the state opens no more, but not all of its disk is overwritten: start the machine \
         again with this medium",
    )
}

fn announce(order: &Approved, state: &str) {
    say(&format!(
        "factory reset of the state {state}, signed by {}: {}",
        order.signers().join(", "),
        order.reason()
    ));
}

/// What is left before a byte of the medium is read: the medium, and the open disk and TPM.
fn confine(medium: &Path) -> anyhow::Result<()> {
    let rules = [PathRule { path: medium, access: Access::Read, why: "the order is read" }];
    let profile = Profile { name: "state", paths: &rules, ..AGENTD };
    sandbox::confine(&profile).map(drop).context("cannot confine")
}

impl Partition {
    fn open(device: &Path, paths: &options::Reset) -> anyhow::Result<Self> {
        let slots = luks::slots(device).context("there is no state to reset")?;
        let place = Place::of(device, &paths.sysfs, &paths.devices)?;
        let disk = File::options().read(true).write(true).open(&place.disk);
        let disk = Disk(disk.with_context(|| place.disk.display().to_string())?);
        let table = Table::read(&disk, place.sector_bytes, place.sectors)?;
        let without = place.leave(table, &paths.label)?;
        Ok(Self {
            disk,
            start: place.start,
            copies_bytes: slots.copies_bytes(),
            slots_end: slots.data_offset(),
            uuid: slots.uuid().to_owned(),
            without,
        })
    }

    fn destroy(self) -> anyhow::Result<()> {
        let Self { disk, start, copies_bytes, slots_end, without, .. } = self;
        overwrite(&disk, start + copies_bytes, start + slots_end)?;
        say("factory reset: the key slots are overwritten");
        without.write(&disk, || disk.0.sync_all())?;
        overwrite(&disk, start, start + copies_bytes)?;
        say(
            "factory reset done; the machine restarts with a new state, and is to be enrolled anew. Pull the medium",
        );
        Ok(())
    }
}

/// Zeros, on the disk when this returns.
fn overwrite(disk: &Disk, from: u64, to: u64) -> anyhow::Result<()> {
    let zeros = vec![0; CHUNK_BYTES];
    let mut at = from;
    while at < to {
        let now = usize::try_from(to - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        disk.write_all_at(&zeros[..now], at)?;
        at += now as u64;
    }
    disk.0.sync_all().context("the disk does not keep what it is given")
}

/// Where a partition is.
struct Place {
    disk: PathBuf,
    start: u64,
    sector_bytes: u64,
    /// Of the disk.
    sectors: u64,
}

impl Place {
    /// `/sys/class/block/PARTITION` is a link into its disk's folder: Linux, `Documentation/ABI/stable/sysfs-block`.
    fn of(device: &Path, sysfs: &Path, devices: &Path) -> anyhow::Result<Self> {
        let node = std::fs::canonicalize(device).with_context(|| device.display().to_string())?;
        let name = node.file_name().context("a device without a name")?;
        let folder = std::fs::canonicalize(sysfs.join(name))
            .with_context(|| format!("{} is no block device", node.display()))?;
        ensure!(folder.join("partition").exists(), "{} is no partition", node.display());
        let whole = folder.parent().context("a partition without a disk")?;
        let disk = devices.join(whole.file_name().context("a disk without a name")?);
        let start = number(&folder.join("start"))?.checked_mul(SYSFS_SECTOR_BYTES);
        let sector_bytes = number(&whole.join("queue/logical_block_size"))?;
        let bytes = number(&whole.join("size"))?.checked_mul(SYSFS_SECTOR_BYTES);
        let sectors = bytes.and_then(|bytes| bytes.checked_div(sector_bytes));
        Ok(Self {
            disk,
            start: start.context("a start out of range")?,
            sector_bytes,
            sectors: sectors.context("a size out of range")?,
        })
    }

    /// The table without the partition of this place and `label`.
    fn leave(&self, mut table: Table, label: &str) -> anyhow::Result<Table> {
        let is_it = |partition: &gpt::Partition| {
            partition.start.checked_mul(self.sector_bytes) == Some(self.start)
                && partition.label() == label
        };
        let found: Vec<_> = table.partitions().into_iter().filter(is_it).collect();
        let [partition] = found[..] else {
            bail!(
                "the partition table has {} partitions {label:?} at byte {}",
                found.len(),
                self.start
            );
        };
        table.remove(partition.number)?;
        Ok(table)
    }
}

fn number(path: &Path) -> anyhow::Result<u64> {
    let text = files::read_bounded(path, 64).with_context(|| path.display().to_string())?;
    let text = String::from_utf8(text).with_context(|| path.display().to_string())?;
    text.trim().parse().with_context(|| format!("{}: {text:?}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::tests::disk;

    #[test]
    fn the_partition_of_this_place_and_label_leaves_the_table() {
        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = disk(folder.path()) else { return };
        let (sector_bytes, sectors) = (512, (64 << 20) / 512);
        let leave = |label: &str, start| {
            let place = Place { disk: PathBuf::new(), start, sector_bytes, sectors };
            place.leave(Table::read(&disk, sector_bytes, sectors).unwrap(), label)
        };
        let left = leave("casemate-state", 4 << 20).unwrap().partitions();
        let left: Vec<_> = left.iter().map(gpt::Partition::label).collect();
        assert_eq!(left, ["first", "last"]);
        for (label, start) in [("casemate-state", (4 << 20) + 512), ("last", 4 << 20)] {
            leave(label, start).unwrap_err();
        }
    }
}
