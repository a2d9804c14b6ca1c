//! What somebody with the disk, the mainboard or the management controller in hands could try.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use qemu::disk::{self, Disk, Section};
use qemu::{Config, Machine, MachineError};

use crate::auditor;
use crate::bench::{AGENTD_READY, ATTESTATION_KEY, BOOT_LIMIT, HEALTH_LIMIT, Scene};

/// How long a machine that refused is watched for going on all the same.
const AFTERMATH: Duration = Duration::from_secs(20);
/// Offset of the UUID in an erofs superblock, which lies at 1024: no harm but to the hash of its block.
const EROFS_UUID_OFFSET: u64 = 1024 + 0x30;
/// What firmware says of an image that does not verify under `db`.
const FIRMWARE_REFUSES: &[&str] = &["Access Denied", "Access denied", "Security Violation"];
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

/// Boots a machine whose TPM must not release the key of the state partition; nothing of ours runs on it.
pub(super) fn state_stays_closed(scene: &Scene<'_>, config: Config) -> anyhow::Result<Machine> {
    let mut machine = Machine::boot(config)?;
    if let (true, line) = unlocks(scene, &mut machine)? {
        bail!("the state was unlocked: {line}");
    }
    never_goes_on(scene, &mut machine, AGENTD_READY)?;
    Ok(machine)
}

/// Whether the agent starts or the state stays closed, and the line that says so.
fn unlocks(scene: &Scene<'_>, machine: &mut Machine) -> anyhow::Result<(bool, String)> {
    let mut wanted = vec![AGENTD_READY];
    wanted.extend(STATE_LOCKED);
    let (index, line) = machine.wait_for_any(&wanted, scene.within(BOOT_LIMIT)?)?;
    Ok((index == 0, line))
}

/// The stub adds the string to the signed command line even with Secure Boot on.
pub(super) fn smbios_cmdline_injected(scene: &Scene<'_>) -> anyhow::Result<()> {
    let serving = scene.bench.serving()?;
    let machine = scene.fork_serving()?;
    let mut config = machine.config().clone();
    machine.quit()?;
    // Harmless by itself: what is tested is that nothing can be added unseen.
    config.smbios.push("io.systemd.stub.kernel-cmdline-extra=systemd.log_color=no".to_owned());
    let mut machine = Machine::boot(config)?;
    if let (false, line) = unlocks(scene, &mut machine)? {
        println!("  (the boot stopped: {line})");
        return never_goes_on(scene, &mut machine, AGENTD_READY);
    }
    machine.console().transcript.find(ATTESTATION_KEY).context("agentd did not print its key")?;
    let api = scene.api(&machine)?;
    api.wait_health(200, scene.within(HEALTH_LIMIT)?)?;
    let nonce = auditor::nonce()?;
    let evidence = api.evidence(&nonce)?;
    let folder = scene.path("auditor");
    let verdict = scene.bench.auditor().verify(&folder, &evidence, &serving.ak_name, &nonce)?;
    verdict.expect_refuted(&["REFUTED", "command-line"])
}
