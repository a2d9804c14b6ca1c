//! PCR 7: Secure Boot's state and keys; TCG PC Client Platform Firmware Profile, "PCR\[7\]".

use sha2::{Digest as _, Sha256};

use super::{Predicted, SEPARATOR};
use crate::keys::Guid;

/// `EFI_GLOBAL_VARIABLE`.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// `EFI_IMAGE_SECURITY_DATABASE_GUID`.
const SECURITY: &str = "d719b2cb-3d3a-4596-a3bc-dad00e67656f";
/// `EFI_CERT_X509_GUID`.
const CERT_X509: &str = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072";
/// `EFI_CERT_SHA256_GUID`.
const CERT_SHA256: &str = "c1c41626-504c-4092-aca9-41f936934328";
/// Owner of virt-fw-vars' own entries.
const VIRT_FIRMWARE: &str = "a0baa8a3-041d-48a8-bc87-c36d121b5e3d";

/// The keys enrolled in the firmware, one certificate (DER) each; dbx is [`SecureBoot::dbx`].
#[derive(Clone, Debug)]
pub struct SecureBoot<'a> {
    /// Owner of the signatures.
    pub owner: &'a Guid,
    /// Platform key.
    pub pk: &'a [u8],
    /// Key exchange key.
    pub kek: &'a [u8],
    /// Key that signs UKIs.
    pub db: &'a [u8],
}

impl SecureBoot<'_> {
    /// Content of the variable PK.
    #[must_use]
    pub fn pk(&self) -> Vec<u8> {
        x509_list(self.owner, self.pk)
    }

    /// Content of the variable KEK.
    #[must_use]
    pub fn kek(&self) -> Vec<u8> {
        x509_list(self.owner, self.kek)
    }

    /// Content of the variable db.
    #[must_use]
    pub fn db(&self) -> Vec<u8> {
        x509_list(self.owner, self.db)
    }

    /// Content of the variable dbx: it forbids the empty file, since a dbx without any entry cannot be enrolled.
    #[must_use]
    pub fn dbx() -> Vec<u8> {
        signature_list(CERT_SHA256, &known(VIRT_FIRMWARE), &Sha256::digest([]))
    }
}

/// The measurements of PCR 7 after a UKI signed by db was started, Secure Boot being on.
#[must_use]
pub fn secure_boot(keys: &SecureBoot<'_>) -> Vec<Predicted> {
    let variable = |vendor, name, data: &[u8]| {
        Predicted::of(&format!("variable {name}"), &variable_data(vendor, name, data))
    };
    // EV_EFI_VARIABLE_AUTHORITY holds one EFI_SIGNATURE_DATA, the one that verified the image.
    let authority = variable_data(SECURITY, "db", &[&keys.owner.bytes(), keys.db].concat());
    vec![
        variable(GLOBAL, "SecureBoot", &[1]),
        variable(GLOBAL, "PK", &keys.pk()),
        variable(GLOBAL, "KEK", &keys.kek()),
        variable(SECURITY, "db", &keys.db()),
        variable(SECURITY, "dbx", &SecureBoot::dbx()),
        Predicted::of("separator", &SEPARATOR),
        Predicted::of("authority of the UKI: db", &authority),
    ]
}

/// `UEFI_VARIABLE_DATA`: GUID, length of the name in characters, length of the data, name in UCS-2, data.
fn variable_data(guid: &str, name: &str, data: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut bytes = known(guid).to_vec();
    bytes.extend_from_slice(&(name.len() as u64 / 2).to_le_bytes());
    bytes.extend_from_slice(&(data.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&name);
    bytes.extend_from_slice(data);
    bytes
}

fn x509_list(owner: &Guid, certificate: &[u8]) -> Vec<u8> {
    signature_list(CERT_X509, &owner.bytes(), certificate)
}

/// `EFI_SIGNATURE_LIST` with one `EFI_SIGNATURE_DATA`; UEFI Specification, "Signature Database".
fn signature_list(kind: &str, owner: &[u8; 16], data: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: u32 = 28;
    let signature_bytes = u32::try_from(owner.len() + data.len()).unwrap_or(u32::MAX);
    let mut bytes = known(kind).to_vec();
    bytes.extend_from_slice(&HEADER_BYTES.saturating_add(signature_bytes).to_le_bytes());
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes.extend_from_slice(&signature_bytes.to_le_bytes());
    bytes.extend_from_slice(owner);
    bytes.extend_from_slice(data);
    bytes
}

/// Bytes of one of the GUIDs above; a test parses them all.
fn known(guid: &str) -> [u8; 16] {
    Guid::parse(guid).map(|guid| guid.bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use evidence::pcr::Pcr;

    use super::*;

    fn pcr7(keys: &SecureBoot<'_>) -> Pcr {
        crate::predict::fold(&secure_boot(keys))
    }

    const OWNER: &str = "3f5ad0c2-6d1c-4a0e-9d7b-2f1c5d3f8a10";

    #[test]
    fn the_constants_are_guids() {
        for guid in [GLOBAL, SECURITY, CERT_X509, CERT_SHA256, VIRT_FIRMWARE] {
            assert!(Guid::parse(guid).is_some(), "{guid}");
        }
    }

    #[test]
    fn variable_data_has_lengths_in_characters_and_bytes() {
        let bytes = variable_data(GLOBAL, "SecureBoot", &[1]);
        let expected = "61dfe48bca93d211aa0d00e098032b8c0a000000000000000100000000000000\
                        53006500630075007200650042006f006f00740001";
        assert_eq!(hex::encode(bytes), expected);
    }

    #[test]
    fn a_signature_list_holds_its_own_length() {
        let owner = Guid::parse(OWNER).unwrap();
        let list = x509_list(&owner, &[0x30, 0x82, 0x01]);
        assert_eq!(list.len(), 28 + 16 + 3);
        assert_eq!(list[16..20], 47_u32.to_le_bytes());
        assert_eq!(list[24..28], 19_u32.to_le_bytes());
    }

    #[test]
    fn dbx_is_as_virt_fw_vars_writes_it() {
        let expected = "2616c4c14c509240aca941f9369343284c0000000000000030000000\
                        a3a8baa01d04a848bc87c36d121b5e3d\
                        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex::encode(SecureBoot::dbx()), expected);
    }

    #[test]
    fn every_key_matters() {
        let owner = Guid::parse(OWNER).unwrap();
        let keys = SecureBoot { owner: &owner, pk: b"pk", kek: b"kek", db: b"db" };
        let base = pcr7(&keys);
        assert_ne!(pcr7(&SecureBoot { pk: b"x", ..keys.clone() }), base);
        assert_ne!(pcr7(&SecureBoot { kek: b"x", ..keys.clone() }), base);
        assert_ne!(pcr7(&SecureBoot { db: b"x", ..keys.clone() }), base);
    }
}
