//! The factory reset: by a signed order, cut in the middle, and what is left of the old state.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use evidence::format::Machine as Pin;
use qemu::{Config, Machine};

use super::recovery::{escrowed_line, holds};
use super::tamper::{STATE_LOCKED, state_stays_closed};
use crate::auditor;
use crate::bench::{AGENTD_READY, BOOT_LIMIT, HEALTH_LIMIT, Ready, Scene, wait_ready};

/// Longest from plugging the order in to the word on it.
const ORDER_LIMIT: Duration = Duration::from_secs(60);
const REFUSED: &str = "state: factory reset refused or not finished: ";
const CLEARED: &str = "state: factory reset: the TPM is cleared";
const DONE: &str = "state: factory reset done";
/// Printed by agentd before the count at which the state began.
const BEGAN: &str = ", state began at ";

/// The power is cut once the TPM is cleared; with the medium still in, the machine finishes. Then it has a new state, and
/// neither the old disk nor a copy of it opens.
pub(super) fn factory_reset(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let console = ready.snapshot.console();
    let (old, old_began) = (escrowed_line(console)?, began(console)?);
    let order = order(scene, ready, &["release-1", "release-3"])?;
    let mut machine = scene.fork_ready()?;
    machine.plug_bundle(&order)?;
    let (index, line) = machine.wait_for_any(&[CLEARED, REFUSED], ORDER_LIMIT)?;
    ensure!(index == 0, "{line}");
    let config = machine.config().clone();
    machine.cut_power()?;

    let mut machine = Machine::boot(config.clone())?;
    let seen = [&[AGENTD_READY, DONE][..], STATE_LOCKED].concat();
    let (index, line) = machine.wait_for_any(&seen, scene.within(BOOT_LIMIT)?)?;
    println!("  (after the power cut: {line})");
    if index > 0 {
        // It restarts by itself, which ends QEMU here.
        machine.wait_stopped(scene.within(BOOT_LIMIT)?)?;
        let console = machine.console().transcript.text();
        ensure!(console.contains(DONE), "the reset was not finished:\n{console}");
        drop(machine);
        machine = Machine::boot(config.clone())?;
    }
    ensure!(wait_ready(&mut machine)? == ready.ak_name, "another attestation key");
    let console = machine.console().transcript.text().to_owned();
    ensure!(console.contains(REFUSED), "the order was not refused for the new state:\n{console}");
    let (new, new_began) = (escrowed_line(&console)?, began(&console)?);
    ensure!(new_began > old_began, "the state began at {new_began}, before at {old_began}");
    ensure!(new.state != old.state, "the same state: {new:?}");
    judged_by_the_old_pin(scene, &machine, &ready.ak_name, old_began)?;
    machine.quit()?;

    nothing_is_left(scene, &config, &old.state)?;
    // A copy of the disk that was made before, on the same machine, with its TPM as it is now.
    let copy = ready.snapshot.transplant(&scene.path("copy"))?;
    std::fs::copy(copy.state.join("disk.qcow2"), config.state.join("disk.qcow2"))?;
    let config = Config { bundles: Vec::new(), ..config };
    state_stays_closed(scene, config).map(drop)
}

/// Orders that must destroy nothing: one signature, and another state.
pub(super) fn order_refused(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let one = order(scene, ready, &["release-2"])?;
    refused(scene, &one, "1 of 2 needed signatures")?;
    let line = escrowed_line(ready.snapshot.console())?;
    let file = scene.path("recovery.json");
    let other = evidence::recovery::Recovery {
        state: line.state.replace('-', "0-")[..36].to_owned(),
        ..line
    };
    std::fs::write(&file, other.to_json()?)?;
    refused(
        scene,
        &signed(scene, &file, &["release-1", "release-2"])?,
        "the order is for the state",
    )
}

fn refused(scene: &Scene<'_>, medium: &Path, why: &str) -> anyhow::Result<()> {
    let mut machine = scene.fork_ready()?;
    machine.plug_bundle(medium)?;
    let (index, line) = machine.wait_for_any(&[REFUSED, CLEARED], ORDER_LIMIT)?;
    ensure!(index == 0 && line.contains(why), "not refused for {why:?}: {line}");
    Ok(())
}

/// An order for the state of the shared boot, made of what its console said.
fn order(scene: &Scene<'_>, ready: &Ready, keys: &[&str]) -> anyhow::Result<PathBuf> {
    let file = scene.path("recovery.json");
    std::fs::write(&file, escrowed_line(ready.snapshot.console())?.to_json()?)?;
    signed(scene, &file, keys)
}

fn signed(scene: &Scene<'_>, recovery: &Path, keys: &[&str]) -> anyhow::Result<PathBuf> {
    let folder = scene.path("order");
    let mut create = scene.casemate();
    create.args(["reset", "create"]).arg(recovery).args(["--reason", "sold", "--out"]);
    scene.run(create.arg(&folder))?;
    scene.signed_medium(&folder, keys, [["bundle", "sign"], ["reset", "pack"]])
}

/// An auditor who pinned the old state sees that it is gone.
fn judged_by_the_old_pin(
    scene: &Scene<'_>,
    machine: &Machine,
    ak_name: &str,
    old_began: u64,
) -> anyhow::Result<()> {
    // The gateway has a new key as well.
    let limit = scene.within(HEALTH_LIMIT)?;
    let pin = scene.bench.pin(machine, &scene.path("auditor"), ak_name, limit)?;
    let (api, nonce) = (scene.api_of(machine, &pin), auditor::nonce()?);
    let text = api.evidence(&nonce)?;
    let pinned = Pin { state_began: Some(old_began), ..Pin::from_console(ak_name) };
    let verdict = scene.bench.auditor().judge(&scene.path("judged"), &text, &pinned, &nonce)?;
    verdict.expect_refuted(&["REFUTED", "rollback"])
}

/// The old header is nowhere on the disk.
fn nothing_is_left(scene: &Scene<'_>, config: &Config, state: &str) -> anyhow::Result<()> {
    let found = scene.read_disk(config, |raw| holds(raw, state.as_bytes()))?;
    ensure!(!found, "the old state's header is still on the disk");
    Ok(())
}

fn began(console: &str) -> anyhow::Result<u64> {
    let line = console.lines().find_map(|line| Some(line.split_once(BEGAN)?.1));
    let line = line.with_context(|| format!("no count of the state:\n{console}"))?;
    line.trim().parse().with_context(|| line.to_owned())
}
