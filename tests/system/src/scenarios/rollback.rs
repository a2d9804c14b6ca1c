//! What ran once, and a disk as it was once: nothing older comes back.

use anyhow::{Context, ensure};
use qemu::Machine;

use super::tamper::never_goes_on;
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
