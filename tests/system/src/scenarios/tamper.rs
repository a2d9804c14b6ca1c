//! What somebody with the disk, the mainboard or the management controller in hands could try.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use qemu::disk::{self, Disk, Section};
use qemu::{Config, Machine, MachineError};

use crate::bench::{AGENTD_READY, BOOT_LIMIT, Scene};
use crate::tool;

/// How long a machine that refused is watched for going on all the same.
const AFTERMATH: Duration = Duration::from_secs(20);
/// Offset of the UUID in an erofs superblock, which lies at 1024: no harm but to the hash of its block.
const EROFS_UUID_OFFSET: u64 = 1024 + 0x30;
/// What firmware says of an image that does not verify under `db`.
const FIRMWARE_REFUSES: &[&str] =
    &["Access Denied", "Access denied", "Security Violation", "Security violation"];
/// What the kernel says of a block that is not the signed one.
const VERITY_REFUSES: &[&str] = &["is corrupted"];
/// What the console says when the TPM does not give the key of the state partition.
pub(super) const STATE_LOCKED: &[&str] =
    &["Failed to unseal", "Dependency failed for var-lib-casemate.mount"];

pub(super) fn root_flipped_byte(scene: &Scene<'_>) -> anyhow::Result<()> {
    let image = tampered(scene, |disk| {
        let root = disk.partition(disk::TYPE_ROOT_X86_64)?;
        Ok(disk.flip_byte(root.offset + EROFS_UUID_OFFSET)?)
    })?;
    refuses_to_boot(scene, image, VERITY_REFUSES, AGENTD_READY)
}

pub(super) fn uki_flipped_byte(scene: &Scene<'_>) -> anyhow::Result<()> {
    // Behind the kernel's own headers.
    firmware_refuses(scene, ".linux", |section| section.content + 4096)
}

/// The stub finds no initrd under its name, and would start the kernel without.
pub(super) fn uki_without_initrd(scene: &Scene<'_>) -> anyhow::Result<()> {
    firmware_refuses(scene, ".initrd", |section| section.header + 1)
}

/// One byte of a UKI's section, or of its header, is another one.
fn firmware_refuses(
    scene: &Scene<'_>,
    section: &str,
    byte: impl Fn(Section) -> u64,
) -> anyhow::Result<()> {
    let image = tampered(scene, |disk| {
        for section in disk.uki_sections(&disk.partition(disk::TYPE_ESP)?, section)? {
            disk.flip_byte(byte(section))?;
        }
        Ok(())
    })?;
    // The first words of whatever a UKI starts.
    refuses_to_boot(scene, image, FIRMWARE_REFUSES, "EFI stub:")
}

/// A copy of the image, tampered with.
pub(super) fn tampered(
    scene: &Scene<'_>,
    tamper: impl FnOnce(&Disk) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let from = &scene.bench.inputs.image;
    let to = scene.path("image");
    std::fs::create_dir(&to)?;
    std::fs::copy(from.join("OVMF_VARS.fd"), to.join("OVMF_VARS.fd"))
        .with_context(|| from.display().to_string())?;
    tamper(&disk::copy(&from.join("casemate.raw"), &to.join("casemate.raw"))?)?;
    Ok(to)
}

pub(super) fn refuses_to_boot(
    scene: &Scene<'_>,
    image: PathBuf,
    refusal: &[&str],
    forbidden: &str,
) -> anyhow::Result<()> {
    let mut config = scene.bench.config(&scene.path("machine"));
    config.image = image;
    let mut machine = Machine::boot(config)?;
    let (_, line) = machine.wait_for_any(refusal, scene.within(BOOT_LIMIT)?)?;
    println!("  (the boot stopped: {line})");
    never_goes_on(scene, &mut machine, forbidden)
}

/// Watches the machine for a while, or until it stops; `forbidden` must not come, nor have come.
pub(super) fn never_goes_on(
    scene: &Scene<'_>,
    machine: &mut Machine,
    forbidden: &str,
) -> anyhow::Result<()> {
    match machine.wait_stopped(scene.within(AFTERMATH)?) {
        // It stopped, or it stands still: both are fine, if it did not go on.
        Ok(_) | Err(MachineError::NotSeen { .. }) => Ok(machine.forbid(forbidden)?),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn other_tpm_does_not_unlock(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    state_stays_closed(scene, ready.snapshot.transplant(&scene.path("other-server"))?).map(drop)
}

/// Changes the variable store of a machine that is off; `change` is in the words of virt-fw-vars.
pub(super) fn set_variables(
    scene: &Scene<'_>,
    config: &Config,
    change: &[impl AsRef<OsStr>],
) -> anyhow::Result<()> {
    let vars = config.state.join("vars.qcow2");
    let (old, new) = (scene.path("vars.fd"), scene.path("vars.fd"));
    scene.convert(["qcow2", "raw"], &vars, &old)?;
    let mut command = tool::command("virt-fw-vars");
    command.arg("--input").arg(&old).arg("--output").arg(&new).args(change);
    scene.run(&mut command)?;
    scene.convert(["raw", "qcow2"], &new, &vars)
}

/// Boots a machine whose TPM must not release the key of the state partition; nothing of ours runs on it.
pub(super) fn state_stays_closed(scene: &Scene<'_>, config: Config) -> anyhow::Result<Machine> {
    let mut machine = Machine::boot(config)?;
    let wanted = [&[AGENTD_READY][..], STATE_LOCKED].concat();
    let (index, line) = machine.wait_for_any(&wanted, scene.within(BOOT_LIMIT)?)?;
    ensure!(index > 0, "the state was unlocked: {line}");
    never_goes_on(scene, &mut machine, AGENTD_READY)?;
    Ok(machine)
}

/// The stub adds such a string to the signed command line even with Secure Boot on. Each stops the machine before
/// anything of ours runs, the harmless one too: the state opens only to the command line that was signed. The first two;
/// all with `--long`.
pub(super) fn smbios_cmdline_injected(scene: &Scene<'_>) -> anyhow::Result<()> {
    const WORDS: [&str; 5] = [
        "systemd.log_color=no",
        "init=/usr/bin/sleep",
        "systemd.unit=rescue.target",
        "rd.break",
        "systemd.mask=casemate-agentd.service",
    ];
    let machine = scene.fork_ready()?;
    let config = machine.config().clone();
    machine.quit()?;
    let words = if scene.bench.inputs.long { &WORDS[..] } else { &WORDS[..2] };
    for &words in words {
        let mut config = config.clone();
        config.smbios.push(format!("io.systemd.stub.kernel-cmdline-extra={words}"));
        let mut machine = Machine::boot(config)?;
        machine.wait_stopped(scene.within(BOOT_LIMIT)?).with_context(|| words.to_owned())?;
        machine.forbid(AGENTD_READY).with_context(|| words.to_owned())?;
        println!("  (with {words} the machine stopped)");
    }
    Ok(())
}
