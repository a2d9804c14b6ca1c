//! What ran once, and a disk as it was once: nothing older comes back.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use qemu::disk::{self, Disk};
use qemu::{Config, Machine};
use serde_json::Value;

use super::reseal;
use super::tamper::never_goes_on;
use crate::auditor;
use crate::bench::{
    ADMITTED, AGENTD_READY, BOOT_LIMIT, HEALTH_LIMIT, Scene, wait_ready, wait_refused,
};

/// Printed by agentd when the versions that run became the lowest that may.
const RAISED: &str = "agentd: versions raised: ";
/// Printed by agentd when the state is of another time than the TPM's counter.
const ROLLED_BACK: &str = "agentd: the state was rolled back";

/// The appliance has served version 2. After a reboot it is given version 1, signed by the same quorum.
pub(super) fn bundle(scene: &Scene<'_>) -> anyhow::Result<()> {
    let older = scene.bench.inputs.bundles.older.clone().context("no --bundle-older")?;
    let serving = scene.bench.serving()?;
    let console = serving.snapshot.console();
    ensure!(console.contains(RAISED), "no version was raised:\n{console}");
    let machine = scene.fork_serving()?;
    let mut config = machine.config().clone();
    machine.quit()?;
    config.bundles = vec![older];
    scene.within(BOOT_LIMIT)?;
    let mut machine = Machine::boot(config)?;
    wait_ready(&mut machine)?;
    let reason = match machine.console().transcript.find(crate::bench::REFUSED) {
        Some(line) => line.to_owned(),
        None => wait_refused(&mut machine)?,
    };
    ensure!(reason.contains("version 1 is below 2"), "refused for another reason: {reason}");
    scene.api(&machine)?.wait_health(503, scene.within(HEALTH_LIMIT)?)?;
    machine.forbid(ADMITTED)?;
    Ok(())
}

/// The appliance has served on image version 1. Its disk gets version 0, signed by the same keys; then the quorum allows
/// that, and the PCRs are those that were foreseen.
pub(super) fn image(scene: &Scene<'_>) -> anyhow::Result<()> {
    const REFUSED: &str = " is below 1, which has run here; the TPM's counter shows ";
    let older = scene.bench.inputs.image_older.as_ref().context("no --image-older")?;
    let serving = scene.bench.serving()?;
    let machine = scene.fork_serving()?;
    let foreseen = foreseen(scene, &machine, older)?;
    let mut config = machine.config().clone();
    machine.quit()?;
    install(scene, &config, older)?;
    let mut machine = Machine::boot(config.clone())?;
    let seen = [REFUSED, AGENTD_READY];
    let (index, line) = machine.wait_for_any(&seen, scene.within(BOOT_LIMIT)?)?;
    ensure!(index == 0, "an older image serves: {line}");
    never_goes_on(scene, &mut machine, AGENTD_READY)?;
    machine.quit()?;

    let counter = line.split_once(REFUSED).and_then(|(_, rest)| rest.split(';').next());
    let counter = counter.context("no count in the refusal")?;
    config.bundles = vec![exception(scene, &serving.ak_name, counter)?];
    let mut machine = Machine::boot(config)?;
    ensure!(wait_ready(&mut machine)? == serving.ak_name, "another attestation key");
    let console = machine.console().transcript.text();
    ensure!(console.contains("agentd: exception accepted: "), "not by the exception:\n{console}");

    let found = reseal::evidence(scene, &machine)?.quote.pcrs;
    for (pcr, outlook) in
        [(4, "changes"), (7, "stays"), (11, "changes"), (12, "stays"), (13, "stays")]
    {
        let of = |key| foreseen.pointer(&format!("/pcrs/{pcr}/{key}")).and_then(Value::as_str);
        ensure!(of("outlook") == Some(outlook), "PCR {pcr} {:?}: {foreseen}", of("outlook"));
        let (after, found) = (of("after"), found.get(&pcr).map(String::as_str));
        ensure!(after == found, "PCR {pcr} is {found:?}, the forecast was {after:?}");
    }
    Ok(())
}

/// What `casemate forecast` says of this machine if it gets that image.
fn foreseen(scene: &Scene<'_>, machine: &Machine, image: &Path) -> anyhow::Result<Value> {
    let evidence = scene.path("evidence.json");
    std::fs::write(&evidence, scene.api(machine)?.evidence(&auditor::nonce()?)?)?;
    let mut command = scene.casemate();
    command.arg("forecast").arg(&evidence).arg("--json");
    command.arg("--image").arg(image.join("reference.json"));
    Ok(serde_json::from_str(&scene.run(&mut command)?)?)
}

/// Boot partitions of another image on a machine's disk.
pub(super) fn install(scene: &Scene<'_>, config: &Config, image: &Path) -> anyhow::Result<()> {
    let kinds = [disk::TYPE_ESP, disk::TYPE_ROOT_X86_64, disk::TYPE_ROOT_X86_64_VERITY];
    scene.edit_disk(config, |raw| {
        Ok(Disk::open(raw)?.install(&Disk::open(&image.join("casemate.raw"))?, &kinds)?)
    })
}

/// A medium that lets this machine run image version 0 once, signed by two of three release keys.
fn exception(scene: &Scene<'_>, machine: &str, counter: &str) -> anyhow::Result<PathBuf> {
    let file = scene.path("exception.json");
    let mut create = scene.casemate();
    create.args(["exception", "create", "--machine", machine, "--counter", counter]);
    create.args(["--image", "0", "--reason", "the new one does not start here", "--out"]);
    scene.run(create.arg(&file))?;
    let words = [["exception", "sign"], ["exception", "pack"]];
    scene.signed_medium(&file, &["release-1", "release-2"], words)
}

/// The disk is put back as it was one boot ago; the TPM has counted since.
pub(super) fn state(scene: &Scene<'_>) -> anyhow::Result<()> {
    let machine = scene.fork_ready()?;
    let config = machine.config().clone();
    machine.quit()?;
    let disk = config.state.join("disk.qcow2");
    let copy = scene.path("disk.qcow2");
    std::fs::copy(&disk, &copy).with_context(|| disk.display().to_string())?;

    scene.within(BOOT_LIMIT)?;
    let mut machine = Machine::boot(config.clone())?;
    wait_ready(&mut machine)?;
    machine.quit()?;
    std::fs::copy(&copy, &disk).with_context(|| copy.display().to_string())?;

    let mut machine = Machine::boot(config)?;
    let seen = [ROLLED_BACK, AGENTD_READY];
    let (index, line) = machine.wait_for_any(&seen, scene.within(BOOT_LIMIT)?)?;
    ensure!(index == 0, "an old state was taken for the present one: {line}");
    never_goes_on(scene, &mut machine, AGENTD_READY)
}
