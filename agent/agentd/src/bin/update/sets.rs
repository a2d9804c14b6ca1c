//! The two sets of partitions, and which of them runs: the one whose partitions the device-mapper's verified root lies on.
//! Invariant: a [`Sets`] names a set that does not run, on the disk of the one that does.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::discoverable::{ESP, ROOT, VERITY, root_hash};
use crate::gpt::{Partition, Table};
use crate::options::Apply;

/// Name of the verified root's device; systemd-veritysetup-generator(8).
const ROOT_NAME: &str = "root";
/// Beginning of a dm-verity device's identifier.
const VERITY_UUID: &str = "CRYPT-VERITY-";
/// Images are laid out for these, and sysfs counts in them.
const SECTOR_BYTES: u64 = 512;
/// Most block devices that are looked at.
const DEVICES_MAX: usize = 4096;
/// Longest file of sysfs that is read here.
const SYSFS_BYTES_MAX: u64 = 4096;

/// The disk of the running image, and what is where on it.
#[derive(Debug)]
pub(crate) struct Sets {
    /// Root hash of the set that runs.
    pub(crate) running: String,
    /// The whole disk, open to write its table.
    pub(crate) disk: File,
    pub(crate) table: Table,
    /// Root partition of the other set.
    pub(crate) root: Target,
    /// Its hash tree's.
    pub(crate) verity: Target,
    /// Device number of the EFI system partition.
    esp: String,
}

/// A partition that is written.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) partition: Partition,
    pub(crate) node: PathBuf,
}

impl Sets {
    pub(crate) fn find(paths: &Apply) -> anyhow::Result<Self> {
        let slaves = slaves(&paths.block)?;
        let own = |name: &String| fs::canonicalize(paths.block.join(name));
        let folders = slaves.iter().map(own).collect::<std::io::Result<Vec<_>>>()?;
        let disk = folders.first().and_then(|folder| folder.parent()).context("no disk")?;
        ensure!(
            folders.iter().all(|folder| folder.parent() == Some(disk)),
            "root and hash tree are on two disks"
        );
        let name = disk.file_name().context("the disk has no name")?;
        let sector = text(&disk.join("queue/logical_block_size"))?;
        ensure!(sector == SECTOR_BYTES.to_string(), "sectors of {sector} bytes instead of 512");
        let sectors = text(&disk.join("size"))?.parse()?;
        let open = OpenOptions::new().read(true).write(true).open(paths.dev.join(name));
        let device = open.context("the disk")?;
        let table = Table::read(&device, SECTOR_BYTES, sectors)?;
        let starts = folders.iter().map(|folder| Ok(text(&folder.join("start"))?.parse()?));
        let starts = starts.collect::<anyhow::Result<Vec<u64>>>()?;
        let (running, [root, verity], esp) = choose(&table.partitions(), &starts)?;
        let target = |partition: Partition| {
            let folder = folder_of(disk, partition)?;
            let node = paths.dev.join(folder.file_name().context("no name")?);
            anyhow::Ok(Target { partition, node })
        };
        Ok(Self {
            running,
            disk: device,
            root: target(root)?,
            verity: target(verity)?,
            esp: text(&folder_of(disk, esp)?.join("dev"))?,
            table,
        })
    }

    /// Checks that the file system at `folder` is the one that firmware starts this disk from, and no stranger's.
    pub(crate) fn check_esp(&self, folder: &Path) -> anyhow::Result<()> {
        let device = fs::metadata(folder).with_context(|| folder.display().to_string())?.dev();
        let found = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        ensure!(
            found == self.esp,
            "the file system at {} is on device {found}; the EFI system partition of this disk is \
             {}",
            folder.display(),
            self.esp
        );
        Ok(())
    }
}

/// The two block devices below the verified root.
fn slaves(block: &Path) -> anyhow::Result<[String; 2]> {
    for entry in fs::read_dir(block)?.take(DEVICES_MAX) {
        let folder = entry?.path();
        let is_root = folder.join("dm/name").exists()
            && text(&folder.join("dm/name"))? == ROOT_NAME
            && text(&folder.join("dm/uuid"))?.starts_with(VERITY_UUID);
        if is_root {
            let names = fs::read_dir(folder.join("slaves"))?
                .take(DEVICES_MAX)
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<_>>>()?;
            return names
                .try_into()
                .map_err(|names| anyhow::anyhow!("the root is on {names:?}; expected two"));
        }
    }
    bail!("no verified root runs here")
}

/// The running set's root hash, root and hash tree of the other set, and the EFI system partition.
fn choose(
    partitions: &[Partition],
    starts: &[u64],
) -> anyhow::Result<(String, [Partition; 2], Partition)> {
    let one = |kind, runs: bool, what: &str| {
        let mut found = partitions.iter().filter(|partition| {
            partition.kind == kind && starts.contains(&partition.start) == runs
        });
        match (found.next(), found.next()) {
            (Some(partition), None) => Ok(*partition),
            (None, _) => bail!("the disk has no {what}"),
            (Some(_), Some(_)) => bail!("the disk has more than one {what}"),
        }
    };
    let root = one(ROOT, true, "root partition that runs")?;
    let verity = one(VERITY, true, "hash tree that runs")?;
    let others = [
        one(ROOT, false, "root partition beside the running one")?,
        one(VERITY, false, "hash tree beside the running one")?,
    ];
    let esp = one(ESP, false, "EFI system partition")?;
    Ok((root_hash(root.identifier, verity.identifier), others, esp))
}

/// The kernel's folder of a partition, if its place is the table's.
fn folder_of(disk: &Path, partition: Partition) -> anyhow::Result<PathBuf> {
    let number = partition.number.to_string();
    for entry in fs::read_dir(disk)?.take(DEVICES_MAX) {
        let folder = entry?.path();
        if !folder.join("partition").exists() || text(&folder.join("partition"))? != number {
            continue;
        }
        let start = text(&folder.join("start"))?;
        ensure!(
            start == partition.start.to_string(),
            "partition {number} begins at {} in the table, and at {start} for the kernel",
            partition.start
        );
        return Ok(folder);
    }
    bail!("the kernel does not know partition {number}")
}

fn text(path: &Path) -> anyhow::Result<String> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let bytes = crate::files::read_all(file, SYSFS_BYTES_MAX)?;
    Ok(String::from_utf8(bytes)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: usize, kind: [u8; 16], start: u64) -> Partition {
        let identifier = [u8::try_from(number).unwrap(); 16];
        Partition { number, kind, identifier, start, bytes: 512, name: [0; 72] }
    }

    #[test]
    fn the_set_that_does_not_run_is_chosen_by_place() {
        let all = [
            partition(1, ESP, 10),
            partition(2, ROOT, 20),
            partition(3, VERITY, 30),
            partition(4, ROOT, 40),
            partition(5, VERITY, 50),
        ];
        let (running, [root, verity], esp) = choose(&all, &[30, 20]).unwrap();
        assert_eq!(running, ["02".repeat(16), "03".repeat(16)].concat());
        assert_eq!((root.number, verity.number, esp.number), (4, 5, 1));
        let (running, [root, verity], _) = choose(&all, &[40, 50]).unwrap();
        assert_eq!((root.number, verity.number), (2, 3));
        assert_eq!(running, ["04".repeat(16), "05".repeat(16)].concat());
        // Where a set is missing, or there are three, nothing is written.
        choose(&all[..3], &[20, 30]).unwrap_err();
        choose(&all, &[20, 31]).unwrap_err();
        let three = [&all[..], &[partition(6, ROOT, 60)]].concat();
        choose(&three, &[20, 30]).unwrap_err();
        choose(&all[1..], &[20, 30]).unwrap_err();
    }
}
