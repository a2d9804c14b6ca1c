//! The second machine, whose disk was flashed.

use anyhow::ensure;

use crate::bench::{HEALTH_LIMIT, Scene};
use crate::runner::Skipped;

/// A longer disk full of other things boots the image that was written onto it, to established evidence.
pub(super) fn flashed_disk(scene: &Scene<'_>) -> anyhow::Result<()> {
    let second = scene.bench.second()?;
    if !second.flashed {
        return Err(Skipped("no loop device; they need root").into());
    }
    let machine = scene.fork_second()?;
    let (folder, limit) = (scene.path("auditor"), scene.within(HEALTH_LIMIT)?);
    let pin = scene.bench.pin(&machine, &folder, &second.ak_name, limit)?;
    ensure!(std::fs::read(&pin)? == std::fs::read(&second.pin)?, "the certificate changed");
    Ok(())
}
