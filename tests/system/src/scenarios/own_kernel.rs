//! The image with our own kernel, which is what a release has.

use anyhow::ensure;
use qemu::Machine;

use crate::bench::{HEALTH_LIMIT, Scene, wait_ready};

/// A kernel that misbehaved says one of these.
const TROUBLE: &[&str] = &["BUG:", "WARNING:", "Oops", "Call Trace", "UBSAN", "KFENCE"];

/// From power-on to evidence that an auditor establishes, by the reference values of this image, so of this kernel; the
/// state is made and opened again.
pub(super) fn boots(scene: &Scene<'_>) -> anyhow::Result<()> {
    let Some(image) = &scene.bench.inputs.image_own_kernel else {
        println!("  (skipped: the cache has no such kernel; --long builds it)");
        return Ok(());
    };
    let mut config = scene.bench.config(&scene.path("machine"));
    config.image.clone_from(image);
    let mut machine = Machine::boot(config.clone())?;
    let ak_name = wait_ready(&mut machine)?;
    let folder = scene.path("auditor");
    scene.bench.pin_of(image, &machine, &folder, &ak_name, scene.within(HEALTH_LIMIT)?)?;
    check_console(&machine)?;
    machine.quit()?;

    // The state that the first boot made opens to the second.
    let mut machine = Machine::boot(config)?;
    ensure!(wait_ready(&mut machine)? == ak_name, "another attestation key");
    check_console(&machine)
}

fn check_console(machine: &Machine) -> anyhow::Result<()> {
    let console = machine.console().transcript.text();
    for word in TROUBLE {
        ensure!(!console.contains(word), "{word:?} on the console:\n{console}");
    }
    Ok(())
}
