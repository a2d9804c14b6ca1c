//! The partition table: read, and written with other identifiers of two partitions. UEFI Specification 2.10, 5.3.
//!
//! Invariant: the backup is whole on the disk before the primary table is touched, so one of the two is valid at every
//! moment, and firmware and kernel take the one that is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// The only size of sectors that images are laid out for.
pub(crate) const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: usize = 92;
const ENTRY_BYTES: usize = 128;
const ENTRIES: usize = 128;
const ENTRIES_SECTORS: u64 = (ENTRIES * ENTRY_BYTES) as u64 / SECTOR_BYTES;

/// A type of partition, as it is in the table; the first three fields are little-endian.
pub(crate) type Guid = [u8; 16];

/// EFI system partition.
pub(crate) const ESP: Guid = disk_order(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b);
/// Root file system, x86-64; UAPI Group, "Discoverable Partitions Specification".
pub(crate) const ROOT: Guid = disk_order(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709);
/// Its hash tree.
pub(crate) const VERITY: Guid = disk_order(0x2c73_57ed_ebd2_46d9_aec1_23d4_37ec_2bf5);

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GptError {
    /// The disk failed.
    #[error("the partition table")]
    Disk(#[from] io::Error),
    /// Neither copy is one.
    #[error("neither the partition table nor its backup is valid")]
    Invalid,
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
}

/// A partition table, whichever copy was valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    header: Vec<u8>,
    entries: Vec<u8>,
    /// Sector of the backup's header.
    backup: u64,
}

impl Table {
    /// Reads the table of a disk of `sectors`.
    pub(crate) fn read(disk: &File, sectors: u64) -> Result<Self, GptError> {
        let last = sectors.checked_sub(1).ok_or(GptError::Invalid)?;
        if let Some((header, entries)) = copy(disk, 1)? {
            let backup = number(&header, 32);
            let fits = backup > ENTRIES_SECTORS && backup <= last;
            return if fits {
                Ok(Self { header, entries, backup })
            } else {
                Err(GptError::Invalid)
            };
        }
        let (header, entries) = copy(disk, last)?.ok_or(GptError::Invalid)?;
        Ok(Self { header, entries, backup: last })
    }

    /// The partitions that are in use.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let entries = self.entries.chunks_exact(ENTRY_BYTES).enumerate();
        entries.filter_map(|(index, entry)| partition(index, entry)).collect()
    }

    /// Gives a partition another identifier.
    pub(crate) fn identify(&mut self, number: usize, identifier: Guid) {
        let entry = self.entries.chunks_exact_mut(ENTRY_BYTES).nth(number.wrapping_sub(1));
        if let Some(field) = entry.and_then(|entry| entry.get_mut(16..32)) {
            field.copy_from_slice(&identifier);
        }
    }

    /// Writes both copies, the backup first, each to the disk before the next begins.
    pub(crate) fn write(&self, disk: &File) -> Result<(), GptError> {
        let backup_entries = self.backup.saturating_sub(ENTRIES_SECTORS);
        for (own, other, entries) in [(self.backup, 1, backup_entries), (1, self.backup, 1 + 1)] {
            let header = self.sealed(own, other, entries);
            disk.write_all_at(&self.entries, entries.saturating_mul(SECTOR_BYTES))?;
            disk.sync_all()?;
            disk.write_all_at(&header, own.saturating_mul(SECTOR_BYTES))?;
            disk.sync_all()?;
        }
        Ok(())
    }

    /// The header of the copy at sector `own`, with its checksums.
    fn sealed(&self, own: u64, other: u64, entries: u64) -> Vec<u8> {
        let mut header = self.header.clone();
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = header.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(16, &[0; 4]);
        put(24, &own.to_le_bytes());
        put(32, &other.to_le_bytes());
        put(72, &entries.to_le_bytes());
        put(88, &crc32(&self.entries).to_le_bytes());
        let sum = crc32(header.get(..HEADER_BYTES).unwrap_or_default());
        if let Some(field) = header.get_mut(16..20) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        header
    }
}

/// Header and entries of the copy at a sector, if it is valid.
fn copy(disk: &File, sector: u64) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut header = vec![0; 512];
    disk.read_exact_at(&mut header, sector.saturating_mul(SECTOR_BYTES))?;
    let is_ours = header.starts_with(b"EFI PART")
        && u32_at(&header, 12) == 92
        && number(&header, 24) == sector
        && u32_at(&header, 80) == 128
        && u32_at(&header, 84) == 128;
    let mut unsealed = header.get(..HEADER_BYTES).unwrap_or_default().to_vec();
    unsealed.get_mut(16..20).unwrap_or_default().fill(0);
    if !is_ours || crc32(&unsealed) != u32_at(&header, 16) {
        return Ok(None);
    }
    let Some(offset) = number(&header, 72).checked_mul(SECTOR_BYTES) else { return Ok(None) };
    let mut entries = vec![0; ENTRIES * ENTRY_BYTES];
    disk.read_exact_at(&mut entries, offset)?;
    Ok((crc32(&entries) == u32_at(&header, 88)).then_some((header, entries)))
}

fn partition(index: usize, entry: &[u8]) -> Option<Partition> {
    let kind: Guid = entry.get(..16)?.try_into().ok()?;
    if kind == [0; 16] {
        return None;
    }
    let (start, last) = (number(entry, 32), number(entry, 40));
    Some(Partition {
        number: index + 1,
        kind,
        identifier: entry.get(16..32)?.try_into().ok()?,
        start,
        bytes: last.checked_sub(start)?.checked_add(1)?.checked_mul(SECTOR_BYTES)?,
    })
}

/// Identifiers of a root partition and of its hash tree: the two halves of the root hash, as UUIDs; Discoverable
/// Partitions Specification.
pub(crate) fn identifiers(root_hash: &str) -> Option<[Guid; 2]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(root_hash, &mut bytes).ok()?;
    let half = |half: &[u8]| Some(disk_order(u128::from_be_bytes(half.try_into().ok()?)));
    Some([half(bytes.get(..16)?)?, half(bytes.get(16..)?)?])
}

/// The root hash of two identifiers.
pub(crate) fn root_hash(root: Guid, verity: Guid) -> String {
    [root, verity].map(|guid| hex::encode(text_order(guid))).concat()
}

/// A UUID as text has it, in the order of the table.
const fn disk_order(uuid: u128) -> Guid {
    text_order(uuid.to_be_bytes())
}

/// Its own inverse.
const fn text_order(b: [u8; 16]) -> [u8; 16] {
    [
        b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13],
        b[14], b[15],
    ]
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
    field.map_or(0, u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    field.map_or(0, u32::from_le_bytes)
}

/// CRC-32 of ISO 3309, bit by bit: tables are short.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _: u8| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SECTORS: u64 = 4096;

    /// A disk with these partitions: type, first and last sector.
    pub(crate) fn disk(partitions: &[(Guid, u64, u64)]) -> File {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[10] = 1;
        header[12] = 92;
        header[80] = 128;
        header[84] = 128;
        let mut entries = vec![0; ENTRIES * ENTRY_BYTES];
        for (entry, (kind, first, last)) in entries.chunks_exact_mut(ENTRY_BYTES).zip(partitions) {
            entry[..16].copy_from_slice(kind);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(SECTORS * SECTOR_BYTES).unwrap();
        Table { header, entries, backup: SECTORS - 1 }.write(&file).unwrap();
        file
    }

    #[test]
    fn a_checksum_is_the_standard_s() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn identifiers_are_the_halves_of_the_root_hash() {
        let hash = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let [root, verity] = identifiers(hash).unwrap();
        assert_eq!(hex::encode(root), "03020100050407060809 0a0b0c0d0e0f".replace(' ', ""));
        assert_eq!(root_hash(root, verity), hash);
        assert_eq!(identifiers("00"), None);
    }

    #[test]
    fn another_identifier_is_read_again_from_either_copy() {
        let file = disk(&[(ESP, 100, 199), (ROOT, 200, 299)]);
        let mut table = Table::read(&file, SECTORS).unwrap();
        table.identify(2, [7; 16]);
        table.write(&file).unwrap();
        let found = Table::read(&file, SECTORS).unwrap();
        assert_eq!(found.partitions()[1].identifier, [7; 16]);
        assert_eq!(found.partitions()[0].identifier, [0; 16]);
        assert_eq!(found.partitions()[1].bytes, 100 * 512);
        for at in [512, 2 * 512 + 130] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            let found = Table::read(&file, SECTORS).unwrap();
            assert_eq!(found.partitions(), table.partitions(), "{at}");
            // Writing mends the primary copy.
            found.write(&file).unwrap();
            assert!(copy(&file, 1).unwrap().is_some());
        }
    }

    /// The power goes after each write in turn.
    #[test]
    fn one_copy_is_valid_at_every_moment() {
        let file = disk(&[(ROOT, 200, 299)]);
        let old = Table::read(&file, SECTORS).unwrap();
        let mut new = old.clone();
        new.identify(1, [7; 16]);
        let backup = SECTORS - 1;
        for (own, other, entries) in [(backup, 1, backup - 32), (1, backup, 2)] {
            file.write_all_at(&new.entries, entries * 512).unwrap();
            let seen = Table::read(&file, SECTORS).unwrap().partitions();
            assert!(seen == old.partitions() || seen == new.partitions());
            file.write_all_at(&new.sealed(own, other, entries), own * 512).unwrap();
            let seen = Table::read(&file, SECTORS).unwrap().partitions();
            assert!(seen == old.partitions() || seen == new.partitions());
        }
        assert_eq!(Table::read(&file, SECTORS).unwrap().partitions(), new.partitions());
    }

    #[test]
    fn no_table_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SECTORS * SECTOR_BYTES).unwrap();
        assert!(matches!(Table::read(&file, SECTORS), Err(GptError::Invalid)));
    }
}
