//! Takes one partition out of a GUID partition table: UEFI Specification 2.10, section 5.3.
//!
//! Invariant: whenever the power is cut, one of the table's two copies is whole, and all that are whole and come first
//! say the same: the backup is written before the primary copy, which firmware, kernel and systemd-repart prefer.

use std::os::unix::fs::FileExt;

use anyhow::{Context as _, bail, ensure};

/// Bytes of a header that are meant.
const HEADER_BYTES: usize = 92;
/// Most bytes of entries: 1024 of the usual size.
const ENTRIES_BYTES_MAX: usize = 128 << 10;
/// Bytes of the smallest entry.
const ENTRY_BYTES_MIN: usize = 128;
const CRC_OF_HEADER: usize = 16;
const CRC_OF_ENTRIES: usize = 88;

/// One copy of the table, whose sums hold.
#[derive(Clone, Debug)]
struct Copy {
    header: Vec<u8>,
    entries: Vec<u8>,
    sector_bytes: u64,
}

/// A table with a partition that is to go.
#[derive(Debug)]
pub(crate) struct Removal {
    /// Backup first.
    copies: [Copy; 2],
    entry: std::ops::Range<usize>,
}

impl Removal {
    /// Finds the partition called `label` that begins at byte `start`, in both copies of the table.
    pub(crate) fn find(
        disk: &impl FileExt,
        sector_bytes: u64,
        label: &str,
        start: u64,
    ) -> anyhow::Result<Self> {
        let primary = Copy::read(disk, sector_bytes, 1).context("primary partition table")?;
        let backup = Copy::read(disk, sector_bytes, primary.number(32)?);
        let backup = backup.context("backup partition table")?;
        ensure!(primary.entries == backup.entries, "the copies of the partition table differ");
        let size = primary.entry_bytes()?;
        let is_it = |entry: &&[u8]| {
            let first = u64_at(entry, 32).and_then(|sector| sector.checked_mul(sector_bytes));
            first == Some(start) && name(entry) == label && entry[..16] != [0; 16]
        };
        let found = primary.entries.chunks_exact(size).enumerate();
        let mut found = found.filter(|(_, entry)| is_it(entry)).map(|(index, _)| index * size);
        let (Some(at), None) = (found.next(), found.next()) else {
            bail!("the partition table has no partition {label:?} at byte {start}, or two");
        };
        Ok(Self { copies: [backup, primary], entry: at..at + size })
    }

    /// Writes the table without the partition; `flush` returns when all is on the disk.
    pub(crate) fn write(
        mut self,
        disk: &impl FileExt,
        flush: impl Fn() -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        for copy in &mut self.copies {
            copy.entries[self.entry.clone()].fill(0);
            copy.sum();
            // Its entries are those that its header will fit: until then the other copy counts.
            disk.write_all_at(&copy.entries, copy.offset(72)?)?;
            flush()?;
            disk.write_all_at(&copy.header, copy.offset(24)?)?;
            flush()?;
        }
        Ok(())
    }
}

impl Copy {
    fn read(disk: &impl FileExt, sector_bytes: u64, sector: u64) -> anyhow::Result<Self> {
        let at = sector.checked_mul(sector_bytes).context("out of range")?;
        let mut header = vec![0; HEADER_BYTES];
        disk.read_exact_at(&mut header, at)?;
        ensure!(header[..8] == *b"EFI PART", "no signature at sector {sector}");
        ensure!(u32_at(&header, 12) == Some(92), "a header of another length");
        let mut copy = Self { header, entries: Vec::new(), sector_bytes };
        ensure!(copy.number(24)? == sector, "the header is of sector {}", copy.number(24)?);
        let count = u32_at(&copy.header, 80).context("no count")? as usize;
        let bytes = count.saturating_mul(copy.entry_bytes()?);
        ensure!((1..=ENTRIES_BYTES_MAX).contains(&bytes), "{count} entries");
        let at = copy.offset(72)?;
        copy.entries = vec![0; bytes];
        disk.read_exact_at(&mut copy.entries, at)?;
        let before = copy.header.clone();
        copy.sum();
        ensure!(copy.header == before, "its sums do not hold");
        Ok(copy)
    }

    fn entry_bytes(&self) -> anyhow::Result<usize> {
        let bytes = u32_at(&self.header, 84).context("no entry size")? as usize;
        ensure!((ENTRY_BYTES_MIN..=4096).contains(&bytes), "entries of {bytes} bytes");
        Ok(bytes)
    }

    fn number(&self, at: usize) -> anyhow::Result<u64> {
        u64_at(&self.header, at).context("a short header")
    }

    /// Byte of the sector that a field names.
    fn offset(&self, field: usize) -> anyhow::Result<u64> {
        self.number(field)?.checked_mul(self.sector_bytes).context("out of range")
    }

    /// Writes both sums into the header: of the entries, then of the header with its own field zero.
    fn sum(&mut self) {
        let entries = crc32(&self.entries).to_le_bytes();
        self.header[CRC_OF_ENTRIES..CRC_OF_ENTRIES + 4].copy_from_slice(&entries);
        self.header[CRC_OF_HEADER..CRC_OF_HEADER + 4].fill(0);
        let header = crc32(&self.header).to_le_bytes();
        self.header[CRC_OF_HEADER..CRC_OF_HEADER + 4].copy_from_slice(&header);
    }
}

/// UTF-16, up to the first NUL.
fn name(entry: &[u8]) -> String {
    let units = entry.get(56..128).unwrap_or_default().chunks_exact(2);
    let units = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    String::from_utf16_lossy(&units.take_while(|&unit| unit != 0).collect::<Vec<_>>())
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
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
    use std::io;
    use std::process::Command;

    use super::*;

    const SECTOR: u64 = 512;
    /// First byte of the partition that goes.
    pub(crate) const START: u64 = 4 << 20;

    /// A disk of 64 MiB with three partitions, made by systemd-repart; `None` without it.
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

    /// What a reader sees that takes the first copy whose sums hold.
    pub(crate) fn labels(disk: &impl FileExt) -> Vec<String> {
        let last = 64 * 1024 * 1024 / SECTOR - 1;
        let copy = Copy::read(disk, SECTOR, 1).or_else(|_| Copy::read(disk, SECTOR, last)).unwrap();
        let used = copy.entries.chunks_exact(128).filter(|entry| entry[..16] != [0; 16]);
        used.map(name).collect()
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
    fn one_partition_goes_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = disk(folder.path()) else { return };
        assert_eq!(labels(&disk), ["first", "casemate-state", "last"]);
        for (label, start) in [("casemate-state", START + SECTOR), ("other", START)] {
            Removal::find(&disk, SECTOR, label, start).unwrap_err();
        }
        let removal = Removal::find(&disk, SECTOR, "casemate-state", START).unwrap();
        removal.write(&disk, || disk.sync_all()).unwrap();
        assert_eq!(labels(&disk), ["first", "last"]);
        let backup = Copy::read(&disk, SECTOR, 64 * 2048 - 1).unwrap();
        assert_eq!(backup.entries, Copy::read(&disk, SECTOR, 1).unwrap().entries);
        Removal::find(&disk, SECTOR, "casemate-state", START).unwrap_err();
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_cut_leaves_the_table_as_it_was_or_as_it_will_be() {
        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = disk(folder.path()) else { return };
        let whole = std::fs::read(folder.path().join("disk")).unwrap();
        let (mut before, mut after) = (0, 0);
        // Through both copies: 16 KiB of entries and a header each.
        let (first, last) = (&whole[..40 << 10], &whole[whole.len() - (40 << 10)..]);
        let steps = (0..2 * (16_384 + 92)).step_by(613);
        for bytes in steps.chain([16_384, 16_385, 16_384 + 91, 16_384 + 92 + 16_384]) {
            disk.write_all_at(first, 0).unwrap();
            disk.write_all_at(last, (64 << 20) - (40 << 10)).unwrap();
            let removal = Removal::find(&disk, SECTOR, "casemate-state", START).unwrap();
            let cut = Cut { disk: &disk, left: Cell::new(bytes) };
            removal.write(&cut, || Ok(())).unwrap_err();
            match labels(&disk).as_slice() {
                [_, state, _] if state == "casemate-state" => before += 1,
                [first, last] if first == "first" && last == "last" => after += 1,
                other => panic!("cut after {bytes}: {other:?}"),
            }
        }
        assert!(before > 0 && after > 0, "{before} before, {after} after");
    }

    #[test]
    fn a_table_that_is_damaged_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = disk(folder.path()) else { return };
        let whole = std::fs::read(folder.path().join("disk")).unwrap();
        let backup = whole.len() - 512;
        for at in [512, 512 + 8, 512 + 72, 1024 + 40, backup, backup + 24, backup - 16_384] {
            disk.write_all_at(&[whole[at] ^ 1], at as u64).unwrap();
            Removal::find(&disk, SECTOR, "casemate-state", START).unwrap_err();
            disk.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
    }
}
