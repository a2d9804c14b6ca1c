//! The image that is flashed: a sparse file with a partition table, and the digest that its build gave it.
//! Invariant: an [`Image`] is whole, from its first table to its last sector, and its length is a number of sectors.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use sha2::{Digest as _, Sha256};

use super::copy::{Phase, Segment, Source, Watch, chunks};
use super::disks::Needs;

/// File systems map in blocks of at least this; pieces begin and end at such places.
const BLOCK_BYTES: u64 = 4096;
/// Most pieces that are told apart; what comes after is all taken for data.
const SEGMENTS_MAX: usize = 1 << 16;
const CHUNK_BYTES: u64 = 4 << 20;
/// Sector sizes that disks have.
const SECTORS: &[u64] = &[512, 4096];
const HEAD_BYTES: usize = 4096 + 512;

/// Why a file cannot be flashed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// A file.
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    /// Something else.
    #[error(
        "{path} is no disk image: it has no GUID partition table; give the casemate.raw of a build, unpacked if it is packed"
    )]
    NoTable { path: PathBuf },
    /// A download that broke off, or bytes that were added.
    #[error("{path} has {found} bytes, its partition table is for {expected}: copy it again")]
    Length { path: PathBuf, found: u64, expected: u64 },
    /// Nobody says what it should be.
    #[error(transparent)]
    Unsigned(#[from] builder::DeliveryError),
    /// Not what was built.
    #[error(
        "{path} is not what was built: its SHA-256 is {found}, {} says {expected}; copy both again from the build",
        builder::ENVELOPE
    )]
    Digest { path: PathBuf, found: String, expected: String },
}

/// A disk image.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    path: PathBuf,
    bytes: u64,
    sector_bytes: u64,
    segments: Vec<Segment>,
}

impl Image {
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let error = |cause| ImageError::File { path: path.to_owned(), cause };
        let file = File::open(path).map_err(error)?;
        let meta = file.metadata().map_err(error)?;
        if !meta.is_file() {
            return Err(error(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let mut head = vec![0; HEAD_BYTES];
        let no_table = || ImageError::NoTable { path: path.to_owned() };
        file.read_exact_at(&mut head, 0).map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => no_table(),
            _ => error(cause),
        })?;
        let (sector_bytes, expected) = table(&head).ok_or_else(no_table)?;
        let bytes = meta.len();
        if bytes != expected {
            return Err(ImageError::Length { path: path.to_owned(), found: bytes, expected });
        }
        let segments = segments(&file, bytes).map_err(error)?;
        Ok(Self { file, path: path.to_owned(), bytes, sector_bytes, segments })
    }

    /// What a disk must have for it. The fixed partitions and room for the state are in it: there is no more to ask.
    pub(crate) fn needs(&self) -> Needs {
        Needs { bytes: self.bytes, sector_bytes: self.sector_bytes }
    }

    /// How much of it is data.
    pub(crate) fn data_bytes(&self) -> u64 {
        let data = self.segments.iter().filter(|segment| segment.is_data);
        data.map(|segment| segment.range.end - segment.range.start).sum()
    }

    /// Reads all of it, and compares its SHA-256 with the one that the holder of the key `pem` signed: the envelope lies
    /// beside the image.
    pub(crate) fn check(&self, pem: &str, watch: &mut dyn Watch) -> Result<[u8; 32], ImageError> {
        // Before the long work: a statement that cannot be right is told at once.
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let expected = builder::signed_digest(folder, &name, pem)?;
        let sha256 = self.digest(watch)?;
        let found = hex::encode(sha256);
        if found != expected {
            return Err(ImageError::Digest { path: self.path.clone(), found, expected });
        }
        Ok(sha256)
    }

    fn digest(&self, watch: &mut dyn Watch) -> Result<[u8; 32], ImageError> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; usize::try_from(CHUNK_BYTES).unwrap_or(1)];
        watch.see(Phase::Check, 0, self.bytes);
        for chunk in chunks(0..self.bytes, CHUNK_BYTES) {
            let length = usize::try_from(chunk.end - chunk.start).unwrap_or(0);
            let part = &mut buffer[..length];
            let error = |cause| ImageError::File { path: self.path.clone(), cause };
            self.file.read_exact_at(part, chunk.start).map_err(error)?;
            hash.update(part);
            watch.see(Phase::Check, chunk.end, self.bytes);
        }
        Ok(hash.finalize().into())
    }
}

impl Source for Image {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn segments(&self) -> &[Segment] {
        &self.segments
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// Sector size and length in bytes of the disk that `head` begins: UEFI Specification 2.10, 5.3.2 "GPT Header", where
/// the alternate header is in the last sector.
fn table(head: &[u8]) -> Option<(u64, u64)> {
    SECTORS.iter().find_map(|&sector| {
        let header = head.get(usize::try_from(sector).ok()?..)?;
        if header.get(..8)? != b"EFI PART" || head.get(510..512)? != [0x55, 0xaa] {
            return None;
        }
        let alternate = u64::from_le_bytes(*header.get(32..)?.first_chunk()?);
        Some((sector, alternate.checked_add(1)?.checked_mul(sector)?))
    })
}

/// What is mapped, in whole blocks. Where the file system cannot tell, all of it.
fn segments(file: &File, bytes: u64) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut push = |range: Range<u64>, is_data| {
        if range.start < range.end {
            segments.push(Segment { range, is_data });
        }
        segments.len()
    };
    let mut at = 0;
    while at < bytes {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => (data / BLOCK_BYTES * BLOCK_BYTES).clamp(at, bytes),
            // No data from here on.
            Err(rustix::io::Errno::NXIO) => bytes,
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let count = push(at..data, false);
        let hole = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
            Ok(hole) if count < SEGMENTS_MAX => {
                hole.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
            }
            Ok(_) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NXIO) => bytes,
            Err(error) => return Err(error.into()),
        };
        // A file that shrinks meanwhile must not hold the loop.
        let end = hole.max(data + BLOCK_BYTES).min(bytes);
        push(data..end, true);
        at = end;
    }
    Ok(segments)
}

#[cfg(test)]
#[path = "../../cli/tests/builder_key/mod.rs"]
mod builder_key;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::builder_key::Key;
    use super::*;

    struct Unseen;

    impl Watch for Unseen {
        fn see(&mut self, _: Phase, _: u64, _: u64) {}
        fn is_interrupted(&self) -> bool {
            false
        }
    }

    /// A file that says it is a disk of `bytes`, with data at `places`.
    fn write(path: &Path, bytes: u64, places: &[(u64, &[u8])]) {
        let file = File::create(path).unwrap();
        file.set_len(bytes).unwrap();
        for (at, data) in places {
            file.write_all_at(data, *at).unwrap();
        }
        file.write_all_at(&[0x55, 0xaa], 510).unwrap();
        file.write_all_at(b"EFI PART", 512).unwrap();
        file.write_all_at(&(bytes / 512 - 1).to_le_bytes(), 512 + 32).unwrap();
    }

    fn refused(path: &Path) -> String {
        Image::open(path).unwrap_err().to_string()
    }

    #[test]
    fn an_image_is_what_its_builder_signed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("casemate.raw");
        write(&path, 1 << 20, &[(70_000, b"root")]);
        let image = Image::open(&path).unwrap();
        assert_eq!((image.needs().bytes, image.needs().sector_bytes), (1 << 20, 512));
        let sha256: [u8; 32] = Sha256::digest(std::fs::read(&path).unwrap()).into();
        let key = Key::new(1);
        let check = |key: &Key| image.check(&key.pem(), &mut Unseen).map_err(|e| e.to_string());
        assert!(check(&key).unwrap_err().contains(builder::ENVELOPE), "unsigned");
        let sign = |name: &str, sha256: &str| key.sign(folder.path(), name, sha256);
        sign("casemate.raw", &hex::encode(sha256));
        assert_eq!(check(&key), Ok(sha256));
        assert!(check(&Key::new(2)).unwrap_err().contains("none of its 1 signatures"));
        sign("casemate.raw", &"0".repeat(64));
        assert!(check(&key).unwrap_err().contains("not what was built"));
        sign("other.raw", &hex::encode(sha256));
        assert!(check(&key).unwrap_err().contains("names no file \"casemate.raw\""));
    }

    #[test]
    fn what_is_no_whole_disk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("casemate.raw");
        for content in [&b""[..], &[0; 100], &[0; 8192], &b"\xfd7zXZ".repeat(2000)] {
            std::fs::write(&path, content).unwrap();
            assert!(refused(&path).contains("no disk image"));
        }
        write(&path, 1 << 20, &[]);
        File::options().write(true).open(&path).unwrap().set_len(1 << 19).unwrap();
        assert!(refused(&path).contains("has 524288 bytes, its partition table is for 1048576"));
        assert!(refused(folder.path()).contains("not a regular file"));
    }

    #[test]
    fn tables_of_large_sectors_are_known_and_absurd_ones_refused() {
        let mut head = vec![0; HEAD_BYTES];
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        head[4096..4104].copy_from_slice(b"EFI PART");
        head[4128] = 9;
        assert_eq!(table(&head), Some((4096, 40960)));
        head[4128..4136].fill(0xff);
        assert_eq!(table(&head), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn segments_cover_the_file_and_holes_are_zero(
            places in proptest::collection::vec((2u64..500, 1usize..20_000), 0..12),
            sectors in 1100u64..6000,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("casemate.raw");
            let data = vec![0xee; 20_000];
            let places: Vec<(u64, &[u8])> =
                places.iter().map(|&(block, length)| (block * 1024, &data[..length])).collect();
            write(&path, sectors * 512, &places);
            File::options().write(true).open(&path).unwrap().set_len(sectors * 512).unwrap();
            let image = Image::open(&path).unwrap();
            let content = std::fs::read(&path).unwrap();
            let mut at = 0;
            for Segment { range, is_data } in image.segments() {
                prop_assert!(range.start == at && range.end > at);
                let part = &content[usize::try_from(at).unwrap()..usize::try_from(range.end).unwrap()];
                prop_assert!(*is_data || part.iter().all(|&byte| byte == 0));
                at = range.end;
            }
            prop_assert_eq!(at, sectors * 512);
            prop_assert!(image.data_bytes() <= sectors * 512);
        }
    }
}
