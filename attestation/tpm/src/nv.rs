//! The counter that dates the appliance's state: one NV index, see `evidence::counter`.
//!
//! Invariant: a [`Counter`] exists only for an index whose Name is the one expected, attributes and policy
//! included, and that has counted at least once.

use evidence::counter::{self, INDEX, VALUE_BYTES};
use tss_esapi::attributes::NvIndexAttributes;
use tss_esapi::constants::{CapabilityType, CommandCode};
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Auth, CapabilityData, Digest, MaxNvBuffer, NvPublic};

use crate::{AttestationKey, Tpm, TpmError, during};

/// Length of the password that increments the counter.
pub const PASSWORD_BYTES: usize = 32;

/// The counter's password; whoever knows it can count, and nobody can count down.
pub type Password = [u8; PASSWORD_BYTES];

/// The counter of this TPM.
#[derive(Debug)]
pub struct Counter {
    handle: NvIndexHandle,
}

/// What stands at the counter's place.
#[derive(Debug)]
pub enum Place {
    /// No index.
    Free,
    /// The counter, defined and never incremented: a first start was cut.
    Unwritten,
    /// The counter.
    Counter(Counter),
    /// An index of another making.
    Foreign {
        /// Its Name, hex.
        name: String,
    },
}

/// What TPM2_NV_Certify answered, marshalled as the TPM signed it.
#[derive(Clone, Debug)]
pub struct Certified {
    /// `TPMS_ATTEST`.
    pub attest: Vec<u8>,
    /// `TPMT_SIGNATURE` over `attest`.
    pub signature: Vec<u8>,
}

impl Counter {
    /// Looks at the counter's place.
    ///
    /// # Errors
    /// If the TPM fails.
    pub fn find(tpm: &mut Tpm) -> Result<Place, TpmError> {
        let Some(handle) = index(tpm)? else { return Ok(Place::Free) };
        let (_, name) = tpm
            .context
            .execute_without_session(|context| context.nv_read_public(handle))
            .map_err(during("TPM2_NV_ReadPublic"))?;
        let name = name.value();
        if counter::is_name(name, true) {
            return Ok(Place::Counter(Self { handle }));
        }
        if counter::is_name(name, false) {
            return Ok(Place::Unwritten);
        }
        Ok(Place::Foreign { name: name.iter().map(|byte| format!("{byte:02x}")).collect() })
    }

    /// Defines the counter anew, in place of whatever is there, and counts for the first time: from above every
    /// counter that this TPM has deleted.
    ///
    /// # Errors
    /// If the TPM fails, has no room, or its owner hierarchy has a password.
    pub fn define(tpm: &mut Tpm, password: &Password) -> Result<Self, TpmError> {
        if let Some(old) = index(tpm)? {
            tpm.context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.nv_undefine_space(Provision::Owner, old)
                })
                .map_err(during("TPM2_NV_UndefineSpace"))?;
        }
        let command = "TPM2_NV_DefineSpace";
        let public = public().map_err(during(command))?;
        let auth = Auth::try_from(password.as_slice()).map_err(during(command))?;
        let handle = tpm
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.nv_define_space(Provision::Owner, Some(auth), public)
            })
            .map_err(during(command))?;
        let defined = Self { handle };
        defined.increment(tpm, password)?;
        match Self::find(tpm)? {
            Place::Counter(counter) => Ok(counter),
            other => Err(TpmError::Answer {
                command,
                found: format!("{other:?}"),
                expected: "the counter as it was defined",
            }),
        }
    }

    /// Counts one up.
    ///
    /// # Errors
    /// If the TPM fails, or the password is another one.
    pub fn increment(&self, tpm: &mut Tpm, password: &Password) -> Result<(), TpmError> {
        let auth = Auth::try_from(password.as_slice()).map_err(during("TPM2_NV_Increment"))?;
        tpm.context.tr_set_auth(self.handle.into(), auth).map_err(during("TPM2_NV_Increment"))?;
        let session = tpm.policy_session()?;
        let counted = self.increment_in(tpm, session);
        let flushed = tpm.context.flush_context(SessionHandle::from(session).into());
        counted?;
        flushed.map_err(during("TPM2_FlushContext"))
    }

    fn increment_in(&self, tpm: &mut Tpm, session: PolicySession) -> Result<(), TpmError> {
        tpm.context
            .policy_command_code(session, CommandCode::NvIncrement)
            .map_err(during("TPM2_PolicyCommandCode"))?;
        tpm.context.policy_auth_value(session).map_err(during("TPM2_PolicyAuthValue"))?;
        tpm.context
            .execute_with_session(Some(session.into()), |context| {
                context.nv_increment(NvAuth::NvIndex(self.handle), self.handle)
            })
            .map_err(during("TPM2_NV_Increment"))
    }

    /// The count.
    ///
    /// # Errors
    /// If the TPM fails, or its owner hierarchy has a password.
    pub fn value(&self, tpm: &mut Tpm) -> Result<u64, TpmError> {
        let contents: MaxNvBuffer = tpm
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.nv_read(NvAuth::Owner, self.handle, VALUE_BYTES, 0)
            })
            .map_err(during("TPM2_NV_Read"))?;
        counter::value(contents.value()).ok_or_else(|| TpmError::Answer {
            command: "TPM2_NV_Read",
            found: format!("{} bytes", contents.value().len()),
            expected: "the 8 bytes of a counter",
        })
    }

    /// Lets `key` sign what the counter holds, together with `qualifying`.
    ///
    /// # Errors
    /// If the TPM fails, or its owner hierarchy has a password.
    pub fn certify(
        &self,
        tpm: &mut Tpm,
        key: &AttestationKey,
        qualifying: [u8; 32],
    ) -> Result<Certified, TpmError> {
        let saved = key.saved();
        let (attest, signature) = tpm.certifier.certify(saved, INDEX, VALUE_BYTES, qualifying)?;
        Ok(Certified { attest, signature })
    }
}

/// The handle of whatever is defined at the counter's place.
fn index(tpm: &mut Tpm) -> Result<Option<NvIndexHandle>, TpmError> {
    let command = "TPM2_GetCapability";
    let place = TpmHandle::NvIndex(NvIndexTpmHandle::new(INDEX).map_err(during(command))?);
    // The first handle from the place on: the TPM answers with those that are defined.
    let (found, _) = tpm
        .context
        .execute_without_session(|context| {
            context.get_capability(CapabilityType::Handles, INDEX, 1)
        })
        .map_err(during(command))?;
    let CapabilityData::Handles(found) = found else {
        return Err(TpmError::Answer { command, found: format!("{found:?}"), expected: "handles" });
    };
    if found.into_inner().first() != Some(&place) {
        return Ok(None);
    }
    let handle = tpm
        .context
        .execute_without_session(|context| context.tr_from_tpm_public(place))
        .map_err(during("TPM2_NV_ReadPublic"))?;
    Ok(Some(handle.into()))
}

/// `evidence::counter::public`, as tss-esapi has it.
fn public() -> Result<NvPublic, tss_esapi::Error> {
    let public = counter::public(false);
    NvPublic::builder()
        .with_nv_index(NvIndexTpmHandle::new(public.index)?)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(NvIndexAttributes::try_from(public.attributes)?)
        .with_index_auth_policy(Digest::try_from(public.policy)?)
        .with_data_area_size(usize::from(public.data_bytes))
        .build()
}
