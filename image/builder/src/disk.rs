//! Makes the GPT disk in two passes of systemd-repart: first root and hash tree, whose root hash the UKI needs, then
//! the ESP that holds the UKI.

use std::path::{Path, PathBuf};

use crate::tool::{Tool, ToolError};

/// The disk's file, among those of a build.
pub(crate) const IMAGE: &str = "casemate.raw";
/// Size of the disk file; what the fixed partitions leave is for the state partition, at first boot.
const DISK_BYTES: u64 = 1280 << 20;
/// Seed of every UUID on the disk, so that the same root gives the same disk.
const SEED: &str = "5e0f6f1a-7a0f-4a53-9a5c-0c7f0b2c4d11";
/// lz4hc: reads fastest, under emulation too; 64 KiB clusters.
const EROFS: &str = "-zlz4hc,12 -C65536 --all-time";

/// What firmware starts by itself; UEFI Specification 2.10, 3.5.1.1.
pub(crate) const ESP_BOOT_MANAGER: &str = "EFI/BOOT/BOOTX64.EFI";

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// systemd-repart failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// systemd-repart's report is not as expected.
    #[error("systemd-repart reported {found} root hashes, expected 1 of 64 hex digits: {report}")]
    RootHash {
        /// How many there are.
        found: usize,
        /// All of it.
        report: String,
    },
}

/// A disk in the making.
#[derive(Debug)]
pub(crate) struct Disk<'a> {
    pub(crate) file: &'a Path,
    /// image/config/repart.
    pub(crate) definitions: &'a Path,
    /// Folder with `root/` and `esp/`, where CopyFiles= of the definitions points.
    pub(crate) content: &'a Path,
    pub(crate) source_date_s: u32,
    pub(crate) logs: &'a Path,
}

impl Disk<'_> {
    /// First pass: everything but the ESP. Returns the root hash.
    pub(crate) fn make_root(&self) -> Result<String, DiskError> {
        let report = self
            .repart("repart-root")
            .args(["--empty=create", &format!("--size={DISK_BYTES}"), "--defer-partitions=esp"])
            .arg(self.file)
            .run()?;
        root_hash(&report)
    }

    /// Second pass: the ESP with the boot manager as the program that firmware starts by itself, and the UKI as its only
    /// entry. The entry has no counter of tries: there is nothing to go back to.
    pub(crate) fn add_esp(
        &self,
        boot_manager: &Path,
        (entry, uki): (&str, &Path),
    ) -> Result<(), DiskError> {
        let esp = self.content.join("esp");
        for (from, to) in
            [(boot_manager, ESP_BOOT_MANAGER), (uki, &format!("EFI/Linux/{entry}.efi"))]
        {
            let target = esp.join(to);
            let copy = || {
                std::fs::create_dir_all(target.parent().unwrap_or(&esp))?;
                std::fs::copy(from, &target)
            };
            copy().map_err(|cause| DiskError::File { path: target.clone(), cause })?;
        }
        self.repart("repart-esp").arg("--empty=allow").arg(self.file).run()?;
        Ok(())
    }

    fn repart(&self, job: &str) -> Tool {
        let erofs = format!("{EROFS} -T{}", self.source_date_s);
        repart(job, self.logs, self.source_date_s)
            .arg("--json=short")
            .path_arg("--definitions=", self.definitions)
            .path_arg("--copy-source=", self.content)
            .env("SYSTEMD_REPART_MKFS_OPTIONS_EROFS", erofs)
    }
}

/// systemd-repart for a disk file, whose UUIDs and times follow from its content.
pub(crate) fn repart(job: &str, logs: &Path, source_date_s: u32) -> Tool {
    Tool::new("systemd-repart", job, logs)
        .args(["--offline=yes", "--dry-run=no", "--no-pager", "--sector-size=512"])
        .arg(format!("--seed={SEED}"))
        .env("SOURCE_DATE_EPOCH", source_date_s.to_string())
}

/// The one root hash of systemd-repart's JSON report.
fn root_hash(report: &[u8]) -> Result<String, DiskError> {
    #[derive(serde::Deserialize)]
    struct Partition {
        roothash: Option<String>,
    }
    let partitions: Vec<Partition> = serde_json::from_slice(report).unwrap_or_default();
    let mut hashes: Vec<String> = partitions
        .into_iter()
        .filter_map(|partition| partition.roothash)
        .filter(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .collect();
    // Data and hash partition both carry it.
    hashes.dedup();
    match <[String; 1]>::try_from(hashes) {
        Ok([hash]) => Ok(hash),
        Err(hashes) => Err(DiskError::RootHash {
            found: hashes.len(),
            report: String::from_utf8_lossy(report).into_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_root_hash_is_expected() {
        let hash = "ab".repeat(32);
        let report = format!(
            "[{{\"label\":\"esp\",\"roothash\":null}},{{\"roothash\":\"{hash}\"}},{{\"roothash\":\"{hash}\"}}]"
        );
        assert_eq!(root_hash(report.as_bytes()).unwrap(), hash);
        for report in ["", "[]", "[{\"roothash\":\"00\"}]"] {
            let error = root_hash(report.as_bytes()).unwrap_err();
            assert!(matches!(error, DiskError::RootHash { found: 0, .. }), "{error}");
        }
    }
}
