//! Bundles that must not be loaded, and one that must be loaded by one machine alone.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use qemu::disk;
use serde_json::Value;

use super::enrolment::{self, Desk};
use crate::api::{Api, chat_body};
use crate::bench::{ADMITTED, HEALTH_LIMIT, PROMPT, Scene, wait_admitted, wait_refused};
use crate::tool;

/// Partition of a bundle medium.
const MEDIUM: &str = "casemate-bundle";

pub(super) fn flipped_byte(scene: &Scene<'_>) -> anyhow::Result<()> {
    refused(scene, scene.bench.inputs.bundles.flipped.as_deref(), "changed")
}

pub(super) fn one_signature(scene: &Scene<'_>) -> anyhow::Result<()> {
    refused(scene, scene.bench.inputs.bundles.one_signature.as_deref(), "needed signatures")
}

pub(super) fn extra_file(scene: &Scene<'_>) -> anyhow::Result<()> {
    refused(scene, scene.bench.inputs.bundles.extra_file.as_deref(), "not signed")
}

/// `/healthz` comes to say what the console said.
fn wait_reason(scene: &Scene<'_>, api: &Api, reason: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + scene.within(HEALTH_LIMIT)?;
    loop {
        let health = api.get("/healthz")?.expect(503)?.json()?;
        let said = health.get("reason").and_then(Value::as_str).unwrap_or_default();
        if said.contains(reason) {
            return Ok(());
        }
        let late = Instant::now() >= deadline;
        ensure!(!late, "/healthz says {said:?}, the console {reason:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The medium is refused for the reason that it was made for, clients read that reason, and nothing answers.
fn refused(scene: &Scene<'_>, bundle: Option<&Path>, cause: &str) -> anyhow::Result<()> {
    let bundle = bundle.context("no image of this bad bundle was given")?;
    let mut machine = scene.fork_ready()?;
    let api = scene.api(&machine)?;
    machine.plug_bundle(bundle)?;
    let reason = wait_refused(&mut machine)?;
    ensure!(reason.contains(cause), "refused for another reason than {cause:?}: {reason}");
    wait_reason(scene, &api, &reason)?;
    let body = chat_body("any", PROMPT, 4, false).to_string();
    let answer = api.post("/v1/chat/completions", &body)?.expect(503)?.json()?;
    ensure!(answer.pointer("/error/message").is_some(), "no error object: {answer}");
    let models = api.get("/v1/models")?.expect(200)?.json()?;
    let none = models.get("data").and_then(Value::as_array).is_some_and(Vec::is_empty);
    ensure!(none, "models after a refusal: {models}");
    machine.forbid(ADMITTED)?;
    Ok(())
}

/// The good bundle, encrypted to one machine: that one runs it, and one with another TPM by the same vendor, on the same
/// image, says whose it is.
pub(super) fn sealed(scene: &Scene<'_>) -> anyhow::Result<()> {
    let good = scene.bench.inputs.bundles.good.as_deref().context("no --bundle")?;
    let mut machine = scene.fork_ready()?;
    let api = scene.api(&machine)?;
    let desk = enrolment::enrolled(scene, &machine, &api)?;
    let reference = scene.bench.auditor().reference;
    let medium = seal(scene, &unpack(scene, good)?, &desk, &reference)?;
    machine.plug_bundle(&medium)?;
    let model = wait_admitted(&mut machine)?;
    api.wait_health(200, scene.within(HEALTH_LIMIT)?)?;
    let body = chat_body(&model, PROMPT, 4, false).to_string();
    api.post("/v1/chat/completions", &body)?.expect(200)?;

    machine.quit()?;
    let ak_name = &scene.bench.second()?.ak_name;
    let mut second = scene.fork_second()?;
    second.plug_bundle(&medium)?;
    let reason = wait_refused(&mut second)?;
    let whose = format!("this machine has {ak_name}");
    let named = reason.contains("it is sealed to another machine") && reason.contains(&whose);
    ensure!(named, "refused for another reason: {reason}");
    second.forbid(ADMITTED)?;
    Ok(())
}

/// What is on a medium, in a folder.
pub(super) fn unpack(scene: &Scene<'_>, medium: &Path) -> anyhow::Result<PathBuf> {
    let image = File::open(medium).with_context(|| medium.display().to_string())?;
    let partitions = disk::partitions(|offset, length| {
        let mut bytes = vec![0; length];
        image.read_exact_at(&mut bytes, offset).map(|()| bytes)
    })?;
    let found = partitions.iter().find(|partition| partition.name == MEDIUM);
    let offset = found.with_context(|| format!("no {MEDIUM} in {}", medium.display()))?.offset;
    let folder = scene.path("unpacked");
    let mut extract = tool::command("fsck.erofs");
    extract.arg(format!("--extract={}", folder.display())).arg(format!("--offset={offset}"));
    scene.run(extract.arg(medium))?;
    Ok(folder)
}

/// The same bundle for the machine that was enrolled at `desk` alone, in the boot that `reference` predicts.
pub(super) fn seal(
    scene: &Scene<'_>,
    unpacked: &Path,
    desk: &Desk<'_>,
    reference: &Path,
) -> anyhow::Result<PathBuf> {
    let medium = scene.path("sealed.img");
    let mut pack = scene.casemate();
    pack.args(["bundle", "pack"]).arg(unpacked.join("model")).arg("--out").arg(&medium);
    for signature in std::fs::read_dir(unpacked.join("signatures"))? {
        pack.arg("--signature").arg(signature?.path());
    }
    for (option, file) in [
        ("--seal-identity", desk.path("identity.json")),
        ("--seal-machine", desk.path("machine.json")),
        ("--seal-reference", reference.to_owned()),
    ] {
        pack.arg(option).arg(file);
    }
    scene.run(&mut pack)?;
    Ok(medium)
}
