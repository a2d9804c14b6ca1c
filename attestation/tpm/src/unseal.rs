//! Content keys that were sealed to this TPM, see `evidence::sealed`.
//!
//! Invariant: endorsement key, imported object and sessions are flushed before [`Tpm::unseal`] returns, whatever it
//! comes to. With the attestation key that are three objects while the import is loaded, and never more.

use evidence::sealed::{ContentKey, PCRS, SealedKey};
use tss_esapi::constants::CommandCode;
use tss_esapi::handles::{KeyHandle, ObjectHandle, SessionHandle};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Digest, EncryptedSecret, Private, Public, SymmetricDefinitionObject};
use tss_esapi::traits::UnMarshall as _;

use crate::{EkKind, Tpm, TpmError, during, pcr};

impl Tpm {
    /// TPM2_Import under the endorsement key of `kind`, TPM2_Load and TPM2_Unseal: the content key, if `sealed` is for
    /// this TPM and its PCRs are as when the key was sealed.
    ///
    /// # Errors
    /// If either does not hold, or the TPM fails.
    pub fn unseal(&mut self, kind: EkKind, sealed: &SealedKey) -> Result<ContentKey, TpmError> {
        let (ek, _) = self.load_ek(kind)?;
        let loaded = self.load_sealed(ek, sealed);
        self.flush(ek)?;
        let object = loaded?;
        let key = self.unseal_loaded(object.into(), sealed);
        self.flush(object)?;
        key
    }

    fn load_sealed(&mut self, ek: KeyHandle, sealed: &SealedKey) -> Result<KeyHandle, TpmError> {
        let command = "TPM2_Import";
        let public = Public::unmarshall(sealed.public()).map_err(during(command))?;
        let duplicate = Private::try_from(sealed.duplicate()).map_err(during(command))?;
        let seed = EncryptedSecret::try_from(sealed.encrypted_seed()).map_err(during(command))?;
        let private = {
            let public = public.clone();
            self.as_endorsement(|tpm, session| {
                // The content key is wrapped once, by the outer wrapper.
                let inner = SymmetricDefinitionObject::Null;
                tpm.context
                    .execute_with_session(Some(session), |context| {
                        context.import(ek.into(), None, public, duplicate, seed, inner)
                    })
                    .map_err(during(command))
            })?
        };
        self.as_endorsement(|tpm, session| {
            tpm.context
                .execute_with_session(Some(session), |context| context.load(ek, private, public))
                .map_err(during("TPM2_Load"))
        })
    }

    /// Does one command in a session that satisfies the endorsement key's policy: a TPM forgets it with each use.
    fn as_endorsement<T>(
        &mut self,
        command: impl FnOnce(&mut Self, AuthSession) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let session = self.endorsement_session()?;
        let done = command(self, session);
        self.flush(SessionHandle::from(session))?;
        done
    }

    fn unseal_loaded(
        &mut self,
        object: ObjectHandle,
        sealed: &SealedKey,
    ) -> Result<ContentKey, TpmError> {
        let session = self.policy_session()?;
        let key = self.unseal_in(session, object, sealed);
        self.flush(SessionHandle::from(AuthSession::from(session)))?;
        key
    }

    fn unseal_in(
        &mut self,
        session: PolicySession,
        object: ObjectHandle,
        sealed: &SealedKey,
    ) -> Result<ContentKey, TpmError> {
        // With the digest, the TPM names here what it would refuse later with less to say.
        let digest = Digest::try_from(sealed.pcr_digest().as_slice());
        let digest = digest.map_err(during("TPM2_PolicyPCR"))?;
        let selection = pcr::select(&PCRS)?;
        self.context.policy_pcr(session, digest, selection).map_err(during("TPM2_PolicyPCR"))?;
        self.context
            .policy_command_code(session, CommandCode::Unseal)
            .map_err(during("TPM2_PolicyCommandCode"))?;
        let command = "TPM2_Unseal";
        let secret = self
            .context
            .execute_with_session(Some(session.into()), |context| context.unseal(object))
            .map_err(during(command))?;
        ContentKey::parse(secret.value()).ok_or_else(|| TpmError::Answer {
            command,
            found: format!("{} bytes", secret.value().len()),
            expected: "the 32 bytes of a content key",
        })
    }
}
