//! Boots, reboots and power cuts.

use std::time::Duration;

use anyhow::{Context, ensure};
use qemu::Machine;

use crate::auditor;
use crate::bench::{
    BOOT_LIMIT, HEALTH_LIMIT, PROMPT, Scene, Serving, ledger_records, wait_admitted, wait_ready,
};

/// Words of a login prompt or a shell on the console.
const LOGIN: &[&str] = &["login:", "Give root password", "sh-5", "bash-5"];
/// Power cuts with `--long`.
const CUTS_LONG: u32 = 10;

pub(super) fn boots_and_measures(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let console = ready.snapshot.console();
    for word in LOGIN {
        ensure!(!console.contains(word), "{word:?} on the console:\n{console}");
    }
    let mut machine = scene.fork_ready()?;
    let api = scene.api(&machine)?;
    api.get("/healthz")?.expect(503)?;
    let evidence: evidence::format::Evidence =
        serde_json::from_str(&api.evidence(&auditor::nonce()?)?)?;
    let path = scene.bench.inputs.image.join("reference.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let reference: evidence::format::Reference = serde_json::from_slice(&text)?;
    ensure!(!reference.pcrs.is_empty(), "reference.json predicts nothing");
    for (index, predicted) in &reference.pcrs {
        // agentd's own PCR holds what it measured by now; `casemate-verify` replays it.
        let found = evidence.quote.pcrs.get(index).map(String::as_str);
        ensure!(
            found == Some(predicted) || *index == evidence::format::AGENT_PCR,
            "PCR {index}: found {found:?}, predicted {predicted}"
        );
    }
    // A prompt needs no line feed; give it time to come.
    std::thread::sleep(Duration::from_secs(3));
    for word in LOGIN {
        machine.forbid(word)?;
    }
    Ok(())
}

pub(super) fn state_persists(scene: &Scene<'_>) -> anyhow::Result<()> {
    let serving = scene.bench.serving()?;
    let machine = scene.fork_serving()?;
    let api = scene.api(&machine)?;
    let answer = api.chat(&serving.model, PROMPT, 4)?;
    let records = ledger_records(&api.get("/healthz")?.expect(200)?.json()?)?;
    let config = machine.config().clone();
    // The appliance has no logind, so nobody listens to the power button: it is switched off.
    machine.quit()?;
    let machine = boot_again(scene, serving, config)?;
    expect_record(scene, serving, &machine, &answer.id, records)
}

pub(super) fn power_cut(scene: &Scene<'_>) -> anyhow::Result<()> {
    let serving = scene.bench.serving()?;
    let mut machine = scene.fork_serving()?;
    let cuts = if scene.bench.inputs.long { CUTS_LONG } else { 1 };
    for cut in 1..=cuts {
        let answer = scene.api(&machine)?.chat(&serving.model, PROMPT, 4)?;
        let config = machine.config().clone();
        machine.cut_power()?;
        machine = boot_again(scene, serving, config).with_context(|| format!("cut {cut}"))?;
        expect_record(scene, serving, &machine, &answer.id, u64::from(cut))
            .with_context(|| format!("cut {cut}"))?;
    }
    Ok(())
}

/// Boots the same machine from cold until it serves the model again, with the same key in its TPM.
fn boot_again(
    scene: &Scene<'_>,
    serving: &Serving,
    config: qemu::Config,
) -> anyhow::Result<Machine> {
    scene.within(BOOT_LIMIT)?;
    let mut machine = Machine::boot(config)?;
    let ak_name = wait_ready(&mut machine)?;
    ensure!(ak_name == serving.ak_name, "another attestation key: {ak_name}");
    if machine.console().transcript.find(crate::bench::ADMITTED).is_none() {
        wait_admitted(&mut machine)?;
    }
    scene.api(&machine)?.wait_health(200, HEALTH_LIMIT)?;
    Ok(machine)
}

/// The exchange is in the ledger, the ledger did not lose records, and an auditor agrees.
fn expect_record(
    scene: &Scene<'_>,
    serving: &Serving,
    machine: &Machine,
    request: &str,
    records_before: u64,
) -> anyhow::Result<()> {
    let api = scene.api(machine)?;
    let records = ledger_records(&api.get("/healthz")?.expect(200)?.json()?)?;
    ensure!(records >= records_before, "{records} records, {records_before} before");
    let nonce = auditor::nonce()?;
    let evidence = api.evidence(&nonce)?;
    auditor::record_of(&evidence, request)?
        .with_context(|| format!("{request} was acknowledged, and is not in the ledger"))?;
    let folder = scene.path("auditor");
    let verdict = scene.bench.auditor().verify(&folder, &evidence, &serving.ak_name, &nonce)?;
    verdict.expect_established()
}
