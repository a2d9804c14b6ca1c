//! `casemate-verify enrol`: from an identity to a pinned machine. The one command with a clock and randomness.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use evidence::enrol::{
    CredentialError, Draw, EkCertificate, EnrolError, Enrollee, FILE_BYTES_MAX, ROOTS_MAX, Roots,
    certificates, finish,
};
use evidence::format::{Challenge, Identity, Response, Secret};
use jiff::Timestamp;
use serde::Serialize;

use crate::Report;
use crate::files::{Kind, TRUST_BYTES_MAX, read, read_json};
use crate::random::random;
use crate::words::Language;

/// Endings of certificate files; others in the folder are not looked at.
const CERTIFICATE_ENDINGS: [&str; 4] = ["pem", "der", "crt", "cer"];
/// Draws until one is a private key: each fails once in 2³².
const DRAWS_MAX: u32 = 4;

/// Steps of an enrolment.
#[derive(Debug, Subcommand)]
pub(crate) enum EnrolCommand {
    /// Judge an identity, and make a challenge that only its TPM can answer.
    Challenge(ChallengeArgs),
    /// Judge the answer, and pin the machine.
    Finish(FinishArgs),
}

/// Arguments of `enrol challenge`.
#[derive(Debug, Args)]
pub(crate) struct ChallengeArgs {
    /// `identity.json` of the appliance: GET /casemate/identity, or from an exchange stick.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Folder with certificates of the TPM vendors that you trust, and of their intermediate authorities (PEM or DER).
    #[arg(long, value_name = "DIR")]
    roots: PathBuf,
    /// Folder for `challenge.json`, to be sent, and `secret.json`, to be kept.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Time at which certificates must be valid (RFC 3339); this computer's clock if not given.
    #[arg(long, value_name = "TIME")]
    time: Option<Timestamp>,
    /// Language of the report.
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
}

/// Arguments of `enrol finish`.
#[derive(Debug, Args)]
pub(crate) struct FinishArgs {
    /// The identity for which the challenge was made.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// `secret.json` of that challenge.
    #[arg(long, value_name = "FILE")]
    secret: PathBuf,
    /// `response.json` of the appliance: POST /casemate/enrol, or from an exchange stick.
    #[arg(long, value_name = "FILE")]
    response: PathBuf,
    /// Where to write `machine.json`.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Language of the report.
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
}

pub(crate) fn run(command: &EnrolCommand) -> anyhow::Result<Report> {
    match command {
        EnrolCommand::Challenge(args) => challenge(args),
        EnrolCommand::Finish(args) => finished(args),
    }
}

fn challenge(args: &ChallengeArgs) -> anyhow::Result<Report> {
    let identity: Identity = read_file(&args.identity)?;
    let roots = read_roots(&args.roots)?;
    let time = args.time.unwrap_or_else(Timestamp::now);
    let time_s = u64::try_from(time.as_second()).context("the time is before 1970")?;
    let made = Enrollee::verify(&identity, &roots, time_s).and_then(|enrollee| {
        let (challenge, secret) = draw_challenge(&enrollee, time)?;
        Ok((enrollee, challenge, secret))
    });
    let (enrollee, challenge, secret) = match made {
        Ok(made) => made,
        Err(error) => return refused(&error, args.lang),
    };
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    write_new(&args.out.join("secret.json"), &secret, 0o600)?;
    write_new(&args.out.join("challenge.json"), &challenge, 0o644)?;
    let text = described(enrollee.certificate(), &challenge.ak_name, args.lang)?;
    Ok(Report { text, established: true })
}

fn draw_challenge(enrollee: &Enrollee, time: Timestamp) -> Result<(Challenge, Secret), EnrolError> {
    let mut last = EnrolError::Credential(CredentialError::Seed);
    for _ in 0..DRAWS_MAX {
        let draw =
            draw().map_err(|error| EnrolError::Randomness { reason: format!("{error:#}") })?;
        match enrollee.challenge(&draw, time.to_string()) {
            Err(error @ EnrolError::Credential(CredentialError::Seed)) => last = error,
            made => return made,
        }
    }
    Err(last)
}

fn draw() -> anyhow::Result<Draw> {
    Ok(Draw { secret: random()?, seed: random()?, padding: random()? })
}

fn finished(args: &FinishArgs) -> anyhow::Result<Report> {
    let identity: Identity = read_file(&args.identity)?;
    let secret: Secret = read_file(&args.secret)?;
    let response: Response = read_file(&args.response)?;
    let machine = match finish(&identity, &secret, &response) {
        Ok(machine) => machine,
        Err(error) => return refused(&error, args.lang),
    };
    write_new(&args.out, &machine, 0o644)?;
    let (name, out) = (&machine.ak_name, args.out.display());
    let en = format!("the attestation key {name} is in that TPM; {out} pins it\nENROLLED\n");
    let fr = format!("la clé d'attestation {name} est dans ce TPM ; {out} l'épingle\nENRÔLÉE\n");
    Ok(Report { text: args.lang.pick(&en, &fr).to_owned(), established: true })
}

fn described(certificate: &EkCertificate, name: &str, lang: Language) -> anyhow::Result<String> {
    let mut text = String::new();
    let lines = [
        (lang.pick("TPM", "TPM"), certificate.tpm.as_str()),
        (lang.pick("EK certificate", "certificat EK"), &hex::encode(certificate.sha256)),
        (lang.pick("EK", "EK"), certificate.key.kind()),
        (lang.pick("issued by", "émis par"), &certificate.issuer),
        (lang.pick("root", "racine"), &certificate.root.subject),
        (lang.pick("root's SHA-256", "SHA-256 racine"), &hex::encode(certificate.root.sha256)),
        (lang.pick("attestation key", "clé d'attestation"), name),
    ];
    for (what, value) in lines {
        writeln!(text, "{what:<17}  {value}")?;
    }
    let rest = lang.pick(
        "the certificate holds; that the attestation key is in its TPM is what the answer must show: \
         send challenge.json, keep secret.json (whoever reads it can forge the answer)",
        "le certificat tient ; que la clé d'attestation est dans son TPM, la réponse doit le montrer : \
         envoyer challenge.json, garder secret.json (qui le lit peut forger la réponse)",
    );
    writeln!(text, "{rest}")?;
    Ok(text)
}

fn refused(error: &EnrolError, lang: Language) -> anyhow::Result<Report> {
    let mut text = String::new();
    writeln!(text, "{}\n{}", lang.reason(&error.reason()), lang.pick("REFUSED", "REFUSÉ"))?;
    Ok(Report { text, established: false })
}

fn read_file<T: Kind>(path: &Path) -> anyhow::Result<T> {
    read_json(path, FILE_BYTES_MAX as u64)
}

/// Every certificate file of a folder, in order of their names.
fn read_roots(folder: &Path) -> anyhow::Result<Roots> {
    let shown = || folder.display().to_string();
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(shown)? {
        let path = entry.with_context(shown)?.path();
        let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        if CERTIFICATE_ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)) {
            ensure!(paths.len() < ROOTS_MAX, "{} has more than {ROOTS_MAX} files", shown());
            paths.push(path);
        }
    }
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let file = read(&path, TRUST_BYTES_MAX)?;
        found.extend(certificates(&file).with_context(|| path.display().to_string())?);
    }
    Roots::parse(&found).with_context(|| format!("no usable roots in {}", shown()))
}

/// Writes a file that is not there yet: an earlier secret or pin is not lost by mistake.
fn write_new(path: &Path, value: &impl Serialize, mode: u32) -> anyhow::Result<()> {
    let shown = || format!("cannot write {}", path.display());
    let text = serde_json::to_string_pretty(value)? + "\n";
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create_new(true).mode(mode).open(path).with_context(shown)?;
    file.write_all(text.as_bytes()).with_context(shown)?;
    file.sync_all().with_context(shown)
}
