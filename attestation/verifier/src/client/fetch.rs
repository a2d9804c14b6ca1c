//! `casemate-verify fetch`: evidence and, if it is established, a pin for ordinary clients.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use super::attest::{Attestation, attest};
use super::link::{Link, Peer};
use super::refusal::Refusal;
use super::trust::Trust;
use super::{PeerArgs, TrustArgs};
use crate::report::{self, Filing};
use crate::words::Language;
use crate::{Report, judge};

/// Columns of base64 in PEM; RFC 7468, "2. General Considerations".
const PEM_COLUMNS: usize = 64;

/// Arguments.
#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    #[command(flatten)]
    peer: PeerArgs,
    #[command(flatten)]
    trust: TrustArgs,
    /// Where the evidence goes, if it is established.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where the gateway's certificate goes, if the evidence is established and measures its key: a CA file for
    /// ordinary clients.
    #[arg(long, value_name = "FILE")]
    pin: Option<PathBuf>,
    /// Take an appliance that has no bundle yet; every other claim must be established.
    #[arg(long)]
    before_bundle: bool,
    /// Language of the claims and reasons.
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
}

pub(crate) fn run(args: &FetchArgs) -> anyhow::Result<Report> {
    let trust = Trust::read(&args.trust, args.before_bundle)?;
    let peer = Peer::new(&args.peer)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut link = peer.connect().await?;
        match attest(&peer, &mut link, &trust, args.lang).await {
            Ok(attestation) => conclude(args, &link, &attestation),
            Err(refusal @ Refusal::NoEvidence { .. }) => Ok(refused(String::new(), &refusal)),
            Err(refusal) => Err(refusal.into()),
        }
    })
}

fn conclude(args: &FetchArgs, link: &Link, attestation: &Attestation) -> anyhow::Result<Report> {
    let filing = Filing {
        verdict: attestation.verdict.clone(),
        inputs: Vec::new(),
        nonce: attestation.nonce,
        now: judge::clock()?,
        lang: args.lang,
    };
    let mut text = report::lines(&filing)?;
    if let Err(refusal) = &attestation.outcome {
        return Ok(refused(text, refusal));
    }
    write(&args.out, &attestation.text)?;
    if let Some(pin) = &args.pin {
        write(pin, pem(link.certificate()).as_bytes())?;
    }
    text += &format!("nonce {}\n", hex::encode(attestation.nonce));
    Ok(Report { text, established: true })
}

fn refused(text: String, refusal: &Refusal) -> Report {
    Report { text: format!("{text}{refusal}\n"), established: false }
}

/// Whole or not at all: nobody reads half a pin.
fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut name = path.file_name().context("a file is expected, not a folder")?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let replace = || {
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    replace().with_context(|| format!("cannot write {}", path.display()))
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut lines = vec!["-----BEGIN CERTIFICATE-----"];
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(PEM_COLUMNS));
        lines.push(line);
        rest = more;
    }
    lines.push("-----END CERTIFICATE-----");
    lines.join("\n") + "\n"
}
