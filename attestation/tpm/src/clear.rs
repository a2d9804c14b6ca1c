//! Forgetting everything that was sealed.

use tss_esapi::handles::AuthHandle;
use tss_esapi::interface_types::session_handles::AuthSession;

use crate::{Tpm, TpmError, during};

impl Tpm {
    /// TPM2_Clear: a new seed for the owner's keys, so that whatever was sealed under the old one opens nowhere and
    /// never again, copies included; NV indices of the owner are gone, the counter too. The endorsement seed stays, and
    /// with it the attestation key.
    ///
    /// # Errors
    /// If the TPM fails, its lockout hierarchy has a password, or TPM2_ClearControl disabled it.
    pub fn clear(&mut self) -> Result<(), TpmError> {
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.clear(AuthHandle::Lockout)
            })
            .map_err(during("TPM2_Clear"))
    }
}
