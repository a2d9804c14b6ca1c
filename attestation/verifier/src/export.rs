//! `casemate-verify export`: our files in the formats of others. Nothing is judged here.

mod cbor;
mod cmw;
mod corim;
mod tpm2_tools;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use evidence::format::{EVIDENCE_SCHEMA, Evidence, REFERENCE_SCHEMA, Reference};

use crate::Report;
use crate::files::{EVIDENCE_BYTES_MAX, TRUST_BYTES_MAX, read_json};

#[derive(Debug, Subcommand)]
pub(crate) enum Format {
    /// Reference values as a CoRIM (draft-ietf-rats-corim-11, CBOR, unsigned).
    Corim {
        /// `reference.json` of the image.
        #[arg(long, value_name = "FILE")]
        reference: PathBuf,
        /// Where to write it.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Evidence as a CMW collection (draft-ietf-rats-msg-wrap-23, JSON).
    Cmw {
        #[command(flatten)]
        evidence: EvidenceFile,
        /// Where to write it.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Quote and logs as tpm2_checkquote and tpm2_eventlog read them.
    Tpm2Tools {
        #[command(flatten)]
        evidence: EvidenceFile,
        /// A folder that does not exist yet.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct EvidenceFile {
    /// The evidence, as the appliance sent it.
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
}

impl EvidenceFile {
    fn read(&self) -> anyhow::Result<Evidence> {
        let evidence: Evidence = read_json(&self.evidence, EVIDENCE_BYTES_MAX)?;
        check_schema(&self.evidence, &evidence.schema, EVIDENCE_SCHEMA)?;
        Ok(evidence)
    }
}

pub(crate) fn run(format: &Format) -> anyhow::Result<Report> {
    let text = match format {
        Format::Corim { reference: path, out } => {
            let reference: Reference = read_json(path, TRUST_BYTES_MAX)?;
            check_schema(path, &reference.schema, REFERENCE_SCHEMA)?;
            write(out, &corim::encode(&reference)?)?
        }
        Format::Cmw { evidence, out } => write(out, cmw::encode(&evidence.read()?)?.as_bytes())?,
        Format::Tpm2Tools { evidence, out } => tpm2_tools::write(&evidence.read()?, out)?,
    };
    Ok(Report { text, established: true })
}

fn check_schema(path: &Path, found: &str, expected: &str) -> anyhow::Result<()> {
    let shown = path.display();
    ensure!(found == expected, "{shown} has schema {found:?}; {expected:?} is expected");
    Ok(())
}

/// Writes a file; says so in one line.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<String> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(format!("{} ({} bytes)\n", path.display(), bytes.len()))
}

fn base64(field: &str, text: &str) -> anyhow::Result<Vec<u8>> {
    STANDARD.decode(text).with_context(|| format!("{field} is not base64"))
}
