//! The installer stick: one EFI program, signed by db, that holds kernel, initrd, the image without its holes, and what
//! it takes to judge and enrol it. Firmware reads all of it before anything runs, so no driver for the stick is needed.
//! Invariants: the program carries no signed PCR policy, so no machine's state opens to it; everything that it works with
//! is in its initrd, and so under db's signature.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cpio::{Archive, CpioError, Node};
use crate::delivery::ENVELOPE;
use crate::disk;
use crate::elf::{self, ElfError};
use crate::extents::{self, ExtentsError};
use crate::keys::{KeySet, SECURE_BOOT, Signers};
use crate::tool::ToolError;
use crate::uki::{self, UkiBuildError};

/// The stick.
pub(crate) const STICK: &str = "installer.raw";
/// The program, in the folder of the agent's.
pub(crate) const PROGRAM: &str = "installer";
/// Where the program finds the rest, below the root of its initrd.
pub const MATERIAL: &str = "usr/lib/casemate/install";
const UNITS: &str = "usr/lib/systemd/system";
const PROGRAM_PATH: &str = "usr/lib/casemate/bin/installer";
/// Units of image/config/installer.
const UNIT_FILES: &[&str] = &["casemate-installer.service", "casemate-installer.target"];
/// What the initrd starts in place of the way to a root.
const START: &str = "rd.systemd.unit=casemate-installer.target";
const VARIABLES: &[&str] = &["PK", "KEK", "db", "dbx"];
/// Label of the stick's partition, by which the program knows its own stick.
pub const LABEL: &str = "casemate-installer";
/// Room in the file system beside the program.
const SPARE_BYTES: u64 = 8 << 20;
const MIB: u64 = 1 << 20;
/// Smallest file system that firmware reads as FAT32.
const ESP_MIB_MIN: u64 = 40;
/// Most disks of one stick.
const SERIALS_MAX: usize = 1024;

/// Why there is no stick.
#[derive(Debug, thiserror::Error)]
pub enum InstallerError {
    /// The UKI.
    #[error(transparent)]
    Uki(#[from] UkiBuildError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The initrd.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// The program would not start.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The image.
    #[error(transparent)]
    Extents(#[from] ExtentsError),
    /// There is no program.
    #[error("an installer stick holds the program `{PROGRAM}` of --agent, and there is no --agent")]
    NoProgram,
    /// Disks that nobody has.
    #[error("{found} serial numbers; at most {SERIALS_MAX}, none of them empty")]
    Serials {
        /// How many.
        found: usize,
    },
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The order could not be written as JSON.
    #[error("writing JSON: {0}")]
    Json(#[from] serde_json::Error),
}

type Result<T> = std::result::Result<T, InstallerError>;

/// What goes onto a stick.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    /// The finished root tree, for libraries and os-release.
    pub(crate) tree: &'a Path,
    pub(crate) agent: Option<&'a Path>,
    pub(crate) kernel: &'a Path,
    pub(crate) kernel_version: &'a str,
    /// The image's own initrd.
    pub(crate) initrd: &'a Path,
    pub(crate) keys: &'a KeySet,
    pub(crate) source: &'a Path,
    /// Disks that are overwritten without a question.
    pub(crate) serials: &'a [String],
    /// Folder with the image and the envelope over it.
    pub(crate) work: &'a Path,
    /// SHA-256 of the image, in hex.
    pub(crate) image_sha256: &'a str,
    pub(crate) source_date_s: u32,
    pub(crate) logs: &'a Path,
}

impl Inputs<'_> {
    /// Makes the stick beside the image.
    pub(crate) fn make(&self, signers: &Signers) -> Result<()> {
        let (cpio, efi) = (self.at("installer.cpio"), self.at("installer.efi"));
        write(&cpio, &self.archive()?.write(self.source_date_s)?)?;
        self.ukify(&cpio, &efi)?;
        self.disk(&uki::admit(&read(&efi)?, self.keys, signers)?)?;
        for done in [&cpio, &efi] {
            fs::remove_file(done).map_err(|cause| error(done, cause))?;
        }
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    /// What is unpacked over the image's own initrd.
    fn archive(&self) -> Result<Archive> {
        let program = self.agent.ok_or(InstallerError::NoProgram)?.join(PROGRAM);
        let mut archive = Archive::default();
        let mut add = |path: &str, bytes: Vec<u8>, executable: bool| {
            archive.add(path, Node::File { bytes, executable });
        };
        add(PROGRAM_PATH, read(&program)?, true);
        for unit in UNIT_FILES {
            let file = self.source.join("image/config/installer").join(unit);
            add(&format!("{UNITS}/{unit}"), read(&file)?, false);
        }
        let mut material = |name: &str, bytes| add(&format!("{MATERIAL}/{name}"), bytes, false);
        material(ENVELOPE, read(&self.at(ENVELOPE))?);
        material("build.pub.pem", read(&self.keys.path("build/build.pub.pem"))?);
        material("order.json", order(self.image_sha256, self.serials)?);
        for variable in VARIABLES {
            for form in ["auth", "esl"] {
                let name = format!("secureboot/{variable}.{form}");
                material(
                    &name,
                    read(&self.keys.path(&format!("{SECURE_BOOT}/{variable}.{form}")))?,
                );
            }
        }
        let mut packed = Vec::new();
        extents::pack(&self.at(disk::IMAGE), &mut packed)?;
        material("image.extents", packed);
        self.libraries(&program, &mut archive)?;
        Ok(archive)
    }

    /// The program's libraries are the root tree's, where it is not itself.
    fn libraries(&self, program: &Path, archive: &mut Archive) -> Result<()> {
        let staged = self.tree.join(PROGRAM_PATH);
        let stage = || {
            if let Some(folder) = staged.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::copy(program, &staged)
        };
        stage().map_err(|cause| error(&staged, cause))?;
        let needed = elf::closure(self.tree, PROGRAM_PATH);
        fs::remove_file(&staged).map_err(|cause| error(&staged, cause))?;
        for library in needed? {
            let bytes = read(&self.tree.join(&library))?;
            archive.add(&library, Node::File { bytes, executable: true });
        }
        Ok(())
    }

    fn ukify(&self, cpio: &Path, output: &Path) -> Result<()> {
        let inputs = uki::Inputs {
            kernel: self.kernel,
            kernel_version: self.kernel_version,
            initrds: &[self.initrd, cpio],
            os_release: &self.tree.join("usr/lib/os-release"),
            cmdline: &uki::words(self.source, START.to_owned())?,
            keys: self.keys,
            source_date_s: self.source_date_s,
            logs: self.logs,
        };
        uki::ukify(&inputs, "ukify-installer", output).run()?;
        Ok(())
    }

    fn disk(&self, program: &[u8]) -> Result<()> {
        let (definitions, content) = (self.at("installer.repart"), self.at("installer.content"));
        let boot = content.join("esp/EFI/BOOT");
        for folder in [&definitions, &boot] {
            fs::create_dir_all(folder).map_err(|cause| error(folder, cause))?;
        }
        write(&boot.join("BOOTX64.EFI"), program)?;
        write(&definitions.join("10-esp.conf"), partition(program.len() as u64).as_bytes())?;
        disk::repart("repart-installer", self.logs, self.source_date_s)
            .args(["--empty=create", "--size=auto"])
            .path_arg("--definitions=", &definitions)
            .path_arg("--copy-source=", &content)
            .arg(self.at(STICK))
            .run()?;
        for folder in [&definitions, &content] {
            fs::remove_dir_all(folder).map_err(|cause| error(folder, cause))?;
        }
        Ok(())
    }
}

/// What the program is to do; it reads this.
fn order(image_sha256: &str, serials: &[String]) -> Result<Vec<u8>> {
    if serials.len() > SERIALS_MAX || serials.iter().any(String::is_empty) {
        return Err(InstallerError::Serials { found: serials.len() });
    }
    Ok(serde_json::to_vec(&serde_json::json!({"image_sha256": image_sha256, "serials": serials}))?)
}

/// The definition of the one partition, for a program of `bytes`.
fn partition(bytes: u64) -> String {
    let size = (bytes + SPARE_BYTES).div_ceil(MIB).max(ESP_MIB_MIN);
    format!(
        "[Partition]\nType=esp\nLabel={LABEL}\nFormat=vfat\nCopyFiles=/esp:/\n\
         SizeMinBytes={size}M\nSizeMaxBytes={size}M\n"
    )
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|cause| error(path, cause))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).map_err(|cause| error(path, cause))
}

fn error(path: &Path, cause: std::io::Error) -> InstallerError {
    InstallerError::File { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_the_image_and_no_empty_disk() {
        let text = order("ab", &["S1".to_owned()]).unwrap();
        assert_eq!(text, br#"{"image_sha256":"ab","serials":["S1"]}"#);
        assert!(order("ab", &[String::new()]).is_err());
        assert!(order("ab", &vec!["S".to_owned(); SERIALS_MAX + 1]).is_err());
    }

    #[test]
    fn the_partition_has_room_and_is_no_smaller_than_fat32() {
        assert!(partition(1).contains("SizeMinBytes=40M\n"));
        assert!(partition(80 << 20).contains("SizeMinBytes=88M\n"));
    }
}
