//! Makes the UKI: kernel, initrd, command line and os-release in one EFI program, signed for Secure Boot, with a
//! signed PCR 11 policy.

use std::path::{Path, PathBuf};

use crate::keys::{KeySet, KeysError, Signers};
use crate::predict::{self, UkiError};
use crate::reasoned::{self, ListError};
use crate::sign::{SignError, authenticode, pcr_policy};
use crate::tool::{Tool, ToolError};

/// Longest command line of an x86-64 kernel (COMMAND_LINE_SIZE).
const CMDLINE_BYTES_MAX: usize = 2047;
/// Boot phases in which the signed policy releases the state key: after the root was verified and before anything of
/// ours runs. Later phases do not open it, so a process that is taken over cannot ask the TPM for the key.
const UNLOCK_PHASES: &[&str] = &["enter-initrd", "leave-initrd"];

/// Why there is no UKI.
#[derive(Debug, thiserror::Error)]
pub enum UkiBuildError {
    /// The command line's list is wrong.
    #[error(transparent)]
    List(#[from] ListError),
    /// ukify failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A certificate could not be read.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The UKI or its PCR policy was not signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// PCR 11 cannot be predicted.
    #[error(transparent)]
    Predict(#[from] UkiError),
    /// ukify made two UKIs of the same parts that are measured differently.
    #[error(
        "with its PCR policy the UKI is measured into PCR 11 as {found}, without as {expected}; \
         this version of ukify is not known"
    )]
    Unstable {
        /// Without.
        expected: evidence::pcr::Pcr,
        /// With.
        found: evidence::pcr::Pcr,
    },
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
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
    /// Unpacked one over the other.
    pub(crate) initrds: &'a [&'a Path],
    pub(crate) os_release: &'a Path,
    pub(crate) cmdline: &'a str,
    pub(crate) keys: &'a KeySet,
    pub(crate) source_date_s: u32,
    pub(crate) logs: &'a Path,
}

/// The command line of an image: kernel-config/cmdline, then the root hash.
pub(crate) fn cmdline(source: &Path, root_hash: &str) -> Result<String, UkiBuildError> {
    words(source, format!("roothash={root_hash}"))
}

/// kernel-config/cmdline, then one more word.
pub(crate) fn words(source: &Path, last: String) -> Result<String, UkiBuildError> {
    let entries = reasoned::read(&source.join("kernel-config/cmdline"), "word")?;
    let mut words: Vec<String> = entries.into_iter().flat_map(|entry| entry.fields).collect();
    words.push(last);
    let cmdline = words.join(" ");
    if cmdline.len() > CMDLINE_BYTES_MAX {
        return Err(UkiBuildError::CmdlineTooLong { found: cmdline.len() });
    }
    Ok(cmdline)
}

/// Makes the unsigned UKI at `output`, but for the signed PCR policy, which is over what is in it.
pub(crate) fn assemble(inputs: &Inputs<'_>, output: &Path) -> Result<(), UkiBuildError> {
    ukify(inputs, "ukify", output).path_arg("--pcrpkey=", &inputs.keys.pcr_public()).run()?;
    Ok(())
}

/// Signs the PCR 11 policy of the UKI at `unsigned`, then the UKI with that policy in it, which goes to `output`.
pub(crate) fn sign(
    inputs: &Inputs<'_>,
    signers: &Signers,
    unsigned: &Path,
    output: &Path,
) -> Result<(), UkiBuildError> {
    let pcr_11 = |uki: &[u8]| predict::sections_and_phases(uki, UNLOCK_PHASES);
    let expected = predict::fold(&pcr_11(&read(unsigned)?)?);
    let entries = signers.pcr.iter().map(|signer| {
        let key = signer.public_key_der()?;
        pcr_policy::entry(expected, &key, &|message| signer.sign(message))
    });
    let policy = unsigned.with_extension("pcrsig");
    let document = pcr_policy::document(entries.collect::<Result<_, SignError>>()?);
    write(&policy, document.as_bytes())?;
    ukify(inputs, "ukify-pcrsig", unsigned)
        .path_arg("--pcrpkey=", &inputs.keys.pcr_public())
        .path_arg("--section=.pcrsig:@", &policy)
        .run()?;
    let uki = read(unsigned)?;
    let found = predict::fold(&pcr_11(&uki)?);
    if found != expected {
        return Err(UkiBuildError::Unstable { expected, found });
    }
    write(output, &admit(&uki, inputs.keys, signers)?)
}

/// The os-release in the UKI: `IMAGE_VERSION` is the number by which machines compare images, since systemd-boot takes
/// the entry with the highest; UAPI Group, "Boot Loader Specification", "Sorting".
pub(crate) fn os_release(text: &[u8], version_index: u64) -> String {
    let replace = |line: &str| match line.starts_with("IMAGE_VERSION=") {
        true => format!("IMAGE_VERSION={version_index}\n"),
        false => format!("{line}\n"),
    };
    String::from_utf8_lossy(text).lines().map(replace).collect()
}

/// The EFI program with a signature by db.
pub(crate) fn admit(
    program: &[u8],
    keys: &KeySet,
    signers: &Signers,
) -> Result<Vec<u8>, UkiBuildError> {
    let certificate = keys.db_certificate()?;
    Ok(authenticode::sign(program, &certificate, &|message| signers.db.sign(message))?)
}

/// Makes a UKI without a PCR policy.
pub(crate) fn ukify(inputs: &Inputs<'_>, job: &str, output: &Path) -> Tool {
    let ukify = Tool::new("ukify", job, inputs.logs).arg("build");
    let initrds = inputs.initrds.iter();
    initrds
        .fold(ukify, |ukify, initrd| ukify.path_arg("--initrd=", initrd))
        .path_arg("--linux=", inputs.kernel)
        .arg(format!("--uname={}", inputs.kernel_version))
        .path_arg("--os-release=@", inputs.os_release)
        .arg(format!("--cmdline={}", inputs.cmdline))
        .path_arg("--output=", output)
        .env("SOURCE_DATE_EPOCH", inputs.source_date_s.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, UkiBuildError> {
    std::fs::read(path).map_err(|cause| UkiBuildError::File { path: path.to_owned(), cause })
}

fn write(path: &Path, content: &[u8]) -> Result<(), UkiBuildError> {
    std::fs::write(path, content)
        .map_err(|cause| UkiBuildError::File { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_manager_compares_the_version_index() {
        let text =
            b"ID=casemate\nIMAGE_ID=casemate\nIMAGE_VERSION=0.1.0\nCASEMATE_VERSION_INDEX=7\n";
        let expected =
            "ID=casemate\nIMAGE_ID=casemate\nIMAGE_VERSION=7\nCASEMATE_VERSION_INDEX=7\n";
        assert_eq!(os_release(text, 7), expected);
    }

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
