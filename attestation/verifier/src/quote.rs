//! `casemate-verify quote`.

use std::fmt::Write as _;

use evidence::key::AttestationKey;
use evidence::quote::{PcrValues, Quote};

use crate::files::{TPM_BYTES_MAX, read};
use crate::{QuoteArgs, Report, pcr_file};

pub(crate) fn run(args: &QuoteArgs) -> anyhow::Result<Report> {
    let attest = read(&args.attest, TPM_BYTES_MAX)?;
    let signature = read(&args.signature, TPM_BYTES_MAX)?;
    let public = read(&args.public, TPM_BYTES_MAX)?;
    let pcrs = args.pcrs.as_deref().map(pcr_file::read).transpose()?;
    match check(&attest, &signature, tpmt_public(&public), pcrs.as_ref()) {
        Ok(text) => Ok(Report { text, established: true }),
        Err(error) => Ok(Report { text: format!("{error}\nREFUTED\n"), established: false }),
    }
}

fn check(
    attest: &[u8],
    signature: &[u8],
    public: &[u8],
    pcrs: Option<&PcrValues>,
) -> anyhow::Result<String> {
    let key = AttestationKey::parse(public)?;
    let quote = Quote::verify(&key, attest, signature)?;
    let mut text = String::new();
    writeln!(text, "key        {}", key.name())?;
    writeln!(text, "extra data {}", hex::encode(&quote.attest().extra_data))?;
    for selection in &quote.attest().selections {
        writeln!(text, "PCRs       {:?} of bank {:#06x}", selection.pcrs, selection.bank)?;
    }
    writeln!(text, "PCR digest {}", hex::encode(&quote.attest().pcr_digest))?;
    if let Some(pcrs) = pcrs {
        quote.check_pcrs(pcrs)?;
        for (index, value) in pcrs {
            writeln!(text, "PCR {index:>2}     {}", hex::encode(value))?;
        }
    }
    writeln!(text, "ESTABLISHED")?;
    Ok(text)
}

/// tpm2-tools writes `TPM2B_PUBLIC`: the same after its own length. No `TPMT_PUBLIC` begins so: its first
/// two bytes are the key's type, 1 or 35, and it is longer than either.
fn tpmt_public(public: &[u8]) -> &[u8] {
    match public.split_first_chunk() {
        Some((length, rest)) if usize::from(u16::from_be_bytes(*length)) == rest.len() => rest,
        _ => public,
    }
}
