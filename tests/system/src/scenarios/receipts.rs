//! Receipts of the appliance, replayed elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::bundles::unpack;
use crate::api::chat_body;
use crate::auditor;
use crate::bench::{PROMPT, Scene};
use crate::tool;

/// Longest that a replay may take.
const REPLAY_LIMIT: Duration = Duration::from_secs(120);

/// An answer that chance had a part in, given again by another machine's processor from the receipt, the request and
/// the bundle; established evidence names the receipt by its digest.
pub(super) fn replayed(scene: &Scene<'_>) -> anyhow::Result<()> {
    let serving = scene.bench.serving()?;
    let machine = scene.fork_serving()?;
    let api = scene.api(&machine)?;
    let mut body = chat_body(&serving.model, PROMPT, 12, false);
    body["temperature"] = 0.9.into();
    body["casemate_receipt"] = true.into();
    let body = body.to_string();
    let answer = api.post("/v1/chat/completions", &body)?.expect(200)?.json()?;
    let id = answer.get("id").and_then(Value::as_str).context("no id")?;
    let receipt = answer.get("casemate_receipt").with_context(|| format!("none in {answer}"))?;

    let nonce = auditor::nonce()?;
    let evidence = api.evidence(&nonce)?;
    let folder = scene.path("auditor");
    let verdict = scene.bench.auditor().verify(&folder, &evidence, &serving.ak_name, &nonce)?;
    verdict.expect_established()?;
    let (_, record) = auditor::record_of(&evidence, id)?.context("the exchange has no record")?;
    let exchange = record.pointer("/event/exchange").context("no exchange in the record")?;

    let good = scene.bench.inputs.bundles.good.as_deref().context("no --bundle")?;
    let bundle = exchange.get("model").and_then(Value::as_str).context("no bundle digest")?;
    let replay = Replay { scene, model: weights(&unpack(scene, good)?.join("model"))?, bundle };
    let (code, said) = replay.run(receipt, &body)?;
    ensure!(code == Some(0), "the replay differs: {said}");
    ensure!(said.get("equal") == Some(&true.into()), "{said}");
    ensure!(said.get("receipt_sha256") == exchange.get("receipt_sha256"), "{said}, {exchange}");

    let (code, said) = replay.run(receipt, &body.replace(PROMPT, "Name a flower."))?;
    ensure!(code == Some(1), "another request replays: {said}");
    let mut edited = receipt.clone();
    edited["sampling"]["temperature"] = 0.8.into();
    let (code, said) = replay.run(&edited, &body)?;
    ensure!(code == Some(1), "an edited receipt replays: {said}");
    Ok(())
}

struct Replay<'a> {
    scene: &'a Scene<'a>,
    /// The GGUF file.
    model: PathBuf,
    bundle: &'a str,
}

impl Replay<'_> {
    fn run(&self, receipt: &Value, request: &str) -> anyhow::Result<(Option<i32>, Value)> {
        let folder = self.scene.path("replay");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("receipt.json"), receipt.to_string())?;
        fs::write(folder.join("request.json"), request)?;
        let mut command = tool::command(self.scene.bench.inputs.programs.join("casemate-engine"));
        command.current_dir(&folder).args(["replay", "receipt.json", "--request", "request.json"]);
        command.args(["--json", "--bundle-digest", self.bundle, "--model"]).arg(&self.model);
        let ended = tool::run(&mut command, &folder, REPLAY_LIMIT)?;
        let said = serde_json::from_str(&ended.stdout).with_context(|| ended.said())?;
        Ok((ended.code, said))
    }
}

fn weights(model: &Path) -> anyhow::Result<PathBuf> {
    let files = fs::read_dir(model)?.map(|entry| Ok(entry?.path()));
    let files = files.collect::<std::io::Result<Vec<_>>>()?;
    let gguf = files.into_iter().find(|file| file.extension().is_some_and(|e| e == "gguf"));
    gguf.with_context(|| format!("no GGUF file in {}", model.display()))
}
