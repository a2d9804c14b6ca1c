//! Which accelerator works on this host, found out by booting.
//!
//! `/dev/kvm` being there proves nothing: under some hypervisors the firmware or the kernel's decompressor dies with an
//! "emulation failure".

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::machine::{Config, Machine, MachineError, file_error, make_folder};

/// Debian's variable store without keys, for a probe without an image.
const EMPTY_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// What firmware says when it looks for something to boot.
const FIRMWARE_SIGNS: &[&str] = &["BdsDxe"];
/// What only a kernel that unpacked itself, or a program under it, says; a quiet command line hides the first.
const KERNEL_SIGNS: &[&str] = &["Linux version", "systemd[1]:", "agentd: "];
/// With KVM the firmware shows itself within 2 s and the kernel within 5 s, with a margin for a busy host.
const PROBE_LIMIT: Duration = Duration::from_secs(40);

/// How guest code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// By the CPU.
    Kvm,
    /// By QEMU's translator: slow, works everywhere.
    Tcg,
}

impl Accel {
    /// Value of QEMU's `-accel`; `one_thread` as in [`Config`].
    pub(crate) fn argument(self, one_thread: bool) -> &'static str {
        match (self, one_thread) {
            (Self::Kvm, _) => "kvm",
            // 512 MiB of translated code, since the default is flushed again and again.
            (Self::Tcg, false) => "tcg,thread=multi,tb-size=512",
            (Self::Tcg, true) => "tcg,thread=single,tb-size=512",
        }
    }

    /// Value of QEMU's `-cpu`.
    pub(crate) fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "max",
            // Who sees these two copies and clears byte by byte, which the translator does not make faster.
            Self::Tcg => "max,-erms,-fsrm",
        }
    }
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// How far a boot under KVM was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Depth {
    /// OVMF looked for something to boot.
    Firmware,
    /// The kernel of an image unpacked itself and spoke.
    Kernel,
}

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What to use.
    pub accel: Accel,
    /// Why.
    pub reason: String,
    depth: Depth,
    /// `/proc/sys/kernel/random/boot_id`: a result holds until the host boots again.
    boot_id: String,
}

/// Finds out whether KVM really works, by booting `image` or, without one, the firmware alone. The result is kept in
/// `cache_folder` until the host boots again.
pub fn probe(image: Option<&Path>, cache_folder: &Path) -> Result<Probe, MachineError> {
    let depth = if image.is_some() { Depth::Kernel } else { Depth::Firmware };
    let boot_id_path = Path::new("/proc/sys/kernel/random/boot_id");
    let boot_id = fs::read_to_string(boot_id_path).map_err(|e| file_error(boot_id_path, e))?;
    let boot_id = boot_id.trim().to_owned();
    let result = |accel, reason| Probe { accel, reason, depth, boot_id: boot_id.clone() };
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok(result(Accel::Tcg, format!("/dev/kvm cannot be opened: {error}")));
    }
    let cache = cache_folder.join("accel.json");
    if let Some(known) = read_cache(&cache).filter(|known| known.answers(depth, &boot_id)) {
        return Ok(known);
    }
    let probe = match boot_under_kvm(image)? {
        Ok(line) => result(Accel::Kvm, format!("a machine under KVM said: {line}")),
        Err(failure) => result(Accel::Tcg, format!("a machine under KVM failed: {failure}")),
    };
    make_folder(cache_folder)?;
    let text = serde_json::to_vec(&probe).map_err(|e| MachineError::Invalid(e.to_string()))?;
    fs::write(&cache, text).map_err(|cause| file_error(&cache, cause))?;
    Ok(probe)
}

/// `$XDG_CACHE_HOME/casemate`, or `~/.cache/casemate`.
pub fn default_cache_folder() -> Result<PathBuf, MachineError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("casemate"))
        .ok_or_else(|| MachineError::Invalid("neither XDG_CACHE_HOME nor HOME is set".to_owned()))
}

impl Probe {
    /// Whether it holds for a question of this depth now. What failed earlier in the boot fails later, too.
    fn answers(&self, depth: Depth, boot_id: &str) -> bool {
        self.boot_id == boot_id && (self.depth >= depth || self.accel == Accel::Tcg)
    }
}

/// A cache that is absent or unreadable is only a cache that does not help.
fn read_cache(path: &Path) -> Option<Probe> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The sign of life, or how the machine failed; an error if the probe itself could not be made.
fn boot_under_kvm(image: Option<&Path>) -> Result<Result<String, String>, MachineError> {
    let scratch = tempfile::tempdir().map_err(|e| file_error(&std::env::temp_dir(), e))?;
    let (image, signs) = match image {
        Some(image) => (image.to_owned(), KERNEL_SIGNS),
        None => (empty_image(scratch.path())?, FIRMWARE_SIGNS),
    };
    let config = Config::new(image, scratch.path().join("state"), Accel::Kvm);
    let mut machine = match Machine::boot(config) {
        Ok(machine) => machine,
        Err(error @ MachineError::Start { .. }) => return Ok(Err(error.to_string())),
        Err(error) => return Err(error),
    };
    match machine.wait_for_any(signs, PROBE_LIMIT) {
        Ok((_, line)) => Ok(Ok(line)),
        Err(MachineError::NotSeen { outcome, .. }) => Ok(Err(outcome)),
        Err(error) => Err(error),
    }
}

fn empty_image(scratch: &Path) -> Result<PathBuf, MachineError> {
    let image = scratch.join("image");
    make_folder(&image)?;
    let disk = image.join("casemate.raw");
    fs::write(&disk, vec![0; 1 << 20]).map_err(|cause| file_error(&disk, cause))?;
    let vars = Path::new(EMPTY_VARS);
    fs::copy(vars, image.join("OVMF_VARS.fd")).map_err(|cause| file_error(vars, cause))?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_result_answers_only_what_it_saw() {
        let known =
            |accel, depth| Probe { accel, depth, reason: String::new(), boot_id: "now".to_owned() };
        assert!(known(Accel::Kvm, Depth::Kernel).answers(Depth::Firmware, "now"));
        assert!(!known(Accel::Kvm, Depth::Firmware).answers(Depth::Kernel, "now"));
        assert!(known(Accel::Tcg, Depth::Firmware).answers(Depth::Kernel, "now"));
        assert!(!known(Accel::Tcg, Depth::Kernel).answers(Depth::Kernel, "another boot"));
    }
}
