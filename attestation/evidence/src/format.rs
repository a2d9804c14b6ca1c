//! The JSON files that travel between builder, appliance and auditor.
//!
//! Binary fields are base64 (standard alphabet, padded) where they are long and lower-case hex where they
//! are digests. Reading a file proves nothing: only `verify` judges it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Schema name of [`Evidence`].
pub const EVIDENCE_SCHEMA: &str = "casemate-evidence-v1";
/// Schema name of [`Reference`].
pub const REFERENCE_SCHEMA: &str = "casemate-reference-v1";
/// Schema name of [`Site`].
pub const SITE_SCHEMA: &str = "casemate-site-v1";
/// Schema name of [`Policy`].
pub const POLICY_SCHEMA: &str = "casemate-policy-v1";
/// Schema name of [`Identity`].
pub const IDENTITY_SCHEMA: &str = "casemate-identity-v1";
/// Schema name of [`Challenge`].
pub const CHALLENGE_SCHEMA: &str = "casemate-challenge-v1";
/// Schema name of [`Secret`].
pub const SECRET_SCHEMA: &str = "casemate-secret-v1";
/// Schema name of [`Response`].
pub const RESPONSE_SCHEMA: &str = "casemate-response-v1";
/// PCR that the agent extends: not resettable before the next boot, used by nothing else without shim.
pub const AGENT_PCR: u8 = 14;
/// First bytes of what a quote's `extraData` hashes, see `verify`.
pub const QUALIFYING_CONTEXT: &[u8] = b"casemate-evidence-v1\0";

/// What one appliance says of itself under one nonce.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// [`EVIDENCE_SCHEMA`].
    pub schema: String,
    /// The verifier's 32 bytes, hex.
    pub nonce: String,
    /// The appliance's own clock, RFC 3339, UTC; nothing vouches for it.
    pub created: String,
    /// `development` or `release`, from the os-release in the signed image.
    pub profile: String,
    /// The TPM's signature over the PCRs.
    pub quote: Quote,
    /// Firmware event log (`binary_bios_measurements`), base64.
    pub firmware_log: String,
    /// systemd's userspace log (`tpm2-measure.log`, CEL-JSON as JSON text sequence), base64.
    pub userspace_log: String,
    /// What agentd extended into [`AGENT_PCR`], in order.
    pub agent_log: Vec<AgentEvent>,
    /// The bundle that runs, if one does.
    pub bundle: Option<BundleStatement>,
    /// Head of the ledger and its newest records.
    pub ledger: LedgerProof,
    /// That ledger and state are of now.
    pub counter: CounterProof,
}

/// A TPM2 quote and what is needed to check it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quote {
    /// `TPMS_ATTEST`, marshalled, base64.
    pub attest: String,
    /// `TPMT_SIGNATURE`, marshalled, base64.
    pub signature: String,
    /// `TPMT_PUBLIC` of the attestation key, marshalled, base64.
    pub public: String,
    /// Values of the SHA-256 bank, by PCR index, hex.
    pub pcrs: BTreeMap<u8, String>,
}

/// One measurement by agentd: `AGENT_PCR` was extended by SHA-256 of `content`'s bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentEvent {
    /// One of [`agent_event`], in the order that stands there.
    pub kind: String,
    /// The measured text.
    pub content: String,
}

/// Kinds of [`AgentEvent`], in the order in which agentd measures them: `policy`, `site`, `tls-key`, agentd's own
/// `confinement`; then the other processes' as they start, and `bundle`, which comes after the engine's.
pub mod agent_event {
    /// The quorum policy's file.
    pub const POLICY: &str = "policy";
    /// The site configuration's file, see [`super::Site`].
    pub const SITE: &str = "site";
    /// SHA-256 of the gateway's SubjectPublicKeyInfo (DER), lower-case hex.
    pub const TLS_KEY: &str = "tls-key";
    /// See [`super::ConfinementEvent`]; one per process.
    pub const CONFINEMENT: &str = "confinement";
    /// See [`super::BundleEvent`].
    pub const BUNDLE: &str = "bundle";
}

/// Content of an [`AgentEvent`] of kind `confinement`, as compact JSON in this field order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfinementEvent {
    /// `agentd`, `engine` or `gateway`.
    pub process: String,
    /// SHA-256 of the canonical text of its table, lower-case hex; see `sandbox`.
    pub table_sha256: String,
    /// What the process tried when it was confined and saw refused, by name.
    pub self_test: Vec<String>,
}

/// Content of an [`AgentEvent`] of kind `bundle`, as compact JSON in this field order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleEvent {
    /// SHA-256 of the DSSE payload, hex.
    pub bundle_digest: String,
    /// Name under which the model is served.
    pub model_id: String,
    /// Version of the bundle within that name's line.
    pub version: u64,
    /// Names of the release keys whose signatures were counted, sorted.
    pub signers: Vec<String>,
}

/// The signatures of an admitted bundle, so that a verifier repeats the decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleStatement {
    /// Name under which the model is served.
    pub model_id: String,
    /// Sigstore bundles (JSON text), one per release key, over the identical DSSE payload.
    pub signatures: Vec<String>,
}

/// The ledger's head and its newest records.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerProof {
    /// C2SP signed note: origin, tree size and root hash, signed by the attestation key.
    pub checkpoint: String,
    /// Newest records, oldest first, each with its inclusion proof under the checkpoint.
    pub records: Vec<ProvenRecord>,
}

/// What the TPM's counter shows, and the ledger's record of that count.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CounterProof {
    /// `TPMS_ATTEST` of `TPM2_NV_Certify` over the index of `counter::INDEX`, with the quote's `extraData`;
    /// marshalled, base64.
    pub attest: String,
    /// `TPMT_SIGNATURE` over it, marshalled, base64.
    pub signature: String,
    /// The newest record with a count.
    pub counted: ProvenRecord,
}

/// A ledger record and its RFC 6962 inclusion proof.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvenRecord {
    /// Index in the ledger, from 0.
    pub index: u64,
    /// The record's exact bytes: one JSON object, see `ledger::Record`.
    pub record: String,
    /// Audit path, leaf to root, hex.
    pub proof: Vec<String>,
}

/// What a boot of one image must show, computed by the builder before it ever boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// [`REFERENCE_SCHEMA`].
    pub schema: String,
    /// `IMAGE_ID` of the os-release.
    pub image_id: String,
    /// `IMAGE_VERSION` of the os-release.
    pub image_version: String,
    /// `development` or `release`.
    pub profile: String,
    /// Expected values of the SHA-256 bank once the boot is complete, by PCR index, hex.
    pub pcrs: BTreeMap<u8, String>,
    /// What those values add up, by PCR index and in order; a PCR that stays zero has no entry.
    #[serde(default)]
    pub measurements: BTreeMap<u8, Vec<Measurement>>,
    /// Why the other PCRs have no expected value, by index.
    pub machine_pcrs: BTreeMap<u8, String>,
    /// SHA-256 of the UKI file, hex.
    pub uki_sha256: String,
    /// Authenticode digest (SHA-256) of the UKI as firmware measures it, hex.
    pub uki_authenticode: String,
    /// Root hash of the dm-verity root partition, hex; also on the kernel command line.
    pub root_hash: String,
    /// The kernel command line inside the UKI.
    pub cmdline: String,
    /// SHA-256 of the quorum policy file in the image, hex.
    pub policy_sha256: String,
    /// SHA-256 of the site configuration file in the image, hex.
    pub site_sha256: String,
    /// What each process must report of its confinement, by process.
    pub confinement: BTreeMap<String, Confinement>,
}

/// How one process must be confined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// SHA-256 of the canonical text of its table, lower-case hex.
    pub table_sha256: String,
    /// What it must have seen refused, by name.
    pub self_test: Vec<String>,
}

/// Configuration of one site, in the signed image. It holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// [`SITE_SCHEMA`].
    pub schema: String,
    /// Grows with each change.
    pub version: u64,
    /// Names and addresses by which clients reach the gateway: they are in its certificate.
    pub server_names: Vec<String>,
    /// SHA-256 of `client-ca.pem` beside it, whose authorities make a client; hex.
    pub client_ca_sha256: String,
    /// Public key (SubjectPublicKeyInfo in PEM, P-256) to which the recovery key of the state partition is encrypted;
    /// without it, that is shown on the console once. See `recovery`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_escrow: Option<String>,
}

/// [`Measurement::what`] of the certificate in db that verifies the UKI: the last that firmware measures into PCR 7.
pub const AUTHORITY_OF_UKI: &str = "authority of the UKI: db";

/// One measurement that a boot of the image makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// What is measured: a variable, a program, a section of the UKI, a phase of the boot.
    pub what: String,
    /// The digest by which the PCR is extended, hex.
    pub sha256: String,
}

/// Who must sign a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// [`POLICY_SCHEMA`].
    pub schema: String,
    /// Distinct keys that must have signed; at least 1 and at most the number of keys.
    pub threshold: u32,
    /// Release keys.
    pub keys: Vec<ReleaseKey>,
}

/// A release key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseKey {
    /// Who holds it; unique within the policy.
    pub name: String,
    /// SubjectPublicKeyInfo in PEM; ECDSA P-256 or P-384.
    pub pem: String,
}

/// An attestation key that an auditor trusts to be inside one machine's TPM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// TPM Name of the attestation key: `000b` and SHA-256 of its `TPMT_PUBLIC`, hex.
    pub ak_name: String,
    /// What proved that the key is in a vendor's TPM; without it, whoever read the Name off the console vouches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment: Option<Enrolment>,
    /// The count at which the machine's state began, as its console says. It changes only when the state was set
    /// aside with all it knew of versions; without it, nobody notices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_began: Option<u64>,
}

impl Machine {
    /// The machine whose console showed `ak_name`: trust on first use.
    #[must_use]
    pub fn from_console(ak_name: impl Into<String>) -> Self {
        Self { ak_name: ak_name.into(), enrolment: None, state_began: None }
    }
}

/// What an enrolment found, see `enrol`. Pins the machine from then on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// SHA-256 of the endorsement key's certificate, hex.
    pub ek_certificate_sha256: String,
    /// Who issued that certificate.
    pub ek_issuer: String,
    /// What it says of the TPM: manufacturer, model, version.
    pub tpm: String,
    /// Subject of the root at which its chain ended.
    pub root: String,
    /// SHA-256 of that root's certificate, hex.
    pub root_sha256: String,
    /// The auditor's clock when the challenge was made, RFC 3339, UTC.
    pub enrolled: String,
    /// The TPM's count of resets since it was last cleared, from the quote that answered the challenge.
    pub reset_count: u32,
    /// Milliseconds of the TPM's clock in that quote.
    pub clock_ms: u64,
}

/// `identity.json`: what an appliance shows of its TPM before anybody trusts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// [`IDENTITY_SCHEMA`].
    pub schema: String,
    /// Certificate of the endorsement key, then those of authorities that the TPM holds; DER, base64.
    pub ek_certificates: Vec<String>,
    /// `TPMT_PUBLIC` of the endorsement key, marshalled, base64.
    pub ek_public: String,
    /// `TPMT_PUBLIC` of the attestation key, marshalled, base64.
    pub ak_public: String,
}

/// `challenge.json`: what only the TPM of one identity can answer, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// [`CHALLENGE_SCHEMA`].
    pub schema: String,
    /// TPM Name of the attestation key that must be in the same TPM, hex.
    pub ak_name: String,
    /// Contents of `TPM2B_ID_OBJECT`, base64.
    pub id_object: String,
    /// Contents of `TPM2B_ENCRYPTED_SECRET`, base64.
    pub encrypted_secret: String,
}

/// `secret.json`: what the auditor keeps until the answer comes. Whoever reads it can forge that answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// [`SECRET_SCHEMA`].
    pub schema: String,
    /// The secret inside the challenge, hex.
    pub secret: String,
    /// The key that it is for, as in [`Challenge`].
    pub ak_name: String,
    /// As in [`Enrolment`].
    pub ek_certificate_sha256: String,
    /// As in [`Enrolment`].
    pub ek_issuer: String,
    /// As in [`Enrolment`].
    pub tpm: String,
    /// As in [`Enrolment`].
    pub root: String,
    /// As in [`Enrolment`].
    pub root_sha256: String,
    /// As in [`Enrolment`].
    pub enrolled: String,
}

/// `response.json`: the secret, and a quote under it by the key that was enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// [`RESPONSE_SCHEMA`].
    pub schema: String,
    /// The activated secret, hex.
    pub secret: String,
    /// `TPMS_ATTEST` of a quote whose `extraData` is `enrol::qualifying_data` of the secret, marshalled, base64.
    pub attest: String,
    /// `TPMT_SIGNATURE` over it, marshalled, base64.
    pub signature: String,
}

/// `model/casemate.json` inside a bundle: signed with the other files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// Name under which clients ask for the model: `[a-z0-9._-]`, at most 64 bytes.
    pub model_id: String,
    /// Grows with each release under this name: an appliance that has run one runs none below it.
    pub version: u64,
    /// File with the weights, relative to the model folder.
    pub weights: String,
}
