//! Bundles that must not be loaded.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::api::{Api, chat_body};
use crate::bench::{ADMITTED, HEALTH_LIMIT, Scene, wait_refused};

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
    let body = chat_body("any", "Name a colour.", 4, false).to_string();
    let answer = api.post("/v1/chat/completions", &body)?.expect(503)?.json()?;
    ensure!(answer.pointer("/error/message").is_some(), "no error object: {answer}");
    let models = api.get("/v1/models")?.expect(200)?.json()?;
    let none = models.get("data").and_then(Value::as_array).is_some_and(Vec::is_empty);
    ensure!(none, "models after a refusal: {models}");
    machine.forbid(ADMITTED)?;
    Ok(())
}
