//! Tampering with a disk image, as somebody with the disk in hands would.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::process::{self, ProcessError};

/// Type of the x86-64 root partition; UAPI Group, "Discoverable Partitions Specification".
pub const TYPE_ROOT_X86_64: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
/// Type of its dm-verity hash tree; the same specification.
pub const TYPE_ROOT_X86_64_VERITY: &str = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5";
/// Type of a Linux data partition, which the state partition is; the same specification.
pub const TYPE_LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
/// Type of the EFI system partition; UEFI Specification 2.10, section 5.3.3.
pub const TYPE_ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

const SECTOR_BYTES: u64 = 512;
const ENTRY_BYTES: usize = 128;
/// Entries of a partition table; 128 is usual.
const ENTRIES_MAX: u32 = 1024;
/// Sections of a PE image.
const SECTIONS_MAX: u16 = 96;

/// Failures of tampering.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// No GUID partition table.
    #[error("not a GUID partition table: {0}")]
    NotGpt(String),
    /// What should be tampered with is not there.
    #[error("{path}: no {what}")]
    Absent {
        /// The image.
        path: PathBuf,
        /// What was looked for.
        what: String,
    },
    /// The copy failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// A partition of a disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Type, lower-case.
    pub kind: String,
    /// Label.
    pub name: String,
    /// First byte in the image.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// Where a section of a UKI is in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// First byte of its header, which begins with its name.
    pub header: u64,
    /// First byte of its content.
    pub content: u64,
}

/// Reads a GUID partition table; UEFI Specification 2.10, section 5.3. `read(offset, length)` gives bytes of the disk.
pub fn partitions(
    mut read: impl FnMut(u64, usize) -> io::Result<Vec<u8>>,
) -> Result<Vec<Partition>, DiskError> {
    let bad = |what: &dyn std::fmt::Display| DiskError::NotGpt(what.to_string());
    let header = read(SECTOR_BYTES, 92).map_err(|error| bad(&error))?;
    if header.get(..8) != Some(b"EFI PART") {
        return Err(bad(&"no signature"));
    }
    let (first, count, size) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84));
    let (Some(first), Some(count @ 1..=ENTRIES_MAX), Some(size @ 128..=4096)) =
        (first, count, size)
    else {
        return Err(bad(&format!("{count:?} entries of {size:?} bytes")));
    };
    let offset = first.checked_mul(SECTOR_BYTES).ok_or_else(|| bad(&"table out of range"))?;
    let table = read(offset, count as usize * size as usize).map_err(|error| bad(&error))?;
    let used = |entry: &&[u8]| entry.iter().take(16).any(|&byte| byte != 0);
    table
        .chunks_exact(size as usize)
        .filter(used)
        .map(|entry| partition(entry).ok_or_else(|| bad(&"an entry out of range")))
        .collect()
}

fn partition(entry: &[u8]) -> Option<Partition> {
    let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
    let name = entry.get(56..128)?.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]));
    Some(Partition {
        kind: guid(entry.get(..16)?),
        name: String::from_utf16_lossy(&name.take_while(|&unit| unit != 0).collect::<Vec<_>>()),
        offset: first.checked_mul(SECTOR_BYTES)?,
        bytes: last.checked_sub(first)?.checked_add(1)?.checked_mul(SECTOR_BYTES)?,
    })
}

/// Text form; the first three fields are little-endian. UEFI Specification 2.10, appendix A.
fn guid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::new();
    for (position, index) in ORDER.into_iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{:02x}", bytes[index]);
    }
    text
}

/// A copy of a disk image that may be tampered with. Holes stay holes.
pub fn copy(from: &Path, to: &Path) -> Result<Disk, DiskError> {
    let args = ["--sparse=always", "--reflink=auto"].map(std::ffi::OsStr::new);
    process::run("cp", &[args[0], args[1], from.as_os_str(), to.as_os_str()])?;
    Disk::open(to)
}

/// An open disk image.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    file: File,
}

impl Disk {
    /// Opens an image to read and write it.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|cause| DiskError::File { path: path.to_owned(), cause })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// The first partition of a type.
    pub fn partition(&self, kind: &str) -> Result<Partition, DiskError> {
        let all = partitions(|offset, length| {
            let mut bytes = vec![0; length];
            self.file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        })?;
        let found = all.into_iter().find(|partition| partition.kind == kind);
        found.ok_or_else(|| self.absent(&format!("partition of type {kind}")))
    }

    /// Flips the lowest bit of one byte.
    pub fn flip_byte(&self, offset: u64) -> Result<(), DiskError> {
        let flip = || {
            let mut byte = [0];
            self.file.read_exact_at(&mut byte, offset)?;
            byte[0] ^= 1;
            self.file.write_all_at(&byte, offset)?;
            self.file.sync_data()
        };
        flip().map_err(|cause| DiskError::File { path: self.path.clone(), cause })
    }

    /// Where a section of this name is in each UKI that lies in `within`: bytes that firmware measures and checks before
    /// it starts the UKI. Right as long as the file's first megabyte is not fragmented.
    pub fn uki_sections(&self, within: &Partition, name: &str) -> Result<Vec<Section>, DiskError> {
        const STEP: usize = 1 << 20;
        let io = |cause| DiskError::File { path: self.path.clone(), cause };
        let mut found = Vec::new();
        let mut chunk = vec![0; STEP];
        let end = within.offset + within.bytes;
        let mut start = within.offset;
        while start < end {
            let length = usize::try_from(end - start).unwrap_or(STEP).min(STEP);
            self.file.read_exact_at(&mut chunk[..length], start).map_err(io)?;
            for (index, sector) in chunk[..length].chunks(512).enumerate() {
                if sector.starts_with(b"MZ") {
                    let image = start + index as u64 * SECTOR_BYTES;
                    let mut head = vec![0; usize::try_from(end - image).unwrap_or(4096).min(4096)];
                    self.file.read_exact_at(&mut head, image).map_err(io)?;
                    found.extend(section(&head, name).map(|Section { header, content }| Section {
                        header: image + header,
                        content: image + content,
                    }));
                }
            }
            start += length as u64;
        }
        if found.is_empty() {
            return Err(self.absent("UKI in its EFI system partition"));
        }
        Ok(found)
    }

    /// Copies a file into a new folder of a FAT file system.
    pub fn add_file(&self, within: &Partition, folder: &str, file: &Path) -> Result<(), DiskError> {
        let image = format!("{}@@{}", self.path.display(), within.offset);
        let folder = format!("::{folder}");
        process::run("mmd", &["-i", &image, &folder])?;
        Ok(process::run("mcopy", &["-i", &image, &file.display().to_string(), &folder])?)
    }

    /// Overwrites the start of a partition.
    pub fn overwrite(&self, within: &Partition, bytes: &[u8]) -> Result<(), DiskError> {
        let io = |cause| DiskError::File { path: self.path.clone(), cause };
        if bytes.len() as u64 > within.bytes {
            return Err(self.absent(&format!("room for {} bytes in {}", bytes.len(), within.name)));
        }
        self.file.write_all_at(bytes, within.offset).map_err(io)?;
        self.file.sync_data().map_err(io)
    }

    /// Puts another image's partitions of these types in the place of this one's: content and identifiers, as an update
    /// would. The backup table at the end of the disk stays as it is.
    pub fn install(&self, other: &Self, kinds: &[&str]) -> Result<(), DiskError> {
        let (mut table, theirs) = (self.table()?, other.table()?);
        for kind in kinds {
            let (to, from) = (self.partition(kind)?, other.partition(kind)?);
            let mut content = vec![0; usize::try_from(from.bytes).unwrap_or(usize::MAX)];
            other.file.read_exact_at(&mut content, from.offset).map_err(other.io())?;
            self.overwrite(&to, &content)?;
            let entry = |partition: &Partition, table: &Table| {
                table.find(partition).ok_or_else(|| self.absent("entry of the partition"))
            };
            let (to, from) = (entry(&to, &table)?, entry(&from, &theirs)?);
            // The unique identifier follows the type; UEFI Specification 2.10, section 5.3.3.
            table.entries[to + 16..to + 32].copy_from_slice(&theirs.entries[from + 16..from + 32]);
        }
        table.seal();
        self.file.write_all_at(&table.entries, table.offset).map_err(self.io())?;
        self.file.write_all_at(&table.header, SECTOR_BYTES).map_err(self.io())?;
        self.file.sync_data().map_err(self.io())
    }

    fn table(&self) -> Result<Table, DiskError> {
        let mut header = vec![0; 92];
        self.file.read_exact_at(&mut header, SECTOR_BYTES).map_err(self.io())?;
        let (first, count, size) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84));
        let (Some(first), Some(count @ 1..=ENTRIES_MAX), Some(128)) = (first, count, size) else {
            return Err(DiskError::NotGpt(format!("{count:?} entries of {size:?} bytes")));
        };
        let mut table = Table { header, offset: first * SECTOR_BYTES, entries: Vec::new() };
        table.entries = vec![0; count as usize * ENTRY_BYTES];
        self.file.read_exact_at(&mut table.entries, table.offset).map_err(self.io())?;
        Ok(table)
    }

    fn io(&self) -> impl Fn(io::Error) -> DiskError + '_ {
        |cause| DiskError::File { path: self.path.clone(), cause }
    }

    fn absent(&self, what: &str) -> DiskError {
        DiskError::Absent { path: self.path.clone(), what: what.to_owned() }
    }
}

/// The primary GUID partition table.
struct Table {
    header: Vec<u8>,
    /// Of the entries, in the image.
    offset: u64,
    entries: Vec<u8>,
}

impl Table {
    /// Where a partition's entry begins in the entries.
    fn find(&self, partition: &Partition) -> Option<usize> {
        let first = partition.offset / SECTOR_BYTES;
        let mut entries = self.entries.chunks_exact(ENTRY_BYTES);
        entries.position(|entry| u64_at(entry, 32) == Some(first)).map(|index| index * ENTRY_BYTES)
    }

    /// Brings the two checksums up to date; UEFI Specification 2.10, section 5.3.2.
    fn seal(&mut self) {
        let entries = crc32(&self.entries);
        self.header[88..92].copy_from_slice(&entries.to_le_bytes());
        self.header[16..20].fill(0);
        let header = crc32(&self.header);
        self.header[16..20].copy_from_slice(&header.to_le_bytes());
    }
}

/// CRC-32 of ISO 3309, bit by bit: tables are short.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// Where a section of a PE image is in its file; Microsoft, "PE Format".
fn section(image: &[u8], name: &str) -> Option<Section> {
    let header = u32_at(image, 0x3c)? as usize;
    if image.get(header..header + 4)? != b"PE\0\0" {
        return None;
    }
    let count = u16::from_le_bytes(image.get(header + 6..header + 8)?.try_into().ok()?);
    let optional = u16::from_le_bytes(image.get(header + 20..header + 22)?.try_into().ok()?);
    let table = header + 24 + usize::from(optional);
    (0..usize::from(count.min(SECTIONS_MAX))).find_map(|index| {
        let start = table + index * 40;
        let section = image.get(start..start + 40)?;
        let found = String::from_utf8_lossy(&section[..8]);
        let content = u64::from(u32_at(section, 20)?);
        (found.trim_end_matches('\0') == name).then_some(Section { header: start as u64, content })
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESP_BYTES: [u8; 16] = [
        0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
    ];

    /// 64 KiB with one partition at sector 40, and a PE image with a `.linux` section in it.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 64 << 10];
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72..512 + 80].copy_from_slice(&2_u64.to_le_bytes());
        disk[512 + 80..512 + 84].copy_from_slice(&4_u32.to_le_bytes());
        disk[512 + 84..512 + 88].copy_from_slice(&128_u32.to_le_bytes());
        let entry = &mut disk[1024..1152];
        entry[..16].copy_from_slice(&ESP_BYTES);
        entry[32..40].copy_from_slice(&40_u64.to_le_bytes());
        entry[40..48].copy_from_slice(&119_u64.to_le_bytes());
        entry[56..62].copy_from_slice(b"e\0s\0p\0");
        let image = &mut disk[41 * 512..];
        image[..2].copy_from_slice(b"MZ");
        image[0x3c] = 0x40;
        image[0x40..0x44].copy_from_slice(b"PE\0\0");
        image[0x46] = 2;
        image[0x54] = 0x10;
        let table = 0x40 + 24 + 0x10;
        image[table..table + 6].copy_from_slice(b".osrel");
        image[table + 40..table + 46].copy_from_slice(b".linux");
        image[table + 40 + 20..table + 40 + 24].copy_from_slice(&0x400_u32.to_le_bytes());
        disk
    }

    fn read(disk: &[u8]) -> impl FnMut(u64, usize) -> io::Result<Vec<u8>> + '_ {
        |offset, length| {
            let start = usize::try_from(offset).unwrap();
            let bytes = disk.get(start..start + length);
            bytes.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        }
    }

    #[test]
    fn the_table_is_read() {
        let expected = Partition {
            kind: TYPE_ESP.to_owned(),
            name: "esp".to_owned(),
            offset: 40 * 512,
            bytes: 80 * 512,
        };
        assert_eq!(partitions(read(&disk())).unwrap(), [expected]);
    }

    #[test]
    fn lying_tables_are_refused() {
        let check = |at: usize, bytes: &[u8]| {
            let mut disk = disk();
            disk[at..at + bytes.len()].copy_from_slice(bytes);
            assert!(matches!(partitions(read(&disk)), Err(DiskError::NotGpt(_))), "{at}");
        };
        check(512, b"x");
        check(512 + 72, &[0xff; 8]);
        check(512 + 80, &[0xff; 4]);
        check(512 + 84, &[0; 4]);
        check(1024 + 32, &[0xff; 8]);
        assert!(partitions(read(&[0; 100])).is_err());
    }

    #[test]
    fn a_flipped_byte_is_in_the_section() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.raw"), disk()).unwrap();
        let copied = copy(&dir.path().join("a.raw"), &dir.path().join("b.raw")).unwrap();
        let esp = copied.partition(TYPE_ESP).unwrap();
        let sections = copied.uki_sections(&esp, ".linux").unwrap();
        let header = 41 * 512 + 0x40 + 24 + 0x10 + 40;
        assert_eq!(sections, [Section { header, content: 41 * 512 + 0x400 }]);
        copied.flip_byte(sections[0].content).unwrap();
        let (before, after) = (disk(), std::fs::read(dir.path().join("b.raw")).unwrap());
        let differ: Vec<_> = (0..before.len()).filter(|&i| before[i] != after[i]).collect();
        assert_eq!(differ, [41 * 512 + 0x400]);
        assert!(copied.uki_sections(&esp, ".initrd").is_err());
        assert!(matches!(copied.partition(TYPE_ROOT_X86_64), Err(DiskError::Absent { .. })));
    }

    #[test]
    fn an_installed_partition_has_content_and_identifier_of_the_other_image() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
        std::fs::write(&a, disk()).unwrap();
        let mut other = disk();
        other[1024 + 16..1024 + 32].fill(0x77);
        other[100 * 512] = 0x55;
        std::fs::write(&b, other).unwrap();
        let (disk, other) = (Disk::open(&a).unwrap(), Disk::open(&b).unwrap());
        disk.install(&other, &[TYPE_ESP]).unwrap();
        let bytes = std::fs::read(&a).unwrap();
        assert_eq!((&bytes[1024 + 16..1024 + 32], bytes[100 * 512]), (&[0x77; 16][..], 0x55));
        let mut table = disk.table().unwrap();
        let sealed = table.header.clone();
        table.seal();
        assert_eq!(table.header, sealed);
        assert!(disk.install(&other, &[TYPE_ROOT_X86_64]).is_err());
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
