//! Asks apt which packages the image would have today.
//! Invariant: what is resolved was signed by Debian: apt runs with its own root, keyring and no setting of this machine.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::bootstrap::KERNEL;
use crate::lock::{self, Archive, Lock, LockError, Locked, Release, Role, Target};
use crate::tool::{Tool, ToolError};

/// Debian's keys; of package debian-archive-keyring on the build machine.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Suites of Debian 13, the later ones for updates.
const SUITES: &[(Archive, &str)] = &[
    (Archive::Main, "trixie"),
    (Archive::Main, "trixie-updates"),
    (Archive::Security, "trixie-security"),
];
/// Folders without which apt does not start.
const FOLDERS: &[&str] = &[
    "etc/apt/apt.conf.d",
    "etc/apt/preferences.d",
    "var/cache/apt/archives/partial",
    "var/lib/apt/lists/partial",
    "logs",
];

/// Why nothing was resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// apt failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The package list is wrong, or what apt said makes no lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// apt's own folder.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// apt said something else than expected.
    #[error("apt: {found:?}, expected {expected}")]
    Answer {
        /// What it said.
        found: String,
        /// What it should have said.
        expected: &'static str,
    },
}

type Result<T> = std::result::Result<T, ResolveError>;

/// Resolves a package list of a repository on a mirror such as `http://deb.debian.org/debian`; apt keeps its indices
/// in `folder`.
pub fn resolve(source: &Path, target: Target, mirror: &str, folder: &Path) -> Result<Lock> {
    let listed = lock::package_list(source, target)?;
    let apt = Apt { folder, mirror, sections: target.sections() };
    apt.configure()?;
    // Without the error mode, an index that cannot be fetched is a warning, and the last one is used.
    apt.run("apt-get", "update", &["--quiet", "-oAPT::Update::Error-Mode=any", "update"])?;
    // What is only unpacked needs nothing that it depends on.
    let mut ask = match target {
        Target::Image | Target::Kernel => vec!["-qq", "--print-uris", "install", "?essential"],
        Target::Nvidia => vec!["-qq", "--print-uris", "download"],
    };
    ask.extend(listed.iter().map(String::as_str));
    let mut packages = Vec::new();
    for line in apt.run("apt-get", "packages", &ask)?.lines() {
        packages.push(apt.locked(line, Role::Needed)?);
    }
    for package in packages.iter_mut().filter(|package| listed.contains(&package.name)) {
        package.role = Role::Listed;
    }
    if target == Target::Image {
        packages.push(apt.kernel()?);
    }
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    let releases = SUITES.iter().map(|(archive, suite)| apt.release(*archive, suite));
    let lock = Lock { releases: releases.collect::<Result<_>>()?, packages };
    lock.check_list(source, target)?;
    // Reading it back checks every word.
    Ok(Lock::parse(&lock.text())?)
}

/// The package that the kernel's meta-package names.
fn kernel_package(depends: &str) -> Result<&str> {
    depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| answer(depends, "`Depends: linux-image-…`"))
}

fn answer(found: &str, expected: &'static str) -> ResolveError {
    ResolveError::Answer { found: found.chars().take(200).collect(), expected }
}

/// An apt whose root is `folder`.
#[derive(Debug)]
struct Apt<'a> {
    folder: &'a Path,
    mirror: &'a str,
    sections: &'a str,
}

impl Apt<'_> {
    fn configure(&self) -> Result<()> {
        for folder in FOLDERS.iter().map(|folder| self.folder.join(folder)) {
            fs::create_dir_all(&folder)
                .map_err(|cause| ResolveError::File { path: folder.clone(), cause })?;
        }
        let sources: String = SUITES
            .iter()
            .map(|(archive, suite)| {
                let (url, sections) = (archive.url(self.mirror), self.sections);
                format!("deb [signed-by={KEYRING}] {url} {suite} {sections}\n")
            })
            .collect();
        let root = self.folder.display();
        // apt counts itself among the essential packages unless told otherwise; the appliance installs nothing.
        let configuration = format!(
            "Dir \"{root}/\";\nDir::State::status \"{root}/status\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n\
             pkgCacheGen::ForceEssential \",\";\nDir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n\
             Acquire::ForceHash \"SHA256\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
        );
        for (name, text) in
            [("status", ""), ("etc/apt/sources.list", &sources), ("apt.conf", &configuration)]
        {
            let path = self.folder.join(name);
            fs::write(&path, text).map_err(|cause| ResolveError::File { path, cause })?;
        }
        Ok(())
    }

    fn run(&self, tool: &str, job: &str, args: &[&str]) -> Result<String> {
        let output = Tool::new(tool, job, &self.folder.join("logs"))
            .args(args)
            .env("APT_CONFIG", self.folder.join("apt.conf"))
            .run()?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Debian's kernel, which is unpacked only.
    fn kernel(&self) -> Result<Locked> {
        let depends = self.run("apt-cache", "kernel-depends", &["depends", KERNEL])?;
        let kernel = kernel_package(&depends)?;
        let download = ["-qq", "--print-uris", "download", kernel];
        self.locked(self.run("apt-get", "download", &download)?.trim_end(), Role::Kernel)
    }

    /// A line of `--print-uris`: `'URI' NAME_VERSION_ARCHITECTURE.deb BYTES SHA256:HEX`.
    fn locked(&self, line: &str, role: Role) -> Result<Locked> {
        let parse = || {
            let (uri, rest) = line.strip_prefix('\'')?.split_once("' ")?;
            let mut words = rest.split(' ');
            let file = unquote(words.next()?.strip_suffix(".deb")?)?;
            let mut parts = file.split('_');
            let (archive, path) = self.in_archive(uri)?;
            Some(Locked {
                role,
                name: parts.next()?.to_owned(),
                version: parts.next()?.to_owned(),
                architecture: parts.next()?.to_owned(),
                bytes: words.next()?.parse().ok()?,
                sha256: words.next()?.strip_prefix("SHA256:")?.to_owned(),
                archive,
                path,
            })
        };
        parse().ok_or_else(|| answer(line, "a package's URI, file, size and SHA-256"))
    }

    fn in_archive(&self, uri: &str) -> Option<(Archive, String)> {
        Archive::ALL.into_iter().find_map(|archive| {
            let path = uri.strip_prefix(&archive.url(self.mirror))?.strip_prefix('/')?;
            Some((archive, unquote(path)?))
        })
    }

    /// The signed index that apt accepted.
    fn release(&self, archive: Archive, suite: &str) -> Result<Release> {
        let lists = self.folder.join("var/lib/apt/lists");
        let error = |cause| ResolveError::File { path: lists.clone(), cause };
        let end = format!("_dists_{suite}_InRelease");
        for entry in fs::read_dir(&lists).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if path.to_string_lossy().ends_with(&end) {
                let text = fs::read_to_string(&path)
                    .map_err(|cause| ResolveError::File { path: path.clone(), cause })?;
                let date = text.lines().find_map(|line| line.strip_prefix("Date: "));
                return Ok(Release {
                    archive,
                    suite: suite.to_owned(),
                    sha256: hex::encode(Sha256::digest(&text)),
                    date: date
                        .ok_or_else(|| answer("", "an InRelease file with a date"))?
                        .to_owned(),
                });
            }
        }
        Err(answer(suite, "an InRelease file of this suite"))
    }
}

/// Undoes apt's percent-encoding.
fn unquote(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let code = u8::from_str_radix(part.get(..2)?, 16).ok().filter(u8::is_ascii_graphic)?;
        plain.push(char::from(code));
        plain.push_str(&part[2..]);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apt_is_a_package() {
        let apt =
            Apt { folder: Path::new("/nowhere"), mirror: "http://mirror/debian", sections: "main" };
        let hash = "ab".repeat(32);
        let line = format!(
            "'http://mirror/debian-security/pool/updates/main/l/login_4.17%2bd_all.deb' \
             login_1%3a4.17+d_all.deb 56 SHA256:{hash}"
        );
        let package = apt.locked(&line, Role::Needed).unwrap();
        assert_eq!((package.name.as_str(), package.version.as_str()), ("login", "1:4.17+d"));
        assert_eq!((package.architecture.as_str(), package.bytes), ("all", 56));
        assert_eq!(package.archive, Archive::Security);
        assert_eq!(package.path, "pool/updates/main/l/login_4.17+d_all.deb");
        for (old, new) in [
            ("SHA256:", "MD5Sum:"),
            ("http://mirror", "http://other"),
            ("%2b", "%zz"),
            (" 56", " x"),
        ] {
            let error = apt.locked(&line.replace(old, new), Role::Needed).unwrap_err();
            assert!(matches!(error, ResolveError::Answer { .. }), "{old} -> {new}: {error}");
        }
    }

    #[test]
    fn the_kernel_is_the_one_that_the_meta_package_names() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.12.1-cloud-amd64\n";
        assert_eq!(kernel_package(depends).unwrap(), "linux-image-6.12.1-cloud-amd64");
        kernel_package("linux-image-cloud-amd64\n  Depends: linux-base\n").unwrap_err();
    }
}
