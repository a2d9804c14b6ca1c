//! The partition table of a disk, read and written again: UEFI Specification 2.10, section 5.3.
//!
//! Invariant: whenever the power is cut, the first copy that is whole is the table as it was or as it will be: the backup
//! is written before the primary copy, which firmware, kernel and systemd-repart prefer.

use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a header that are meant.
const HEADER_BYTES: usize = 92;
/// Most bytes of entries: 1024 of the usual size.
const ENTRIES_BYTES_MAX: usize = 128 << 10;
/// Bytes of an entry: least and most.
const ENTRY_BYTES: std::ops::RangeInclusive<usize> = 128..=4096;
/// Sector of the primary header, and of its entries.
const PRIMARY: u64 = 1;
const PRIMARY_ENTRIES: u64 = 2;
/// Fields of the header.
const CRC_OF_HEADER: usize = 16;
const OWN: usize = 24;
const OTHER: usize = 32;
const ENTRIES: usize = 72;
const CRC_OF_ENTRIES: usize = 88;

/// A UUID in the order of the table, whose first three fields are little-endian.
pub(crate) type Guid = [u8; 16];

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GptError {
    /// The disk failed.
    #[error("the disk")]
    Disk(#[from] io::Error),
    /// Not a copy of a table that can be written again.
    #[error("{0}")]
    Malformed(&'static str),
    /// Both are lost.
    #[error("no copy of the partition table is whole: at the start {primary}, at the end {backup}")]
    Lost {
        /// What is wrong with the first.
        primary: Box<GptError>,
        /// And with the second.
        backup: Box<GptError>,
    },
    /// No such partition.
    #[error("the partition table has no partition {0}")]
    Unknown(usize),
}

/// A partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// From 1, as the kernel counts.
    pub(crate) number: usize,
    pub(crate) kind: Guid,
    pub(crate) identifier: Guid,
    /// First sector.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) name: [u8; 72],
}

/// A partition table, of the first copy that was whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    header: Vec<u8>,
    entries: Vec<u8>,
    entry_bytes: usize,
    sector_bytes: u64,
    /// Sector of the backup's header.
    backup: u64,
}

impl Partition {
    /// A name is UTF-16, up to the first NUL.
    pub(crate) fn label(&self) -> String {
        let units = self.name.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        String::from_utf16_lossy(&units.take_while(|&unit| unit != 0).collect::<Vec<_>>())
    }
}

impl Table {
    /// Reads the table of a disk of so many sectors.
    pub(crate) fn read(
        disk: &impl FileExt,
        sector_bytes: u64,
        sectors: u64,
    ) -> Result<Self, GptError> {
        let last = sectors.saturating_sub(1);
        Self::copy(disk, sector_bytes, PRIMARY, last).or_else(|primary| {
            Self::copy(disk, sector_bytes, last, last).map_err(|backup| GptError::Lost {
                primary: Box::new(primary),
                backup: Box::new(backup),
            })
        })
    }

    /// The copy whose header is at sector `own`, if its sums hold.
    fn copy(disk: &impl FileExt, sector_bytes: u64, own: u64, last: u64) -> Result<Self, GptError> {
        let malformed = GptError::Malformed;
        let mut header = vec![0; HEADER_BYTES];
        disk.read_exact_at(&mut header, offset(own, sector_bytes)?)?;
        if header[..8] != *b"EFI PART" || u32_at(&header, 12) as usize != HEADER_BYTES {
            return Err(malformed("there is no header"));
        }
        let (count, entry_bytes) = (u32_at(&header, 80) as usize, u32_at(&header, 84) as usize);
        let bytes = count.saturating_mul(entry_bytes);
        if !ENTRY_BYTES.contains(&entry_bytes) || !(1..=ENTRIES_BYTES_MAX).contains(&bytes) {
            return Err(malformed("the entries are too many, or of another size"));
        }
        let backup = if own == PRIMARY { u64_at(&header, OTHER) } else { own };
        let mut entries = vec![0; bytes];
        disk.read_exact_at(&mut entries, offset(u64_at(&header, ENTRIES), sector_bytes)?)?;
        let table = Self { header, entries, entry_bytes, sector_bytes, backup };
        // Every sum and every place is as this would be written.
        let is_whole = table.copies().is_some_and(|copies| {
            let mut copies = copies.into_iter();
            copies.any(|(sector, _, header)| sector == own && header == table.header)
        });
        match is_whole && backup <= last {
            true => Ok(table),
            false => Err(malformed("its sums do not hold, or it lies elsewhere")),
        }
    }

    /// The partitions that are in use.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let entries = self.entries.chunks_exact(self.entry_bytes).enumerate();
        entries.filter_map(|(index, entry)| self.partition(index + 1, entry)).collect()
    }

    fn partition(&self, number: usize, entry: &[u8]) -> Option<Partition> {
        let kind: Guid = entry[..16].try_into().ok()?;
        let (start, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let sectors = last.checked_sub(start)?.checked_add(1)?;
        (kind != [0; 16]).then_some(Partition {
            number,
            kind,
            identifier: entry[16..32].try_into().ok()?,
            start,
            bytes: sectors.checked_mul(self.sector_bytes)?,
            name: entry[56..128].try_into().ok()?,
        })
    }

    /// Gives a partition another identifier.
    pub(crate) fn identify(&mut self, number: usize, identifier: Guid) -> Result<(), GptError> {
        self.entry(number)?[16..32].copy_from_slice(&identifier);
        Ok(())
    }

    /// Takes a partition out of the table.
    pub(crate) fn remove(&mut self, number: usize) -> Result<(), GptError> {
        self.entry(number)?.fill(0);
        Ok(())
    }

    fn entry(&mut self, number: usize) -> Result<&mut [u8], GptError> {
        let entry = self.entries.chunks_exact_mut(self.entry_bytes).nth(number.wrapping_sub(1));
        entry.ok_or(GptError::Unknown(number))
    }

    /// Writes both copies; `flush` returns when all is on the disk.
    pub(crate) fn write(
        &self,
        disk: &impl FileExt,
        flush: impl Fn() -> io::Result<()>,
    ) -> Result<(), GptError> {
        let copies = self.copies().ok_or(GptError::Malformed("no room for a backup"))?;
        for (own, entries, header) in copies {
            // Its entries are those that its header will fit: until then the other copy counts.
            disk.write_all_at(&self.entries, offset(entries, self.sector_bytes)?)?;
            flush()?;
            disk.write_all_at(&header, offset(own, self.sector_bytes)?)?;
            flush()?;
        }
        Ok(())
    }

    /// Backup and primary copy: sectors of header and entries, and the header.
    fn copies(&self) -> Option<[(u64, u64, Vec<u8>); 2]> {
        let sectors = (self.entries.len() as u64).div_ceil(self.sector_bytes);
        let backup_entries = self.backup.checked_sub(sectors)?;
        if backup_entries < PRIMARY_ENTRIES + sectors {
            return None;
        }
        let copy = |own, other, entries| (own, entries, self.sealed(own, other, entries));
        Some([
            copy(self.backup, PRIMARY, backup_entries),
            copy(PRIMARY, self.backup, PRIMARY_ENTRIES),
        ])
    }

    /// A header with its sums: of the entries, then of the header with its own field zero.
    fn sealed(&self, own: u64, other: u64, entries: u64) -> Vec<u8> {
        let mut header = self.header.clone();
        for (at, value) in [(OWN, own), (OTHER, other), (ENTRIES, entries)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let sum = crc32(&self.entries).to_le_bytes();
        header[CRC_OF_ENTRIES..CRC_OF_ENTRIES + 4].copy_from_slice(&sum);
        header[CRC_OF_HEADER..CRC_OF_HEADER + 4].fill(0);
        let sum = crc32(&header).to_le_bytes();
        header[CRC_OF_HEADER..CRC_OF_HEADER + 4].copy_from_slice(&sum);
        header
    }
}

fn offset(sector: u64, sector_bytes: u64) -> Result<u64, GptError> {
    sector.checked_mul(sector_bytes).ok_or(GptError::Malformed("a sector is out of range"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |&field| u64::from_le_bytes(field))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |&field| u32::from_le_bytes(field))
}

/// ISO 3309, as UEFI asks; a table of entries is short, so bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::process::Command;

    use super::*;

    const SECTOR: u64 = 512;
    const DISK_BYTES: u64 = 64 << 20;
    const SECTORS: u64 = DISK_BYTES / SECTOR;
    /// What both copies take, at either end.
    const COPY_BYTES: u64 = 40 << 10;

    /// A disk with three partitions, made by systemd-repart; `None` without it.
    pub(crate) fn disk(folder: &std::path::Path) -> Option<File> {
        let definitions = folder.join("repart.d");
        std::fs::create_dir(&definitions).unwrap();
        for (file, label, size) in
            [("10", "first", "3M"), ("20", "casemate-state", "50M"), ("30", "last", "4M")]
        {
            let text = format!(
                "[Partition]\nType=linux-generic\nLabel={label}\nSizeMinBytes={size}\nSizeMaxBytes={size}\n"
            );
            std::fs::write(definitions.join(format!("{file}.conf")), text).unwrap();
        }
        let image = folder.join("disk");
        let mut repart = Command::new("systemd-repart");
        repart.args(["--offline=yes", "--empty=create", "--size=64M", "--dry-run=no"]);
        repart.arg(format!("--definitions={}", definitions.display())).arg(&image);
        let Ok(output) = repart.output() else {
            eprintln!("SKIPPED: no systemd-repart; run in the tools tree");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(File::options().read(true).write(true).open(image).unwrap())
    }

    fn read(disk: &impl FileExt) -> Table {
        Table::read(disk, SECTOR, SECTORS).unwrap()
    }

    fn labels(disk: &impl FileExt) -> Vec<String> {
        read(disk).partitions().iter().map(Partition::label).collect()
    }

    fn flip(disk: &File, at: u64) {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at).unwrap();
        disk.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    /// Writes until the power is cut.
    struct Cut<'a> {
        disk: &'a File,
        left: Cell<u64>,
    }

    impl FileExt for Cut<'_> {
        fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
            self.disk.read_at(bytes, at)
        }

        fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
            let now = self.left.get().min(bytes.len() as u64);
            self.left.set(self.left.get() - now);
            if now == 0 {
                return Err(io::Error::other("cut"));
            }
            self.disk.write_at(&bytes[..usize::try_from(now).unwrap()], at)
        }
    }

    #[test]
    fn a_checksum_is_the_standard_s() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn one_partition_goes_and_one_gets_another_identifier() {
        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = disk(folder.path()) else { return };
        let mut table = read(&disk);
        let [first, state, last] = table.partitions()[..] else { panic!("{table:?}") };
        assert_eq!(
            (state.label().as_str(), state.start, state.bytes),
            ("casemate-state", 8192, 50 << 20)
        );
        table.remove(state.number).unwrap();
        table.identify(last.number, [7; 16]).unwrap();
        table.write(&disk, || disk.sync_all()).unwrap();
        let after = vec![first, Partition { identifier: [7; 16], ..last }];
        assert_eq!(read(&disk).partitions(), after);
        let backup = Table::copy(&disk, SECTOR, SECTORS - 1, SECTORS - 1).unwrap();
        assert_eq!(backup.partitions(), after);
        assert!(matches!(table.remove(1000), Err(GptError::Unknown(1000))));
        assert!(matches!(table.remove(0), Err(GptError::Unknown(0))));
    }

    #[test]
    fn a_cut_leaves_the_table_as_it_was_or_as_it_will_be() {
        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = disk(folder.path()) else { return };
        let whole = std::fs::read(folder.path().join("disk")).unwrap();
        let (first, last) = (&whole[..40 << 10], &whole[whole.len() - (40 << 10)..]);
        let (mut before, mut after) = (0, 0);
        // Through both copies: 16 KiB of entries and a header each.
        let steps = (0..2 * (16_384 + 92)).step_by(613);
        for bytes in steps.chain([16_384, 16_385, 16_384 + 91, 16_384 + 92 + 16_384]) {
            disk.write_all_at(first, 0).unwrap();
            disk.write_all_at(last, DISK_BYTES - COPY_BYTES).unwrap();
            let mut table = read(&disk);
            table.remove(2).unwrap();
            let cut = Cut { disk: &disk, left: Cell::new(bytes) };
            table.write(&cut, || Ok(())).unwrap_err();
            match labels(&disk).as_slice() {
                [_, state, _] if state == "casemate-state" => before += 1,
                [first, last] if first == "first" && last == "last" => after += 1,
                other => panic!("cut after {bytes}: {other:?}"),
            }
            // The same once more goes through, and makes both copies whole.
            table.write(&disk, || Ok(())).unwrap();
            flip(&disk, SECTOR);
            assert_eq!(labels(&disk), ["first", "last"]);
        }
        assert!(before > 0 && after > 0, "{before} before, {after} after");
    }

    #[test]
    fn one_whole_copy_is_enough_and_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = disk(folder.path()) else { return };
        let table = read(&disk);
        let backup = DISK_BYTES - SECTOR;
        let damages = [
            (SECTOR, backup),
            (SECTOR + 8, backup + 24),
            (SECTOR + 72, backup - 16_384),
            (2 * SECTOR + 40, backup + 72),
        ];
        for (start, end) in damages {
            flip(&disk, start);
            assert_eq!(read(&disk).partitions(), table.partitions(), "{start}");
            flip(&disk, end);
            let error = Table::read(&disk, SECTOR, SECTORS).unwrap_err();
            assert!(matches!(error, GptError::Lost { .. }), "{error}");
            flip(&disk, start);
            assert_eq!(read(&disk), table, "{end}");
            flip(&disk, end);
        }
        for sectors in [0, 1, 64] {
            Table::read(&disk, SECTOR, sectors).unwrap_err();
        }
    }
}
