//! Types of partitions, and identifiers that say a root hash: UAPI Group, "Discoverable Partitions Specification".

use crate::gpt::Guid;

/// EFI system partition.
pub(crate) const ESP: Guid = disk_order(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b);
/// Root file system, x86-64.
pub(crate) const ROOT: Guid = disk_order(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709);
/// Its hash tree.
pub(crate) const VERITY: Guid = disk_order(0x2c73_57ed_ebd2_46d9_aec1_23d4_37ec_2bf5);

/// Identifiers of a root partition and of its hash tree: the two halves of the root hash, as UUIDs.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_the_halves_of_the_root_hash() {
        let hash = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let [root, verity] = identifiers(hash).unwrap();
        assert_eq!(hex::encode(root), "030201000504070608090a0b0c0d0e0f");
        assert_eq!(root_hash(root, verity), hash);
        assert_eq!(identifiers("00"), None);
    }
}
