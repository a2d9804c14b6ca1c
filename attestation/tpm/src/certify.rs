//! `TPM2_NV_Certify`, which tss-esapi 7.7 lacks and does not let others add: its ESYS context is private. So this
//! is a second context of tpm2-tss beside it, for this one command.
//!
//! Invariant: nothing stays loaded in it. The key comes as the first context saved it and is flushed before
//! [`Certifier::certify`] returns, so a TPM without a resource manager has one object more for that long.
#![expect(
    unsafe_code,
    reason = "calls of tpm2-tss, each with a SAFETY comment; see ARCHITECTURE.md"
)]

use std::ffi::CString;
use std::ptr::null_mut;

use tss_esapi::constants::tss::TPM2_ALG_NULL;
use tss_esapi::structures::Signature;
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::traits::Marshall;
use tss_esapi::tss2_esys as tss;
use tss_esapi::utils::TpmsContext;

use crate::{TpmError, during};

/// `TSS2_RC_SUCCESS`; TCG TSS 2.0 Overview and Common Structures.
const SUCCESS: u32 = 0;

/// Owns an ESYS context and the transport below it; both are non-null until dropped.
#[derive(Debug)]
pub(crate) struct Certifier {
    esys: *mut tss::ESYS_CONTEXT,
    tcti: *mut tss::TSS2_TCTI_CONTEXT,
}

// SAFETY: ESYS and TCTI contexts are plain memory, not bound to the thread that made them, and are reached through
// `&mut self` only.
unsafe impl Send for Certifier {}

impl Certifier {
    /// Opens the transport once more.
    pub(crate) fn open(transport: TctiNameConf) -> Result<Self, TpmError> {
        let name = CString::try_from(transport).map_err(during("Tss2_TctiLdr_Initialize"))?;
        let mut opened = Self { esys: null_mut(), tcti: null_mut() };
        // SAFETY: `name` is a C string that outlives the call, `tcti` a place for one pointer.
        let code = unsafe { tss::Tss2_TctiLdr_Initialize(name.as_ptr(), &raw mut opened.tcti) };
        check("Tss2_TctiLdr_Initialize", code)?;
        // SAFETY: `tcti` was initialized above and lives until `drop`; no ABI version is asked for.
        let code = unsafe { tss::Esys_Initialize(&raw mut opened.esys, opened.tcti, null_mut()) };
        check("Esys_Initialize", code)?;
        Ok(opened)
    }

    /// Certifies the first `bytes` bytes of an NV index that the owner may read without a password. Returns
    /// `TPMS_ATTEST` and `TPMT_SIGNATURE`, marshalled.
    pub(crate) fn certify(
        &mut self,
        key: TpmsContext,
        index: u32,
        bytes: u16,
        qualifying: [u8; 32],
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        let mut handle = tss::ESYS_TR_NONE;
        // SAFETY: `esys` is live; no sessions; `handle` is a place for one handle.
        let code = unsafe {
            let none = tss::ESYS_TR_NONE;
            tss::Esys_TR_FromTPMPublic(self.esys, index, none, none, none, &raw mut handle)
        };
        check("TPM2_NV_ReadPublic", code)?;
        let answer =
            self.with_key(key, |esys, key| nv_certify(esys, key, handle, bytes, qualifying));
        // SAFETY: `handle` came from this context and is not used after.
        let code = unsafe { tss::Esys_TR_Close(self.esys, &raw mut handle) };
        let answer = answer?;
        check("Esys_TR_Close", code)?;
        Ok(answer)
    }

    /// Loads the key, and flushes it whatever `work` comes to.
    fn with_key<T>(
        &mut self,
        key: TpmsContext,
        work: impl FnOnce(*mut tss::ESYS_CONTEXT, tss::ESYS_TR) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let saved = tss::TPMS_CONTEXT::try_from(key).map_err(during("TPM2_ContextLoad"))?;
        let mut key = tss::ESYS_TR_NONE;
        // SAFETY: `esys` is live, `saved` outlives the call, `key` is a place for one handle.
        let code = unsafe { tss::Esys_ContextLoad(self.esys, &raw const saved, &raw mut key) };
        check("TPM2_ContextLoad", code)?;
        let answer = work(self.esys, key);
        // SAFETY: `key` was loaded into this context above and is not used after.
        let code = unsafe { tss::Esys_FlushContext(self.esys, key) };
        let answer = answer?;
        check("TPM2_FlushContext", code)?;
        Ok(answer)
    }
}

/// `esys` must be live, `key` and `index` its handles.
fn nv_certify(
    esys: *mut tss::ESYS_CONTEXT,
    key: tss::ESYS_TR,
    index: tss::ESYS_TR,
    bytes: u16,
    qualifying: [u8; 32],
) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
    let command = "TPM2_NV_Certify";
    let mut data = tss::TPM2B_DATA { size: 32, ..Default::default() };
    data.buffer[..32].copy_from_slice(&qualifying);
    // The key has a scheme of its own.
    let scheme = tss::TPMT_SIG_SCHEME { scheme: TPM2_ALG_NULL, ..Default::default() };
    let (mut attest, mut signature) = (null_mut(), null_mut());
    // SAFETY: `esys` is live and the handles are its own; both authorizations are empty passwords; `data` and
    // `scheme` outlive the call; the last two are places for one pointer each.
    let code = unsafe {
        tss::Esys_NV_Certify(
            esys,
            key,
            tss::ESYS_TR_RH_OWNER,
            index,
            tss::ESYS_TR_PASSWORD,
            tss::ESYS_TR_PASSWORD,
            tss::ESYS_TR_NONE,
            &raw const data,
            &raw const scheme,
            bytes,
            0,
            &raw mut attest,
            &raw mut signature,
        )
    };
    check(command, code)?;
    let (attest, signature) = (take(attest)?, take(signature)?);
    let length = usize::from(attest.size);
    let attest = attest.attestationData.get(..length).ok_or_else(|| TpmError::Answer {
        command,
        found: format!("TPM2B_ATTEST of {length} bytes"),
        expected: "no more than its buffer",
    })?;
    let signature = Signature::try_from(signature).map_err(during(command))?;
    Ok((attest.to_vec(), signature.marshall().map_err(during(command))?))
}

/// Copies what a successful command answered, and frees it.
fn take<T: Copy>(answer: *mut T) -> Result<T, TpmError> {
    if answer.is_null() {
        return Err(TpmError::Answer {
            command: "TPM2_NV_Certify",
            found: "nothing".to_owned(),
            expected: "an attestation and its signature",
        });
    }
    // SAFETY: not null, so tpm2-tss allocated and filled it, and nobody else has it.
    let value = unsafe { *answer };
    // SAFETY: as above; it is not used after.
    unsafe { tss::Esys_Free(answer.cast()) };
    Ok(value)
}

fn check(command: &'static str, code: u32) -> Result<(), TpmError> {
    if code == SUCCESS { Ok(()) } else { Err(TpmError::Code { command, code }) }
}

impl Drop for Certifier {
    fn drop(&mut self) {
        if !self.esys.is_null() {
            // SAFETY: initialized in `open`, and never used again.
            unsafe { tss::Esys_Finalize(&raw mut self.esys) };
        }
        if !self.tcti.is_null() {
            // SAFETY: initialized in `open`; its ESYS context is gone.
            unsafe { tss::Tss2_TctiLdr_Finalize(&raw mut self.tcti) };
        }
    }
}
