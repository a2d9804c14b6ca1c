//! The NV counter that dates an appliance's state: an index of one TPM that only ever counts up.
//!
//! Its Name hashes handle, attributes and policy, so an index that was defined otherwise has another Name.
//! What the Name cannot show is a counter that was deleted and defined alike; but a new counter begins above
//! whatever a deleted one of the same TPM held (TPM 2.0 Library Part 3, "TPM2_NV_Increment"), so its value never
//! comes back, and no older state fits it.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::nv::{NV_WRITTEN, NvPublic};
use crate::pcr::HashAlg;

/// Handle of the index, in the range that the owner assigns: TCG, "Registry of Reserved TPM 2.0 Handles and
/// Localities", 01800000 to 01BFFFFF.
pub const INDEX: u32 = 0x0180_ca5e;
/// Length of the contents: TPM 2.0 Library Part 2, "TPM_NT_COUNTER", a 64-bit number.
pub const VALUE_BYTES: u16 = 8;

/// `TPMA_NV`: POLICYWRITE, type counter, OWNERREAD, AUTHREAD, NO_DA. Not ORDERLY: such a counter may jump when the
/// power fails. Nothing else, so neither owner nor platform increments it.
const ATTRIBUTES: u32 = 1 << 3 | 1 << 4 | 1 << 17 | 1 << 18 | 1 << 25;
const CC_POLICY_AUTH_VALUE: u32 = 0x016b;
const CC_POLICY_COMMAND_CODE: u32 = 0x016c;
const CC_NV_INCREMENT: u32 = 0x0134;

/// The index's policy: only `TPM2_NV_Increment`, and only by who knows the index's password, which agentd keeps
/// with the state. `TPM2_PolicyCommandCode`, then `TPM2_PolicyAuthValue` (Part 3).
#[must_use]
pub fn policy() -> Vec<u8> {
    let (code, command) = (CC_POLICY_COMMAND_CODE.to_be_bytes(), CC_NV_INCREMENT.to_be_bytes());
    let first = HashAlg::Sha256.hash(&[&[0; 32], &code, &command]);
    let both = HashAlg::Sha256.hash(&[first.as_bytes(), &CC_POLICY_AUTH_VALUE.to_be_bytes()]);
    both.as_bytes().to_vec()
}

/// The public area of the index; `written` once it has counted.
#[must_use]
pub fn public(written: bool) -> NvPublic {
    let attributes = if written { ATTRIBUTES | NV_WRITTEN } else { ATTRIBUTES };
    NvPublic { index: INDEX, attributes, policy: policy(), data_bytes: VALUE_BYTES }
}

/// Whether `name` is that of the counter, `written` or not.
#[must_use]
pub fn is_name(name: &[u8], written: bool) -> bool {
    public(written).name().is_some_and(|expected| expected.as_bytes() == name)
}

/// The count in the contents of the index.
#[must_use]
pub fn value(contents: &[u8]) -> Option<u64> {
    contents.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_whether_the_counter_has_counted() {
        let name = public(true).name().unwrap();
        assert!(is_name(name.as_bytes(), true) && !is_name(name.as_bytes(), false));
        assert!(!is_name(&[], true));
    }

    #[test]
    fn a_count_has_eight_bytes() {
        assert_eq!(value(&[0, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(value(&[0; 7]), None);
        assert_eq!(value(&[0; 9]), None);
    }
}
