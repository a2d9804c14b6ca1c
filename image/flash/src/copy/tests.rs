use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::*;

const SMALL: Sizes = Sizes { edge: 64, chunk: 48, clear: 100 };

#[derive(Debug)]
struct Image {
    content: Vec<u8>,
    segments: Vec<Segment>,
}

impl Image {
    /// From lengths; each is data, of the byte that is given, or a hole.
    fn new(parts: &[(usize, Option<u8>)]) -> Self {
        let mut image = Self { content: Vec::new(), segments: Vec::new() };
        for &(bytes, fill) in parts {
            let start = image.bytes();
            image.content.extend(std::iter::repeat_n(fill.unwrap_or(0), bytes));
            let range = start..image.bytes();
            image.segments.push(Segment { range, is_data: fill.is_some() });
        }
        image
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.content).into()
    }
}

impl Source for Image {
    fn bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn segments(&self) -> &[Segment] {
        &self.segments
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.content[start..][..buffer.len()]);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clears {
    Does,
    Cannot,
    Pretends,
}

/// A disk full of garbage that can lie, break and forget.
struct Disk {
    content: RefCell<Vec<u8>>,
    clears: Clears,
    /// Writes that still succeed, then how many fail.
    writes_left: Cell<usize>,
    writes_fail: Cell<usize>,
    /// Flushes that still succeed, before one that fails.
    syncs_left: Cell<usize>,
    /// This byte cannot be read until it is written.
    bad: Cell<Option<usize>>,
    /// This byte takes no write but the one that makes it zero.
    stuck: Option<usize>,
    image: Vec<u8>,
    edge: usize,
    is_made: Cell<bool>,
}

impl Disk {
    fn new(bytes: usize, image: &Image, clears: Clears) -> Self {
        let content = (0..bytes).map(|at| 0xa5 ^ u8::try_from(at % 83).unwrap()).collect();
        Self {
            content: RefCell::new(content),
            clears,
            writes_left: Cell::new(usize::MAX),
            writes_fail: Cell::new(0),
            syncs_left: Cell::new(usize::MAX),
            bad: Cell::new(None),
            stuck: None,
            image: image.content.clone(),
            edge: SMALL.edge.min(image.content.len() / 2),
            is_made: Cell::new(false),
        }
    }

    fn has_tables(&self) -> bool {
        let content = self.content.borrow();
        let (image, edge) = (self.image.len(), self.edge);
        let end = content.len().saturating_sub(SMALL.edge).max(image);
        [&content[..edge], &content[image - edge..image], &content[end..]]
            .iter()
            .any(|part| part.iter().any(|&byte| byte != 0))
    }

    /// Before a byte of a table is written, the rest is there.
    fn check_order(&self, bytes: &[u8], start: usize) {
        let (image, edge) = (self.image.len(), self.edge);
        let is_edge = start < edge || (start < image && start + bytes.len() > image - edge);
        if is_edge && bytes.iter().any(|&byte| byte != 0) {
            let content = self.content.borrow();
            assert_eq!(content[edge..image - edge], self.image[edge..image - edge]);
            self.is_made.set(true);
        }
    }
}

impl Target for Disk {
    fn bytes(&self) -> u64 {
        self.content.borrow().len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        if self.bad.get().is_some_and(|bad| (start..start + buffer.len()).contains(&bad)) {
            return Err(io_error());
        }
        buffer.copy_from_slice(&self.content.borrow()[start..][..buffer.len()]);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.writes_left.get() == 0 && self.writes_fail.get() > 0 {
            self.writes_fail.set(self.writes_fail.get() - 1);
            return Err(io_error());
        }
        self.writes_left.set(self.writes_left.get().saturating_sub(1));
        let start = usize::try_from(offset).unwrap();
        self.check_order(bytes, start);
        self.bad.set(self.bad.get().filter(|bad| !(start..start + bytes.len()).contains(bad)));
        let mut content = self.content.borrow_mut();
        for (at, &byte) in (start..).zip(bytes) {
            if self.stuck != Some(at) || byte == 0 {
                content[at] = byte;
            }
        }
        Ok(())
    }

    fn clear(&self, range: Range<u64>) -> bool {
        if self.clears == Clears::Does {
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            self.content.borrow_mut()[range].fill(0);
        }
        self.clears != Clears::Cannot
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs_left.set(self.syncs_left.get().wrapping_sub(1));
        if self.syncs_left.get() == usize::MAX { Err(io_error()) } else { Ok(()) }
    }
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

/// Counts how often it is asked, and stops at one of them.
#[derive(Default)]
struct Seen {
    asked: Cell<usize>,
    stop_at: Option<usize>,
    last: Vec<(Phase, u64, u64)>,
}

impl Watch for Seen {
    fn see(&mut self, phase: Phase, done: u64, total: u64) {
        assert!(done <= total);
        self.last.retain(|(other, ..)| *other != phase);
        self.last.push((phase, done, total));
    }

    fn is_interrupted(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.stop_at.is_some_and(|at| self.asked.get() > at)
    }
}

fn flash(image: &Image, disk: &Disk) -> Result<(), Failure> {
    copy(image, disk, &image.digest(), SMALL, &mut Seen::default())
}

fn sample() -> Image {
    Image::new(&[(200, Some(1)), (300, None), (150, Some(2)), (50, None), (100, Some(3))])
}

fn layouts() -> impl Strategy<Value = Image> {
    let part = (1..400usize, proptest::option::of(any::<u8>()));
    proptest::collection::vec(part, 1..8).prop_map(|parts| Image::new(&parts))
}

fn clears() -> impl Strategy<Value = Clears> {
    prop_oneof![Just(Clears::Does), Just(Clears::Cannot)]
}

proptest! {
    #[test]
    fn a_disk_of_any_size_begins_with_the_image_and_ends_with_zeros(
        image in layouts(), more in 0..300usize, clears in clears(),
    ) {
        let bytes = image.content.len();
        let disk = Disk::new(bytes + more, &image, clears);
        let before = disk.content.borrow().clone();
        flash(&image, &disk).unwrap();
        let content = disk.content.borrow();
        prop_assert_eq!(&content[..bytes], &image.content[..]);
        let end = (bytes + more).saturating_sub(SMALL.edge).max(bytes);
        prop_assert!(content[end..].iter().all(|&byte| byte == 0));
        // Between them the disk keeps what it had: nothing is written that was not asked for.
        prop_assert_eq!(&content[bytes..end], &before[bytes..end]);
    }

    #[test]
    fn a_disk_that_broke_once_has_no_table(
        image in layouts(), more in 0..300usize, clears in clears(), writes in 0..40usize,
    ) {
        let mut disk = Disk::new(image.content.len() + more, &image, clears);
        disk.writes_left = Cell::new(writes);
        disk.writes_fail = Cell::new(1);
        match flash(&image, &disk) {
            Ok(()) => prop_assert_eq!(disk.writes_fail.get(), 1),
            Err(failure) => {
                prop_assert_eq!(failure.remains, Remains::NoTable);
                let is_write = matches!(failure.error, CopyError::Target { action: "write", .. });
                prop_assert!(is_write, "{}", failure.error);
                prop_assert!(!disk.has_tables());
            }
        }
    }

    #[test]
    fn an_interrupted_disk_has_no_table(
        image in layouts(), more in 0..300usize, clears in clears(), stop_at in 0..60usize,
    ) {
        let disk = Disk::new(image.content.len() + more, &image, clears);
        let mut seen = Seen { stop_at: Some(stop_at), ..Seen::default() };
        match copy(&image, &disk, &image.digest(), SMALL, &mut seen) {
            Ok(()) => prop_assert!(seen.asked.get() <= stop_at),
            Err(failure) => {
                let is_interrupted = matches!(failure.error, CopyError::Interrupted { .. });
                prop_assert!(is_interrupted, "{}", failure.error);
                prop_assert!(!disk.has_tables() && !disk.is_made.get());
            }
        }
    }

    #[test]
    fn a_byte_that_does_not_take_the_image_is_named(
        image in layouts(), at in any::<proptest::sample::Index>(), clears in clears(),
    ) {
        let at = at.index(image.content.len());
        let mut disk = Disk::new(image.content.len() + 200, &image, clears);
        disk.stuck = Some(at);
        let is_zero = image.content[at] == 0;
        // Garbage, or the zero of the cleared edges.
        let was = if at < disk.edge || at >= image.content.len() - disk.edge { 0 } else { disk.content.borrow()[at] };
        match flash(&image, &disk) {
            Ok(()) => prop_assert!(is_zero || was == image.content[at]),
            Err(failure) => {
                let expected = image.content[at];
                let is_named = matches!(failure.error, CopyError::Differs { offset, found, expected: byte }
                    if offset == at as u64 && found == was && byte == expected);
                prop_assert!(is_named, "{}", failure.error);
                prop_assert!(failure.remains == Remains::NoTable && !disk.has_tables());
            }
        }
    }
}

#[test]
fn a_disk_that_only_pretends_to_clear_is_found_out() {
    let image = sample();
    let disk = Disk::new(1000, &image, Clears::Pretends);
    let failure = flash(&image, &disk).unwrap_err();
    assert!(
        matches!(failure.error, CopyError::Differs { offset: 200, expected: 0, .. }),
        "{failure}"
    );
    assert!(!disk.is_made.get() && !disk.has_tables());
}

#[test]
fn a_bad_sector_in_a_gap_is_written_and_one_that_stays_bad_is_named() {
    let image = sample();
    let disk = Disk::new(1000, &image, Clears::Cannot);
    disk.bad.set(Some(250));
    flash(&image, &disk).unwrap();

    let disk = Disk::new(1000, &image, Clears::Does);
    disk.bad.set(Some(250));
    let failure = flash(&image, &disk).unwrap_err();
    let CopyError::Target { action: "read back", offset, .. } = failure.error else {
        panic!("{failure}")
    };
    assert!((250 - 48..=250).contains(&offset) && !disk.is_made.get(), "{offset}");
}

#[test]
fn a_flush_that_fails_leaves_no_table_whichever_it_is() {
    let image = sample();
    for syncs in 0..=4 {
        let disk = Disk::new(1000, &image, Clears::Does);
        disk.syncs_left.set(syncs);
        let result = flash(&image, &disk);
        if syncs == 4 {
            // Before, after the body, after the tail, after the head: there is no fifth.
            result.unwrap();
            continue;
        }
        let failure = result.unwrap_err();
        assert!(matches!(failure.error, CopyError::Flush { .. }), "{syncs}: {failure}");
        assert!(failure.remains == Remains::NoTable && !disk.has_tables(), "{syncs}: {failure}");
    }
}

#[test]
fn only_data_is_written_and_every_byte_is_read_back() {
    let image = sample();
    let disk = Disk::new(1000, &image, Clears::Does);
    let mut seen = Seen::default();
    copy(&image, &disk, &image.digest(), SMALL, &mut seen).unwrap();
    // 800 bytes, less an edge of 64 at both ends.
    assert_eq!(
        seen.last,
        [(Phase::Clear, 350, 350), (Phase::Write, 322, 322), (Phase::ReadBack, 672, 672)]
    );
}

#[test]
fn an_image_that_changed_meanwhile_never_boots() {
    let image = sample();
    for disk_bytes in [800, 801, 900] {
        let disk = Disk::new(disk_bytes, &image, Clears::Does);
        let failure = copy(&image, &disk, &[7; 32], SMALL, &mut Seen::default()).unwrap_err();
        assert!(matches!(failure.error, CopyError::Changed { .. }), "{failure}");
        assert!(!disk.is_made.get() && !disk.has_tables());
    }
}

#[test]
fn a_disk_that_can_no_longer_be_cleared_is_not_called_unbootable() {
    let image = sample();
    let mut disk = Disk::new(1000, &image, Clears::Does);
    disk.writes_left = Cell::new(5);
    disk.writes_fail = Cell::new(usize::MAX);
    let failure = flash(&image, &disk).unwrap_err();
    assert_eq!(failure.remains, Remains::Unknown);
    assert!(failure.to_string().contains("Do not use it"), "{failure}");
}

#[test]
fn what_an_operator_can_do_depends_on_the_error() {
    use rustix::io::Errno;
    for (errno, word) in [
        (Errno::NOSPC, "full"),
        (Errno::NODEV, "cable"),
        (Errno::IO, "dmesg"),
        (Errno::ROFS, "read-only"),
    ] {
        let cause = io::Error::from_raw_os_error(errno.raw_os_error());
        let error = CopyError::Target { action: "write", offset: 4096, cause }.to_string();
        assert!(error.contains("at offset 4096") && error.contains(word), "{error}");
    }
}
