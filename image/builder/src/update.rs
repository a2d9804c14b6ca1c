//! The parts of an update: what `update.json` says of a build, and the files that a medium holds.
//! Invariant: a part on a medium has the length and digest of the build's `update.json`.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use evidence::provenance::ENVELOPE;
use evidence::update::{PART_BYTES_MAX, Part, UPDATE_FILE, UPDATE_SCHEMA, Update, UpdateError};
use sha2::{Digest as _, Sha256};

use crate::build::{BOOT_MANAGER, UKI};
use crate::disk::IMAGE;
use crate::gpt::{self, GptError};

/// Labels of the partitions that a build fills.
const ROOT: &str = "root-a";
const VERITY: &str = "root-a-verity";
/// Zeros at the end of a partition are left out in blocks of this size.
const BLOCK_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 1 << 20;

/// Why there is no update of a build.
#[derive(Debug, thiserror::Error)]
pub enum UpdateBuildError {
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The disk has no partition table.
    #[error("{path}: {cause}")]
    Gpt {
        /// The disk.
        path: PathBuf,
        /// What is wrong.
        cause: GptError,
    },
    /// A partition is not there, or longer than machines take.
    #[error("{path}: {count} partitions `{label}` of at most {PART_BYTES_MAX} bytes; expected 1")]
    Partition {
        /// The disk.
        path: PathBuf,
        /// Its label.
        label: &'static str,
        /// How many there are.
        count: usize,
    },
    /// The build's statement.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// A part is another one.
    #[error("{name} differs from {UPDATE_FILE}; this is not the folder of one build")]
    Differs {
        /// The part.
        name: &'static str,
    },
}

type Result<T> = std::result::Result<T, UpdateBuildError>;

/// What `update.json` says beside its parts.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    pub(crate) image_id: &'a str,
    pub(crate) image_version: &'a str,
    pub(crate) profile: &'a str,
    pub(crate) version_index: u64,
    pub(crate) root_hash: &'a str,
}

/// The statement of the build in `folder`.
pub(crate) fn describe(folder: &Path, image: &Image<'_>) -> Result<Update> {
    let part = |source: Source| source.copy(&mut io::sink());
    Ok(Update {
        schema: UPDATE_SCHEMA.to_owned(),
        image_id: image.image_id.to_owned(),
        image_version: image.image_version.to_owned(),
        profile: image.profile.to_owned(),
        version_index: image.version_index,
        root_hash: image.root_hash.to_owned(),
        root: part(Source::partition(folder, ROOT)?)?,
        verity: part(Source::partition(folder, VERITY)?)?,
        uki: part(Source::whole(&folder.join(UKI))?)?,
        boot_manager: part(Source::whole(&folder.join(BOOT_MANAGER))?)?,
    })
}

/// Lays everything that a medium holds of the build in `folder` into the folder `tree`.
pub fn lay_out(folder: &Path, tree: &Path) -> Result<Update> {
    for name in [ENVELOPE, UPDATE_FILE] {
        let from = folder.join(name);
        fs::copy(&from, tree.join(name)).map_err(|cause| file(&from, cause))?;
    }
    let statement = tree.join(UPDATE_FILE);
    let text = fs::read(&statement).map_err(|cause| file(&statement, cause))?;
    let update = Update::parse(&text)?;
    let sources = [
        Source::partition(folder, ROOT)?,
        Source::partition(folder, VERITY)?,
        Source::whole(&folder.join(UKI))?,
        Source::whole(&folder.join(BOOT_MANAGER))?,
    ];
    for (source, (name, part)) in sources.into_iter().zip(update.parts()) {
        let to = tree.join(name);
        let mut out = File::create_new(&to).map_err(|cause| file(&to, cause))?;
        if source.copy(&mut out)? != *part {
            return Err(UpdateBuildError::Differs { name });
        }
    }
    Ok(update)
}

/// Checks every part in the folder of a medium against an update's statement.
pub fn check_parts(folder: &Path, update: &Update) -> Result<()> {
    for (name, part) in update.parts() {
        if Source::whole(&folder.join(name))?.copy(&mut io::sink())? != *part {
            return Err(UpdateBuildError::Differs { name });
        }
    }
    Ok(())
}

/// Bytes of a file that make a part.
struct Source {
    path: PathBuf,
    file: File,
    start: u64,
    bytes: u64,
}

impl Source {
    fn whole(path: &Path) -> Result<Self> {
        let opened = File::open(path).map_err(|cause| file(path, cause))?;
        let bytes = opened.metadata().map_err(|cause| file(path, cause))?.len();
        Ok(Self { path: path.to_owned(), file: opened, start: 0, bytes })
    }

    /// A partition of the disk, without the zeros at its end.
    fn partition(folder: &Path, label: &'static str) -> Result<Self> {
        let disk = Self::whole(&folder.join(IMAGE))?;
        let error = |cause| file(&disk.path, cause);
        let mut head = vec![0; gpt::HEAD_BYTES];
        (&disk.file).read_exact(&mut head).map_err(error)?;
        let partitions = gpt::partitions(&head, disk.bytes)
            .map_err(|cause| UpdateBuildError::Gpt { path: disk.path.clone(), cause })?;
        let fits = |bytes: u64| (1..=PART_BYTES_MAX).contains(&bytes);
        let mut found = partitions
            .iter()
            .filter(|partition| partition.label == label && fits(partition.end - partition.start));
        let (Some(partition), None) = (found.next(), found.next()) else {
            let count = partitions.iter().filter(|partition| partition.label == label).count();
            return Err(UpdateBuildError::Partition { path: disk.path, label, count });
        };
        let (start, end) = (partition.start, partition.end);
        let mut source = Self { start, bytes: end - start, ..disk };
        source.bytes = source.without_zeros()?;
        Ok(source)
    }

    /// Length up to the last block that is not zero.
    fn without_zeros(&self) -> Result<u64> {
        let (mut length, mut at) = (0, 0);
        self.each_chunk(|chunk| {
            for block in chunk.chunks(BLOCK_BYTES) {
                at += block.len() as u64;
                if block.iter().any(|&byte| byte != 0) {
                    length = at;
                }
            }
            Ok(())
        })?;
        Ok(length)
    }

    fn copy(&self, out: &mut impl Write) -> Result<Part> {
        let mut hash = Sha256::new();
        self.each_chunk(|chunk| {
            hash.update(chunk);
            out.write_all(chunk)
        })?;
        Ok(Part { bytes: self.bytes, sha256: hex::encode(hash.finalize()) })
    }

    fn each_chunk(&self, mut then: impl FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        let mut read = || {
            let (mut chunk, mut done) = (vec![0; CHUNK_BYTES], 0);
            while done < self.bytes {
                let left = usize::try_from(self.bytes - done).unwrap_or(CHUNK_BYTES);
                let chunk = &mut chunk[..left.min(CHUNK_BYTES)];
                self.file.read_exact_at(chunk, self.start + done)?;
                then(chunk)?;
                done += chunk.len() as u64;
            }
            Ok(())
        };
        read().map_err(|cause| file(&self.path, cause))
    }
}

fn file(path: &Path, cause: io::Error) -> UpdateBuildError {
    UpdateBuildError::File { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_are_left_out_in_whole_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let mut bytes = vec![0; CHUNK_BYTES + 3 * BLOCK_BYTES];
        bytes[CHUNK_BYTES + 1] = 1;
        fs::write(&path, &bytes).unwrap();
        let source = Source::whole(&path).unwrap();
        assert_eq!(source.without_zeros().unwrap(), (CHUNK_BYTES + BLOCK_BYTES) as u64);
        let part = source.copy(&mut io::sink()).unwrap();
        let sha256 = hex::encode(Sha256::digest(&bytes));
        assert_eq!(part, Part { bytes: bytes.len() as u64, sha256 });
    }
}
