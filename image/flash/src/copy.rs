//! Puts an image onto a disk such that it boots with all of it or not at all.
//! Invariants: the first and last bytes of the image, where its two partition tables are, are written only after
//! everything else on the disk has been read back and is the image; until then neither they nor the end of the disk
//! hold a table, old or new. After success the disk begins with the image, byte for byte, and ends with zeros.

use std::fmt;
use std::io;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::buffer::Buffer;

/// An image, readable in any order.
pub(crate) trait Source {
    /// Its length.
    fn bytes(&self) -> u64;
    /// Parts of it, in order and without gaps.
    fn segments(&self) -> &[Segment];
    /// Fills `buffer`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A disk, or what stands for one in a test.
pub(crate) trait Target {
    /// Its length.
    fn bytes(&self) -> u64;
    /// Fills `buffer` with what is on the disk, not with what a cache thinks of it.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the disk itself clear a range; false if it cannot. Reading it back shows whether it did.
    fn clear(&self, range: Range<u64>) -> bool;
    /// Returns once everything that was written is on the disk.
    fn sync(&self) -> io::Result<()>;
}

/// Sees how far it is, and can stop it.
pub(crate) trait Watch {
    /// `done` of `total` bytes of a phase.
    fn see(&mut self, phase: Phase, done: u64, total: u64);
    /// Whether to stop.
    fn is_interrupted(&self) -> bool;
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Check,
    Clear,
    Write,
    ReadBack,
}

/// A part of an image that is data, or a hole that reads as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) range: Range<u64>,
    pub(crate) is_data: bool,
}

/// In bytes; all multiples of the disk's sector size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// First and last bytes that are written last: a GPT is in 17 KiB, RAID and ZFS labels in less than this.
    pub(crate) edge: usize,
    /// Most that is read or written at once.
    pub(crate) chunk: usize,
    /// Most that the disk is asked to clear at once.
    pub(crate) clear: u64,
}

/// Large enough for full speed, small enough that Ctrl-C is soon heard.
pub(crate) const SIZES: Sizes = Sizes { edge: 1 << 20, chunk: 4 << 20, clear: 64 << 20 };

/// Why a disk is not what it was to become.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The image.
    #[error("cannot read the image at offset {offset}: {cause}")]
    Source { offset: u64, cause: io::Error },
    /// The image is not what its digest said.
    #[error(
        "the image changed while it was written: its SHA-256 was {expected}, now it is {found}; let no build run meanwhile"
    )]
    Changed { expected: String, found: String },
    /// The disk.
    #[error("cannot {action} the disk at offset {offset}: {cause}; {}", advice(cause))]
    Target { action: &'static str, offset: u64, cause: io::Error },
    /// A write that the disk had acknowledged may be lost; which one is not told.
    #[error("the disk does not confirm what was written: {cause}; {}", advice(cause))]
    Flush { cause: io::Error },
    /// The disk does not hold what it was told.
    #[error(
        "the disk does not keep what is written to it: at offset {offset} it has 0x{found:02x} in place of 0x{expected:02x}; \
         take another disk, and have its cable and controller looked at"
    )]
    Differs { offset: u64, found: u8, expected: u8 },
    /// Ctrl-C.
    #[error("interrupted at offset {offset}")]
    Interrupted { offset: u64 },
}

/// What a failure left on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remains {
    /// No partition table: nothing starts from it.
    NoTable,
    /// The tables could not be taken off it.
    Unknown,
}

/// A failure, and what it left.
#[derive(Debug, thiserror::Error)]
#[error("{error}\n{remains}")]
pub(crate) struct Failure {
    pub(crate) error: CopyError,
    pub(crate) remains: Remains,
}

/// Puts `source`, whose SHA-256 is `digest`, onto `target`, which is at least as long, and reads it back.
pub(crate) fn copy(
    source: &impl Source,
    target: &impl Target,
    digest: &[u8; 32],
    sizes: Sizes,
    watch: &mut dyn Watch,
) -> Result<(), Failure> {
    let edge = sizes.edge.min(usize::try_from(source.bytes() / 2).unwrap_or(sizes.edge));
    let mut copy = Copy {
        source,
        target,
        sizes,
        watch,
        image: Buffer::new(sizes.chunk),
        disk: Buffer::new(sizes.chunk),
        zeros: Buffer::new(sizes.chunk),
        head: Buffer::new(edge),
        tail: Buffer::new(edge),
    };
    copy.run(digest).map_err(|error| {
        let remains = if copy.unmake().is_ok() { Remains::NoTable } else { Remains::Unknown };
        Failure { error, remains }
    })
}

struct Copy<'a, S, T> {
    source: &'a S,
    target: &'a T,
    sizes: Sizes,
    watch: &'a mut dyn Watch,
    image: Buffer,
    disk: Buffer,
    zeros: Buffer,
    head: Buffer,
    tail: Buffer,
}

impl<S: Source, T: Target> Copy<'_, S, T> {
    fn run(&mut self, digest: &[u8; 32]) -> Result<(), CopyError> {
        self.unmake()?;
        read_source(self.source, self.head.bytes_mut(), 0)?;
        let tail_start = self.body().end;
        read_source(self.source, self.tail.bytes_mut(), tail_start)?;
        self.clear_holes()?;
        self.write_data()?;
        self.sync()?;
        let found = self.read_back()?;
        if found != *digest {
            let (expected, found) = (hex::encode(digest), hex::encode(found));
            return Err(CopyError::Changed { expected, found });
        }
        self.make()
    }

    /// What is between the edges of the image.
    fn body(&self) -> Range<u64> {
        let edge = self.head.bytes().len() as u64;
        edge..self.source.bytes() - edge
    }

    /// What is behind the image and to be cleared: an old backup table, or a RAID's label.
    fn end(&self) -> Range<u64> {
        let bytes = self.target.bytes();
        self.source.bytes().max(bytes.saturating_sub(self.sizes.edge as u64))..bytes
    }

    /// Takes all partition tables off the disk: the primary one, the disk's backup, the image's backup.
    fn unmake(&mut self) -> Result<(), CopyError> {
        let (body, bytes) = (self.body(), self.source.bytes());
        for range in [0..body.start, self.end(), body.end..bytes] {
            self.write_zeros(range)?;
        }
        self.sync()
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<(), CopyError> {
        chunks(range, self.sizes.chunk as u64)
            .try_for_each(|chunk| self.write(&self.zeros.bytes()[..length(&chunk)], chunk.start))
    }

    fn clear_holes(&mut self) -> Result<(), CopyError> {
        let mut can_clear = true;
        self.for_segments(Phase::Clear, self.sizes.clear, |copy, range| {
            can_clear = can_clear && copy.target.clear(range.clone());
            if can_clear { Ok(()) } else { copy.zero_what_is_not(range) }
        })
    }

    fn zero_what_is_not(&mut self, range: Range<u64>) -> Result<(), CopyError> {
        for chunk in chunks(range, self.sizes.chunk as u64) {
            self.go_on(chunk.start)?;
            let found = &mut self.disk.bytes_mut()[..length(&chunk)];
            let zeros = &self.zeros.bytes()[..length(&chunk)];
            // What cannot be read may yet be written: a disk replaces a bad sector when it is.
            if self.target.read_at(found, chunk.start).is_err() || found != zeros {
                self.write(zeros, chunk.start)?;
            }
        }
        Ok(())
    }

    fn write_data(&mut self) -> Result<(), CopyError> {
        self.for_segments(Phase::Write, self.sizes.chunk as u64, |copy, range| {
            let bytes = &mut copy.image.bytes_mut()[..length(&range)];
            read_source(copy.source, bytes, range.start)?;
            copy.write(&copy.image.bytes()[..length(&range)], range.start)
        })
    }

    /// Does `work` to each piece of the holes or the data of the body.
    fn for_segments(
        &mut self,
        phase: Phase,
        bytes_max: u64,
        mut work: impl FnMut(&mut Self, Range<u64>) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let body = self.body();
        let ranges: Vec<Range<u64>> = self
            .source
            .segments()
            .iter()
            .filter(|segment| segment.is_data == (phase == Phase::Write))
            .map(|segment| segment.range.start.max(body.start)..segment.range.end.min(body.end))
            .filter(|range| range.start < range.end)
            .collect();
        let total = ranges.iter().map(|range| range.end - range.start).sum();
        if total > 0 {
            self.watch.see(phase, 0, total);
        }
        let mut done = 0;
        for piece in ranges.into_iter().flat_map(|range| chunks(range, bytes_max)) {
            self.go_on(piece.start)?;
            let bytes = piece.end - piece.start;
            work(self, piece)?;
            done += bytes;
            self.watch.see(phase, done, total);
        }
        Ok(())
    }

    /// Compares the body with the image, and the end with zeros. Returns the digest of the image as it is then: its
    /// edges from memory, the rest from the disk.
    fn read_back(&mut self) -> Result<[u8; 32], CopyError> {
        let mut hash = Sha256::new().chain_update(self.head.bytes());
        let (body, end) = (self.body(), self.end());
        let total = body.end - body.start;
        self.watch.see(Phase::ReadBack, 0, total);
        for chunk in chunks(body.clone(), self.sizes.chunk as u64) {
            self.go_on(chunk.start)?;
            let expected = &mut self.image.bytes_mut()[..length(&chunk)];
            read_source(self.source, expected, chunk.start)?;
            let found = &mut self.disk.bytes_mut()[..length(&chunk)];
            read_target(self.target, found, chunk.start)?;
            same(found, expected, chunk.start)?;
            hash.update(&*found);
            self.watch.see(Phase::ReadBack, chunk.end - body.start, total);
        }
        for chunk in chunks(end, self.sizes.chunk as u64) {
            let found = &mut self.disk.bytes_mut()[..length(&chunk)];
            read_target(self.target, found, chunk.start)?;
            same(found, &self.zeros.bytes()[..length(&chunk)], chunk.start)?;
        }
        Ok(hash.chain_update(self.tail.bytes()).finalize().into())
    }

    /// Writes the edges: with the last write, the disk boots.
    fn make(&mut self) -> Result<(), CopyError> {
        let tail_start = self.body().end;
        let edges = [(&self.tail, tail_start), (&self.head, 0)];
        for (edge, offset) in edges {
            for chunk in chunks(0..edge.bytes().len() as u64, self.sizes.chunk as u64) {
                let start = usize::try_from(chunk.start).unwrap_or(usize::MAX);
                self.write(&edge.bytes()[start..][..length(&chunk)], offset + chunk.start)?;
            }
            self.sync()?;
        }
        for (edge, offset) in edges {
            let mut found = Buffer::new(edge.bytes().len());
            read_target(self.target, found.bytes_mut(), offset)?;
            same(found.bytes(), edge.bytes(), offset)?;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), CopyError> {
        self.target.write_at(bytes, offset).map_err(|cause| CopyError::Target {
            action: "write",
            offset,
            cause,
        })
    }

    fn sync(&self) -> Result<(), CopyError> {
        self.target.sync().map_err(|cause| CopyError::Flush { cause })
    }

    fn go_on(&self, offset: u64) -> Result<(), CopyError> {
        if self.watch.is_interrupted() {
            return Err(CopyError::Interrupted { offset });
        }
        Ok(())
    }
}

impl fmt::Display for Remains {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NoTable => {
                "The disk has no partition table now and does NOT boot; what was on it is lost. Flash it again."
            }
            Self::Unknown => {
                "The disk's partition tables could NOT be cleared: it may boot with what it held before, or with part of \
                 the image. Do not use it; take it out, or flash it again."
            }
        })
    }
}

/// `range` in pieces of at most `bytes_max`.
pub(crate) fn chunks(range: Range<u64>, bytes_max: u64) -> impl Iterator<Item = Range<u64>> {
    let Range { start, end } = range;
    let step = usize::try_from(bytes_max).unwrap_or(usize::MAX).max(1);
    (start..end).step_by(step).map(move |from| from..end.min(from + bytes_max))
}

fn length(chunk: &Range<u64>) -> usize {
    usize::try_from(chunk.end - chunk.start).unwrap_or(usize::MAX)
}

fn read_source(source: &impl Source, buffer: &mut [u8], offset: u64) -> Result<(), CopyError> {
    source.read_at(buffer, offset).map_err(|cause| CopyError::Source { offset, cause })
}

fn read_target(target: &impl Target, buffer: &mut [u8], offset: u64) -> Result<(), CopyError> {
    target.read_at(buffer, offset).map_err(|cause| CopyError::Target {
        action: "read back",
        offset,
        cause,
    })
}

/// Names the first byte that differs.
fn same(found: &[u8], expected: &[u8], offset: u64) -> Result<(), CopyError> {
    if found == expected {
        return Ok(());
    }
    let differs = found.iter().zip(expected).zip(offset..).find(|((one, two), _)| one != two);
    differs.map_or(Ok(()), |((&found, &expected), offset)| {
        Err(CopyError::Differs { offset, found, expected })
    })
}

/// What an operator can do about an error of a disk.
fn advice(error: &io::Error) -> &'static str {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC) => {
            "there is no room: what provides this disk (thin pool, RAID controller) is full"
        }
        Some(Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM) => {
            "the disk is gone: look at its slot, cable and power, then start again"
        }
        Some(Errno::ROFS | Errno::PERM | Errno::ACCESS) => "the disk became read-only",
        Some(Errno::INVAL) => "the disk does not take direct transfers of this size",
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the disk is shorter than it said: a counterfeit, or it is gone"
        }
        _ => "look at `dmesg`; a disk that reports errors when it is new is to be replaced",
    }
}

#[cfg(test)]
mod tests;
