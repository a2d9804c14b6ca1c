//! A disk that `casemate flash` wrote.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use qemu::Machine;

use crate::bench::{HEALTH_LIMIT, Scene, wait_ready};
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

/// A longer disk full of other things boots the image that was written onto it.
pub(super) fn flashed_disk(scene: &Scene<'_>) -> anyhow::Result<()> {
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
        println!("  (skipped: no loop device; they need root)");
        return Ok(());
    };
    let mut flash = scene.casemate();
    flash.arg("flash").arg(image.join("casemate.raw")).arg(&device.0);
    flash.arg("--key").arg(scene.bench.inputs.keys.join("build/build.pub.pem")).arg("--yes-serial");
    // A loop device has no serial number.
    scene.run(flash.arg(format!("{}:{DISK_BYTES}", device.0.display())))?;
    drop(device);

    let mut config = scene.bench.config(&scene.path("machine"));
    config.image = target;
    let mut machine = Machine::boot(config)?;
    let ak_name = wait_ready(&mut machine)?;
    let folder = scene.path("auditor");
    scene.bench.pin(&machine, &folder, &ak_name, scene.within(HEALTH_LIMIT)?).map(drop)
}
