//! A server as it is delivered, and the installer stick: no keys in the firmware, two empty disks, no network.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use qemu::{Machine, SpareDisk};

use super::setup_mode::{EMPTY, enrolled_variables, image, run};
use crate::bench::{BOOT_LIMIT, HEALTH_LIMIT, Scene, wait_ready};
use crate::tool;

/// Longer than the image; the state partition has room behind it.
const DISK_BYTES: u64 = 2 << 30;
const SERIAL: &str = "srv-7";
const SERIAL_OTHER: &str = "srv-8";
/// Nobody's.
const SERIAL_WRONG: &str = "srv-77";
/// An image of 1.3 GB is hashed twice by an emulated CPU.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);
/// A guest's keyboard has a short buffer.
const KEY_PAUSE: Duration = Duration::from_millis(150);
const ASKED: &str = "type the serial number";

/// The operator types a serial number; that disk, and no other, boots to established evidence afterwards.
pub(super) fn from_stick(scene: &Scene<'_>) -> anyhow::Result<()> {
    let stick = scene.bench.inputs.image.join("installer.raw");
    signed_by_db(scene, &stick)?;
    let folder = scene.path("stick");
    image(&folder, &stick, Path::new(EMPTY))?;
    let (disk, other) = (disk(scene, "server.raw")?, disk(scene, "other.raw")?);
    let mut config = scene.bench.config(&scene.path("delivered"));
    config.image = folder;
    config.disks = [(&disk, SERIAL), (&other, SERIAL_OTHER)]
        .map(|(file, serial)| SpareDisk { file: file.clone(), serial: serial.to_owned() })
        .to_vec();
    let state = config.state.clone();
    let blocks = File::open(&other)?.metadata()?.blocks();

    let mut machine = Machine::boot(config)?;
    machine.wait_for("the owner's Secure Boot keys will be enrolled", BOOT_LIMIT)?;
    machine.wait_for(ASKED, BOOT_LIMIT)?;
    type_line(&mut machine, SERIAL_WRONG)?;
    machine.wait_for("no disk has the serial number", HEALTH_LIMIT)?;
    machine.wait_for(ASKED, HEALTH_LIMIT)?;
    type_line(&mut machine, SERIAL)?;
    machine.wait_for("firmware holds the owner's Secure Boot keys now", HEALTH_LIMIT)?;
    machine.wait_for("installer: installed, and read back", scene.within(INSTALL_LIMIT)?)?;
    machine.wait_stopped(scene.within(HEALTH_LIMIT)?)?;
    ensure!(File::open(&other)?.metadata()?.blocks() == blocks, "the other disk was written");

    let server = scene.path("server");
    image(&server, &disk, &enrolled_variables(scene, &state)?)?;
    let mut config = scene.bench.config(&scene.path("installed"));
    config.image = server;
    let mut machine = Machine::boot(config)?;
    let ak_name = wait_ready(&mut machine)?;
    let limit = scene.within(HEALTH_LIMIT)?;
    scene.bench.pin(&machine, &scene.path("auditor"), &ak_name, limit).map(drop)
}

/// A disk with remains of something else where partition tables are.
fn disk(scene: &Scene<'_>, name: &str) -> anyhow::Result<PathBuf> {
    let path = scene.path(name);
    let file = File::create_new(&path).with_context(|| path.display().to_string())?;
    file.set_len(DISK_BYTES)?;
    let garbage = vec![0xa5; 64 << 10];
    file.write_all_at(&garbage, 0)?;
    file.write_all_at(&garbage, DISK_BYTES - garbage.len() as u64)?;
    Ok(path)
}

/// Firmware that has the keys already starts the stick, too.
fn signed_by_db(scene: &Scene<'_>, stick: &Path) -> anyhow::Result<()> {
    let program = scene.path("installer.efi");
    let mut copy = tool::command("mcopy");
    copy.env("MTOOLS_SKIP_CHECK", "1").arg("-n").arg("-i");
    copy.arg(format!("{}@@1M", stick.display())).arg("::EFI/BOOT/BOOTX64.EFI").arg(&program);
    let scratch = scene.path("signature");
    std::fs::create_dir(&scratch)?;
    run(&mut copy, &scratch)?;
    let mut verify = tool::command("sbverify");
    verify.arg("--cert").arg(scene.bench.inputs.keys.join("secureboot/db.crt"));
    run(verify.arg(&program), &scratch)
}

/// At the machine's keyboard: letters in lower case, digits, hyphens.
fn type_line(machine: &mut Machine, line: &str) -> anyhow::Result<()> {
    for character in line.chars() {
        let key = if character == '-' { "minus".to_owned() } else { character.to_string() };
        press(machine, &key)?;
    }
    press(machine, "ret")
}

fn press(machine: &mut Machine, key: &str) -> anyhow::Result<()> {
    let said = machine.qmp().human(&format!("sendkey {key} 50"))?;
    ensure!(said.trim().is_empty(), "sendkey {key}: {said}");
    std::thread::sleep(KEY_PAUSE);
    Ok(())
}
