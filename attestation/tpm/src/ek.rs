//! The endorsement key and its certificate: by what a vendor vouches for this TPM.
//!
//! Invariant: the endorsement key is loaded only inside one call of this module; it and the policy session are flushed
//! whether that call succeeds or not. TCG EK Credential Profile for TPM Family 2.0, version 2.5.

use tss_esapi::abstraction::ek::create_ek_public_from_default_template_2 as template;
use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, nv};
use tss_esapi::constants::CapabilityType;
use tss_esapi::handles::{AuthHandle, KeyHandle, NvIndexTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, Digest, EncryptedSecret, IdObject, Nonce};
use tss_esapi::traits::Marshall;

use crate::{AttestationKey, Tpm, TpmError, during};

/// Longest NV index that is read as a certificate or a part of a chain.
const NV_BYTES_MAX: usize = 8 << 10;
/// First of the indices in which some TPMs hold certificates of their vendor's authorities, one after the other.
const CHAIN_FIRST: u32 = 0x01c0_0100;
/// Most of those that are read.
const CHAIN_INDICES_MAX: u32 = 4;
/// Most certificates that are passed on, the endorsement key's included.
const CHAIN_MAX: usize = evidence::enrol::CHAIN_MAX;

/// A kind of endorsement key that has a default template and a place for its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EkKind {
    /// Template L-2.
    EccP256,
    /// Template L-1, which every vendor ships.
    Rsa2048,
}

impl EkKind {
    /// In order of preference: making an RSA key again takes some TPMs seconds.
    const ALL: [Self; 2] = [Self::EccP256, Self::Rsa2048];

    /// NV index of the certificate.
    fn index(self) -> u32 {
        match self {
            Self::EccP256 => 0x01c0_000a,
            Self::Rsa2048 => 0x01c0_0002,
        }
    }

    fn algorithm(self) -> AsymmetricAlgorithmSelection {
        match self {
            Self::EccP256 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
            Self::Rsa2048 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048),
        }
    }
}

/// What the TPM shows of its endorsement key.
#[derive(Clone, Debug)]
pub struct Endorsement {
    /// Its kind.
    pub kind: EkKind,
    /// `TPMT_PUBLIC`, marshalled.
    pub public: Vec<u8>,
    /// Its certificate, then those of authorities that the TPM holds; DER.
    pub certificates: Vec<Vec<u8>>,
}

impl Tpm {
    /// The endorsement key for which the TPM holds a certificate: the first kind whose certificate is of the key that
    /// the default template makes.
    ///
    /// # Errors
    /// If there is none, or the TPM fails.
    pub fn endorsement(&mut self) -> Result<Endorsement, TpmError> {
        let mut found = Vec::new();
        for kind in EkKind::ALL {
            let index = kind.index();
            let Some(bytes) = self.nv(index)? else {
                found.push(format!("nothing at {index:#010x}"));
                continue;
            };
            let Some(certificate) = split(&bytes).into_iter().next() else {
                found.push(format!("no DER at {index:#010x}"));
                continue;
            };
            let public = self.endorsement_public(kind)?;
            if let Err(error) = evidence::enrol::check_key(&certificate, &public) {
                found.push(format!("at {index:#010x}: {error}"));
                continue;
            }
            let mut certificates = vec![certificate];
            certificates.extend(self.chain()?);
            certificates.truncate(CHAIN_MAX);
            return Ok(Endorsement { kind, public, certificates });
        }
        Err(TpmError::NoCertificate { reason: found.join(", ") })
    }

    /// `TPMT_PUBLIC` of the endorsement key that the default template of `kind` makes, certified or not.
    ///
    /// # Errors
    /// If the TPM fails, or has no keys of this kind.
    pub fn endorsement_public(&mut self, kind: EkKind) -> Result<Vec<u8>, TpmError> {
        let (handle, public) = self.load_ek(kind)?;
        self.flush(handle)?;
        Ok(public)
    }

    /// TPM2_ActivateCredential: the secret in a credential that was made for this TPM's endorsement key of `kind` and
    /// for `key`. `id_object` and `encrypted_secret` are the contents of the command's sized parameters.
    ///
    /// # Errors
    /// If the credential is for another TPM or another key, or the TPM fails.
    pub fn activate(
        &mut self,
        kind: EkKind,
        key: &AttestationKey,
        id_object: &[u8],
        encrypted_secret: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let command = "TPM2_ActivateCredential";
        let id_object = IdObject::try_from(id_object).map_err(during(command))?;
        let secret = EncryptedSecret::try_from(encrypted_secret).map_err(during(command))?;
        let (ek, _) = self.load_ek(kind)?;
        let activated = self.endorsement_session().and_then(|session| {
            let sessions = (Some(AuthSession::Password), Some(session), None);
            let activated = self
                .context
                .execute_with_sessions(sessions, |context| {
                    context.activate_credential(key.handle(), ek, id_object, secret)
                })
                .map_err(during(command));
            self.flush(SessionHandle::from(session))?;
            activated
        });
        self.flush(ek)?;
        Ok(activated?.value().to_vec())
    }

    /// Makes the key again from the endorsement seed, as every default template does.
    pub(crate) fn load_ek(&mut self, kind: EkKind) -> Result<(KeyHandle, Vec<u8>), TpmError> {
        let command = "TPM2_CreatePrimary (EK)";
        let template = template(kind.algorithm(), None).map_err(during(command))?;
        let created = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
            })
            .map_err(during(command))?;
        match created.out_public.marshall() {
            Ok(public) => Ok((created.key_handle, public)),
            Err(error) => {
                self.flush(created.key_handle)?;
                Err(during(command)(error))
            }
        }
    }

    /// A session that satisfies the templates' policy, TPM2_PolicySecret(TPM_RH_ENDORSEMENT).
    pub(crate) fn endorsement_session(&mut self) -> Result<AuthSession, TpmError> {
        let policy = self.policy_session()?;
        let session = AuthSession::from(policy);
        let satisfied = self.context.execute_with_session(Some(AuthSession::Password), |context| {
            context.policy_secret(
                policy,
                AuthHandle::Endorsement,
                Nonce::default(),
                Digest::default(),
                Nonce::default(),
                None,
            )
        });
        if let Err(error) = satisfied {
            self.flush(SessionHandle::from(session))?;
            return Err(during("TPM2_PolicySecret")(error));
        }
        Ok(session)
    }

    /// Certificates of the vendor's authorities, where a TPM holds them.
    fn chain(&mut self) -> Result<Vec<Vec<u8>>, TpmError> {
        let mut bytes = Vec::new();
        for index in CHAIN_FIRST..CHAIN_FIRST + CHAIN_INDICES_MAX {
            let Some(more) = self.nv(index)? else { break };
            bytes.extend(more);
        }
        Ok(split(&bytes))
    }

    /// Contents of an NV index, if it is defined. Certificates are readable by anybody.
    fn nv(&mut self, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
        let command = "TPM2_GetCapability";
        let (data, _) = self
            .context
            .execute_without_session(|context| {
                context.get_capability(CapabilityType::Handles, index, 1)
            })
            .map_err(during(command))?;
        let CapabilityData::Handles(handles) = data else {
            let (found, expected) = (format!("{data:?}"), "handles");
            return Err(TpmError::Answer { command, found, expected });
        };
        let handle = NvIndexTpmHandle::new(index).map_err(during(command))?;
        if !handles.as_ref().contains(&TpmHandle::NvIndex(handle)) {
            return Ok(None);
        }
        self.read_nv(handle).map(Some)
    }

    fn read_nv(&mut self, handle: NvIndexTpmHandle) -> Result<Vec<u8>, TpmError> {
        let command = "TPM2_NV_Read";
        let object = self
            .context
            .execute_without_session(|context| context.tr_from_tpm_public(handle.into()))
            .map_err(during("TPM2_NV_ReadPublic"))?;
        let (public, _) = self
            .context
            .execute_without_session(|context| context.nv_read_public(object.into()))
            .map_err(during("TPM2_NV_ReadPublic"))?;
        if public.data_size() > NV_BYTES_MAX {
            return Err(TpmError::Answer {
                command,
                found: format!("an index of {} bytes", public.data_size()),
                expected: "at most 8192 bytes of certificates",
            });
        }
        // By the index's own, empty authorization: the owner may have set a password.
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                nv::read_full(context, NvAuth::NvIndex(object.into()), handle)
            })
            .map_err(during(command))
    }

    pub(crate) fn flush(
        &mut self,
        handle: impl Into<tss_esapi::handles::ObjectHandle>,
    ) -> Result<(), TpmError> {
        let handle = handle.into();
        self.context
            .execute_without_session(|context| context.flush_context(handle))
            .map_err(during("TPM2_FlushContext"))
    }
}

/// The DER sequences at the beginning of `bytes`, one after the other. Vendors fill an index up with zeros or ones.
fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let Some((der, rest)) =
        sequence_bytes(bytes).and_then(|length| bytes.split_at_checked(length))
    {
        found.push(der.to_vec());
        bytes = rest;
    }
    found
}

/// Length of the DER sequence with which `bytes` begin; certificates are longer than 127 and shorter than 65536 bytes.
fn sequence_bytes(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [0x30, 0x81, length, ..] => Some(3 + usize::from(length)),
        [0x30, 0x82, high, low, ..] => Some(4 + usize::from(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_split_and_padding_is_left() {
        let short = [&[0x30, 0x81, 0x80][..], &[7; 0x80]].concat();
        let long = [&[0x30, 0x82, 0x01, 0x02][..], &[8; 0x102]].concat();
        let padded = [&short[..], &long[..], &[0xff; 9]].concat();
        assert_eq!(split(&padded), [short.clone(), long.clone()]);
        assert_eq!(split(&padded[..short.len() + long.len() - 1]), [short]);
        assert!(split(&[]).is_empty() && split(&[0x30, 0x82, 0xff]).is_empty());
    }
}
