//! The only code that opens a TPM.
//!
//! Invariants: the TPM is reached through one [`Tpm`] and every command takes it by `&mut`, so commands never
//! interleave; at most three transient objects (the attestation key; the endorsement key, or the copy of the first that
//! certifies the counter, while it is used; what is loaded under the endorsement key) are loaded at a time, and none
//! outlives the [`Tpm`] (a TPM without a resource manager has three slots).

mod certify;
mod clear;
mod ek;
mod key;
mod nv;
mod pcr;
mod unseal;

pub use ek::{EkKind, Endorsement};
pub use key::{AttestationKey, MESSAGE_BYTES_MAX, POINT_BYTES, Quote, SIGNATURE_BYTES};
pub use nv::{Certified, Counter, PASSWORD_BYTES, Password, Place};
pub use pcr::{PCRS, Pcrs};

use std::str::FromStr;

use tss_esapi::constants::SessionType;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::PolicySession;
use tss_esapi::structures::SymmetricDefinition;
use tss_esapi::{Context, tcti_ldr::TctiNameConf};

/// An open TPM.
#[derive(Debug)]
pub struct Tpm {
    context: Context,
    certifier: certify::Certifier,
}

/// Why the TPM did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The name of the transport is not one.
    #[error("{tcti:?} names no TPM; expected device:PATH or swtpm:host=HOST,port=PORT")]
    Tcti {
        /// What was given.
        tcti: String,
    },
    /// The device is absent, busy or not ours to open.
    #[error("cannot open the TPM at {tcti:?}: {cause}; check that the device exists and its group")]
    Open {
        /// What was given.
        tcti: String,
        /// What tpm2-tss says.
        cause: tss_esapi::Error,
    },
    /// A command failed.
    #[error("TPM command {command} failed: {cause}")]
    Command {
        /// Name of the command, TPM 2.0 Library Part 3.
        command: &'static str,
        /// What the TPM or tpm2-tss says.
        cause: tss_esapi::Error,
    },
    /// A command failed that is called past tss-esapi.
    #[error("TPM command {command} failed: response code {code:#010x}")]
    Code {
        /// Name of the command.
        command: &'static str,
        /// `TSS2_RC`: what layer, and the TPM's `TPM_RC`; tpm2_rc_decode says it in words.
        code: u32,
    },
    /// The TPM answered something that it should not.
    #[error("TPM command {command} answered {found}; expected {expected}")]
    Answer {
        /// Name of the command.
        command: &'static str,
        /// What it answered.
        found: String,
        /// What it should have.
        expected: &'static str,
    },
    /// No certificate that is of an endorsement key of this TPM.
    #[error("the TPM has no usable EK certificate: {reason}; its vendor may offer one elsewhere")]
    NoCertificate {
        /// What was found at each place.
        reason: String,
    },
    /// The register does not exist.
    #[error("there is no PCR {pcr}; PCRs are 0 to 23")]
    Pcr {
        /// Index asked for.
        pcr: u8,
    },
    /// The message does not fit one TPM2_Hash command.
    #[error(
        "a message of {found} bytes is above the {MESSAGE_BYTES_MAX} that a TPM hashes at once"
    )]
    Message {
        /// Its length.
        found: usize,
    },
}

impl Tpm {
    /// Opens the TPM that `tcti` names: `device:/dev/tpmrm0`, or `swtpm:host=127.0.0.1,port=N` in tests.
    ///
    /// # Errors
    /// If it names none, or it does not open.
    pub fn open(tcti: &str) -> Result<Self, TpmError> {
        let name =
            TctiNameConf::from_str(tcti).map_err(|_| TpmError::Tcti { tcti: tcti.to_owned() })?;
        let context = Context::new(name.clone())
            .map_err(|cause| TpmError::Open { tcti: tcti.to_owned(), cause })?;
        let certifier = certify::Certifier::open(name)?;
        Ok(Self { context, certifier })
    }

    /// An unbound, unsalted policy session.
    fn policy_session(&mut self) -> Result<PolicySession, TpmError> {
        let command = "TPM2_StartAuthSession";
        let session = self
            .context
            .execute_without_session(|context| {
                let symmetric = SymmetricDefinition::AES_128_CFB;
                let hash = HashingAlgorithm::Sha256;
                context.start_auth_session(None, None, None, SessionType::Policy, symmetric, hash)
            })
            .map_err(during(command))?;
        let session = session.ok_or_else(|| TpmError::Answer {
            command,
            found: "no session".to_owned(),
            expected: "a policy session",
        })?;
        PolicySession::try_from(session).map_err(during(command))
    }
}

/// Names the command in a failure of tpm2-tss.
fn during(command: &'static str) -> impl FnOnce(tss_esapi::Error) -> TpmError {
    move |cause| TpmError::Command { command, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_that_is_none_is_named_in_the_error() {
        let error = Tpm::open("usb:1").unwrap_err();
        assert!(matches!(&error, TpmError::Tcti { tcti } if tcti == "usb:1"), "{error}");
    }

    #[test]
    fn an_absent_device_is_an_error_and_no_panic() {
        let error = Tpm::open("device:/nonexistent/tpm").unwrap_err();
        assert!(matches!(error, TpmError::Open { .. }), "{error}");
    }
}
