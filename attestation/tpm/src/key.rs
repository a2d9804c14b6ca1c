//! The attestation key: signs quotes, and checkpoints of the ledger.
//!
//! It is a primary of the endorsement hierarchy with a fixed template, so the same TPM makes the same key again
//! at every boot and nothing is stored. It is not under the owner hierarchy, where TPMs obfuscate `resetCount`
//! and `firmwareVersion` in what the key signs (TPM 2.0 Library Part 1, "Attestation").
//! It is restricted: what it signs was made or hashed by the TPM, and never looks like a quote unless it is one.

use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Data, EccParameter, EccPoint, EccScheme, HashScheme, MaxBuffer, Public, PublicBuilder,
    PublicEccParametersBuilder, Signature, SignatureScheme,
};
use tss_esapi::traits::Marshall;
use tss_esapi::utils::TpmsContext;

use crate::{Tpm, TpmError, during, pcr};

/// Longest message that [`AttestationKey::sign`] takes: what every TPM accepts in one TPM2_Hash.
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// Length of a signature by [`AttestationKey::sign`]: `r ‖ s`.
pub const SIGNATURE_BYTES: usize = 64;

/// Length of a public key: `04 ‖ x ‖ y` (SEC 1, uncompressed).
pub const POINT_BYTES: usize = 65;

/// Width of a P-256 scalar.
const SCALAR_BYTES: usize = 32;

/// The TPM's attestation key, loaded. Having one proves that the TPM holds its private half; it goes with the
/// [`Tpm`] that made it.
#[derive(Debug)]
pub struct AttestationKey {
    handle: KeyHandle,
    public: Vec<u8>,
    name: Vec<u8>,
    point: [u8; POINT_BYTES],
    saved: TpmsContext,
}

/// What TPM2_Quote answered, marshalled as the TPM signed it.
#[derive(Clone, Debug)]
pub struct Quote {
    /// `TPMS_ATTEST`.
    pub attest: Vec<u8>,
    /// `TPMT_SIGNATURE` over `attest`.
    pub signature: Vec<u8>,
}

impl AttestationKey {
    /// Makes the key again from the TPM's endorsement seed. It stays loaded until `tpm` is dropped.
    ///
    /// # Errors
    /// If the TPM fails, has no P-256, or its endorsement hierarchy has a password.
    pub fn create(tpm: &mut Tpm) -> Result<Self, TpmError> {
        let command = "TPM2_CreatePrimary";
        let template = template().map_err(during(command))?;
        let created = tpm
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
            })
            .map_err(during(command))?;
        let name = tpm
            .context
            .tr_get_name(created.key_handle.into())
            .map_err(during("TPM2_ReadPublic"))?
            .value()
            .to_vec();
        let public = created.out_public.marshall().map_err(during(command))?;
        let point = point(&created.out_public)?;
        let saved = tpm
            .context
            .execute_without_session(|context| context.context_save(created.key_handle.into()))
            .map_err(during("TPM2_ContextSave"))?;
        Ok(Self { handle: created.key_handle, public, name, point, saved })
    }

    pub(crate) fn handle(&self) -> KeyHandle {
        self.handle
    }

    /// `TPMT_PUBLIC`, marshalled.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// TPM Name: `000b` and SHA-256 of [`Self::public`].
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The public key: `04 ‖ x ‖ y` (SEC 1, uncompressed).
    #[must_use]
    pub fn point(&self) -> &[u8; POINT_BYTES] {
        &self.point
    }

    /// The key as another context of this TPM loads it, until the TPM is reset.
    pub(crate) fn saved(&self) -> TpmsContext {
        self.saved.clone()
    }

    /// Signs the present values of `pcrs` (SHA-256 bank) together with `qualifying`.
    ///
    /// # Errors
    /// If a register does not exist, or the TPM fails.
    pub fn quote(
        &self,
        tpm: &mut Tpm,
        qualifying: [u8; 32],
        pcrs: &[u8],
    ) -> Result<Quote, TpmError> {
        let command = "TPM2_Quote";
        let selection = pcr::select(pcrs)?;
        let qualifying = Data::try_from(qualifying.as_slice()).map_err(during(command))?;
        let (attest, signature) = tpm
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.quote(self.handle, qualifying, SignatureScheme::Null, selection)
            })
            .map_err(during(command))?;
        Ok(Quote {
            attest: attest.marshall().map_err(during(command))?,
            signature: signature.marshall().map_err(during(command))?,
        })
    }

    /// Signs SHA-256 of `message`, which the TPM itself hashes: a restricted key signs a digest only with the
    /// ticket that says that the message did not begin with `TPM_GENERATED_VALUE` (TPM 2.0 Library Part 3,
    /// "TPM2_Sign"). Returns `r ‖ s`, big-endian, 32 bytes each (ECDSA, P-256).
    ///
    /// # Errors
    /// If the message is above [`MESSAGE_BYTES_MAX`], or the TPM fails.
    pub fn sign(&self, tpm: &mut Tpm, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], TpmError> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(TpmError::Message { found: message.len() });
        }
        let buffer = MaxBuffer::try_from(message).map_err(during("TPM2_Hash"))?;
        let (digest, ticket) = tpm
            .context
            .execute_without_session(|context| {
                context.hash(buffer, HashingAlgorithm::Sha256, Hierarchy::Endorsement)
            })
            .map_err(during("TPM2_Hash"))?;
        let signature = tpm
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.sign(self.handle, digest, SignatureScheme::Null, ticket)
            })
            .map_err(during("TPM2_Sign"))?;
        fixed_width(&signature)
    }
}

/// The key's template. Changing it changes every machine's key, and with it every pinned Name.
fn template() -> Result<Public, tss_esapi::Error> {
    let parameters = PublicEccParametersBuilder::new()
        .with_ecc_scheme(EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)))
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(
            tss_esapi::structures::KeyDerivationFunctionScheme::Null,
        )
        .with_is_signing_key(true)
        .with_restricted(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes()?)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

fn attributes() -> Result<ObjectAttributes, tss_esapi::Error> {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_restricted(true)
        .with_sign_encrypt(true)
        // The key has no password to guess, so failed guesses elsewhere must not lock it.
        .with_no_da(true)
        .build()
}

/// `r ‖ s`. TPMs may leave out leading zero bytes of either.
fn fixed_width(signature: &Signature) -> Result<[u8; SIGNATURE_BYTES], TpmError> {
    let Signature::EcDsa(signature) = signature else {
        return Err(TpmError::Answer {
            command: "TPM2_Sign",
            found: format!("{:?}", signature.algorithm()),
            expected: "an ECDSA signature",
        });
    };
    let mut fixed = [0; SIGNATURE_BYTES];
    let (r, s) = fixed.split_at_mut(SCALAR_BYTES);
    pad(r, signature.signature_r())?;
    pad(s, signature.signature_s())?;
    Ok(fixed)
}

/// `04 ‖ x ‖ y` of a public area.
fn point(public: &Public) -> Result<[u8; POINT_BYTES], TpmError> {
    let Public::Ecc { unique, .. } = public else {
        return Err(TpmError::Answer {
            command: "TPM2_CreatePrimary",
            found: "another kind of key".to_owned(),
            expected: "an ECC key",
        });
    };
    let mut point = [0; POINT_BYTES];
    point[0] = 4;
    let (x, y) = point[1..].split_at_mut(SCALAR_BYTES);
    pad(x, unique.x())?;
    pad(y, unique.y())?;
    Ok(point)
}

fn pad(into: &mut [u8], scalar: &EccParameter) -> Result<(), TpmError> {
    let scalar = scalar.value();
    let skip = into.len().checked_sub(scalar.len()).ok_or_else(|| TpmError::Answer {
        command: "TPM2_Sign or TPM2_CreatePrimary",
        found: format!("a scalar of {} bytes", scalar.len()),
        expected: "at most 32 bytes",
    })?;
    into[skip..].copy_from_slice(scalar);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tss_esapi::structures::EccSignature;

    use super::*;

    fn signature(r: &[u8], s: &[u8]) -> Signature {
        let scalar = |bytes: &[u8]| EccParameter::try_from(bytes).unwrap();
        Signature::EcDsa(
            EccSignature::create(HashingAlgorithm::Sha256, scalar(r), scalar(s)).unwrap(),
        )
    }

    #[test]
    fn short_scalars_are_padded_on_the_left() {
        let fixed = fixed_width(&signature(&[7], &[9; 32])).unwrap();
        assert_eq!((fixed[30], fixed[31], fixed[32]), (0, 7, 9));
    }

    #[test]
    fn a_scalar_that_is_too_long_is_refused() {
        let error = fixed_width(&signature(&[1; 33], &[1])).unwrap_err();
        assert!(matches!(error, TpmError::Answer { .. }), "{error}");
    }

    #[test]
    fn another_signature_scheme_is_refused() {
        assert!(matches!(fixed_width(&Signature::Null), Err(TpmError::Answer { .. })));
    }
}
