//! Makes the UKI: kernel, initrd, command line and os-release in one EFI program, signed for Secure Boot, with a
//! signed PCR 11 policy.

use std::path::{Path, PathBuf};

use crate::keys::KeySet;
use crate::reasoned::{self, ListError};
use crate::tool::{Tool, ToolError};

/// Longest command line of an x86-64 kernel (COMMAND_LINE_SIZE).
const CMDLINE_BYTES_MAX: usize = 2047;
/// Boot phases in which the signed policy releases the state key: after the root was verified and before anything of
/// ours runs. Later phases do not open it, so a process that is taken over cannot ask the TPM for the key.
const UNLOCK_PHASES: &str = "enter-initrd:leave-initrd";

/// Why there is no UKI.
#[derive(Debug, thiserror::Error)]
pub enum UkiBuildError {
    /// The command line's list is wrong.
    #[error(transparent)]
    List(#[from] ListError),
    /// ukify failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The command line does not fit.
    #[error(
        "kernel command line has {found} bytes, at most {CMDLINE_BYTES_MAX}; see kernel-config/cmdline"
    )]
    CmdlineTooLong {
        /// Its length.
        found: usize,
    },
}

/// What goes into a UKI.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) kernel_version: &'a str,
    pub(crate) initrd: &'a Path,
    pub(crate) os_release: &'a Path,
    pub(crate) cmdline: &'a str,
    pub(crate) keys: &'a KeySet,
    pub(crate) source_date_s: u32,
    pub(crate) logs: &'a Path,
}

/// The command line: kernel-config/cmdline, then the root hash.
pub(crate) fn cmdline(source: &Path, root_hash: &str) -> Result<String, UkiBuildError> {
    let entries = reasoned::read(&source.join("kernel-config/cmdline"), "word")?;
    let mut words: Vec<String> = entries.into_iter().flat_map(|entry| entry.fields).collect();
    words.push(format!("roothash={root_hash}"));
    let cmdline = words.join(" ");
    if cmdline.len() > CMDLINE_BYTES_MAX {
        return Err(UkiBuildError::CmdlineTooLong { found: cmdline.len() });
    }
    Ok(cmdline)
}

/// Makes the UKI at `output`.
pub(crate) fn make(inputs: &Inputs<'_>, output: &Path) -> Result<(), UkiBuildError> {
    let key = |file: &str| -> PathBuf { inputs.keys.path(file) };
    Tool::new("ukify", "ukify", inputs.logs)
        .arg("build")
        .path_arg("--linux=", inputs.kernel)
        .path_arg("--initrd=", inputs.initrd)
        .arg(format!("--uname={}", inputs.kernel_version))
        .path_arg("--os-release=@", inputs.os_release)
        .arg(format!("--cmdline={}", inputs.cmdline))
        .path_arg("--pcr-private-key=", &key("pcr/pcr.key"))
        .path_arg("--pcr-public-key=", &key("pcr/pcr.pub"))
        .args(["--pcr-banks=sha256", &format!("--phases={UNLOCK_PHASES}")])
        .path_arg("--secureboot-private-key=", &key("secureboot/db.key"))
        .path_arg("--secureboot-certificate=", &key("secureboot/db.crt"))
        // The kernel inside carries Debian's signature; firmware checks the UKI's.
        .args(["--signtool=systemd-sbsign", "--no-sign-kernel"])
        .path_arg("--output=", output)
        .env("SOURCE_DATE_EPOCH", inputs.source_date_s.to_string())
        .run()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_hash_comes_last_and_the_length_is_bounded() {
        let source = tempfile::tempdir().unwrap();
        std::fs::create_dir(source.path().join("kernel-config")).unwrap();
        let list = source.path().join("kernel-config/cmdline");
        std::fs::write(&list, "a=1 # first\nb # second\n").unwrap();
        assert_eq!(cmdline(source.path(), "ff").unwrap(), "a=1 b roothash=ff");
        std::fs::write(&list, format!("{} # long\n", "x".repeat(3000))).unwrap();
        let error = cmdline(source.path(), "ff").unwrap_err();
        assert!(matches!(error, UkiBuildError::CmdlineTooLong { .. }), "{error}");
    }
}
