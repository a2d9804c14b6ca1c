//! A bundle with a sentence encoder.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::api::chat_body;
use crate::auditor;
use crate::bench::{HEALTH_LIMIT, PROMPT, Scene, wait_admitted};
use crate::tool;

const MODEL: &str = "all-minilm-l6-v2";
/// The first two say the same.
const TEXTS: [&str; 3] = [
    "The cat sits on the mat.",
    "A cat is sitting on a rug.",
    "Interest rates rose in the third quarter.",
];

/// The encoder is signed and admitted as any model. PyPI's client gets vectors, of which those of like sentences are
/// nearer; a chat is refused; the exchanges are in the ledger, and its evidence is established.
pub(super) fn made(scene: &Scene<'_>) -> anyhow::Result<()> {
    let medium = medium(scene)?;
    let mut machine = scene.fork_ready()?;
    let api = scene.api(&machine)?;
    machine.plug_bundle(&medium)?;
    let model = wait_admitted(&mut machine)?;
    ensure!(model == MODEL, "admitted {model}");
    api.wait_health(200, scene.within(HEALTH_LIMIT)?)?;

    let vectors = vectors(scene, &api.base())?;
    let [like, unlike] = [1, 2].map(|other| cosine(&vectors[0], &vectors[other]));
    println!("  (cosine of like sentences {like:.3}, of unlike ones {unlike:.3})");
    ensure!(like > 0.7 && unlike < 0.3, "cosines {like} and {unlike}");
    let body = chat_body(MODEL, PROMPT, 4, false).to_string();
    let refused = api.post("/v1/chat/completions", &body)?.expect(404)?.json()?;
    let code = refused.pointer("/error/code").and_then(Value::as_str);
    ensure!(code == Some("model_not_supported"), "a chat with an encoder: {refused}");
    let body = json!({"model": MODEL, "input": "word ".repeat(600)}).to_string();
    let refused = api.post("/v1/embeddings", &body)?.expect(400)?.json()?;
    let code = refused.pointer("/error/code").and_then(Value::as_str);
    ensure!(code == Some("context_length_exceeded"), "a text that is too long: {refused}");

    let nonce = auditor::nonce()?;
    let evidence = api.evidence(&nonce)?;
    let ak_name = &scene.bench.ready()?.ak_name;
    let verdict =
        scene.bench.auditor().verify(&scene.path("auditor"), &evidence, ak_name, &nonce)?;
    verdict.expect_established()?;
    let exchanges = exchanges(&evidence)?;
    let outcomes: Vec<&str> = exchanges.iter().filter_map(|e| e["outcome"].as_str()).collect();
    ensure!(
        outcomes == ["stop", "stop", "error:unsuited", "error:prompt-too-long"],
        "outcomes on record: {outcomes:?}"
    );
    let first = &exchanges[0];
    let named = first["request"].as_str().is_some_and(|name| name.starts_with("embd-"));
    let counted = first["prompt_tokens"].as_u64() >= Some(24) && first["completion_tokens"] == 0;
    ensure!(named && counted, "on record: {first}");
    ensure!(!evidence.contains("sitting"), "the evidence has a text");
    Ok(())
}

/// The encoder's folder, signed by two of three release keys.
fn medium(scene: &Scene<'_>) -> anyhow::Result<std::path::PathBuf> {
    let encoder = scene.bench.inputs.encoder.as_deref().context("no --encoder")?;
    let model = scene.path("encoder");
    let mut make = scene.casemate();
    make.args(["bundle", "model", "--model-id", MODEL, "--folder"]).arg(encoder);
    scene.run(make.arg("--out").arg(&model))?;
    let words = [["bundle", "sign"], ["bundle", "pack"]];
    let medium = scene.signed_medium(&model, &["release-1", "release-3"], words)?;
    std::fs::remove_dir_all(&model)?;
    Ok(medium)
}

/// What PyPI's `openai` reads, unchanged.
fn vectors(scene: &Scene<'_>, base: &str) -> anyhow::Result<Vec<Vec<f64>>> {
    let python = scene.bench.inputs.python.as_deref().context("no --python")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/openai_embeddings.py");
    let scratch = scene.path("openai");
    std::fs::create_dir(&scratch)?;
    let site = scene.bench.site();
    let mut command = tool::command(python);
    command.arg(script).arg("--base-url").arg(format!("{base}/v1"));
    command.arg("--ca").arg(&scene.bench.ready()?.pin);
    command.arg("--cert").arg(site.join("client.pem")).arg("--key").arg(site.join("client.key"));
    command.args(["--model", MODEL]).args(TEXTS);
    let ended = tool::run(&mut command, &scratch, scene.within(HEALTH_LIMIT)?)?;
    ensure!(ended.code == Some(0), "the OpenAI client failed: {}", ended.said());
    let vectors: Vec<Vec<f64>> =
        serde_json::from_str(&ended.stdout).with_context(|| ended.said())?;
    let shape: Vec<usize> = vectors.iter().map(Vec::len).collect();
    ensure!(shape == [384; 3], "vectors of {shape:?} numbers");
    Ok(vectors)
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The exchanges on record, oldest first.
fn exchanges(evidence: &str) -> anyhow::Result<Vec<Value>> {
    let mut exchanges = Vec::new();
    for (_, record) in auditor::records(evidence)? {
        let record: Value = serde_json::from_str(&record)?;
        exchanges.extend(record.pointer("/event/exchange").cloned());
    }
    Ok(exchanges)
}
