//! The second machine, whose disk was flashed.

use anyhow::ensure;

use crate::bench::{HEALTH_LIMIT, Scene};

/// A longer disk full of other things boots the image that was written onto it, to established evidence.
pub(super) fn flashed_disk(scene: &Scene<'_>) -> anyhow::Result<()> {
    let second = scene.bench.second()?;
    if !second.flashed {
        println!("  (skipped: no loop device; they need root)");
        return Ok(());
    }
    let machine = scene.fork_second()?;
    let (folder, limit) = (scene.path("auditor"), scene.within(HEALTH_LIMIT)?);
    let pin = scene.bench.pin(&machine, &folder, &second.ak_name, limit)?;
    ensure!(std::fs::read(&pin)? == std::fs::read(&second.pin)?, "the certificate changed");
    Ok(())
}
