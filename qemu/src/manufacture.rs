//! A TPM as it leaves its factory: with endorsement keys, and their certificates by an authority of the tester's.
//!
//! Self-contained, so that tests which need a TPM and no machine include this file. swtpm's own default authority in
//! /var/lib would be shared by every user of the host; this one lives where the caller says.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What swtpm calls its permanent state.
const STATE: &str = "tpm2-00.permall";
/// Certificates of the authority, as swtpm_localca(8) names them, root first.
const CERTIFICATES: [&str; 2] = ["swtpm-localca-rootca-cert.pem", "issuercert.pem"];

/// Makes the state of a new TPM in the folder `state`, unless there is one, and certifies it by the authority in the
/// folder `vendor`, which is made if absent. Certificates are in NV; see [`roots`] for what they lead to.
///
/// # Errors
/// If a folder has a name that swtpm's settings cannot hold, or swtpm_setup fails; it says why.
pub fn manufacture(state: &Path, vendor: &Path) -> io::Result<()> {
    if state.join(STATE).exists() {
        return Ok(());
    }
    fs::create_dir_all(roots(vendor))?;
    let settings = [
        format!("statedir = {}", shown(vendor, "")?),
        format!("signingkey = {}", shown(vendor, "signkey.pem")?),
        format!("issuercert = {}", shown(vendor, "issuercert.pem")?),
        format!("certserial = {}", shown(vendor, "certserial")?),
    ];
    fs::write(vendor.join("localca.conf"), settings.join("\n") + "\n")?;
    fs::write(vendor.join("localca.options"), "--platform-manufacturer casemate\n")?;
    let setup = [
        "create_certs_tool = /usr/bin/swtpm_localca".to_owned(),
        format!("create_certs_tool_config = {}", shown(vendor, "localca.conf")?),
        format!("create_certs_tool_options = {}", shown(vendor, "localca.options")?),
    ];
    fs::write(vendor.join("setup.conf"), setup.join("\n") + "\n")?;
    // One bank: firmware hashes the whole UKI for each, which an emulated CPU takes seconds for.
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha256", "--tpmstate"])
        .arg(state)
        .arg("--config")
        .arg(vendor.join("setup.conf"))
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() || !state.join(STATE).exists() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        return Err(io::Error::other(format!("swtpm_setup ended with {}: {said}", output.status)));
    }
    for name in CERTIFICATES {
        fs::copy(vendor.join(name), roots(vendor).join(name))?;
    }
    Ok(())
}

/// Folder with the authority's certificates and nothing else: what an auditor is given.
#[must_use]
pub fn roots(vendor: &Path) -> PathBuf {
    vendor.join("roots")
}

fn shown(folder: &Path, name: &str) -> io::Result<String> {
    let path = if name.is_empty() { folder.to_owned() } else { folder.join(name) };
    let text = path.to_str().filter(|text| !text.chars().any(|c| c.is_whitespace() || c == ','));
    text.map(str::to_owned)
        .ok_or_else(|| io::Error::other(format!("{}: swtpm takes no such path", path.display())))
}
