//! Evidence as tpm2-tools 5 reads it.
//!
//! | file | for |
//! |---|---|
//! | `eventlog.bin` | `tpm2_eventlog` |
//! | `public.pem`, `attest.bin`, `signature.bin`, `pcrs.bin`, `qualification.bin` | `tpm2_checkquote -u -m -s -f -q` |
//! | `public.tpm2b` | other tools that take a `TPM2B_PUBLIC` |
//! | `userspace.log` | a reader of the canonical event log |

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use evidence::format::Evidence;
use evidence::key::AttestationKey;
use evidence::quote::{Attest, PcrValues};

use super::base64;
use crate::pcr_file;

/// Writes the files into a folder that it makes; says how to check them.
pub(super) fn write(evidence: &Evidence, folder: &Path) -> anyhow::Result<String> {
    let quote = &evidence.quote;
    let attest = base64("the quote", &quote.attest)?;
    let public = base64("its key", &quote.public)?;
    let mut pcrs = PcrValues::new();
    for (&index, text) in &quote.pcrs {
        let mut value = [0; 32];
        hex::decode_to_slice(text, &mut value).with_context(|| format!("PCR {index}"))?;
        pcrs.insert(index, value);
    }
    let extra_data = Attest::parse(&attest)?.extra_data;
    let pem = AttestationKey::parse(&public)?.public_key_pem()?;
    let public_bytes = u16::try_from(public.len()).context("its key is no TPMT_PUBLIC")?;
    let files = [
        ("eventlog.bin", base64("the firmware log", &evidence.firmware_log)?),
        ("userspace.log", base64("the userspace log", &evidence.userspace_log)?),
        ("attest.bin", attest),
        ("signature.bin", base64("its signature", &quote.signature)?),
        ("public.tpm2b", [&public_bytes.to_be_bytes(), &public[..]].concat()),
        ("public.pem", pem.into_bytes()),
        ("pcrs.bin", pcr_file::dump(&pcrs).context("the PCRs are not of one quote")?),
        ("qualification.bin", extra_data),
    ];
    let shown = folder.display();
    fs::create_dir(folder).with_context(|| format!("cannot make the folder {shown}"))?;
    for (name, bytes) in files {
        super::write(&folder.join(name), &bytes)?;
    }
    Ok(format!(
        "{shown}\n\
         tpm2_eventlog eventlog.bin\n\
         tpm2_checkquote -u public.pem -m attest.bin -s signature.bin -f pcrs.bin -q qualification.bin -g sha256\n"
    ))
}
