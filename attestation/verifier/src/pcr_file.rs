//! PCR values from a file: ours in JSON, or the dump of tpm2_quote (`--pcr`).
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use evidence::pcr::HashAlg;
use evidence::quote::PcrValues;

use crate::files::{self, TPM_BYTES_MAX};

/// `TPMS_PCR_SELECTION` as tpm2-tss lays it out: hash, size, four bytes of bitmap, padding.
const SELECTION_BYTES: usize = 8;
/// `TPML_PCR_SELECTION` has room for this many.
const SELECTIONS: usize = 16;
/// `TPM2B_DIGEST`: length and room for SHA-512.
const DIGEST_BYTES: usize = 66;
/// `TPML_DIGEST` has room for this many.
const DIGESTS: usize = 8;

pub(crate) fn read(path: &Path) -> anyhow::Result<PcrValues> {
    let bytes = files::read(path, TPM_BYTES_MAX)?;
    let values = match bytes.first() {
        Some(b'{' | b' ' | b'\n') => parse_json(&bytes),
        _ => parse_dump(&bytes).context("is neither JSON nor a dump of SHA-256 PCRs"),
    };
    values.with_context(|| format!("{} holds no PCR values", path.display()))
}

fn parse_json(bytes: &[u8]) -> anyhow::Result<PcrValues> {
    let texts: BTreeMap<u8, String> = serde_json::from_slice(bytes)?;
    let mut values = PcrValues::new();
    for (index, text) in texts {
        let mut value = [0; 32];
        hex::decode_to_slice(&text, &mut value).with_context(|| format!("PCR {index}"))?;
        values.insert(index, value);
    }
    Ok(values)
}

/// The structures as they lie in the memory of a little-endian machine: `TPML_PCR_SELECTION`, a count, and
/// that many `TPML_DIGEST` with eight values each.
fn parse_dump(bytes: &[u8]) -> Option<PcrValues> {
    let (banks, rest) = bytes.split_first_chunk()?;
    let (selections, rest) = rest.split_at_checked(SELECTION_BYTES.checked_mul(SELECTIONS)?)?;
    let (&[low, high, size, bitmap @ ..], _) = selections.split_first_chunk::<7>()?;
    let bank = u16::from_le_bytes([low, high]);
    let bitmap = bitmap.get(..usize::from(size))?;
    let bits = bitmap.iter().flat_map(|byte| (0..8).map(move |bit| byte & (1 << bit) != 0));
    let selected = (0_u8..).zip(bits).filter(|&(_, set)| set).map(|(index, _)| index);
    let (_, mut lists) = rest.split_first_chunk::<4>()?;
    let mut digests = Vec::new();
    while let Some((count, rest)) = lists.split_first_chunk::<4>() {
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let (list, rest) = rest.split_at_checked(DIGEST_BYTES.checked_mul(DIGESTS)?)?;
        let sized = list.chunks_exact(DIGEST_BYTES).take(count);
        digests.extend(sized.map(|digest| digest.get(2..34)?.try_into().ok()));
        lists = rest;
    }
    let values: Option<Vec<[u8; 32]>> = digests.into_iter().collect();
    let selected: Vec<u8> = selected.collect();
    let values = values.filter(|values| values.len() == selected.len())?;
    let is_ours = u32::from_le_bytes(*banks) == 1 && bank == HashAlg::Sha256.tpm_id();
    (is_ours && lists.is_empty()).then(|| selected.into_iter().zip(values).collect())
}

/// What [`parse_dump`] reads; `None` for a PCR that does not exist.
pub(crate) fn dump(values: &PcrValues) -> Option<Vec<u8>> {
    let mut bitmap = [0; 4];
    for &index in values.keys() {
        let byte = bitmap.get_mut(..3)?.get_mut(usize::from(index / 8))?;
        *byte |= 1 << (index % 8);
    }
    let values: Vec<_> = values.values().copied().collect();
    lay_out(bitmap, &values)
}

fn lay_out(bitmap: [u8; 4], values: &[[u8; 32]]) -> Option<Vec<u8>> {
    let [low, high] = HashAlg::Sha256.tpm_id().to_le_bytes();
    let mut bytes = vec![1, 0, 0, 0, low, high, 3];
    bytes.extend(bitmap);
    bytes.resize(SELECTION_BYTES.checked_mul(SELECTIONS)?.checked_add(4)?, 0);
    let lists = values.chunks(DIGESTS);
    bytes.extend(u32::try_from(lists.len()).ok()?.to_le_bytes());
    for list in lists {
        bytes.extend(u32::try_from(list.len()).ok()?.to_le_bytes());
        for value in list {
            bytes.extend([32, 0]);
            bytes.extend(value);
            bytes.extend([0; 32]);
        }
        let unused = DIGESTS.checked_sub(list.len())?.checked_mul(DIGEST_BYTES)?;
        bytes.resize(bytes.len().checked_add(unused)?, 0);
    }
    Some(bytes)
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    fn dump(bitmap: [u8; 4], values: &[[u8; 32]]) -> Vec<u8> {
        lay_out(bitmap, values).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        for indices in
            [&[0][..], &[15, 16, 22], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
        {
            let values: PcrValues = indices.iter().map(|&index| (index, [index; 32])).collect();
            assert_eq!(parse_dump(&super::dump(&values).unwrap()), Some(values));
        }
        assert_eq!(super::dump(&[(24, [0; 32])].into()), None, "there is no such PCR");
    }

    #[test]
    fn a_dump_gives_its_values_by_index() {
        let values: Vec<_> = (0..16).map(|byte| [byte; 32]).collect();
        let parsed = parse_dump(&dump([0xff, 0xff, 0, 0], &values)).unwrap();
        assert_eq!(parsed, (0..16).map(|byte| (byte, [byte; 32])).collect());
        let parsed = parse_dump(&dump([0, 0x80, 0x41, 0], &values[..3])).unwrap();
        assert_eq!(parsed.keys().copied().collect::<Vec<_>>(), [15, 16, 22]);
    }

    #[test]
    fn a_cut_or_foreign_dump_is_refused() {
        let whole = dump([7, 0, 0, 0], &[[1; 32]; 3]);
        for length in 0..whole.len() {
            assert_eq!(parse_dump(&whole[..length]), None, "cut to {length}");
        }
        assert_eq!(parse_dump(&dump([3, 0, 0, 0], &[[1; 32]; 3])), None, "a value too many");
        let mut sha1 = whole;
        sha1[4] = 4;
        assert_eq!(parse_dump(&sha1), None, "another bank");
    }

    #[test]
    fn json_is_read() {
        let text = format!("{{\"7\":\"{}\"}}", "ab".repeat(32));
        assert_eq!(parse_json(text.as_bytes()).unwrap(), [(7, [0xab; 32])].into());
        assert!(parse_json(b"{\"7\":\"ab\"}").is_err());
    }
}
