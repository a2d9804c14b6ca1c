//! The key that signs PCR policies is rotated.

use anyhow::{Context, ensure};
use qemu::Machine;

use super::rollback::install;
use super::tamper::state_stays_closed;
use crate::bench::{BOOT_LIMIT, Scene, wait_ready};

/// Printed when the state was sealed to the new key, and when the earlier key's slot is gone.
const STEPS: [&str; 2] = ["the key of the PCR policies was rotated", " wiped: "];

/// An image by both keys opens the state, seals it to the new one and forgets the earlier; one by the new key alone opens
/// it then. With `--long`: the image by the earlier, by which the state was made, opens it no more.
pub(super) fn pcr_key(scene: &Scene<'_>) -> anyhow::Result<()> {
    let inputs = &scene.bench.inputs;
    let images = [&inputs.image_rotated, &inputs.image_retired];
    let ready = scene.bench.ready()?;
    let machine = scene.fork_ready()?;
    let config = machine.config().clone();
    machine.quit()?;
    for (image, steps) in images.into_iter().zip([&STEPS[..], &[]]) {
        let image = image.as_ref().context("no --image-rotated and --image-retired")?;
        install(scene, &config, image)?;
        let mut machine = Machine::boot(config.clone())?;
        for step in steps {
            machine.wait_for(step, scene.within(BOOT_LIMIT)?)?;
        }
        ensure!(wait_ready(&mut machine)? == ready.ak_name, "another attestation key");
        machine.quit()?;
    }
    if !inputs.long {
        return Ok(());
    }
    install(scene, &config, &inputs.image)?;
    state_stays_closed(scene, config).map(drop)
}
