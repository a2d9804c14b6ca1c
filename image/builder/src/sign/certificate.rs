//! Self-signed certificates of Secure Boot's keys: firmware compares them whole and asks no authority.

use std::str::FromStr as _;
use std::time::Duration;

use der::asn1::{BitString, GeneralizedTime, Null, OctetString, UtcTime};
use der::oid::{AssociatedOid as _, ObjectIdentifier};
use der::{Any, Decode as _, Encode as _, EncodePem as _, pem::LineEnding};
use sha2::{Digest as _, Sha256};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};
use x509_cert::{Certificate, TbsCertificate, Version};

use super::{Sign, SignError, der};

/// Firmware does not look at it; tools do. Twenty years: longer than a server is kept.
const VALID_S: u64 = 20 * 365 * 86_400;
/// Bytes of a serial number: positive and at most 20; RFC 5280, section 4.1.2.2.
const SERIAL_BYTES: usize = 16;
/// First second of 2050, from which a certificate has a `GeneralizedTime`; RFC 5280, section 4.1.2.5.
const YEAR_2050_S: u64 = 2_524_608_000;

/// `sha256WithRSAEncryption`, RFC 4055.
const SHA256_RSA: &str = "1.2.840.113549.1.1.11";

/// A certificate of the key `spki` (SubjectPublicKeyInfo, DER) signed by itself, in PEM.
pub(crate) fn self_signed(
    common_name: &str,
    spki: &[u8],
    now_s: u64,
    sign: Sign<'_>,
) -> Result<String, SignError> {
    let error = der("a certificate");
    let algorithm = algorithm(SHA256_RSA).map_err(&error)?;
    let name = Name::from_str(&format!("CN={common_name}")).map_err(&error)?;
    let tbs_certificate = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(&serial(spki)).map_err(&error)?,
        signature: algorithm.clone(),
        issuer: name.clone(),
        validity: Validity {
            not_before: time(now_s)?,
            not_after: time(now_s.saturating_add(VALID_S))?,
        },
        subject: name,
        subject_public_key_info: SubjectPublicKeyInfoOwned::from_der(spki).map_err(&error)?,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions().map_err(&error)?),
    };
    let signature = sign(&tbs_certificate.to_der().map_err(&error)?)?;
    let signature = BitString::from_bytes(&signature).map_err(&error)?;
    Certificate { tbs_certificate, signature_algorithm: algorithm, signature }
        .to_pem(LineEnding::LF)
        .map_err(&error)
}

/// SubjectPublicKeyInfo of a certificate, both in DER.
pub(crate) fn public_key(certificate: &[u8]) -> Result<Vec<u8>, SignError> {
    Certificate::from_der(certificate)
        .and_then(|certificate| certificate.tbs_certificate.subject_public_key_info.to_der())
        .map_err(der("a certificate"))
}

/// Common name of a certificate's subject, which has no other name if it is one of ours.
pub(crate) fn common_name(certificate: &[u8]) -> Result<String, SignError> {
    let error = der("a certificate");
    let certificate = Certificate::from_der(certificate).map_err(&error)?;
    let subject = certificate.tbs_certificate.subject.to_string();
    let name = subject.strip_prefix("CN=").filter(|name| !name.contains(['=', '+', ',']));
    name.map(str::to_owned).ok_or_else(|| error(der::ErrorKind::Failed.into()))
}

/// An algorithm whose parameters are NULL, as those of RSA and its hashes must be.
pub(super) fn algorithm(oid: &str) -> der::Result<AlgorithmIdentifierOwned> {
    let parameters = Some(Any::encode_from(&Null)?);
    let oid = ObjectIdentifier::new(oid)?;
    Ok(AlgorithmIdentifierOwned { oid, parameters })
}

/// Unique among the certificates of a name, since it is the key's own.
fn serial(spki: &[u8]) -> [u8; SERIAL_BYTES] {
    let mut serial = [0; SERIAL_BYTES];
    serial.copy_from_slice(&Sha256::digest(spki)[..SERIAL_BYTES]);
    // Positive and of one length.
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn time(seconds: u64) -> Result<Time, SignError> {
    let since_1970 = Duration::from_secs(seconds);
    let time = if seconds < YEAR_2050_S {
        UtcTime::from_unix_duration(since_1970).map(Time::UtcTime)
    } else {
        GeneralizedTime::from_unix_duration(since_1970).map(Time::GeneralTime)
    };
    time.map_err(|_| SignError::Date { seconds })
}

/// The key signs images and variables, and no certificates.
fn extensions() -> der::Result<Vec<Extension>> {
    let constraints = BasicConstraints { ca: false, path_len_constraint: None };
    let usage = KeyUsage(KeyUsages::DigitalSignature.into());
    Ok(vec![
        critical(BasicConstraints::OID, constraints.to_der()?)?,
        critical(KeyUsage::OID, usage.to_der()?)?,
    ])
}

fn critical(extn_id: ObjectIdentifier, value: Vec<u8>) -> der::Result<Extension> {
    Ok(Extension { extn_id, critical: true, extn_value: OctetString::new(value)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::software::{Key, openssl};

    #[test]
    fn openssl_takes_it_and_finds_the_key() {
        let Some(key) = Key::new() else { return };
        let pem =
            self_signed("casemate test db", &key.spki(), 1_767_225_600, &key.signer()).unwrap();
        let file = key.file("db.crt", pem.as_bytes());
        openssl(&["verify", "-check_ss_sig", "-CAfile", &file, &file]).unwrap();
        let text = openssl(&["x509", "-noout", "-text", "-in", &file]).unwrap();
        for said in
            ["CN=casemate test db", "CA:FALSE", "Digital Signature", "Jan  1 00:00:00 2026 GMT"]
        {
            assert!(text.contains(said), "{said}: {text}");
        }
        let der = crate::keys::certificate_der(&pem).unwrap();
        assert_eq!(public_key(&der).unwrap(), key.spki());
        assert_eq!(common_name(&der).unwrap(), "casemate test db");
        assert!(public_key(&der[..der.len() - 1]).is_err());
    }

    #[test]
    fn a_time_has_the_form_that_its_year_wants() {
        assert!(matches!(time(YEAR_2050_S - 1), Ok(Time::UtcTime(_))));
        assert!(matches!(time(YEAR_2050_S), Ok(Time::GeneralTime(_))));
        assert!(matches!(time(u64::MAX), Err(SignError::Date { .. })));
    }
}
