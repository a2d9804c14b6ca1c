//! packages.lock: every Debian package of the appliance, every one that its own kernel is built from and with, and those
//! of NVIDIA's driver, by version and SHA-256.
//! Invariants: a [`Lock`] holds names, versions and paths of Debian's own alphabet only, so they may stand in URLs,
//! file names and control files; its packages are in order, each once; at most one of them is the kernel.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::reasoned::{self, ListError};

/// What is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The image: what is installed, and Debian's kernel.
    Image,
    /// Our own kernel: its source, the compiler and their tools. Nothing of it is installed on the appliance.
    Kernel,
    /// NVIDIA's driver: unpacked, never installed, and without what its packages depend on.
    Nvidia,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Image, Self::Kernel, Self::Nvidia];

    /// Folder with packages.list and packages.lock in the repository.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Image => "image/config",
            Self::Kernel => "kernel-config",
            Self::Nvidia => "kernel-config/gpu-nvidia",
        }
    }

    /// Where the lock file is in the repository.
    #[must_use]
    pub fn lock_file(self) -> &'static str {
        match self {
            Self::Image => "image/config/packages.lock",
            Self::Kernel => "kernel-config/packages.lock",
            Self::Nvidia => "kernel-config/gpu-nvidia/packages.lock",
        }
    }

    /// Where the list is in the repository.
    pub(crate) fn list(self) -> &'static str {
        match self {
            Self::Image => "image/config/packages.list",
            Self::Kernel => "kernel-config/packages.list",
            Self::Nvidia => "kernel-config/gpu-nvidia/packages.list",
        }
    }

    /// Sections of Debian's archive; the appliance is made of free software, NVIDIA's libraries and firmware are not.
    pub(crate) fn sections(self) -> &'static str {
        match self {
            Self::Image | Self::Kernel => "main",
            Self::Nvidia => "main contrib non-free non-free-firmware",
        }
    }
}

const HEADER: &str = "\
# Every Debian package, exactly. Written by `casemate lock` from packages.list; not edited by hand.
# release: archive, suite, SHA-256 of the InRelease file that Debian signed, its date
# listed (in packages.list), needed (essential, or a dependency), kernel (unpacked only):
#     name, version, architecture, bytes, SHA-256, archive, path
";
const FORMAT: &str = "lock 1";
/// Longest lock file.
const LOCK_BYTES_MAX: usize = 1 << 20;
/// Most packages; a GPU's stack included, a few hundred.
const PACKAGES_MAX: usize = 2000;
const RELEASES_MAX: usize = 8;
/// Longest name, version or path.
const WORD_BYTES_MAX: usize = 255;
/// Largest package: NVIDIA's user-space driver has about 0.3 GB.
const DEB_BYTES_MAX: u64 = 2 << 30;
/// As much of a wrong word as an error shows.
const SHOWN_CHARS: usize = 60;

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// One of the two, which stands in this folder.
    #[error("in {folder}: {cause}")]
    In {
        /// The folder.
        folder: &'static str,
        /// What is wrong there.
        cause: Box<LockError>,
    },
    /// The file could not be read.
    #[error("packages.lock: {0}; `casemate lock` makes it")]
    Read(#[from] std::io::Error),
    /// The package list is wrong.
    #[error(transparent)]
    List(#[from] ListError),
    /// The file is longer than any lock file of ours.
    #[error("packages.lock has {found} bytes, at most {LOCK_BYTES_MAX}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// A line is not as `casemate lock` writes it.
    #[error(
        "packages.lock:{line}: {found:?}, expected {expected}; restore the file, or make it anew with `casemate lock --update`"
    )]
    Line {
        /// Line, from 1.
        line: usize,
        /// What is there, cut short.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
    /// The package list asks for something else.
    #[error(
        "packages.lock is not of this packages.list (added since: {added:?}, removed since: {removed:?}); \
         run `casemate lock --update` and commit the result"
    )]
    Stale {
        /// Listed, but not locked.
        added: Vec<String>,
        /// Locked as listed, but not listed any more.
        removed: Vec<String>,
    },
    /// No kernel, or several.
    #[error("packages.lock has {found} kernels, expected 1; run `casemate lock --update`")]
    Kernel {
        /// How many.
        found: usize,
    },
}

/// One of Debian's archives; both belong to one mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Archive {
    /// The release and its updates.
    Main,
    /// Security updates.
    Security,
}

impl Archive {
    pub(crate) const ALL: [Self; 2] = [Self::Main, Self::Security];

    fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Security => "security",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|archive| archive.name() == name)
    }

    /// Where the archive is on a mirror such as `http://deb.debian.org/debian`.
    pub(crate) fn url(self, mirror: &str) -> String {
        match self {
            Self::Main => mirror.to_owned(),
            Self::Security => format!("{mirror}-security"),
        }
    }
}

/// Why a package is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// packages.list names it.
    Listed,
    /// It is essential, or another one depends on it.
    Needed,
    /// It is the kernel: unpacked, its scripts are not run.
    Kernel,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Needed => "needed",
            Self::Kernel => "kernel",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        [Self::Listed, Self::Needed, Self::Kernel].into_iter().find(|role| role.name() == name)
    }
}

/// A signed index from which the lock was resolved; informative, so that a lock can be traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) archive: Archive,
    pub(crate) suite: String,
    pub(crate) sha256: String,
    pub(crate) date: String,
}

/// One package, exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
    pub(crate) bytes: u64,
    /// 64 lower-case hex digits.
    pub(crate) sha256: String,
    pub(crate) archive: Archive,
    /// Below the archive, such as `pool/main/a/adduser/adduser_3.152_all.deb`.
    pub(crate) path: String,
}

impl Locked {
    pub(crate) fn url(&self, mirror: &str) -> String {
        format!("{}/{}", self.archive.url(mirror), self.path)
    }
}

impl fmt::Display for Locked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.name, self.version)
    }
}

/// The packages of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    pub(crate) releases: Vec<Release>,
    pub(crate) packages: Vec<Locked>,
}

impl Lock {
    /// Reads a lock file of a repository.
    pub fn read(source: &Path, target: Target) -> Result<Self, LockError> {
        Self::parse(&text(source, target)?).map_err(|error| error.within(target))
    }

    /// Reads the text of a lock file.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        if text.len() > LOCK_BYTES_MAX {
            return Err(LockError::TooLong { found: text.len() });
        }
        let mut lock = Self { releases: Vec::new(), packages: Vec::new() };
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
        let wrong = |index: usize, (word, expected): (&str, &'static str)| LockError::Line {
            line: index + 1,
            found: shown(word),
            expected,
        };
        match lines.next().unwrap_or_default() {
            (_, FORMAT) => {}
            (index, line) => return Err(wrong(index, (line, "`lock 1`"))),
        }
        for (index, line) in lines {
            lock.add(line).map_err(|error| wrong(index, error))?;
        }
        Ok(lock)
    }

    /// Adds a line's release or package; else returns the word that is wrong, and what was expected.
    fn add<'a>(&mut self, line: &'a str) -> Result<(), (&'a str, &'static str)> {
        if let Some(release) = line.strip_prefix("release ") {
            if self.releases.len() >= RELEASES_MAX {
                return Err((line, "fewer releases"));
            }
            self.releases.push(parse_release(release)?);
            return Ok(());
        }
        let package = parse_package(line)?;
        if self.packages.last().is_some_and(|before| before.name >= package.name) {
            return Err((line, "packages in order of their names, each once"));
        }
        if self.packages.len() >= PACKAGES_MAX {
            return Err((line, "fewer packages"));
        }
        self.packages.push(package);
        Ok(())
    }

    /// The file's text; [`Lock::parse`] reads it back.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{HEADER}{FORMAT}\n");
        let mut line = |words: &[&str]| {
            text.push_str(&words.join(" "));
            text.push('\n');
        };
        for Release { archive, suite, sha256, date } in &self.releases {
            line(&["release", archive.name(), suite, sha256, date]);
        }
        for package in &self.packages {
            let Locked { role, name, version, architecture, bytes, sha256, archive, path } =
                package;
            let bytes = bytes.to_string();
            let (role, archive) = (role.name(), archive.name());
            line(&[role, name, version, architecture, &bytes, sha256, archive, path]);
        }
        text
    }

    /// How many packages are locked.
    #[must_use]
    pub fn packages_count(&self) -> usize {
        self.packages.len()
    }

    /// Checks that the lock was made from the package list of this repository.
    pub fn check_list(&self, source: &Path, target: Target) -> Result<(), LockError> {
        self.check_listed(&package_list(source, target)?).map_err(|error| error.within(target))
    }

    fn check_listed(&self, list: &[String]) -> Result<(), LockError> {
        let list: BTreeSet<&str> = list.iter().map(String::as_str).collect();
        let locked: BTreeSet<&str> = self
            .packages
            .iter()
            .filter(|package| package.role == Role::Listed)
            .map(|package| package.name.as_str())
            .collect();
        let owned = |names: Vec<&&str>| names.into_iter().map(|name| (*name).to_owned()).collect();
        if list == locked {
            return Ok(());
        }
        Err(LockError::Stale {
            added: owned(list.difference(&locked).collect()),
            removed: owned(locked.difference(&list).collect()),
        })
    }

    /// What is installed in the tree: all but the kernel.
    pub(crate) fn installed(&self) -> impl Iterator<Item = &Locked> {
        self.packages.iter().filter(|package| package.role != Role::Kernel)
    }

    /// A listed package, which a checked list names.
    pub(crate) fn named(&self, name: &str) -> Option<&Locked> {
        self.packages.iter().find(|package| package.name == name)
    }

    /// The one kernel.
    pub(crate) fn kernel(&self) -> Result<&Locked, LockError> {
        let mut kernels = self.packages.iter().filter(|package| package.role == Role::Kernel);
        match (kernels.next(), kernels.count()) {
            (Some(kernel), 0) => Ok(kernel),
            (first, more) => Err(LockError::Kernel { found: usize::from(first.is_some()) + more }),
        }
    }
}

impl LockError {
    fn within(self, target: Target) -> Self {
        Self::In { folder: target.folder(), cause: Box::new(self) }
    }
}

/// Names in a package list of a repository.
pub(crate) fn package_list(source: &Path, target: Target) -> Result<Vec<String>, LockError> {
    let entries = reasoned::read(&source.join(target.list()), "package")?;
    Ok(entries.into_iter().flat_map(|entry| entry.fields).collect())
}

/// Text of a lock file of a repository.
pub(crate) fn text(source: &Path, target: Target) -> Result<String, LockError> {
    std::fs::read_to_string(source.join(target.lock_file()))
        .map_err(|error| LockError::from(error).within(target))
}

fn parse_release(line: &str) -> Result<Release, (&str, &'static str)> {
    let mut words = line.splitn(4, ' ');
    let mut next = || words.next().unwrap_or_default();
    let (archive, suite, sha256, date) = (next(), next(), next(), next());
    check(suite, is_name, "a suite such as trixie")?;
    check(sha256, is_sha256, "64 lower-case hex digits")?;
    check(date, is_date, "a date")?;
    Ok(Release {
        archive: Archive::of_name(archive).ok_or((archive, "archive `main` or `security`"))?,
        suite: suite.to_owned(),
        sha256: sha256.to_owned(),
        date: date.to_owned(),
    })
}

fn parse_package(line: &str) -> Result<Locked, (&str, &'static str)> {
    let words: Vec<&str> = line.splitn(9, ' ').collect();
    let [role, name, version, architecture, bytes, sha256, archive, path] = words[..] else {
        return Err((line, "8 words, one space between them"));
    };
    check(name, is_name, "a package's name")?;
    check(version, is_version, "a version")?;
    check(architecture, |word| ["all", "amd64"].contains(&word), "`all` or `amd64`")?;
    check(sha256, is_sha256, "64 lower-case hex digits")?;
    check(path, is_pool_path, "a path such as pool/main/a/adduser/adduser_3.152_all.deb")?;
    let size = bytes.parse().ok().filter(|size| (1..=DEB_BYTES_MAX).contains(size));
    Ok(Locked {
        role: Role::of_name(role).ok_or((role, "`listed`, `needed`, `kernel` or `release`"))?,
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: architecture.to_owned(),
        bytes: size.ok_or((bytes, "a size in bytes, at most 2 GiB"))?,
        sha256: sha256.to_owned(),
        archive: Archive::of_name(archive).ok_or((archive, "archive `main` or `security`"))?,
        path: path.to_owned(),
    })
}

fn check<'a>(
    word: &'a str,
    is_right: impl Fn(&str) -> bool,
    expected: &'static str,
) -> Result<(), (&'a str, &'static str)> {
    let fits = (1..=WORD_BYTES_MAX).contains(&word.len()) && is_right(word);
    if fits { Ok(()) } else { Err((word, expected)) }
}

/// Debian Policy 5.6.1: lower-case letters, digits, `+`, `-`, `.`; the first is a letter or digit.
pub(crate) fn is_name(word: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    word.bytes().next().is_some_and(letter)
        && word.bytes().all(|byte| letter(byte) || b"+-.".contains(&byte))
}

/// Debian Policy 5.6.12: letters, digits, `.`, `+`, `-`, `:`, `~`; the first is a digit.
fn is_version(word: &str) -> bool {
    word.bytes().next().is_some_and(|byte| byte.is_ascii_digit())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+-:~".contains(&byte))
}

fn is_sha256(word: &str) -> bool {
    word.len() == 64 && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_date(text: &str) -> bool {
    text.len() < 64
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" ,:+-".contains(&byte))
}

fn is_pool_path(path: &str) -> bool {
    let part = |part: &str| {
        !part.starts_with('.')
            && !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+-~_".contains(&byte))
    };
    path.starts_with("pool/") && path.ends_with(".deb") && path.split('/').all(part)
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push_str(&format!("… ({} bytes)", text.len()));
    }
    shown
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const SHA256: &str = "e9893e5295d0549b8852611f12a4b8b5f6cc4b8128dcc2086b9847793b904ab7";

    pub(crate) fn locked(role: Role, name: &str, version: &str) -> Locked {
        Locked {
            role,
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: "amd64".to_owned(),
            bytes: 4,
            sha256: SHA256.to_owned(),
            archive: Archive::Security,
            path: format!("pool/updates/main/a/{name}_2_amd64.deb"),
        }
    }

    fn lock() -> Lock {
        let release = Release {
            archive: Archive::Main,
            suite: "trixie-updates".to_owned(),
            sha256: SHA256.to_owned(),
            date: "Sat, 21 Nov 2026 09:15:44 UTC".to_owned(),
        };
        let packages = vec![
            locked(Role::Listed, "a", "1:2.3+dfsg-1~deb13u1"),
            locked(Role::Kernel, "linux-image-6.12.117+deb13-cloud-amd64", "6.12.117-1"),
            locked(Role::Needed, "zlib1g", "2"),
        ];
        Lock { releases: vec![release], packages }
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Lock::parse(&lock().text()).unwrap(), lock());
    }

    #[test]
    fn the_kernel_is_not_installed_and_there_is_one() {
        let mut lock = lock();
        assert_eq!(lock.kernel().unwrap().version, "6.12.117-1");
        assert_eq!(lock.installed().count(), 2);
        lock.packages.retain(|package| package.role != Role::Kernel);
        assert!(matches!(lock.kernel(), Err(LockError::Kernel { found: 0 })));
    }

    #[test]
    fn an_edited_line_is_refused_with_its_number() {
        let text = lock().text();
        for (old, new) in [
            ("lock 1", "lock 2"),
            ("release main", "release backports"),
            ("Sat, 21", "Sat; 21"),
            ("listed a ", "listed ../a "),
            ("listed a ", "listed A "),
            ("listed a ", "listed  a "),
            ("listed a ", "wanted a "),
            ("listed a 1:2", "listed a x:2"),
            ("listed a 1:2", "listed a 1\u{e9}:2"),
            ("amd64 4 ", "i386 4 "),
            (" 4 e98", " 0 e98"),
            (" 4 e98", " -4 e98"),
            (" 4 e98", " 99999999999999999999 e98"),
            (" 4 e98", " 3000000000 e98"),
            ("e9893e", "E9893E"),
            ("e9893e", "893e"),
            ("security pool", "http://elsewhere pool"),
            ("pool/updates", "/pool/updates"),
            ("pool/updates", "pool/../updates"),
            ("pool/updates", "pool//updates"),
            ("a_2_amd64.deb", "a_2_amd64.deb extra"),
            ("a_2_amd64.deb", "a_2_amd64.exe"),
            ("needed zlib1g", "needed a"),
        ] {
            let changed = text.replacen(old, new, 1);
            assert_ne!(changed, text, "{old} is not in the text");
            let error = Lock::parse(&changed).unwrap_err();
            assert!(matches!(error, LockError::Line { .. }), "{old} -> {new}: {error}");
        }
        let error = Lock::parse(&text.replacen("needed zlib1g", "needed a", 1)).unwrap_err();
        assert!(error.to_string().contains("packages.lock:9: "), "{error}");
    }

    #[test]
    fn any_cut_of_a_lock_file_is_read_or_refused() {
        let text = lock().text();
        for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
            if let Ok(cut) = Lock::parse(&text[..end]) {
                assert!(cut.packages.len() < 3 || end + 1 == text.len(), "{end}");
            }
        }
    }

    #[test]
    fn length_and_what_is_shown_are_bounded() {
        let long = " ".repeat(LOCK_BYTES_MAX + 1);
        assert!(matches!(Lock::parse(&long), Err(LockError::TooLong { .. })));
        let error = Lock::parse(&format!("lock 1\nlisted {}", "x".repeat(10_000))).unwrap_err();
        assert!(error.to_string().len() < 400, "{error}");
    }

    #[test]
    fn a_changed_package_list_needs_a_new_lock() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        lock().check_listed(&names(&["a"])).unwrap();
        let error = lock().check_listed(&names(&["b"])).unwrap_err();
        assert!(
            matches!(&error, LockError::Stale { added, removed } if *added == ["b"] && *removed == ["a"]),
            "{error}"
        );
    }
}
