//! Compares two finished builds byte by byte, outside their signatures.
//! Invariant: builds that compare equal boot with the same PCRs 4, 11, 12 and 13 and the same root.
//! No file system is mounted: a difference is traced to its file by unpacking both sides.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::cache;
use crate::disk::{ESP_BOOT_MANAGER, IMAGE};
use crate::gpt::{self, GptError, Partition};
use crate::pe::{Pe, PeError};
use crate::tool::{Tool, ToolError};

const UKI: &str = "casemate.efi";
/// Not signed themselves.
const UNSIGNED: &[&str] = &["OVMF_VARS.fd", "sbom.cdx.json", "report.html"];
const ESP_FOLDER: &str = "esp";
const BOOT_MANAGER: &str = crate::build::BOOT_MANAGER;
/// Folder of the UKI in the ESP.
const ESP_UKIS: &str = "EFI/Linux";
const CHUNK_BYTES: usize = 1 << 20;
/// Deepest folder of an image.
const DEPTH_MAX: usize = 64;

/// Why two builds are not known to be the same.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// They are not.
    #[error("not reproduced: {part} differs from the one in {}: {first}", other.display())]
    Differs {
        /// Partition, section or file of the build.
        part: String,
        /// The first difference in it.
        first: String,
        /// The other build.
        other: PathBuf,
    },
    /// A disk has no partition table.
    #[error("{path}: {cause}")]
    Gpt {
        /// The disk.
        path: PathBuf,
        /// What is wrong.
        cause: GptError,
    },
    /// The UKI is no PE image.
    #[error(transparent)]
    Pe(#[from] PeError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

type Result<T> = std::result::Result<T, CompareError>;

/// Compares the builds in two folders; `work` is made and, if they are the same, removed.
pub fn compare(ours: &Path, theirs: &Path, work: &Path) -> Result<()> {
    let file = |path: &Path, cause| CompareError::File { path: path.to_owned(), cause };
    cache::remove(work).map_err(|cause| file(work, cause))?;
    fs::create_dir_all(work).map_err(|cause| file(work, cause))?;
    let comparison = Comparison { ours, theirs, work };
    // The root first: its hash is on the UKI's command line.
    comparison.disks()?;
    comparison.ukis()?;
    comparison.boot_managers()?;
    for name in UNSIGNED {
        comparison.files(name)?;
    }
    cache::remove(work).map_err(|cause| file(work, cause))
}

#[derive(Debug)]
struct Comparison<'a> {
    ours: &'a Path,
    theirs: &'a Path,
    work: &'a Path,
}

impl Comparison<'_> {
    /// Compares partitions, the table and what is between them; the ESP file by file, since a UKI is in it.
    fn disks(&self) -> Result<()> {
        let (ours, theirs) = (Disk::open(self.ours)?, Disk::open(self.theirs)?);
        if ours.bytes != theirs.bytes {
            return self.differs("disk", format!("{} and {} bytes", ours.bytes, theirs.bytes));
        }
        for (ours, theirs) in ours.partitions.iter().zip(&theirs.partitions) {
            if ours != theirs {
                return self.differs("partition table", format!("{ours:?}, not {theirs:?}"));
            }
        }
        // Content first: the identifiers in the table come from the root hash.
        for partition in &ours.partitions {
            if partition.is_esp {
                self.esps(partition)?;
                continue;
            }
            let range = (partition.start, partition.end);
            let Some(offset) = ours.first_difference(&theirs, range)? else { continue };
            let first = match self.first_file(partition)? {
                Some(file) => file,
                None => format!("byte {} of it", offset - partition.start),
            };
            return self.differs(&format!("partition `{}`", partition.label), first);
        }
        let mut end = 0;
        for partition in &ours.partitions {
            let part = format!("disk before partition `{}`", partition.label);
            self.ranges(&ours, &theirs, (end, partition.start), &part)?;
            end = partition.end;
        }
        self.ranges(&ours, &theirs, (end, ours.bytes), "disk after the last partition")
    }

    fn ranges(&self, ours: &Disk, theirs: &Disk, range: (u64, u64), part: &str) -> Result<()> {
        match ours.first_difference(theirs, range)? {
            Some(offset) => self.differs(part, format!("byte {offset} of the disk")),
            None => Ok(()),
        }
    }

    /// Compares what is in two ESPs beside the UKI, which must be the one that [`Self::ukis`] compares.
    fn esps(&self, partition: &Partition) -> Result<()> {
        for (name, build) in [("ours", self.ours), ("theirs", self.theirs)] {
            let (disk, folder) = (build.join(IMAGE), self.work.join(name).join(ESP_FOLDER));
            fs::create_dir_all(&folder)
                .map_err(|cause| CompareError::File { path: folder.clone(), cause })?;
            let mut image = disk.into_os_string();
            image.push(format!("@@{}", partition.start));
            Tool::new("mcopy", &format!("{name}-esp"), self.work)
                .args(["-s", "-n", "-i"])
                .arg(image)
                .arg("::/")
                .arg(&folder)
                .run()?;
            for (program, name) in [(ESP_BOOT_MANAGER, BOOT_MANAGER), (&uki_of(&folder)?, UKI)] {
                if self.read(&folder, program)? != self.read(build, name)? {
                    let first = format!("{program} is not {name} of the same build");
                    return self.differs(&format!("ESP of {}", build.display()), first);
                }
                // Signed, so compared without: the boot manager below, the UKI by itself.
                let path = folder.join(program);
                fs::remove_file(&path).map_err(|cause| CompareError::File { path, cause })?;
            }
        }
        match self.unpacked(ESP_FOLDER)? {
            Some(first) => self.differs("ESP", first),
            None => Ok(()),
        }
    }

    /// The first file that differs in two root partitions.
    fn first_file(&self, partition: &Partition) -> Result<Option<String>> {
        if !partition.label.starts_with("root-") || partition.label.ends_with("-verity") {
            return Ok(None);
        }
        for (name, build) in [("ours", self.ours), ("theirs", self.theirs)] {
            let folder = self.work.join(name);
            fs::create_dir_all(&folder)
                .map_err(|cause| CompareError::File { path: folder, cause })?;
            Tool::new("fsck.erofs", &format!("{name}-extract"), self.work)
                .path_arg("--extract=", &self.work.join(name).join("root"))
                .arg(format!("--offset={}", partition.start))
                .arg(build.join(IMAGE))
                .run()?;
        }
        self.unpacked("root")
    }

    fn boot_managers(&self) -> Result<()> {
        let (ours, theirs) =
            (self.read(self.ours, BOOT_MANAGER)?, self.read(self.theirs, BOOT_MANAGER)?);
        if Pe::parse(&ours)?.authenticode() == Pe::parse(&theirs)?.authenticode() {
            return Ok(());
        }
        self.differs("boot manager", "its content".to_owned())
    }

    fn ukis(&self) -> Result<()> {
        let (ours, theirs) = (self.read(self.ours, UKI)?, self.read(self.theirs, UKI)?);
        let (ours, theirs) = (Pe::parse(&ours)?, Pe::parse(&theirs)?);
        if ours.authenticode() == theirs.authenticode() {
            return Ok(());
        }
        let names: Vec<_> = ours.section_names().collect();
        if names != theirs.section_names().collect::<Vec<_>>() {
            return self.differs("UKI", "other sections".to_owned());
        }
        for name in names.into_iter().map(String::from_utf8_lossy) {
            let (ours, theirs) = (ours.section(&name), theirs.section(&name));
            if ours == theirs {
                continue;
            }
            let first = match (&*name, &ours, &theirs) {
                (".initrd", Some(ours), Some(theirs)) => self.initrds(ours, theirs)?,
                _ => None,
            };
            let first = first.unwrap_or_else(|| "its content".to_owned());
            return self.differs(&format!("section `{name}` of the UKI"), first);
        }
        self.differs("UKI", "its headers".to_owned())
    }

    fn initrds(&self, ours: &[u8], theirs: &[u8]) -> Result<Option<String>> {
        for (name, bytes) in [("ours", ours), ("theirs", theirs)] {
            let at = |end: &str| self.work.join(format!("{name}{end}"));
            let folder = self.work.join(name).join("initrd");
            fs::create_dir_all(&folder)
                .map_err(|cause| CompareError::File { path: folder.clone(), cause })?;
            fs::write(at(".zst"), bytes)
                .map_err(|cause| CompareError::File { path: at(".zst"), cause })?;
            Tool::new("zstd", &format!("{name}-zstd"), self.work)
                .args(["--decompress", "--quiet", "-o"])
                .arg(at(".cpio"))
                .arg(at(".zst"))
                .run()?;
            Tool::new("cpio", &format!("{name}-cpio"), self.work)
                .args(["--extract", "--make-directories", "--no-absolute-filenames", "--quiet"])
                .path_arg("--file=", &at(".cpio"))
                .path_arg("--directory=", &folder)
                .run()?;
        }
        self.unpacked("initrd")
    }

    fn unpacked(&self, folder: &str) -> Result<Option<String>> {
        let (ours, theirs) =
            (self.work.join("ours").join(folder), self.work.join("theirs").join(folder));
        first_difference(&ours, &theirs, Path::new(""), 0)
            .map_err(|cause| CompareError::File { path: self.work.to_owned(), cause })
    }

    fn files(&self, name: &str) -> Result<()> {
        if self.read(self.ours, name)? == self.read(self.theirs, name)? {
            return Ok(());
        }
        self.differs(name, "its content".to_owned())
    }

    fn read(&self, build: &Path, name: &str) -> Result<Vec<u8>> {
        let path = build.join(name);
        fs::read(&path).map_err(|cause| CompareError::File { path, cause })
    }

    fn differs(&self, part: &str, first: String) -> Result<()> {
        let (part, other) = (part.to_owned(), self.theirs.to_owned());
        Err(CompareError::Differs { part, first, other })
    }
}

/// The one file in the folder of UKIs, as a path in the ESP.
fn uki_of(esp: &Path) -> Result<String> {
    let folder = esp.join(ESP_UKIS);
    let read = || -> io::Result<String> {
        let names = fs::read_dir(&folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        match <[String; 1]>::try_from(names) {
            Ok([name]) => Ok(format!("{ESP_UKIS}/{name}")),
            Err(names) => Err(io::Error::other(format!("{} files; expected 1", names.len()))),
        }
    };
    read().map_err(|cause| CompareError::File { path: folder.clone(), cause })
}

/// A disk image and its partitions in order.
#[derive(Debug)]
struct Disk {
    path: PathBuf,
    file: File,
    bytes: u64,
    partitions: Vec<Partition>,
}

impl Disk {
    fn open(build: &Path) -> Result<Self> {
        let path = build.join(IMAGE);
        let error = |cause| CompareError::File { path: path.clone(), cause };
        let file = File::open(&path).map_err(error)?;
        let bytes = file.metadata().map_err(error)?.len();
        let mut head = vec![0; gpt::HEAD_BYTES];
        file.read_exact_at(&mut head, 0).map_err(error)?;
        let partitions = gpt::partitions(&head, bytes)
            .map_err(|cause| CompareError::Gpt { path: path.clone(), cause })?;
        Ok(Self { path, file, bytes, partitions })
    }

    /// Offset of the first byte in a range that is another one in the other disk.
    fn first_difference(&self, other: &Self, (start, end): (u64, u64)) -> Result<Option<u64>> {
        let (mut ours, mut theirs) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let mut at = start;
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            for (disk, buffer) in [(self, &mut ours), (other, &mut theirs)] {
                disk.file
                    .read_exact_at(&mut buffer[..length], at)
                    .map_err(|cause| CompareError::File { path: disk.path.clone(), cause })?;
            }
            let (ours, theirs) = (&ours[..length], &theirs[..length]);
            if ours != theirs {
                let same = ours.iter().zip(theirs).take_while(|(ours, theirs)| ours == theirs);
                return Ok(Some(at + same.count() as u64));
            }
            at += length as u64;
        }
        Ok(None)
    }
}

/// The first path, in order of names, that is not the same in two folders.
fn first_difference(
    ours: &Path,
    theirs: &Path,
    relative: &Path,
    depth: usize,
) -> io::Result<Option<String>> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!("deeper than {DEPTH_MAX} folders")));
    }
    let mut names = BTreeSet::new();
    for side in [ours, theirs] {
        for entry in fs::read_dir(side.join(relative))? {
            names.insert(entry?.file_name());
        }
    }
    for name in names {
        let path = relative.join(name);
        let difference = match (side(ours, &path)?, side(theirs, &path)?) {
            (Some(_), None) => Some("only in this build"),
            (None, Some(_)) => Some("only in the other build"),
            (Some(one), Some(other)) if one.mode() != other.mode() => Some("kind or mode"),
            (Some(one), Some(other)) if (one.uid(), one.gid()) != (other.uid(), other.gid()) => {
                Some("owner")
            }
            (Some(metadata), _) if metadata.is_dir() => {
                match first_difference(ours, theirs, &path, depth + 1)? {
                    None => None,
                    found => return Ok(found),
                }
            }
            (Some(metadata), _) if metadata.is_symlink() => {
                let same = fs::read_link(ours.join(&path))? == fs::read_link(theirs.join(&path))?;
                (!same).then_some("target of the link")
            }
            (Some(metadata), _) if metadata.is_file() => {
                let same = fs::read(ours.join(&path))? == fs::read(theirs.join(&path))?;
                (!same).then_some("content")
            }
            _ => None,
        };
        if let Some(difference) = difference {
            return Ok(Some(format!("/{}: {difference}", path.display())));
        }
    }
    Ok(None)
}

fn side(folder: &Path, path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(folder.join(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        metadata => metadata.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    /// Makes two equal trees, lets `change` alter the second, and returns the first difference.
    fn check(change: impl Fn(&Path)) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let sides = ["ours", "theirs"].map(|side| folder.path().join(side));
        for side in &sides {
            fs::create_dir_all(side.join("etc/sub")).unwrap();
            fs::write(side.join("etc/sub/file"), "text").unwrap();
            fs::write(side.join("zzz"), "last").unwrap();
            symlink("sub/file", side.join("etc/link")).unwrap();
        }
        change(&sides[1]);
        first_difference(&sides[0], &sides[1], Path::new(""), 0).unwrap()
    }

    #[test]
    fn the_first_differing_file_is_named() {
        let write = |path: &str, text: &str| {
            let (path, text) = (path.to_owned(), text.to_owned());
            move |side: &Path| fs::write(side.join(&path), &text).unwrap()
        };
        assert_eq!(check(|_| {}), None);
        let found = |change: &dyn Fn(&Path)| check(change).unwrap();
        assert_eq!(found(&write("zzz", "tsal")), "/zzz: content");
        assert_eq!(found(&write("etc/more", "")), "/etc/more: only in the other build");
        assert_eq!(
            found(&|side| fs::remove_file(side.join("etc/sub/file")).unwrap()),
            "/etc/sub/file: only in this build"
        );
        assert_eq!(
            found(&|side| {
                fs::remove_file(side.join("etc/link")).unwrap();
                symlink("elsewhere", side.join("etc/link")).unwrap();
                fs::write(side.join("zzz"), "later").unwrap();
            }),
            "/etc/link: target of the link"
        );
        assert_eq!(
            found(&|side| {
                let mode = fs::Permissions::from_mode(0o600);
                fs::set_permissions(side.join("zzz"), mode).unwrap();
            }),
            "/zzz: kind or mode"
        );
    }

    #[test]
    fn a_byte_is_found_at_its_offset_across_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let disk = |name: &str, changed: Option<usize>| {
            let path = folder.path().join(name);
            let mut bytes = vec![0; CHUNK_BYTES + 100];
            if let Some(at) = changed {
                bytes[at] = 1;
            }
            fs::write(&path, &bytes).unwrap();
            let file = File::open(&path).unwrap();
            Disk { path, file, bytes: bytes.len() as u64, partitions: Vec::new() }
        };
        let range = (10, CHUNK_BYTES as u64 + 90);
        let zeros = disk("zeros", None);
        for (at, found) in [
            (CHUNK_BYTES + 50, Some(CHUNK_BYTES as u64 + 50)),
            (10, Some(10)),
            (9, None),
            (CHUNK_BYTES + 90, None),
        ] {
            let other = disk("other", Some(at));
            assert_eq!(zeros.first_difference(&other, range).unwrap(), found, "{at}");
        }
    }
}
