//! A server's disk that `casemate flash` wrote.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::bench::Scene;
use crate::tool;

/// A server's disk; several times as long as the image.
const DISK_BYTES: u64 = 4 << 30;
/// Old content at each end and in the middle.
const GARBAGE_BYTES: usize = 8 << 20;

/// A loop device for as long as the value is there.
struct Loop(PathBuf);

impl Loop {
    /// `None` where this machine lends none: they need root.
    fn attach(scene: &Scene<'_>, file: &Path) -> Option<Self> {
        let attached =
            scene.run(tool::command("losetup").args(["--find", "--show"]).arg(file)).ok()?;
        Some(Self(PathBuf::from(attached.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = tool::command("losetup").arg("--detach").arg(&self.0).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("{} is still attached", self.0.display());
        }
    }
}

/// An image folder whose disk is longer than the image and was full of other things before it was flashed; `None` where
/// no loop device can be had.
pub(crate) fn server(scene: &Scene<'_>) -> anyhow::Result<Option<PathBuf>> {
    let image = &scene.bench.inputs.image;
    let target = scene.path("server");
    std::fs::create_dir(&target)?;
    std::fs::copy(image.join("OVMF_VARS.fd"), target.join("OVMF_VARS.fd"))?;
    let disk = target.join("casemate.raw");
    let file = File::create_new(&disk)?;
    file.set_len(DISK_BYTES)?;
    let garbage = vec![0xa5; GARBAGE_BYTES];
    for at in [0, DISK_BYTES / 16, DISK_BYTES / 2, DISK_BYTES - GARBAGE_BYTES as u64] {
        file.write_all_at(&garbage, at).context("garbage")?;
    }
    let Some(device) = Loop::attach(scene, &disk) else {
        return Ok(None);
    };
    let mut flash = scene.casemate();
    flash.arg("flash").arg(image.join("casemate.raw")).arg(&device.0);
    flash.arg("--key").arg(scene.bench.inputs.keys.join("build/build.pub.pem")).arg("--yes-serial");
    // A loop device has no serial number.
    scene.run(flash.arg(format!("{}:{DISK_BYTES}", device.0.display())))?;
    Ok(Some(target))
}
