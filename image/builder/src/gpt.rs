//! Reads where the partitions of a disk image are. UEFI Specification 2.10, chapter 5.3, "GUID Partition Table".
//! Invariant: the partitions are in order, apart from each other and inside the disk.

const SECTOR_BYTES: u64 = 512;
/// Protective MBR, header, and the 128 entries that tools write.
pub(crate) const HEAD_BYTES: usize = 34 * 512;
const HEADER: usize = 512;
const SIGNATURE: &[u8] = b"EFI PART";
const ENTRY_BYTES: usize = 128;
const ENTRIES_MAX: usize = 128;
const NAME_OFFSET: usize = 56;
/// Type of an EFI system partition, c12a7328-f81f-11d2-ba4b-00a0c93ec93b.
const ESP: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];

/// Why bytes are no partition table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// Another number than in every table that systemd-repart writes.
    #[error("partition table: {what} is not as systemd-repart writes it")]
    Header {
        /// Which.
        what: &'static str,
    },
    /// A partition is not in its place.
    #[error("partition `{label}` overlaps another one, or the end of the disk")]
    Place {
        /// Its label.
        label: String,
    },
}

/// A partition; offsets in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) label: String,
    pub(crate) is_esp: bool,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Partitions of a disk of `disk_bytes` that begins with `head`, in order of their offsets.
pub(crate) fn partitions(head: &[u8], disk_bytes: u64) -> Result<Vec<Partition>, GptError> {
    let header =
        |what, is_right: bool| if is_right { Ok(()) } else { Err(GptError::Header { what }) };
    header("signature", head.get(HEADER..HEADER + 8) == Some(SIGNATURE))?;
    header("place of the entries", number(head, HEADER + 72, 8) == Some(2))?;
    header("size of an entry", number(head, HEADER + 84, 4) == Some(ENTRY_BYTES as u64))?;
    header("number of entries", number(head, HEADER + 80, 4) == Some(ENTRIES_MAX as u64))?;
    let entries = head.get(2 * HEADER..HEAD_BYTES).ok_or(GptError::Header { what: "length" })?;
    let mut partitions: Vec<Partition> =
        entries.chunks_exact(ENTRY_BYTES).filter_map(partition).collect();
    partitions.sort_by_key(|partition| partition.start);
    let mut free = HEAD_BYTES as u64;
    for Partition { label, start, end, .. } in &partitions {
        if *start < free || *end <= *start || *end > disk_bytes {
            return Err(GptError::Place { label: label.clone() });
        }
        free = *end;
    }
    Ok(partitions)
}

/// The partition of an entry that is in use.
fn partition(entry: &[u8]) -> Option<Partition> {
    let kind = entry.get(..16)?;
    if kind.iter().all(|&byte| byte == 0) {
        return None;
    }
    let units: Vec<u16> = entry
        .get(NAME_OFFSET..)?
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0)
        .collect();
    let sector = |offset| number(entry, offset, 8);
    Some(Partition {
        label: String::from_utf16_lossy(&units),
        is_esp: kind == ESP,
        start: sector(32)?.saturating_mul(SECTOR_BYTES),
        end: sector(40)?.saturating_add(1).saturating_mul(SECTOR_BYTES),
    })
}

/// A little-endian number of at most 8 bytes.
fn number(bytes: &[u8], offset: usize, length: usize) -> Option<u64> {
    let mut word = [0; 8];
    word.get_mut(..length)?.copy_from_slice(bytes.get(offset..offset.checked_add(length)?)?);
    Some(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(entries: &[(u8, u64, u64)]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[512..520].copy_from_slice(SIGNATURE);
        head[512 + 72] = 2;
        head[512 + 80] = 128;
        head[512 + 84] = 128;
        for (index, (kind, first, last)) in entries.iter().enumerate() {
            let entry = &mut head[1024 + index * 128..][..128];
            let kind = if *kind == 0 { ESP } else { [*kind; 16] };
            entry[..16].copy_from_slice(&kind);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            entry[56] = b'a';
            entry[58] = b'0' + u8::try_from(index).unwrap();
        }
        head
    }

    #[test]
    fn partitions_come_in_order_with_their_labels() {
        let found = partitions(&head(&[(7, 100, 199), (0, 40, 41)]), 1 << 20).unwrap();
        let seen: Vec<_> = found
            .iter()
            .map(|partition| {
                (partition.label.as_str(), partition.is_esp, partition.start, partition.end)
            })
            .collect();
        assert_eq!(seen, [("a1", true, 20_480, 21_504), ("a0", false, 51_200, 102_400)]);
    }

    #[test]
    fn what_overlaps_or_leaves_the_disk_is_refused() {
        for entries in [
            &[(7, 100, 199), (7, 199, 300)][..],
            &[(7, 100, 4000)],
            &[(7, 1, 3)],
            &[(7, 100, 98)],
            &[(7, 100, u64::MAX)],
        ] {
            let error = partitions(&head(entries), 1 << 20).unwrap_err();
            assert!(matches!(error, GptError::Place { .. }), "{entries:?}: {error}");
        }
    }

    #[test]
    fn other_headers_are_refused() {
        for at in [512, 512 + 72, 512 + 80, 512 + 84] {
            let mut head = head(&[]);
            head[at] ^= 1;
            assert!(matches!(partitions(&head, 1 << 20), Err(GptError::Header { .. })), "{at}");
        }
        let short = &head(&[])[..HEAD_BYTES - 1];
        assert_eq!(partitions(short, 1 << 20), Err(GptError::Header { what: "length" }));
    }
}
