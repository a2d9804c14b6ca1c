//! Firmware variables: signature lists, and what authenticates a change of them.
//! UEFI Specification 2.10, sections 8.2.2 ("EFI_VARIABLE_AUTHENTICATION_2") and 32.4.1 ("Signature Database").

use cms::signed_data::EncapsulatedContentInfo;
use der::Encode as _;
use der::oid::ObjectIdentifier;
use sha2::{Digest as _, Sha256};
use x509_cert::der::DateTime;

use super::{Sign, SignError, der, length, pkcs7};
use crate::keys::Guid;

/// `EFI_GLOBAL_VARIABLE`.
pub(crate) const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// `EFI_IMAGE_SECURITY_DATABASE_GUID`.
pub(crate) const SECURITY: &str = "d719b2cb-3d3a-4596-a3bc-dad00e67656f";
/// `EFI_CERT_X509_GUID`.
const CERT_X509: &str = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072";
/// `EFI_CERT_SHA256_GUID`.
const CERT_SHA256: &str = "c1c41626-504c-4092-aca9-41f936934328";
/// `EFI_CERT_TYPE_PKCS7_GUID`.
const CERT_PKCS7: &str = "4aafd29d-68df-49ee-8aa9-347d375665a7";
/// Owner of virt-fw-vars' own entries.
const VIRT_FIRMWARE: &str = "a0baa8a3-041d-48a8-bc87-c36d121b5e3d";

/// NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS and TIME_BASED_AUTHENTICATED_WRITE_ACCESS.
const ATTRIBUTES: u32 = 0x01 | 0x02 | 0x04 | 0x20;
/// `EFI_VARIABLE_APPEND_WRITE`.
const APPEND: u32 = 0x40;
/// `id-data`.
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
/// `WIN_CERTIFICATE.wRevision`.
const REVISION: u16 = 0x0200;
/// `WIN_CERT_TYPE_EFI_GUID`.
const TYPE_EFI_GUID: u16 = 0x0ef1;

/// A variable of Secure Boot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variable {
    pub(crate) name: &'static str,
    vendor: &'static str,
}

/// Platform key.
pub(crate) const PK: Variable = Variable { name: "PK", vendor: GLOBAL };
/// Key exchange keys.
pub(crate) const KEK: Variable = Variable { name: "KEK", vendor: GLOBAL };
/// What may boot.
pub(crate) const DB: Variable = Variable { name: "db", vendor: SECURITY };
/// What may not.
pub(crate) const DBX: Variable = Variable { name: "dbx", vendor: SECURITY };

/// Whether the content takes the place of what is there, or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Replace,
    Append,
}

/// The file that changes `variable` to `content` on a machine that trusts the signer.
pub(crate) fn authenticated(
    variable: Variable,
    write: Write,
    content: &[u8],
    now_s: u64,
    certificate: &[u8],
    sign: Sign<'_>,
) -> Result<Vec<u8>, SignError> {
    let time = efi_time(now_s)?;
    let attributes = match write {
        Write::Replace => ATTRIBUTES,
        Write::Append => ATTRIBUTES | APPEND,
    };
    let name: Vec<u8> = variable.name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let message =
        [&name[..], &Guid::known(variable.vendor), &attributes.to_le_bytes(), &time, content]
            .concat();
    // "SignedData.contentInfo.content shall be absent"; "authenticatedAttributes shall not be present".
    let absent = EncapsulatedContentInfo { econtent_type: DATA, econtent: None };
    // Bare, without a ContentInfo around it: some firmware knows no other form.
    let signed = pkcs7::signed_data(certificate, absent, None, &message, sign)?
        .to_der()
        .map_err(der("PKCS#7"))?;
    const HEAD_BYTES: usize = 24;
    Ok([
        &time[..],
        &length("signature of a variable", HEAD_BYTES + signed.len())?,
        &REVISION.to_le_bytes(),
        &TYPE_EFI_GUID.to_le_bytes(),
        &Guid::known(CERT_PKCS7),
        &signed,
        content,
    ]
    .concat())
}

/// `EFI_TIME`, whose other fields "shall be set to 0".
fn efi_time(seconds: u64) -> Result<[u8; 16], SignError> {
    let date = DateTime::from_unix_duration(std::time::Duration::from_secs(seconds))
        .map_err(|_| SignError::Date { seconds })?;
    let mut time = [0; 16];
    time[..2].copy_from_slice(&date.year().to_le_bytes());
    time[2..7].copy_from_slice(&[
        date.month(),
        date.day(),
        date.hour(),
        date.minutes(),
        date.seconds(),
    ]);
    Ok(time)
}

/// A list of one certificate (DER).
pub(crate) fn x509_list(owner: &Guid, certificate: &[u8]) -> Result<Vec<u8>, SignError> {
    signature_list(CERT_X509, &owner.bytes(), certificate)
}

/// Content of the variable dbx: it forbids the empty file, since a dbx without any entry cannot be enrolled.
pub(crate) fn dbx_list() -> Result<Vec<u8>, SignError> {
    signature_list(CERT_SHA256, &Guid::known(VIRT_FIRMWARE), &Sha256::digest([]))
}

/// `EFI_SIGNATURE_LIST` with one `EFI_SIGNATURE_DATA`.
fn signature_list(kind: &str, owner: &[u8; 16], data: &[u8]) -> Result<Vec<u8>, SignError> {
    const HEADER_BYTES: usize = 28;
    let signature_bytes = owner.len() + data.len();
    Ok([
        &Guid::known(kind)[..],
        &length("signature list", HEADER_BYTES + signature_bytes)?,
        &0_u32.to_le_bytes(),
        &length("signature list", signature_bytes)?,
        owner,
        data,
    ]
    .concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::certificate;
    use crate::sign::software::{Key, openssl};

    #[test]
    fn the_constants_are_guids() {
        for guid in [GLOBAL, SECURITY, CERT_X509, CERT_SHA256, CERT_PKCS7, VIRT_FIRMWARE] {
            assert!(Guid::parse(guid).is_some(), "{guid}");
        }
    }

    #[test]
    fn a_signature_list_holds_its_own_length() {
        let owner = Guid::parse("3f5ad0c2-6d1c-4a0e-9d7b-2f1c5d3f8a10").unwrap();
        let list = x509_list(&owner, &[0x30, 0x82, 0x01]).unwrap();
        assert_eq!(list.len(), 28 + 16 + 3);
        assert_eq!(list[16..20], 47_u32.to_le_bytes());
        assert_eq!(list[24..28], 19_u32.to_le_bytes());
    }

    #[test]
    fn dbx_is_as_virt_fw_vars_writes_it() {
        let expected = "2616c4c14c509240aca941f9369343284c0000000000000030000000\
                        a3a8baa01d04a848bc87c36d121b5e3d\
                        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex::encode(dbx_list().unwrap()), expected);
    }

    #[test]
    fn a_time_is_in_the_order_of_efi_time() {
        let time = efi_time(1_767_323_045).unwrap();
        assert_eq!(time[..7], [0xea, 0x07, 1, 2, 3, 4, 5]);
        assert_eq!(time[7..], [0; 9]);
        assert!(efi_time(u64::MAX).is_err());
    }

    #[test]
    fn openssl_verifies_a_change_over_exactly_what_firmware_hashes() {
        let Some(key) = Key::new() else { return };
        let pem =
            certificate::self_signed("KEK", &key.spki(), 1_767_225_600, &key.signer()).unwrap();
        let certificate = crate::keys::certificate_der(&pem).unwrap();
        let ca = key.file("KEK.crt", pem.as_bytes());
        for (write, attributes) in [(Write::Replace, 0x27_u32), (Write::Append, 0x67)] {
            let file =
                authenticated(DB, write, b"content", 1_767_225_600, &certificate, &key.signer())
                    .unwrap();
            let bytes =
                usize::try_from(u32::from_le_bytes(file[16..20].try_into().unwrap())).unwrap();
            assert_eq!(file[20..24], [0, 2, 0xf1, 0x0e]);
            assert_eq!(&file[16 + bytes..], b"content");
            // In a ContentInfo of id-signedData, as OpenSSL wants it.
            let signed = &file[40..16 + bytes];
            assert_eq!(signed[0], 0x30);
            let inner =
                [&[0xa0, 0x82][..], &u16::try_from(signed.len()).unwrap().to_be_bytes(), signed];
            let id = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
            let body = [&id[..], &inner.concat()].concat();
            let outer =
                [&[0x30, 0x82][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), &body];
            let signature = key.file("signature", &outer.concat());
            let message = [
                b"d\0b\0",
                &Guid::known(SECURITY)[..],
                &attributes.to_le_bytes(),
                &file[..16],
                b"content",
            ]
            .concat();
            let verify = |message: &[u8]| {
                let message = key.file("message", message);
                let args = ["cms", "-verify", "-binary", "-inform", "DER", "-in", &signature];
                let more =
                    ["-content", &message, "-CAfile", &ca, "-purpose", "any", "-out", "/dev/null"];
                openssl(&[&args[..], &more].concat())
            };
            verify(&message).unwrap();
            assert!(verify(&message[1..]).is_err());
        }
    }
}
