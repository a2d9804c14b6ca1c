//! What the host itself must have: one or two packages, nothing else.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::steps::sh;

/// A package of the host's distribution, and why it is needed.
struct Package {
    name: &'static str,
    /// A file that the package brings.
    file: &'static str,
    why: &'static str,
    /// Only an ordinary user needs it.
    user_only: bool,
}

const PACKAGES: &[Package] = &[
    Package {
        name: "mmdebstrap",
        file: "/usr/bin/mmdebstrap",
        why: "bootstraps the Debian 13 tree in which everything is built and run",
        user_only: false,
    },
    Package {
        name: "debian-archive-keyring",
        file: "/usr/share/keyrings/debian-archive-trixie-stable.gpg",
        why: "checks the signatures of Debian 13's packages",
        user_only: false,
    },
    Package {
        name: "uidmap",
        file: "/usr/bin/newuidmap",
        why: "lets an ordinary user unpack files of several owners",
        user_only: true,
    },
];

/// Whether this process is root.
pub(crate) fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self").context("cannot read /proc")?.uid() == 0)
}

/// Checks the host; installs what is missing unless `no_install`.
pub(crate) fn prepare(no_install: bool) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("found another system than x86-64 Linux; the appliance is built on Debian 12 or 13");
    }
    let root = is_root()?;
    let missing: Vec<&Package> = PACKAGES
        .iter()
        .filter(|package| !(root && package.user_only || Path::new(package.file).exists()))
        .collect();
    if !missing.is_empty() {
        for package in &missing {
            eprintln!("    {} is missing: it {}", package.name, package.why);
        }
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        if no_install {
            bail!("missing packages; install them: apt-get install {}", names.join(" "));
        }
        install(root, &names)?;
    }
    if !root {
        check_namespaces()?;
    }
    Ok(())
}

fn install(root: bool, names: &[&str]) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("no apt-get here; install by your distribution's means: {}", names.join(" "));
    }
    let apt = |args: &[&str]| {
        let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
        if !root {
            command.arg("apt-get");
        }
        command.args(["-q", "-y"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        sh(&mut command)
    };
    apt(&["update"])?;
    apt(&[&["install", "--no-install-recommends"], names].concat())
}

/// An ordinary user needs user namespaces with subordinate ids.
fn check_namespaces() -> Result<()> {
    let probe = Command::new("unshare")
        .args(["--user", "--map-root-user", "--map-auto", "--mount", "--pid", "--fork"])
        .args(["sh", "-c", "mount --make-rprivate / && mount -t proc proc /proc"])
        .output()
        .context("cannot start unshare (package util-linux)")?;
    if !probe.status.success() {
        bail!(
            "this machine does not let an ordinary user make namespaces: {}. \
             Expected: /proc/sys/kernel/unprivileged_userns_clone absent or 1, AppArmor's \
             kernel.apparmor_restrict_unprivileged_userns absent or 0, and a line for you in \
             /etc/subuid and /etc/subgid. Change that, or run as root",
            String::from_utf8_lossy(&probe.stderr).trim()
        );
    }
    Ok(())
}
