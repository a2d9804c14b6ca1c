//! The disks of this machine, and which of them may be overwritten.
//! Invariants: nothing here opens a device; everything is read below a given root folder; what describes a disk may be
//! missing, what protects one (mounts, swap, holders) may not.

mod refusal;
mod sysfs;
mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub(crate) use refusal::{Needs, Refusal};
use usage::{Node, Usage};
pub(crate) use usage::{TableError, Use};

/// sysfs counts in these, whatever the disk's own sectors are.
const SYSFS_SECTOR_BYTES: u64 = 512;
/// Most block devices that are looked at.
const DEVICES_MAX: usize = 4096;
/// Longest table of mounts or swap.
const TABLE_BYTES_MAX: u64 = 16 << 20;
/// Devices that are no disks, by the beginnings of their names: firmware starts no machine from them.
const NO_DISKS: &[(&str, &str)] = &[
    ("dm-", "a device-mapper volume"),
    ("md", "a software RAID"),
    ("zram", "compressed memory"),
    ("ram", "memory"),
    ("sr", "an optical drive"),
    ("fd", "a floppy drive"),
    ("mtdblock", "flash memory without wear levelling"),
    ("bcache", "a cache"),
];

/// Why the disks are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DisksError {
    /// A file of the kernel.
    #[error("{path}: {cause}; without it no disk may be written")]
    File { path: PathBuf, cause: io::Error },
    /// A table of the kernel.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Longer than any machine has.
    #[error("{path}: more than {max}; no disk may be written")]
    TooMany { path: PathBuf, max: u64 },
}

/// A partition, or a disk without any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) label: Option<String>,
    pub(crate) filesystem: Option<String>,
}

/// A whole disk. Two that are equal at different times are the same disk with the same content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) name: String,
    /// As in `8:0`.
    pub(crate) dev: String,
    /// Counts up with every disk that the kernel finds, so that a name that came back is not taken for the old disk.
    pub(crate) sequence: Option<u64>,
    pub(crate) bytes: u64,
    pub(crate) sector_bytes: u64,
    pub(crate) model: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) wwid: Option<String>,
    pub(crate) transport: &'static str,
    pub(crate) is_removable: bool,
    pub(crate) is_read_only: bool,
    pub(crate) table: Option<String>,
    pub(crate) content: Vec<Content>,
    pub(crate) uses: Vec<Use>,
}

/// What must be typed to overwrite a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Its serial number, which no other disk here has.
    Serial(String),
    /// Path and size in bytes, as in `/dev/vda:1342177280`: it has no serial number, or shares it.
    PathAndSize(String),
}

/// What a device number stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Disk(&'a Disk),
    Partition { name: String, disk: &'a Disk },
    NoDisk { name: String, what: &'static str },
    Unknown,
}

/// All whole disks, by name.
#[derive(Debug)]
pub(crate) struct Inventory {
    pub(crate) disks: Vec<Disk>,
    /// Partitions and what is no disk, by device number.
    others: BTreeMap<String, Other>,
}

#[derive(Debug)]
enum Other {
    Partition { name: String, disk: String },
    NoDisk { name: String, what: &'static str },
}

impl Inventory {
    /// The machine whose sysfs, procfs and udev database are below `root`.
    pub(crate) fn read(root: &Path) -> Result<Self, DisksError> {
        let blocks = root.join("sys/block");
        let mut usage = Usage {
            mounts: usage::mounts(&table(&root.join("proc/self/mountinfo"))?)?,
            swaps: swaps(&root.join("proc/swaps"))?,
            nodes: BTreeMap::new(),
        };
        let names = entries(&blocks)?;
        let mut partitions = BTreeMap::new();
        for name in &names {
            let block = blocks.join(name);
            usage.nodes.insert(name.clone(), node(&block)?);
            let found: Vec<String> = entries(&block)?
                .into_iter()
                .filter(|part| block.join(part).join("partition").exists())
                .collect();
            for part in &found {
                usage.nodes.insert(part.clone(), node(&block.join(part))?);
            }
            partitions.insert(name.clone(), found);
        }
        hold_by_loops(&blocks, &mut usage);
        hold_by_btrfs(&root.join("sys/fs/btrfs"), &mut usage)?;
        let mut inventory = Self { disks: Vec::new(), others: BTreeMap::new() };
        for (name, parts) in &partitions {
            inventory.add(root, name, parts, &usage);
        }
        Ok(inventory)
    }

    /// What the device with the number `dev` is.
    pub(crate) fn find(&self, dev: &str) -> Found<'_> {
        let disk = |is_it: &dyn Fn(&&Disk) -> bool| self.disks.iter().find(is_it);
        if let Some(disk) = disk(&|disk| disk.dev == dev) {
            return Found::Disk(disk);
        }
        match self.others.get(dev) {
            Some(Other::Partition { name, disk: of }) => disk(&|disk| disk.name == *of)
                .map_or(Found::Unknown, |disk| Found::Partition { name: name.clone(), disk }),
            Some(Other::NoDisk { name, what }) => Found::NoDisk { name: name.clone(), what },
            None => Found::Unknown,
        }
    }

    /// What must be typed for `disk`.
    pub(crate) fn identity(&self, disk: &Disk) -> Identity {
        let has = |serial: &str| {
            self.disks.iter().filter(|other| other.serial.as_deref() == Some(serial)).count()
        };
        match &disk.serial {
            Some(serial) if has(serial) == 1 => Identity::Serial(serial.clone()),
            _ => Identity::PathAndSize(format!("{}:{}", disk.path().display(), disk.bytes)),
        }
    }

    /// Everything that forbids to overwrite `disk`, with an image if there is one.
    pub(crate) fn refusals(&self, disk: &Disk, needs: Option<Needs>) -> Vec<Refusal> {
        let mut refusals: Vec<Refusal> = disk.uses.iter().cloned().map(Refusal::InUse).collect();
        for other in self.disks.iter().filter(|other| may_be_one(disk, other)) {
            refusals.extend(other.uses.first().map(|used| Refusal::OtherPath {
                other: other.path().display().to_string(),
                used: used.clone(),
            }));
        }
        if disk.is_read_only {
            refusals.push(Refusal::ReadOnly);
        }
        if let Some(needs) = needs {
            if disk.bytes < needs.bytes {
                refusals.push(Refusal::TooSmall { found: disk.bytes, expected: needs.bytes });
            }
            if disk.sector_bytes != needs.sector_bytes {
                let (found, expected) = (disk.sector_bytes, needs.sector_bytes);
                refusals.push(Refusal::SectorSize { found, expected });
            }
        }
        refusals
    }

    fn add(&mut self, root: &Path, name: &str, partitions: &[String], usage: &Usage) {
        let block = root.join("sys/block").join(name);
        let Some(dev) = usage.nodes.get(name).map(|node| node.dev.clone()) else { return };
        let bytes = size(&block);
        if let Some((_, what)) = NO_DISKS.iter().find(|(prefix, _)| is_named(name, prefix)) {
            self.others.insert(dev, Other::NoDisk { name: name.to_owned(), what });
            return;
        }
        // NVMe hides the single paths of a multipath disk: they have no number. An empty slot has no size.
        if dev.is_empty() || bytes == 0 {
            return;
        }
        for part in partitions {
            let dev = usage.nodes.get(part).map(|node| node.dev.clone()).unwrap_or_default();
            let disk = name.to_owned();
            self.others.insert(dev, Other::Partition { name: part.clone(), disk });
        }
        let whole = sysfs::record(root, &dev);
        let nodes = std::iter::once(name).chain(partitions.iter().map(String::as_str));
        let mut uses: Vec<Use> = nodes.flat_map(|node| usage.of(node)).collect();
        // What is worst to lose is said first.
        uses.sort_by_key(|used| !used.is_root());
        self.disks.push(Disk {
            name: name.to_owned(),
            sequence: sysfs::number(&block.join("diskseq")),
            bytes,
            sector_bytes: sysfs::number(&block.join("queue/logical_block_size")).unwrap_or(0),
            model: sysfs::model(&block),
            serial: sysfs::serial(&block),
            wwid: sysfs::wwid(&block),
            transport: sysfs::transport(name, &block),
            is_removable: sysfs::number(&block.join("removable")) == Some(1),
            // What does not say that it can be written cannot.
            is_read_only: sysfs::number(&block.join("ro")) != Some(0),
            table: whole.table,
            content: contents(root, name, partitions, usage),
            uses,
            dev,
        });
    }
}

impl Disk {
    pub(crate) fn path(&self) -> PathBuf {
        // The kernel writes a slash in a name (cciss/c0d0) as an exclamation mark.
        Path::new("/dev").join(self.name.replace('!', "/"))
    }
}

impl Identity {
    /// What must be typed, to the letter.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Serial(text) | Self::PathAndSize(text) => text,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(formatter, "serial number {serial}"),
            Self::PathAndSize(text) => {
                write!(formatter, "no serial number of its own, known as {text}")
            }
        }
    }
}

/// Whether two names may be two paths to one medium. Namespaces of one NVMe controller share the serial number, and
/// differ in the WWID.
fn may_be_one(disk: &Disk, other: &Disk) -> bool {
    if disk.name == other.name {
        return false;
    }
    match (&disk.wwid, &other.wwid) {
        (Some(one), Some(two)) => one == two,
        _ => disk.serial.is_some() && disk.serial == other.serial,
    }
}

/// Whether `name` is `prefix` and a number: `md0` is, `mdisk` is not.
fn is_named(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || c == '_'))
}

/// A loop device upon a disk is no holder in sysfs, and opens it without O_EXCL.
fn hold_by_loops(blocks: &Path, usage: &mut Usage) {
    let names: Vec<String> =
        usage.nodes.keys().filter(|name| is_named(name, "loop")).cloned().collect();
    for name in names {
        let file = sysfs::text(&blocks.join(&name).join("loop/backing_file"));
        let below = file.as_deref().and_then(|file| file.strip_prefix("/dev/"));
        if let Some(node) = below.and_then(|below| usage.nodes.get_mut(below)) {
            node.holders.push(name);
        }
    }
}

/// A mount of btrfs names one of its disks; sysfs has them all.
fn hold_by_btrfs(folder: &Path, usage: &mut Usage) -> Result<(), DisksError> {
    if !folder.exists() {
        return Ok(());
    }
    for uuid in entries(folder)? {
        let devices = folder.join(&uuid).join("devices");
        if !devices.exists() {
            continue;
        }
        for name in entries(&devices)? {
            if let Some(node) = usage.nodes.get_mut(&name) {
                node.holders.push(format!("btrfs {uuid}"));
            }
        }
    }
    Ok(())
}

fn node(block: &Path) -> Result<Node, DisksError> {
    let holders = block.join("holders");
    Ok(Node {
        dev: sysfs::text(&block.join("dev")).unwrap_or_default(),
        title: sysfs::text(&block.join("dm/name")),
        holders: if holders.exists() { entries(&holders)? } else { Vec::new() },
    })
}

fn contents(root: &Path, name: &str, partitions: &[String], usage: &Usage) -> Vec<Content> {
    let block = root.join("sys/block").join(name);
    let content = |name: &str, folder: &Path| {
        let dev = usage.nodes.get(name).map(|node| node.dev.as_str()).unwrap_or_default();
        let record = sysfs::record(root, dev);
        Content {
            name: name.to_owned(),
            bytes: size(folder),
            label: sysfs::partition_label(folder).or(record.label),
            filesystem: record.filesystem,
        }
    };
    let whole = content(name, &block);
    let mut contents: Vec<Content> =
        partitions.iter().map(|part| content(part, &block.join(part))).collect();
    if contents.is_empty() && whole.filesystem.is_some() {
        contents.push(whole);
    }
    contents
}

fn size(block: &Path) -> u64 {
    let sectors = sysfs::number(&block.join("size")).unwrap_or(0);
    sectors.saturating_mul(SYSFS_SECTOR_BYTES)
}

fn swaps(path: &Path) -> Result<Vec<String>, DisksError> {
    match table(path) {
        Ok(text) => Ok(usage::swaps(&text)?),
        // A kernel that is built without swap.
        Err(DisksError::File { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn table(path: &Path) -> Result<String, DisksError> {
    let error = |cause| DisksError::File { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(error)?;
    file.take(TABLE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > TABLE_BYTES_MAX {
        return Err(DisksError::TooMany { path: path.to_owned(), max: TABLE_BYTES_MAX });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Names in a folder, in order.
fn entries(folder: &Path) -> Result<Vec<String>, DisksError> {
    let error = |cause| DisksError::File { path: folder.to_owned(), cause };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        if names.len() == DEVICES_MAX {
            let max = DEVICES_MAX as u64;
            return Err(DisksError::TooMany { path: folder.to_owned(), max });
        }
        names.push(entry.map_err(error)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;
