//! Downloads the packages of a lock into a folder that is kept: one file per SHA-256.
//! Invariants: a package gets its name in the folder after its size and digest were found to be the lock's; one process at
//! a time downloads into a folder.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::lock::{Lock, Locked};

/// Downloads at one time.
const WORKERS: usize = 4;
/// Tries of one package before the line counts as broken.
const ATTEMPTS: usize = 3;
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(20);
const BUFFER_BYTES: usize = 64 << 10;
/// As much of curl's complaint as is kept.
const COMPLAINT_BYTES_MAX: u64 = 2000;
/// curl's exit status for a file: URL that is not there.
const CURL_NO_FILE: i32 = 37;
/// In the folder: held by the process that downloads into it.
const LOCK: &str = ".lock";
/// Ends the name of a file that is not a whole package yet.
const PARTIAL: &str = ".partial";
/// HTTP: not found, gone.
const HTTP_ABSENT: &[&str] = &["404", "410"];

/// Why the packages are not all there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// curl could not be run.
    #[error("running curl (Debian's package curl): {0}")]
    Curl(std::io::Error),
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The mirror moved on.
    #[error(
        "{mirror} no longer has {} of the locked packages:\n  {}\n\
         Debian replaced them; see what changes and take it with `casemate lock --update`",
        packages.len(),
        packages.join("\n  ")
    )]
    Gone {
        /// The mirror.
        mirror: String,
        /// Name, version and path of each.
        packages: Vec<String>,
    },
    /// The line or the mirror is broken.
    #[error("{url}: {reason}")]
    Transfer {
        /// What was asked for.
        url: String,
        /// What curl said.
        reason: String,
    },
    /// Packages are missing, and the mirror cannot be asked for them.
    #[error(
        "{} lacks {missing} of the locked packages, and the mirror does not give them: {reason} ({url}); \
         a build without a network needs all of them there",
        debs.display()
    )]
    Unreachable {
        /// Packages that the folder lacked at the start.
        missing: usize,
        /// The folder.
        debs: PathBuf,
        /// What was asked for.
        url: String,
        /// What curl said.
        reason: String,
    },
    /// The mirror gave something else.
    #[error(
        "{url} is not the locked package: {found}, expected {expected}; \
         the mirror is altered or broken, or the lock file was edited"
    )]
    Mismatch {
        /// What was asked for.
        url: String,
        /// What came.
        found: String,
        /// What is locked.
        expected: String,
    },
}

type Result<T> = std::result::Result<T, FetchError>;

/// The package's file in the folder.
pub(crate) fn deb(debs: &Path, package: &Locked) -> PathBuf {
    debs.join(format!("{}.deb", package.sha256))
}

/// Sees to it that the folder has every package of the lock; asks the mirror only for those that it lacks.
pub(crate) fn fetch(lock: &Lock, mirror: &str, debs: &Path) -> Result<()> {
    fs::create_dir_all(debs).map_err(|cause| FetchError::File { path: debs.to_owned(), cause })?;
    // Without the lock: a folder that has them all may be one that nobody can write to.
    let missing = missing(lock.packages.iter(), debs)?;
    if missing.is_empty() {
        return Ok(());
    }
    let _held = hold(debs)?;
    // Another build may have fetched them meanwhile.
    let missing = self::missing(missing.into_iter(), debs)?;
    if missing.is_empty() {
        return Ok(());
    }
    let gone = Queue {
        packages: &missing,
        mirror,
        debs,
        next: AtomicUsize::new(0),
        received_bytes: AtomicU64::new(0),
        broken: AtomicBool::new(false),
    }
    .run()?;
    if gone.is_empty() {
        return Ok(());
    }
    let packages = gone.iter().map(|package| format!("{package} ({})", package.path)).collect();
    Err(FetchError::Gone { mirror: mirror.to_owned(), packages })
}

/// Those of `packages` that are not whole in the folder.
fn missing<'a>(packages: impl Iterator<Item = &'a Locked>, debs: &Path) -> Result<Vec<&'a Locked>> {
    let mut missing = Vec::new();
    for package in packages {
        if !is_whole(&deb(debs, package), package)? {
            missing.push(package);
        }
    }
    Ok(missing)
}

/// Waits until no other build downloads into the folder, and takes away what interrupted ones left there. A process id in
/// the names would not keep two builds apart: each may be the first process of a namespace.
fn hold(debs: &Path) -> Result<File> {
    let error = |cause| FetchError::File { path: debs.to_owned(), cause };
    let lock = File::create(debs.join(LOCK)).map_err(error)?;
    if lock.try_lock().is_err() {
        eprintln!("    another build downloads into {}; waiting", debs.display());
        lock.lock().map_err(error)?;
    }
    for entry in fs::read_dir(debs).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.file_name().to_string_lossy().ends_with(PARTIAL) {
            remove(&entry.path())?;
        }
    }
    Ok(lock)
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(FetchError::File { path: path.to_owned(), cause })
        }
        _ => Ok(()),
    }
}

/// Those of `packages` that the mirror has no more.
pub(crate) fn absent<'a>(
    packages: impl Iterator<Item = &'a Locked>,
    mirror: &str,
) -> Result<Vec<&'a Locked>> {
    let mut absent = Vec::new();
    for package in packages {
        let url = package.url(mirror);
        let child = curl(&url).arg("--head").stdout(Stdio::null()).spawn();
        match end(child.map_err(FetchError::Curl)?)? {
            End::Done => {}
            End::Absent => absent.push(package),
            End::Failed(reason) => return Err(FetchError::Transfer { url, reason }),
        }
    }
    Ok(absent)
}

/// Is this file the package? One that is there and is not, is named, and a download replaces it.
fn is_whole(path: &Path, package: &Locked) -> Result<bool> {
    let error = |cause| FetchError::File { path: path.to_owned(), cause };
    let file = match File::open(path) {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(error)?,
    };
    let (bytes, sha256) = copy(file, &mut std::io::sink(), package.bytes, |_| {}).map_err(error)?;
    let whole = bytes == package.bytes && sha256 == package.sha256;
    if !whole {
        eprintln!("    {} is damaged and is fetched again: {package}", path.display());
    }
    Ok(whole)
}

/// Packages that several threads download.
#[derive(Debug)]
struct Queue<'a> {
    packages: &'a [&'a Locked],
    mirror: &'a str,
    debs: &'a Path,
    next: AtomicUsize,
    received_bytes: AtomicU64,
    /// One of the threads failed; the others end after their package.
    broken: AtomicBool,
}

impl<'a> Queue<'a> {
    /// Returns the packages that are gone, in the lock's order, after all others were fetched.
    fn run(&self) -> Result<Vec<&'a Locked>> {
        let total: u64 = self.packages.iter().map(|package| package.bytes).sum();
        let show = |received: u64| {
            eprintln!(
                "    {} packages from {}, {} of {} MB",
                self.packages.len(),
                self.mirror,
                received / 1_000_000,
                total / 1_000_000
            );
        };
        show(0);
        let mut gone: Vec<&Locked> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| self.work())).collect();
            let mut shown = Instant::now();
            while threads.iter().any(|thread| !thread.is_finished()) {
                std::thread::sleep(POLL_EVERY);
                if shown.elapsed() > PROGRESS_EVERY {
                    shown = Instant::now();
                    show(self.received_bytes.load(Ordering::Relaxed));
                }
            }
            let results = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            results.collect::<Result<Vec<_>>>()
        })?
        .concat();
        gone.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(gone)
    }

    fn work(&self) -> Result<Vec<&'a Locked>> {
        let mut gone = Vec::new();
        while !self.broken.load(Ordering::Relaxed)
            && let Some(package) = self.packages.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            match self.download(package) {
                Ok(true) => {}
                Ok(false) => gone.push(*package),
                Err(error) => {
                    self.broken.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(gone)
    }

    /// Downloads one package; `false` says that the mirror has it no more.
    fn download(&self, package: &Locked) -> Result<bool> {
        let url = package.url(self.mirror);
        let partial = self.debs.join(format!(".{}{PARTIAL}", package.name));
        let mut result = Ok(End::Absent);
        for _ in 0..ATTEMPTS {
            result = self.attempt(package, &url, &partial);
            if !matches!(result, Ok(End::Failed(_))) {
                break;
            }
        }
        let finish = match result {
            Ok(End::Done) => fs::rename(&partial, deb(self.debs, package))
                .map_err(|cause| FetchError::File { path: partial, cause }),
            _ => remove(&partial),
        };
        // What went wrong first is said first.
        let end = result?;
        finish?;
        match end {
            End::Done => Ok(true),
            End::Absent => Ok(false),
            End::Failed(reason) => {
                let (missing, debs) = (self.packages.len(), self.debs.to_owned());
                Err(FetchError::Unreachable { missing, debs, url, reason })
            }
        }
    }

    /// Reads no byte more than the lock allows, plus one that shows that there is more.
    fn attempt(&self, package: &Locked, url: &str, partial: &Path) -> Result<End> {
        let error = |cause| FetchError::File { path: partial.to_owned(), cause };
        let mut file = File::create(partial).map_err(error)?;
        let mut child = curl(url).stdout(Stdio::piped()).spawn().map_err(FetchError::Curl)?;
        let Some(body) = child.stdout.take() else { return end(child) };
        let count = |bytes| {
            self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        };
        let copied = copy(body, &mut file, package.bytes, count).map_err(error);
        if !matches!(&copied, Ok((bytes, _)) if *bytes <= package.bytes) {
            // It may be writing still, to nobody.
            child.kill().map_err(FetchError::Curl)?;
        }
        let end = end(child)?;
        let (bytes, sha256) = copied?;
        if bytes <= package.bytes && !matches!(end, End::Done) {
            return Ok(end);
        }
        if bytes == package.bytes && sha256 == package.sha256 {
            return Ok(End::Done);
        }
        let more = if bytes > package.bytes { "more than " } else { "" };
        Err(FetchError::Mismatch {
            url: url.to_owned(),
            found: format!("{more}{} bytes, SHA-256 {sha256}", bytes.min(package.bytes)),
            expected: format!("{} bytes, SHA-256 {}", package.bytes, package.sha256),
        })
    }
}

/// Copies at most one byte more than `bytes_max`; returns how many, and their SHA-256.
fn copy(
    from: impl Read,
    to: &mut impl Write,
    bytes_max: u64,
    count: impl Fn(u64),
) -> std::io::Result<(u64, String)> {
    let mut from = from.take(bytes_max.saturating_add(1));
    let (mut hash, mut total) = (Sha256::new(), 0);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok((total, hex::encode(hash.finalize())));
        }
        let bytes = &buffer[..length];
        hash.update(bytes);
        to.write_all(bytes)?;
        total += length as u64;
        count(length as u64);
    }
}

/// How a transfer ended.
#[derive(Debug)]
enum End {
    Done,
    Absent,
    Failed(String),
}

/// A curl that follows a few redirections, gives up on a line that stands still, and ends its standard error with the
/// HTTP status.
fn curl(url: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--silent", "--show-error", "--location", "--max-redirs", "5"]);
    curl.args(["--proto", "=http,https,file", "--proto-redir", "=http,https"]);
    curl.args(["--connect-timeout", "20", "--speed-limit", "1000", "--speed-time", "60"]);
    curl.args(["--write-out", "%{stderr}\n%{http_code}", "--url", url]);
    curl.stdin(Stdio::null()).stderr(Stdio::piped());
    curl
}

fn end(mut child: Child) -> Result<End> {
    let mut complaint = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaint).map_err(FetchError::Curl)?;
    }
    let status = child.wait().map_err(FetchError::Curl)?;
    let complaint = String::from_utf8_lossy(&complaint);
    let (words, http) = complaint.rsplit_once('\n').unwrap_or((&complaint, ""));
    if status.success() {
        Ok(End::Done)
    } else if HTTP_ABSENT.contains(&http.trim()) || status.code() == Some(CURL_NO_FILE) {
        Ok(End::Absent)
    } else {
        Ok(End::Failed(words.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::tests::locked;
    use crate::lock::{Archive, Role};

    /// A mirror in a folder, and an empty folder for the packages.
    struct Mirror(tempfile::TempDir);

    impl Mirror {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for archive in ["debian", "debian-security"] {
                fs::create_dir_all(folder.path().join(archive).join("pool")).unwrap();
            }
            Self(folder)
        }

        fn url(&self) -> String {
            format!("file://{}/debian", self.0.path().display())
        }

        fn debs(&self) -> PathBuf {
            self.0.path().join("debs")
        }

        fn publish(&self, archive: Archive, name: &str, content: &[u8]) -> Locked {
            let folder = if archive == Archive::Main { "debian" } else { "debian-security" };
            let path = format!("pool/{name}.deb");
            fs::write(self.0.path().join(folder).join(&path), content).unwrap();
            Locked {
                archive,
                path,
                bytes: content.len() as u64,
                sha256: hex::encode(Sha256::digest(content)),
                ..locked(Role::Needed, name, "1.0")
            }
        }

        /// All but the lock.
        fn files(&self) -> usize {
            let names = fs::read_dir(self.debs()).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name != LOCK).count()
        }
    }

    fn lock(packages: &[&Locked]) -> Lock {
        let packages = packages.iter().map(|&package| package.clone()).collect();
        Lock { releases: Vec::new(), packages }
    }

    #[test]
    fn both_archives_are_asked_once_and_then_no_more() {
        let mirror = Mirror::new();
        let main = mirror.publish(Archive::Main, "a", &vec![7; 3 * BUFFER_BYTES]);
        let security = mirror.publish(Archive::Security, "b", b"security");
        let lock = lock(&[&main, &security]);
        fetch(&lock, &mirror.url(), &mirror.debs()).unwrap();
        assert_eq!(fs::read(deb(&mirror.debs(), &security)).unwrap(), b"security");
        fetch(&lock, "file:///nowhere", &mirror.debs()).unwrap();
        assert_eq!(mirror.files(), 2);
    }

    #[test]
    fn all_that_the_mirror_no_longer_has_are_listed() {
        let mirror = Mirror::new();
        let kept = mirror.publish(Archive::Main, "kept", b"kept");
        let (gone, also_gone) =
            (locked(Role::Needed, "gone", "1.2-3"), locked(Role::Listed, "also-gone", "4"));
        let packages = [&also_gone, &gone, &kept];
        let error = fetch(&lock(&packages), &mirror.url(), &mirror.debs()).unwrap_err();
        let text = error.to_string();
        for expected in
            ["no longer has 2 of", "\n  also-gone 4 (", "\n  gone 1.2-3 (", "lock --update"]
        {
            assert!(text.contains(expected), "{expected:?} is not in: {text}");
        }
        assert!(!text.contains("kept"), "{text}");
        // What is there was fetched, and nothing half is left.
        assert_eq!(mirror.files(), 1);
        let absent = absent(packages.into_iter(), &mirror.url()).unwrap();
        assert_eq!(absent, [&also_gone, &gone]);
    }

    #[test]
    fn another_content_longer_or_shorter_is_refused_and_leaves_nothing() {
        for served in [&b"evil"[..], b"longer than locked", b"sho"] {
            let mirror = Mirror::new();
            let package = mirror.publish(Archive::Main, "a", b"good");
            mirror.publish(Archive::Main, "a", served);
            let error = fetch(&lock(&[&package]), &mirror.url(), &mirror.debs()).unwrap_err();
            assert!(matches!(error, FetchError::Mismatch { .. }), "{error}");
            assert_eq!(mirror.files(), 0, "{served:?}");
        }
    }

    #[test]
    fn a_damaged_package_is_fetched_again() {
        let mirror = Mirror::new();
        let package = mirror.publish(Archive::Main, "a", b"good");
        fs::create_dir(mirror.debs()).unwrap();
        fs::write(deb(&mirror.debs(), &package), b"goof").unwrap();
        fetch(&lock(&[&package]), &mirror.url(), &mirror.debs()).unwrap();
        assert_eq!(fs::read(deb(&mirror.debs(), &package)).unwrap(), b"good");
    }

    #[test]
    fn what_an_interrupted_build_left_is_taken_away_before_a_download() {
        let mirror = Mirror::new();
        let package = mirror.publish(Archive::Main, "a", b"good");
        fs::create_dir(mirror.debs()).unwrap();
        for name in [".a.partial", ".removed-from-the-list-since.partial"] {
            fs::write(mirror.debs().join(name), b"go").unwrap();
        }
        fetch(&lock(&[&package]), &mirror.url(), &mirror.debs()).unwrap();
        assert_eq!(mirror.files(), 1);
        assert_eq!(fs::read(deb(&mirror.debs(), &package)).unwrap(), b"good");
    }

    #[test]
    fn a_second_build_waits_and_finds_what_the_first_fetched() {
        let mirror = Mirror::new();
        let package = mirror.publish(Archive::Main, "a", b"good");
        fs::create_dir(mirror.debs()).unwrap();
        let held = hold(&mirror.debs()).unwrap();
        std::thread::scope(|scope| {
            let second =
                scope.spawn(|| fetch(&lock(&[&package]), "file:///nowhere/debian", &mirror.debs()));
            // Long enough to come to the lock; if it is not, the outcome is the same.
            std::thread::sleep(Duration::from_millis(50));
            assert!(!second.is_finished());
            fs::write(deb(&mirror.debs(), &package), b"good").unwrap();
            drop(held);
            second.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_full_disk_is_named_and_nothing_half_is_left() {
        let mirror = Mirror::new();
        let package = mirror.publish(Archive::Main, "a", b"good");
        let debs = mirror.debs();
        fs::create_dir(&debs).unwrap();
        // Whatever is written there finds no room.
        std::os::unix::fs::symlink("/dev/full", debs.join(".a.partial")).unwrap();
        let queue = Queue {
            packages: &[&package],
            mirror: &mirror.url(),
            debs: &debs,
            next: AtomicUsize::new(0),
            received_bytes: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        };
        let error = queue.run().unwrap_err().to_string();
        assert!(error.contains(".a.partial: No space left on device"), "{error}");
        assert_eq!(mirror.files(), 0);
    }

    #[test]
    fn a_mirror_that_does_not_answer_is_not_one_that_lacks_packages() {
        let mirror = Mirror::new();
        let package = mirror.publish(Archive::Main, "a", b"good");
        // Nothing listens on the discard port here.
        let error = fetch(&lock(&[&package]), "http://127.0.0.1:9", &mirror.debs()).unwrap_err();
        assert!(matches!(error, FetchError::Unreachable { missing: 1, .. }), "{error}");
    }
}
