//! The tools tree: a Debian 13 root folder that holds every tool the builder and the tests drive.
//!
//! Invariant: a tree under its final name is complete; it is made under another name and renamed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::host::is_root;
use crate::steps::{output, sh};

/// Debian 13.
pub(crate) const SUITE: &str = "trixie";
const MIRROR_DEFAULT: &str = "http://deb.debian.org/debian";

/// Packages of the tools tree, and why each is there.
const PACKAGES: &[(&str, &str)] = &[
    ("ca-certificates", "downloads over TLS"),
    ("cmake", "llama.cpp, the engine's peer, is built with it"),
    ("cpio", "reads initrds in tests"),
    ("cryptsetup-bin", "veritysetup: a stranger's hash tree in the tests"),
    ("curl", "HTTP client of the scenarios"),
    ("debian-archive-keyring", "signatures of the target's packages"),
    ("dosfstools", "ESP, exchange media"),
    ("erofs-utils", "root and bundle file systems"),
    ("g++", "tokenizers and llama.cpp hold C++"),
    ("gcc", "links Rust programs"),
    ("git", "tests that read the list of tracked files"),
    ("iproute2", "looks at sockets in tests"),
    ("kmod", "depmod"),
    ("libc6-dev", "links Rust programs"),
    ("libcryptsetup12", "systemd-repart writes dm-verity hash trees with it"),
    ("libtss2-dev", "TPM"),
    ("libtss2-tcti-device0", "TPM"),
    ("libtss2-tcti-swtpm0", "TPM of the tests"),
    ("make", "llama.cpp"),
    ("mmdebstrap", "bootstraps the target"),
    ("mtools", "ESP, exchange media"),
    ("opensc", "looks at PKCS#11 tokens"),
    ("openssl", "Secure Boot certificates"),
    ("ovmf", "firmware of the test machine"),
    ("pkgconf", "finds libtss2"),
    ("procps", "looks at processes in tests"),
    ("python3-pefile", "ukify"),
    ("python3-pip", "OpenAI client and model from PyPI"),
    ("python3-venv", "OpenAI client from PyPI"),
    ("python3-virt-firmware", "enrols keys in a firmware variable store"),
    ("qemu-system-x86", "test machine"),
    ("qemu-utils", "disk overlays"),
    ("sbsigntool", "looks at Secure Boot signatures"),
    ("softhsm2", "HSM of the development profile"),
    ("swtpm", "TPM of the test machine"),
    ("swtpm-tools", "EK certificates of the test machine's TPM"),
    ("systemd", "systemd-analyze, systemd-sysusers"),
    ("systemd-boot-efi", "the UKI's stub"),
    ("systemd-repart", "disk image"),
    ("systemd-ukify", "UKI"),
    ("tpm2-tools", "second opinion on quotes and event logs"),
    ("xz-utils", "kernel modules"),
    ("zstd", "initrd"),
];

/// A ready tools tree and the folders that are visible in it.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    cache: PathBuf,
    target: PathBuf,
    workspace: PathBuf,
    cargo_home: PathBuf,
    sysroot: PathBuf,
    mirror: String,
}

impl Tree {
    /// Bootstraps the tree, or finds it in the cache.
    pub(crate) fn prepare(cache: &Path) -> Result<Self> {
        let mirror = mirror()?;
        let names: Vec<&str> = PACKAGES.iter().map(|(name, _)| *name).collect();
        let include = names.join(",");
        let key = Sha256::digest(format!("1 {SUITE} {mirror} {include} {}", is_root()?));
        let root = cache.join(format!("tools-{}", hex::encode(&key[..6])));
        if !root.exists() {
            bootstrap(&root, &include, &mirror)?;
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let checkout = Sha256::digest(workspace.as_os_str().as_encoded_bytes());
        let target = cache.join(format!("target-{}", hex::encode(&checkout[..6])));
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let cargo_home = match std::env::var_os("CARGO_HOME") {
            Some(dir) => PathBuf::from(dir),
            None => {
                PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo")
            }
        };
        Ok(Self {
            root,
            cache: cache.to_owned(),
            target,
            workspace,
            cargo_home,
            sysroot: PathBuf::from(sysroot.trim()),
            mirror,
        })
    }

    /// The cache folder, at the same path inside and outside.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// Cargo's target folder, one for each checkout: by its file times Cargo would take another checkout's build for this
    /// one's.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Where a file of the tree is outside of it.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// The repository, at the same path inside and outside.
    pub(crate) fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// The Debian mirror in use.
    pub(crate) fn mirror(&self) -> &str {
        &self.mirror
    }

    /// A command that runs `program` inside the tree, as root there, in the repository.
    pub(crate) fn enter(&self, program: impl AsRef<OsStr>) -> Command {
        let shared = self.workspace.with_file_name("shared");
        let mut binds = vec![&self.workspace, &self.cache, &self.cargo_home, &self.sysroot];
        if shared.exists() {
            binds.push(&shared);
        }
        let mut command = namespaces();
        command.args(["sh", "-euc", ENTER, "enter"]).arg(&self.root).arg(binds.len().to_string());
        command.args(binds);
        command.args(["/usr/bin/env", "-i", "LC_ALL=C.UTF-8", "RUST_BACKTRACE=1", "HOME=/root"]);
        command.arg(format!("PATH={}/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.sysroot.display()));
        command.arg(format!("CARGO_HOME={}", self.cargo_home.display()));
        command.arg(format!("CARGO_TARGET_DIR={}", self.target.display()));
        command.arg(format!("XDG_CACHE_HOME={}", self.cache.display()));
        if shared.join("corpus").exists() {
            command.arg(format!("CASEMATE_CORPUS={}", shared.join("corpus").display()));
        }
        for (name, value) in std::env::vars() {
            let passes = ["http_proxy", "https_proxy", "no_proxy", "TERM", "CI", "PIP_INDEX_URL"];
            if passes.contains(&name.as_str()) {
                command.arg(format!("{name}={value}"));
            }
        }
        command.args(["/usr/bin/env", "-C"]).arg(&self.workspace).arg(program);
        command
    }
}

/// `$1` root folder, `$2` number of folders to bind, the folders, the command.
const ENTER: &str = r#"
PATH=/usr/sbin:/usr/bin:/sbin:/bin
root=$1; count=$2; shift 2
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while [ "$count" -gt 0 ]; do
    mkdir -p "$root$1"; mount --rbind "$1" "$root$1"; shift; count=$((count - 1))
done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
    if [ -e "$file" ]; then touch "$root$file"; mount --bind "$(readlink -f "$file")" "$root$file"; fi
done
exec chroot "$root" "$@"
"#;

/// `unshare` with the namespaces that this user may make: mounts and processes end with the command.
fn namespaces() -> Command {
    let mut command = Command::new("unshare");
    if !is_root().unwrap_or(false) {
        command.args(["--user", "--map-root-user", "--map-auto"]);
    }
    command.args(["--mount", "--pid", "--fork", "--kill-child"]);
    command
}

fn bootstrap(root: &Path, include: &str, mirror: &str) -> Result<()> {
    eprintln!("    {} packages of Debian 13 from {mirror}, 1 GB on disk", PACKAGES.len());
    let partial = root.with_extension("partial");
    if partial.exists() {
        sh(namespaces().arg("rm").args(["-rf", "--one-file-system"]).arg(&partial))?;
    }
    let mut command = namespaces();
    command
        .args(["mmdebstrap", "--mode=root", "--variant=minbase", "--quiet"])
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg("--keyring=/usr/share/keyrings/debian-archive-keyring.gpg")
        .arg(format!("--include={include}"))
        .arg(SUITE)
        .arg(&partial)
        .arg(mirror);
    sh(&mut command).context("mmdebstrap could not make the tools tree")?;
    for folder in ["root", "proc", "dev", "sys", "run", "tmp"] {
        if !partial.join(folder).is_dir() {
            bail!("mmdebstrap left no /{folder} in {}; remove that folder", partial.display());
        }
    }
    fs::rename(&partial, root).context("cannot give the tools tree its final name")
}

/// The Debian mirror of the host's own apt configuration; `CASEMATE_MIRROR` overrides it.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("CASEMATE_MIRROR") {
        return Ok(mirror);
    }
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let debian = targets.lines().find_map(|line| line.strip_prefix("Debian Debian main "));
    Ok(debian.map_or(MIRROR_DEFAULT, |uri| uri.trim_end_matches('/')).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_listed_once_in_order_with_a_reason() {
        assert!(PACKAGES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(PACKAGES.iter().all(|(_, why)| !why.is_empty()));
    }
}
