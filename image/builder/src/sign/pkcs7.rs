//! PKCS#7 SignedData with one RSA signer; RFC 2315, which is version 1 of RFC 5652.

use cms::cert::{CertificateChoices, IssuerAndSerialNumber};
use cms::content_info::CmsVersion;
use cms::signed_data::{
    CertificateSet, EncapsulatedContentInfo, SignedAttributes, SignedData, SignerIdentifier,
    SignerInfo, SignerInfos,
};
use der::asn1::{OctetString, SetOfVec};
use der::{Decode as _, Encode as _};
use x509_cert::Certificate;

use super::certificate::algorithm;
use super::{Sign, SignError, der};

const SHA256: &str = "2.16.840.1.101.3.4.2.1";
/// `rsaEncryption`: RFC 2315 names the key's algorithm here, the digest's beside it.
const RSA: &str = "1.2.840.113549.1.1.1";

/// SignedData over `content`, whose signature is over `attributes` if there are any, else over `message`.
pub(super) fn signed_data(
    certificate: &[u8],
    content: EncapsulatedContentInfo,
    attributes: Option<SignedAttributes>,
    message: &[u8],
    sign: Sign<'_>,
) -> Result<SignedData, SignError> {
    let certificate =
        Certificate::from_der(certificate).map_err(der("the signer's certificate"))?;
    let error = der("PKCS#7");
    let signature = match &attributes {
        // As a SET, not under the tag that it has in the SignerInfo; RFC 2315, section 9.3.
        Some(attributes) => sign(&attributes.to_der().map_err(&error)?)?,
        None => sign(message)?,
    };
    let digest = algorithm(SHA256).map_err(&error)?;
    let signer = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
            issuer: certificate.tbs_certificate.issuer.clone(),
            serial_number: certificate.tbs_certificate.serial_number.clone(),
        }),
        digest_alg: digest.clone(),
        signed_attrs: attributes,
        signature_algorithm: algorithm(RSA).map_err(&error)?,
        signature: OctetString::new(signature).map_err(&error)?,
        unsigned_attrs: None,
    };
    let certificates = SetOfVec::try_from(vec![CertificateChoices::Certificate(certificate)]);
    Ok(SignedData {
        version: CmsVersion::V1,
        digest_algorithms: SetOfVec::try_from(vec![digest]).map_err(&error)?,
        encap_content_info: content,
        certificates: Some(CertificateSet(certificates.map_err(&error)?)),
        crls: None,
        signer_infos: SignerInfos(SetOfVec::try_from(vec![signer]).map_err(&error)?),
    })
}
