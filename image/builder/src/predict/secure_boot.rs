//! PCR 7: Secure Boot's state and keys; TCG PC Client Platform Firmware Profile, "PCR\[7\]".

use evidence::format::AUTHORITY_OF_UKI;

use super::{Predicted, SEPARATOR};
use crate::keys::Guid;
use crate::sign::variable::{GLOBAL, SECURITY};

/// What is enrolled in the firmware: the content of each variable, signature lists.
#[derive(Clone, Debug)]
pub struct SecureBoot<'a> {
    /// Owner of the signatures.
    pub owner: &'a Guid,
    /// Platform key.
    pub pk: &'a [u8],
    /// Key exchange keys.
    pub kek: &'a [u8],
    /// What may boot.
    pub db: &'a [u8],
    /// What may not.
    pub dbx: &'a [u8],
    /// Certificate (DER) in db that signed the UKI.
    pub signer: &'a [u8],
}

/// The measurements of PCR 7 after a UKI signed by db was started, Secure Boot being on.
#[must_use]
pub fn secure_boot(keys: &SecureBoot<'_>) -> Vec<Predicted> {
    let variable = |vendor, name, data: &[u8]| {
        Predicted::of(&format!("variable {name}"), &variable_data(vendor, name, data))
    };
    // EV_EFI_VARIABLE_AUTHORITY holds one EFI_SIGNATURE_DATA, the one that verified the image.
    let authority = variable_data(SECURITY, "db", &[&keys.owner.bytes(), keys.signer].concat());
    vec![
        variable(GLOBAL, "SecureBoot", &[1]),
        variable(GLOBAL, "PK", keys.pk),
        variable(GLOBAL, "KEK", keys.kek),
        variable(SECURITY, "db", keys.db),
        variable(SECURITY, "dbx", keys.dbx),
        Predicted::of("separator", &SEPARATOR),
        Predicted::of(AUTHORITY_OF_UKI, &authority),
    ]
}

/// `UEFI_VARIABLE_DATA`: GUID, length of the name in characters, length of the data, name in UCS-2, data.
fn variable_data(guid: &str, name: &str, data: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut bytes = Guid::known(guid).to_vec();
    bytes.extend_from_slice(&(name.len() as u64 / 2).to_le_bytes());
    bytes.extend_from_slice(&(data.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&name);
    bytes.extend_from_slice(data);
    bytes
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
    fn variable_data_has_lengths_in_characters_and_bytes() {
        let bytes = variable_data(GLOBAL, "SecureBoot", &[1]);
        let expected = "61dfe48bca93d211aa0d00e098032b8c0a000000000000000100000000000000\
                        53006500630075007200650042006f006f00740001";
        assert_eq!(hex::encode(bytes), expected);
    }

    #[test]
    fn every_key_matters() {
        let owner = Guid::parse(OWNER).unwrap();
        let keys = SecureBoot {
            owner: &owner,
            pk: b"pk",
            kek: b"kek",
            db: b"db",
            dbx: b"dbx",
            signer: b"one of db",
        };
        let base = pcr7(&keys);
        assert_ne!(pcr7(&SecureBoot { pk: b"x", ..keys.clone() }), base);
        assert_ne!(pcr7(&SecureBoot { kek: b"x", ..keys.clone() }), base);
        assert_ne!(pcr7(&SecureBoot { db: b"x", ..keys.clone() }), base);
        assert_ne!(pcr7(&SecureBoot { dbx: b"x", ..keys.clone() }), base);
        assert_ne!(pcr7(&SecureBoot { signer: b"x", ..keys.clone() }), base);
    }
}
