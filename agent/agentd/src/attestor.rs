//! The TPM and what this boot has measured with it, always taken together.
//!
//! Invariants: the register is extended only through [`Attestor::measure`], which logs first; a quote is handed
//! out only with the very values that it signed, as the verifier's own code judges.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::enrol::{EnrolError, SECRET_BYTES, qualifying_data, read_challenge};
use evidence::format::{
    AGENT_PCR, AgentEvent, Challenge, IDENTITY_SCHEMA, Identity, RESPONSE_SCHEMA, Response,
};
use evidence::key::{AttestationKey as Judge, KeyError};
use evidence::ledger::{Checkpoint, LedgerError, ORIGIN_PREFIX, ecdsa_key_id, sign_note};
use evidence::quote::{PcrValues, PcrsError, QuoteError};
use evidence::sealed::{ContentKey, Misfit, SealedKey};
use p256::pkcs8::EncodePublicKey;
use tpm::{AttestationKey, Endorsement, Quote, Tpm, TpmError};

use crate::boot::{self, BootError};
use crate::measured::{self, Measured, MeasuredError};

/// Quoted registers: those that only a reset clears. 16 to 23 are for debuggers and late launch.
pub(crate) const QUOTED: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// Times that a quote is repeated because a register changed between reading and quoting.
const QUOTE_ATTEMPTS_MAX: u32 = 3;

/// The open TPM, its attestation key, and the log of what was measured.
#[derive(Debug)]
pub(crate) struct Attestor {
    tpm: Tpm,
    key: AttestationKey,
    /// The same key as an auditor sees it.
    judge: Judge,
    origin: String,
    key_id: [u8; 4],
    measured: Measured,
    runtime: PathBuf,
    /// Read when it is first asked for: it costs the TPM seconds, and not every TPM has it.
    endorsement: Option<Endorsement>,
}

/// Why nothing was attested.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttestorError {
    /// The TPM failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The boot was not measured.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Log and register do not fit.
    #[error(transparent)]
    Measured(#[from] MeasuredError),
    /// An auditor would not accept the key.
    #[error("the TPM's attestation key is not usable: {0}")]
    Key(#[from] KeyError),
    /// The public key is no point of P-256.
    #[error("the TPM's attestation key is no P-256 key: {reason}")]
    Point { reason: String },
    /// An auditor would not accept the quote.
    #[error("the TPM's quote does not hold: {0}")]
    Quote(#[from] QuoteError),
    /// The challenge is malformed.
    #[error("the challenge is not usable: {0}")]
    Challenge(#[from] EnrolError),
    /// It is for another machine.
    #[error("the challenge is for the attestation key {found:?}; this machine has {expected}")]
    OtherKey { found: String, expected: String },
    /// What the TPM gave out is no secret of a challenge.
    #[error("the challenge's secret has {found} bytes; {SECRET_BYTES} are expected")]
    Secret { found: usize },
    /// Registers change faster than they can be quoted.
    #[error("PCRs changed during each of {QUOTE_ATTEMPTS_MAX} quotes ({last}); ask again")]
    Unsteady { last: PcrsError },
}

/// Why the key of an encrypted bundle does not come out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnsealError {
    /// It is for another machine, or for another boot of this one.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The TPM has the last word.
    #[error("the TPM does not give out its key: {0}; pack the medium again for this machine")]
    Tpm(#[from] TpmError),
}

impl Attestor {
    /// Opens the TPM, refuses a boot that was not measured, and takes up this boot's log.
    pub(crate) fn start(tcti: &str, runtime: &Path) -> Result<Self, AttestorError> {
        let mut tpm = Tpm::open(tcti)?;
        let pcrs = tpm.pcrs()?;
        boot::check_measured(&pcrs)?;
        let measured = Measured::load(runtime)?.resume(pcrs[usize::from(AGENT_PCR)])?;
        let key = AttestationKey::create(&mut tpm)?;
        let judge = Judge::parse(key.public())?;
        let spki = spki(key.point())?;
        let key_id = ecdsa_key_id(&spki);
        let origin = format!("{ORIGIN_PREFIX}{}", hex::encode(key.name()));
        let (runtime, endorsement) = (runtime.to_owned(), None);
        Ok(Self { tpm, key, judge, origin, key_id, measured, runtime, endorsement })
    }

    /// Measures `content`, unless this boot has done so already; another content of its kind is refused.
    pub(crate) fn measure_once(&mut self, kind: &str, content: &str) -> Result<(), AttestorError> {
        let event = AgentEvent { kind: kind.to_owned(), content: content.to_owned() };
        if !self.measured.has(&event)? {
            let signatures = self.measured.signatures.clone();
            self.measure(event, signatures)?;
        }
        Ok(())
    }

    /// Logs `event`, then extends the register by it.
    pub(crate) fn measure(
        &mut self,
        event: AgentEvent,
        signatures: Vec<String>,
    ) -> Result<(), AttestorError> {
        let digest = measured::digest(&event);
        let mut measured = self.measured.clone();
        measured.events.push(event);
        measured.signatures = signatures;
        measured.save(&self.runtime)?;
        self.tpm.extend(AGENT_PCR, digest)?;
        self.measured = measured;
        Ok(())
    }

    /// TPM and key, for the counter. Its commands touch no register.
    pub(crate) fn counting(&mut self) -> (&mut Tpm, &AttestationKey) {
        (&mut self.tpm, &self.key)
    }

    /// What this boot has measured.
    pub(crate) fn measured(&self) -> &Measured {
        &self.measured
    }

    /// Name of the ledger: its notes are signed in this name.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// TPM Name of the attestation key, hex.
    pub(crate) fn key_name(&self) -> String {
        hex::encode(self.key.name())
    }

    /// `TPMT_PUBLIC` of the attestation key.
    pub(crate) fn public(&self) -> &[u8] {
        self.key.public()
    }

    /// Signs a head of the ledger: a note whose signature is `r ‖ s` of ECDSA P-256 over SHA-256.
    pub(crate) fn sign_checkpoint(
        &mut self,
        checkpoint: &Checkpoint,
    ) -> Result<String, AttestorError> {
        let body = checkpoint.body();
        let signature = self.key.sign(&mut self.tpm, body.as_bytes())?;
        Ok(sign_note(&body, &checkpoint.origin, self.key_id, &signature))
    }

    /// Reads a note that this TPM signed.
    pub(crate) fn open_checkpoint(&self, note: &str) -> Result<Checkpoint, LedgerError> {
        Checkpoint::parse(note, |message, signature| self.judge.verify(message, signature))
    }

    /// What an auditor enrols: the endorsement key with its certificates, and the attestation key.
    pub(crate) fn identity(&mut self) -> Result<Identity, AttestorError> {
        let endorsement = self.endorsement()?;
        Ok(Identity {
            schema: IDENTITY_SCHEMA.to_owned(),
            ek_certificates: endorsement
                .certificates
                .iter()
                .map(|der| STANDARD.encode(der))
                .collect(),
            ek_public: STANDARD.encode(&endorsement.public),
            ak_public: STANDARD.encode(self.key.public()),
        })
    }

    /// Has the TPM open a challenge, and quotes under what was in it.
    pub(crate) fn answer(&mut self, challenge: &Challenge) -> Result<Response, AttestorError> {
        let (name, credential) = read_challenge(challenge)?;
        let expected = self.key_name();
        if !name.eq_ignore_ascii_case(&expected) {
            let found = name.chars().take(expected.len()).collect();
            return Err(AttestorError::OtherKey { found, expected });
        }
        let kind = self.endorsement()?.kind;
        let (id_object, encrypted) = (&credential.id_object, &credential.encrypted_secret);
        let secret = self.tpm.activate(kind, &self.key, id_object, encrypted)?;
        let secret = <[u8; SECRET_BYTES]>::try_from(secret.as_slice())
            .map_err(|_| AttestorError::Secret { found: secret.len() })?;
        let (quote, _) = self.quote(qualifying_data(&secret))?;
        Ok(Response {
            schema: RESPONSE_SCHEMA.to_owned(),
            secret: hex::encode(secret),
            attest: STANDARD.encode(&quote.attest),
            signature: STANDARD.encode(&quote.signature),
        })
    }

    /// Has the TPM unseal the key of an encrypted bundle, if it is for this machine in this state.
    pub(crate) fn unseal(&mut self, sealed: &SealedKey) -> Result<ContentKey, UnsealError> {
        sealed.check_machine(&self.key_name())?;
        let pcrs = self.tpm.pcrs()?;
        sealed.check_pcrs(&(0..).zip(pcrs).collect())?;
        let endorsement = self.endorsement()?;
        let kind = endorsement.kind;
        let certificate = endorsement.certificates.first().map_or(&[][..], Vec::as_slice);
        sealed.check_certificate(certificate)?;
        Ok(self.tpm.unseal(kind, sealed)?)
    }

    fn endorsement(&mut self) -> Result<&Endorsement, TpmError> {
        let endorsement = match self.endorsement.take() {
            Some(endorsement) => endorsement,
            None => self.tpm.endorsement()?,
        };
        Ok(self.endorsement.insert(endorsement))
    }

    /// Quotes [`QUOTED`]; returns the values that the quote signed as well.
    pub(crate) fn quote(
        &mut self,
        qualifying: [u8; 32],
    ) -> Result<(Quote, PcrValues), AttestorError> {
        let mut attempt = 1;
        loop {
            let pcrs = self.tpm.pcrs()?;
            let quote = self.key.quote(&mut self.tpm, qualifying, &QUOTED)?;
            let judged =
                evidence::quote::Quote::verify(&self.judge, &quote.attest, &quote.signature)?;
            let values = QUOTED.iter().map(|&pcr| (pcr, pcrs[usize::from(pcr)])).collect();
            match judged.check_pcrs(&values) {
                Ok(()) => return Ok((quote, values)),
                Err(last) if attempt >= QUOTE_ATTEMPTS_MAX => {
                    return Err(AttestorError::Unsteady { last });
                }
                Err(_changed_meanwhile) => attempt += 1,
            }
        }
    }
}

/// SubjectPublicKeyInfo of a point, DER.
fn spki(point: &[u8]) -> Result<Vec<u8>, AttestorError> {
    let refuse = |reason: String| AttestorError::Point { reason };
    let key = p256::PublicKey::from_sec1_bytes(point).map_err(|e| refuse(e.to_string()))?;
    let der = key.to_public_key_der().map_err(|e| refuse(e.to_string()))?;
    Ok(der.into_vec())
}
