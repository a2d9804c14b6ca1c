//! What systemd would take from outside the signed image: credentials, extensions, add-ons, another root.
//!
//! Each is either without effect, and then evidence is as ever, or the state partition stays closed, and then nothing
//! of ours runs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use qemu::Machine;
use qemu::disk::{TYPE_ESP, TYPE_ROOT_X86_64, TYPE_ROOT_X86_64_VERITY};

use super::tamper::{STATE_LOCKED, never_goes_on, refuses_to_boot, state_stays_closed, tampered};
use super::update::entry;
use crate::bench::{AGENTD_READY, BOOT_LIMIT, HEALTH_LIMIT, Scene, attestation_key, wait_ready};

/// Written to the console by whatever was injected.
const MARK: &str = "INJECTED-BY-A-STRANGER";
/// What the console says when a root is not the one of the signed command line.
const ROOT_REFUSED: &[&str] =
    &["is corrupted", "root hash", "Failed to activate", "Timed out waiting"];

/// systemd-tmpfiles(8) takes its credential `tmpfiles.extra` as configuration.
fn line() -> String {
    format!("w /dev/console - - - - {MARK}\\n\n")
}

/// Credentials by the board and an unsigned add-on on the ESP: the machine comes up, nothing of the stranger's ran, and all
/// that evidence says but for the bundle that nobody brought is established: the boot is the one that the owner signed.
pub(super) fn without_effect(scene: &Scene<'_>) -> anyhow::Result<()> {
    let mut config = scene.bench.config(&scene.path("machine"));
    // Files, a drop-in of a unit of ours, a login: systemd.system-credentials(7).
    // The console shows a unit by its description.
    let dropin = format!("[Unit]\nDescription={MARK}\n");
    let credentials = [
        ("tmpfiles.extra", line()),
        ("systemd.unit-dropin.casemate-agentd.service", dropin),
        ("passwd.plaintext-password.root", MARK.to_owned()),
    ];
    for (name, value) in &credentials {
        config.smbios.push(format!("io.systemd.credential:{name}={value}"));
    }
    let [tmpfiles, _, _] = credentials;
    config.fw_cfg.push((format!("io.systemd.credentials/{}", tmpfiles.0), tmpfiles.1));
    let addon = scene.path("addon.efi");
    let made = Command::new("ukify")
        .args(["build", "--cmdline", "systemd.log_color=no", "--output"])
        .arg(&addon)
        .output()
        .context("ukify, Debian's package systemd-ukify")?;
    ensure!(made.status.success(), "ukify: {}", String::from_utf8_lossy(&made.stderr));
    config.image = with_companion(scene, "stranger.addon.efi", &std::fs::read(addon)?)?;
    let mut machine = Machine::boot(config)?;
    let ak_name = wait_ready(&mut machine)?;
    let folder = scene.path("auditor");
    scene.bench.pin(&machine, &folder, &ak_name, scene.within(HEALTH_LIMIT)?)?;
    Ok(machine.forbid(MARK)?)
}

pub(super) fn esp_credential(scene: &Scene<'_>) -> anyhow::Result<()> {
    let image = with_companion(scene, "tmpfiles.extra.cred", line().as_bytes())?;
    closed_with(scene, image)
}

pub(super) fn esp_sysext(scene: &Scene<'_>) -> anyhow::Result<()> {
    // The stub measures and passes on whatever lies there; what is in it is not looked at before that.
    let image = with_companion(scene, "stranger.sysext.raw", &[0; 1 << 20])?;
    closed_with(scene, image)
}

fn with_companion(scene: &Scene<'_>, name: &str, content: &[u8]) -> anyhow::Result<PathBuf> {
    let folder = scene.path("companion");
    std::fs::create_dir(&folder)?;
    let file = folder.join(name);
    std::fs::write(&file, content)?;
    // Where systemd-stub looks for what goes with the UKI; systemd-stub(7), "Companion Files".
    let companions = format!("EFI/Linux/{}.efi.extra.d", entry(&scene.bench.inputs.image)?);
    tampered(scene, |disk| Ok(disk.add_file(&disk.partition(TYPE_ESP)?, &companions, &file)?))
}

fn closed_with(scene: &Scene<'_>, image: PathBuf) -> anyhow::Result<()> {
    let mut config = scene.bench.config(&scene.path("machine"));
    config.image = image;
    Ok(state_stays_closed(scene, config)?.forbid(MARK)?)
}

/// A root of the stranger's, with a hash tree that fits it, in place of ours.
pub(super) fn root_swapped(scene: &Scene<'_>) -> anyhow::Result<()> {
    refuses_to_boot(scene, with_strange_root(scene)?, ROOT_REFUSED, AGENTD_READY)
}

/// A stranger's disk beside ours: the same labels and identifiers, another root, and a state that is not encrypted.
/// Which of two equal identifiers is taken is udev's choice; so either the signed root and the sealed state are used, or
/// the boot stops.
pub(super) fn second_disk(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let machine = scene.fork_ready()?;
    let mut config = machine.config().clone();
    machine.quit()?;
    config.bundles = vec![with_strange_root(scene)?.join("casemate.raw")];
    let mut machine = Machine::boot(config)?;
    let seen = [&[AGENTD_READY][..], ROOT_REFUSED, STATE_LOCKED].concat();
    let (index, line) = machine.wait_for_any(&seen, scene.within(BOOT_LIMIT)?)?;
    println!("  (with the second disk: {line})");
    if index > 0 {
        return never_goes_on(scene, &mut machine, AGENTD_READY);
    }
    ensure!(attestation_key(&machine)? == ready.ak_name, "another TPM or state than ours");
    let folder = scene.path("auditor");
    scene.bench.pin(&machine, &folder, &ready.ak_name, scene.within(HEALTH_LIMIT)?)?;
    Ok(())
}

fn with_strange_root(scene: &Scene<'_>) -> anyhow::Result<PathBuf> {
    let (root, hashes) = (scene.path("stranger.root"), scene.path("stranger.verity"));
    std::fs::write(&root, vec![0x5a; 1 << 20])?;
    let made = Command::new("veritysetup")
        .arg("format")
        .args([&root, &hashes])
        .output()
        .context("veritysetup, Debian's package cryptsetup-bin")?;
    ensure!(made.status.success(), "veritysetup: {}", String::from_utf8_lossy(&made.stderr));
    tampered(scene, |disk| {
        for (kind, file) in [(TYPE_ROOT_X86_64, &root), (TYPE_ROOT_X86_64_VERITY, &hashes)] {
            disk.overwrite(&disk.partition(kind)?, &std::fs::read(file)?)?;
        }
        Ok(())
    })
}
