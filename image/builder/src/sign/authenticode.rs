//! Signs PE images as firmware checks them: Windows Authenticode Portable Executable Signature Format, and PE Format,
//! "The Attribute Certificate Table".

use cms::content_info::ContentInfo;
use cms::signed_data::{EncapsulatedContentInfo, SignedAttributes};
use der::asn1::{OctetStringRef, SetOfVec};
use der::oid::ObjectIdentifier;
use der::{Any, Decode as _, Encode as _};
use sha2::{Digest as _, Sha256};
use x509_cert::attr::Attribute;

use super::{Sign, SignError, der, length, pkcs7};
use crate::pe::Pe;

/// `SPC_INDIRECT_DATA_OBJID`.
const INDIRECT_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.4");
/// `SPC_SP_OPUS_INFO_OBJID`: name and URL of the program, both left out.
const OPUS_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.12");
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");

/// `SpcIndirectDataContent` up to the digest: `SpcAttributeTypeAndOptionalValue` of `SPC_PE_IMAGE_DATA_OBJID` (no
/// flags, an empty file name), then `DigestInfo` of SHA-256.
const INDIRECT_DATA_HEAD: [u8; 46] = [
    0x30, 0x4c, 0x30, 0x17, 0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f,
    0x30, 0x09, 0x03, 0x01, 0x00, 0xa0, 0x04, 0xa2, 0x02, 0x80, 0x00, 0x30, 0x31, 0x30, 0x0d, 0x06,
    0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20,
];
/// Tag and length of that SEQUENCE, which the message digest leaves out.
const SEQUENCE_HEAD_BYTES: usize = 2;
/// `WIN_CERT_REVISION_2_0` and `WIN_CERT_TYPE_PKCS_SIGNED_DATA`.
const REVISION_AND_TYPE: [u8; 4] = [0x00, 0x02, 0x02, 0x00];
const CERTIFICATE_HEAD_BYTES: usize = 8;
/// Alignment of the table and of its entries.
const ALIGNMENT: usize = 8;

/// `image` with a signature by the key of `certificate` (DER). It has no date, so that the same image is signed into
/// the same file.
pub(crate) fn sign(image: &[u8], certificate: &[u8], sign: Sign<'_>) -> Result<Vec<u8>, SignError> {
    let mut signed = image.to_vec();
    signed.resize(image.len().next_multiple_of(ALIGNMENT), 0);
    let pe = Pe::parse(&signed)?;
    if pe.is_signed() {
        return Err(SignError::Signed);
    }
    let (directory, checksum) = (pe.certificate_directory(), pe.checksum());
    let pkcs7 = signature(pe.authenticode(), certificate, sign)?;
    let entry_bytes = CERTIFICATE_HEAD_BYTES + pkcs7.len();
    let table_bytes = entry_bytes.next_multiple_of(ALIGNMENT);
    let end = signed.len() + table_bytes;
    let place = [length("UKI", signed.len())?, length("signature", table_bytes)?].concat();
    signed[directory].copy_from_slice(&place);
    signed.extend_from_slice(&length("signature", entry_bytes)?);
    signed.extend_from_slice(&REVISION_AND_TYPE);
    signed.extend_from_slice(&pkcs7);
    signed.resize(end, 0);
    // Of the unsigned file; firmware does not look at it, and zero means that there is none.
    signed[checksum].fill(0);
    Ok(signed)
}

/// ContentInfo with the SignedData, DER.
fn signature(digest: [u8; 32], certificate: &[u8], sign: Sign<'_>) -> Result<Vec<u8>, SignError> {
    let error = der("Authenticode");
    let content = [&INDIRECT_DATA_HEAD[..], &digest].concat();
    let message_digest = Sha256::digest(&content[SEQUENCE_HEAD_BYTES..]);
    let attributes = attributes(&message_digest).map_err(&error)?;
    let econtent = Some(Any::from_der(&content).map_err(&error)?);
    let content = EncapsulatedContentInfo { econtent_type: INDIRECT_DATA, econtent };
    let signed = pkcs7::signed_data(certificate, content, Some(attributes), &[], sign)?;
    let content = Any::encode_from(&signed).map_err(&error)?;
    ContentInfo { content_type: SIGNED_DATA, content }.to_der().map_err(&error)
}

fn attributes(message_digest: &[u8]) -> der::Result<SignedAttributes> {
    let digest = Any::encode_from(&OctetStringRef::new(message_digest)?)?;
    SetOfVec::try_from(vec![
        attribute(CONTENT_TYPE, Any::encode_from(&INDIRECT_DATA)?)?,
        attribute(MESSAGE_DIGEST, digest)?,
        attribute(OPUS_INFO, Any::new(der::Tag::Sequence, [])?)?,
    ])
}

fn attribute(oid: ObjectIdentifier, value: Any) -> der::Result<Attribute> {
    Ok(Attribute { oid, values: SetOfVec::try_from(vec![value])? })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::pe::tests::image;
    use crate::sign::certificate::self_signed;
    use crate::sign::software::{Key, openssl};

    struct Signer {
        key: Key,
        certificate: Vec<u8>,
        pem: String,
    }

    fn signer() -> Option<Signer> {
        let key = Key::new()?;
        let pem = self_signed("db", &key.spki(), 1_767_225_600, &key.signer()).unwrap();
        let certificate = crate::keys::certificate_der(&pem).unwrap();
        Some(Signer { key, certificate, pem })
    }

    #[test]
    fn the_digest_stays_and_the_signature_is_the_same_again() {
        let Some(Signer { key, certificate, .. }) = signer() else { return };
        let mut plain = image(&[(".linux", b"kernel")]);
        plain.extend_from_slice(b"odd");
        let signed = sign(&plain, &certificate, &key.signer()).unwrap();
        plain.resize(plain.len().next_multiple_of(8), 0);
        let digest = |bytes: &[u8]| Pe::parse(bytes).unwrap().authenticode();
        assert_eq!(digest(&signed), digest(&plain));
        assert_eq!(sign(&plain, &certificate, &key.signer()).unwrap(), signed);
        let again = sign(&signed, &certificate, &key.signer()).unwrap_err();
        assert!(matches!(again, SignError::Signed), "{again}");
    }

    #[test]
    fn openssl_reads_it() {
        let Some(Signer { key, certificate, .. }) = signer() else { return };
        let pkcs7 = key.file("p7", &signature([7; 32], &certificate, &key.signer()).unwrap());
        let said = openssl(&["pkcs7", "-inform", "DER", "-in", &pkcs7, "-print_certs"]).unwrap();
        assert!(said.contains("subject=CN=db"), "{said}");
        let text = openssl(&["asn1parse", "-inform", "DER", "-in", &pkcs7]).unwrap();
        let oid = |text: &str, oid: &str| text.matches(oid).count();
        // Once as the content's type, once as the attribute that says so.
        assert_eq!(oid(&text, "1.3.6.1.4.1.311.2.1.4") + oid(&text, "Indirect Data"), 2, "{text}");
        assert!(text.contains(&"07".repeat(32)), "{text}");
    }

    #[test]
    fn sbverify_takes_it_and_no_other_image() {
        let stub = std::path::Path::new("/usr/lib/systemd/boot/efi/linuxx64.efi.stub");
        if !stub.exists() || Command::new("sbverify").arg("--version").output().is_err() {
            eprintln!("skipped: no sbverify or no {} here", stub.display());
            return;
        }
        let Some(Signer { key, certificate, pem }) = signer() else { return };
        let ca = key.file("db.crt", pem.as_bytes());
        let verifies = |bytes: &[u8]| {
            let file = key.file("signed.efi", bytes);
            let mut command = Command::new("sbverify");
            command.args(["--cert", &ca, &file]).output().unwrap().status.success()
        };
        let plain = std::fs::read(stub).unwrap();
        let mut signed = sign(&plain, &certificate, &key.signer()).unwrap();
        assert!(verifies(&signed));
        assert!(!verifies(&plain));
        // Within the first section.
        signed[0x800] ^= 1;
        assert!(!verifies(&signed));
    }
}
