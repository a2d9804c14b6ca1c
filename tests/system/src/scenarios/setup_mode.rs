//! A server as it is delivered: firmware without keys, enrolled from a stick with the key set's signed variables.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use qemu::Machine;

use crate::bench::{HEALTH_LIMIT, Scene, wait_ready};
use crate::tool;

/// Debian's package systemd-boot-efi: a boot loader that enrols what lies beside it; systemd-boot(7).
const LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
/// Debian's variable store without keys (package ovmf): firmware in setup mode.
pub(super) const EMPTY: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const VARIABLES: [&str; 4] = ["PK", "KEK", "db", "dbx"];
const TOOL_LIMIT: Duration = Duration::from_secs(60);
/// The loader counts down some seconds before it enrols.
const ENROL_LIMIT: Duration = Duration::from_secs(90);

/// Firmware takes the set's `.auth` files, then starts our UKI and nothing else, and PCR 7 is as predicted.
pub(super) fn enrols(scene: &Scene<'_>) -> anyhow::Result<()> {
    let config = scene.bench.config(&scene.path("unenrolled"));
    let enrolled = enrol(scene, qemu::Config { image: stick(scene)?, ..config })?;

    // The loader of the stick is not signed by db: firmware that took the keys refuses it now.
    let stick = scene.path("stick-again");
    image(&stick, &enrolled.stick, &enrolled.variables)?;
    let refusal = ["Access Denied", "Access denied", "Security Violation"];
    super::tamper::refuses_to_boot(scene, stick, &refusal, "Enrolling")?;

    let appliance = scene.path("appliance");
    image(&appliance, &scene.bench.inputs.image.join("casemate.raw"), &enrolled.variables)?;
    let mut config = scene.bench.config(&scene.path("enrolled"));
    config.image = appliance;
    let mut machine = Machine::boot(config)?;
    let ak_name = wait_ready(&mut machine)?;
    // All that evidence says is established, Secure Boot's state by its prediction.
    let limit = scene.within(HEALTH_LIMIT)?;
    scene.bench.pin(&machine, &scene.path("auditor"), &ak_name, limit).map(drop)
}

struct Enrolled {
    stick: PathBuf,
    variables: PathBuf,
}

/// Boots the stick once; the loader enrols and restarts, which ends the machine.
fn enrol(scene: &Scene<'_>, config: qemu::Config) -> anyhow::Result<Enrolled> {
    let (state, stick) = (config.state.clone(), config.image.join("casemate.raw"));
    let mut machine = Machine::boot(config)?;
    machine.wait_stopped(scene.within(ENROL_LIMIT)?)?;
    Ok(Enrolled { stick, variables: enrolled_variables(scene, &state)? })
}

/// The variable store of the machine at `state`, once it holds the key set's variables.
pub(super) fn enrolled_variables(scene: &Scene<'_>, state: &Path) -> anyhow::Result<PathBuf> {
    let variables = scene.path("enrolled.fd");
    let mut convert = tool::command("qemu-img");
    convert.args(["convert", "-O", "raw"]).arg(state.join("vars.qcow2")).arg(&variables);
    run(&mut convert, state)?;
    for name in VARIABLES {
        let list = scene.bench.inputs.keys.join(format!("secureboot/{name}.esl"));
        let list = std::fs::read(&list).with_context(|| list.display().to_string())?;
        let store = std::fs::read(&variables)?;
        let is_there = store.windows(list.len()).any(|window| window == list);
        ensure!(is_there, "firmware does not hold {name} as {name}.esl has it");
    }
    Ok(variables)
}

/// An image folder: the stick with loader and variables, and firmware without keys.
fn stick(scene: &Scene<'_>) -> anyhow::Result<PathBuf> {
    let (folder, content) = (scene.path("stick"), scene.path("content"));
    let auto = content.join("loader/keys/auto");
    for made in [&folder, &auto, &content.join("EFI/BOOT"), &content.join("repart.d")] {
        std::fs::create_dir_all(made).with_context(|| made.display().to_string())?;
    }
    std::fs::copy(LOADER, content.join("EFI/BOOT/BOOTX64.EFI")).context(LOADER)?;
    std::fs::write(content.join("loader/loader.conf"), "timeout 1\nsecure-boot-enroll force\n")?;
    for name in VARIABLES {
        let file = format!("{name}.auth");
        let from = scene.bench.inputs.keys.join("secureboot").join(&file);
        std::fs::copy(&from, auto.join(file)).with_context(|| from.display().to_string())?;
    }
    let partition = "[Partition]\nType=esp\nFormat=vfat\nSizeMinBytes=40M\nSizeMaxBytes=40M\n\
                     CopyFiles=/EFI\nCopyFiles=/loader\n";
    std::fs::write(content.join("repart.d/10-esp.conf"), partition)?;
    let mut repart = tool::command("systemd-repart");
    repart.args(["--offline=yes", "--empty=create", "--size=44M", "--dry-run=no"]);
    // Firmware takes no FAT32 of as few clusters as larger sectors would give.
    repart.arg("--sector-size=512");
    repart.arg(format!("--definitions={}", content.join("repart.d").display()));
    repart.arg(format!("--root={}", content.display())).arg(folder.join("casemate.raw"));
    run(&mut repart, &folder)?;
    std::fs::copy(EMPTY, folder.join("OVMF_VARS.fd")).context(EMPTY)?;
    Ok(folder)
}

/// An image folder of a disk and a variable store that are elsewhere; neither is written.
pub(super) fn image(folder: &Path, disk: &Path, variables: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(folder)?;
    for (from, name) in [(disk, "casemate.raw"), (variables, "OVMF_VARS.fd")] {
        std::os::unix::fs::symlink(from, folder.join(name))
            .with_context(|| from.display().to_string())?;
    }
    Ok(())
}

pub(super) fn run(command: &mut Command, scratch: &Path) -> anyhow::Result<()> {
    let ended = tool::run(command, scratch, TOOL_LIMIT)?;
    let name = command.get_program().display().to_string();
    ensure!(ended.code == Some(0), "{name}: {}", ended.said());
    Ok(())
}
