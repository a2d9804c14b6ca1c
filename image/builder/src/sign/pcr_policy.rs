//! The signed PCR 11 policy in the UKI's section `.pcrsig`: systemd-measure(1), "sign".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::Decode as _;
use evidence::pcr::Pcr;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::{Sign, SignError, der};

/// `TPM_CC_PolicyPCR`.
const CC_POLICY_PCR: u32 = 0x0000_017f;
/// `TPML_PCR_SELECTION` of PCR 11 in the SHA-256 bank: one selection, `TPM_ALG_SHA256`, three bytes of bits.
const PCR_11: [u8; 10] = [0, 0, 0, 1, 0, 0x0b, 3, 0, 0x08, 0];

/// One entry: `key` (SubjectPublicKeyInfo, DER) allows what is sealed to it while PCR 11 is `pcr`.
pub(crate) fn entry(pcr: Pcr, key: &[u8], sign: Sign<'_>) -> Result<Value, SignError> {
    let policy = policy(pcr);
    Ok(json!({
        "pcrs": [11],
        "pkfp": hex::encode(fingerprint(key)?),
        "pol": hex::encode(policy),
        "sig": STANDARD.encode(sign(&policy)?),
    }))
}

/// Content of `.pcrsig`.
pub(crate) fn document(entries: Vec<Value>) -> String {
    json!({"sha256": entries}).to_string()
}

/// `TPM2_PolicyPCR` by itself; TPM 2.0 Library Part 3, "TPM2_PolicyPCR".
fn policy(pcr: Pcr) -> [u8; 32] {
    let values: [u8; 32] = Sha256::digest(pcr.value()).into();
    let command = [&[0; 32], &CC_POLICY_PCR.to_be_bytes()[..], &PCR_11, &values].concat();
    Sha256::digest(command).into()
}

/// systemd's name of a key: SHA-256 over the `RSAPublicKey` in it.
fn fingerprint(key: &[u8]) -> Result<[u8; 32], SignError> {
    let error = der("the PCR policy's public key");
    let info = SubjectPublicKeyInfoRef::from_der(key)
        .map_err(|cause| SignError::PublicKey { reason: cause.to_string() })?;
    let bits = info.subject_public_key.as_bytes();
    let bytes = bits.ok_or_else(|| error(der::ErrorKind::Failed.into()))?;
    Ok(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::sign::software::Key;

    #[test]
    fn systemd_measure_signs_the_same() {
        let measure = "/usr/lib/systemd/systemd-measure";
        if !std::path::Path::new(measure).exists() {
            eprintln!("skipped: no {measure} here (Debian package systemd)");
            return;
        }
        let Some(key) = Key::new() else { return };
        let linux = key.file("linux", b"kernel");
        let output = Command::new(measure)
            .args(["sign", "--bank=sha256", "--phase=enter-initrd"])
            .arg(format!("--linux={linux}"))
            .arg(format!("--private-key={}", key.private()))
            .arg(format!("--public-key={}", key.public()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();

        let pcr = [&b".linux\0"[..], b"kernel", b"enter-initrd"]
            .iter()
            .fold(Pcr::ZERO, |pcr, data| pcr.extend(Sha256::digest(data).into()));
        let entry = entry(pcr, &key.spki(), &key.signer()).unwrap();
        let ours: Value = serde_json::from_str(&document(vec![entry])).unwrap();
        assert_eq!(ours, theirs);
    }
}
