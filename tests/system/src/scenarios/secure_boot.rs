//! The state stays closed in another Secure Boot state, whoever signed what was started.

use super::tamper::{set_variables, state_stays_closed};
use crate::bench::Scene;

/// Owner of the key that is added; any will do.
const OWNER: &str = "6f1d0a3e-9b52-4c57-8f0e-2d7c1b5a4e93";

/// Secure Boot is switched off in the firmware's menu: the same UKI starts, unverified.
pub(super) fn off(scene: &Scene<'_>) -> anyhow::Result<()> {
    closed_with(scene, &["--set-false".to_owned(), "SecureBootEnable".to_owned()])
}

/// Another key is put into db beside ours, so that firmware would start what its holder signs as well.
pub(super) fn db_key_added(scene: &Scene<'_>) -> anyhow::Result<()> {
    let certificate = scene.bench.inputs.keys.join("secureboot/KEK.crt").display().to_string();
    closed_with(scene, &["--add-db".to_owned(), OWNER.to_owned(), certificate])
}

fn closed_with(scene: &Scene<'_>, change: &[String]) -> anyhow::Result<()> {
    let machine = scene.fork_ready()?;
    let config = machine.config().clone();
    machine.quit()?;
    set_variables(scene, &config, change)?;
    state_stays_closed(scene, config).map(drop)
}
