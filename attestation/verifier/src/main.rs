//! casemate-verify: evidence in, verdict out, on any laptop. No TPM; no claim depends on a clock of its own, though `enrol`
//! reads it; a network only for `fetch` and `proxy`, whose code is `client`.
//!
//! Exit status: 0 established, 1 not established, 2 unusable input or usage.

mod client;
mod enrol;
mod event_log;
mod export;
mod files;
mod judge;
mod pcr_file;
mod quote;
mod random;
mod report;
mod words;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use evidence::time::Timestamp;
use words::Language;

/// Judges the evidence of a casemate appliance.
#[derive(Debug, Parser)]
#[command(name = "casemate-verify", version, about)]
#[command(after_help = "Exit status: 0 established, 1 not established, 2 unusable input or usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Judge an evidence file: one line per claim, then the verdict.
    Evidence(EvidenceArgs),
    /// Enrol a machine: pin an attestation key that is in a vendor's TPM.
    #[command(subcommand)]
    Enrol(enrol::EnrolCommand),
    /// Replay a firmware event log to the PCRs that it gives.
    Eventlog(EventLogArgs),
    /// Fetch evidence from an appliance, judge it, and pin the gateway's key if it is established.
    Fetch(Box<client::fetch::FetchArgs>),
    /// Let unchanged OpenAI clients talk to an attested appliance, and to no other.
    Proxy(Box<client::proxy::ProxyArgs>),
    /// Check a TPM2 quote under an attestation key.
    Quote(QuoteArgs),
    /// Write our files in other formats.
    Export {
        #[command(subcommand)]
        format: export::Format,
    },
}

#[derive(Debug, Args)]
struct EvidenceArgs {
    /// The evidence, as the appliance sent it.
    file: PathBuf,
    /// `reference.json` of the image, from its builder.
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// The quorum policy that the image must enforce.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// `machine.json`: the attestation key that was pinned, by `enrol` or from the console.
    #[arg(long, value_name = "FILE")]
    machine: PathBuf,
    /// The 32 bytes that you sent with your question, in hex.
    #[arg(long, value_name = "HEX", value_parser = parse_nonce)]
    nonce: [u8; 32],
    /// Language of the claims and reasons.
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
    /// Print an EAT attestation result (JSON) instead of lines.
    #[arg(long, conflicts_with = "html")]
    json: bool,
    /// Also write the verdict as one page for the files.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// When you judge, in UTC (`2026-11-24T12:00:00Z`), if not by this computer's clock.
    #[arg(long, value_name = "RFC3339", value_parser = parse_now)]
    now: Option<Timestamp>,
}

#[derive(Debug, Args)]
struct EventLogArgs {
    /// The log: `binary_bios_measurements`.
    file: PathBuf,
    /// Print JSON instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct QuoteArgs {
    /// `TPMS_ATTEST`, marshalled.
    #[arg(long, value_name = "FILE")]
    attest: PathBuf,
    /// `TPMT_SIGNATURE`, marshalled.
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
    /// `TPMT_PUBLIC` or `TPM2B_PUBLIC` of the key, marshalled.
    #[arg(long, value_name = "FILE")]
    public: PathBuf,
    /// PCR values: JSON of hex by index, or the dump that tpm2_quote writes.
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
}

/// What a command has to say.
#[derive(Debug)]
struct Report {
    text: String,
    established: bool,
}

fn parse_nonce(text: &str) -> Result<[u8; 32], String> {
    let mut nonce = [0; 32];
    hex::decode_to_slice(text, &mut nonce)
        .map_err(|error| format!("{error}; 64 hex digits are expected"))?;
    Ok(nonce)
}

fn parse_now(text: &str) -> Result<Timestamp, String> {
    let expected = "RFC 3339 in UTC is expected, as 2026-11-24T12:00:00Z";
    Timestamp::parse(text).ok_or_else(|| expected.to_owned())
}

fn run(command: &Command) -> anyhow::Result<Report> {
    match command {
        Command::Evidence(args) => judge::run(args),
        Command::Enrol(command) => enrol::run(command),
        Command::Eventlog(args) => event_log::run(args),
        Command::Fetch(args) => client::fetch::run(args),
        Command::Proxy(args) => client::proxy::run(args),
        Command::Quote(args) => quote::run(args),
        Command::Export { format } => export::run(format),
    }
}

fn main() -> ExitCode {
    let report = run(&Cli::parse().command).and_then(|report| {
        // A verdict that nobody could read is none.
        let mut out = std::io::stdout().lock();
        out.write_all(report.text.as_bytes())?;
        out.flush()?;
        Ok(report.established)
    });
    match report {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("casemate-verify: {error:#}");
            ExitCode::from(2)
        }
    }
}
