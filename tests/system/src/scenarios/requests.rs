//! Clients, good and bad.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::api::{Identity, Response, chat_body};
use crate::auditor;
use crate::bench::{HEALTH_LIMIT, PROMPT, Scene};
use crate::tool;

const CHAT: &str = "/v1/chat/completions";
/// As many as the words take that are looked for.
pub(super) const ANSWER_TOKENS: u32 = 8;
/// curl's exit codes for a handshake that failed, or a connection that ended in it: 35, 52, 55, 56.
const TLS_ENDED: &[&str] = &["Some(35)", "Some(52)", "Some(55)", "Some(56)"];

pub(super) fn model_answers(scene: &Scene<'_>) -> anyhow::Result<()> {
    let model = &scene.bench.serving()?.model;
    let machine = scene.fork_serving()?;
    let api = scene.api(&machine)?;
    let models = api.get("/v1/models")?.expect(200)?.json()?;
    let listed = models.pointer("/data/0/id").and_then(Value::as_str);
    ensure!(listed == Some(model), "{models} does not list {model}");
    let prompt = "What is the capital of Cameroon?";
    let whole = api.chat(model, prompt, ANSWER_TOKENS)?;
    println!("  ({model} on {prompt:?}: {:?})", whole.text);
    ensure!(
        whole.text.contains("The capital of Cameroon is"),
        "the model answered {:?}",
        whole.text
    );
    let streamed = api.chat_streamed(model, prompt, ANSWER_TOKENS)?;
    ensure!(streamed == whole.text, "streamed {streamed:?}, whole {:?}", whole.text);
    let pin = &scene.bench.ready()?.pin;
    for stream in [false, true] {
        let client = OpenAi { base: &api.base(), pin: Some(pin), stream };
        let said = client.ask(scene, model, prompt)?;
        let same = said.trim() == whole.text.trim();
        ensure!(same, "openai (stream: {stream}) got {said:?}, curl {:?}", whole.text);
    }
    Ok(())
}

/// PyPI's `openai`, unchanged.
pub(super) struct OpenAi<'a> {
    pub(super) base: &'a str,
    /// The gateway's certificate; none is asked for through the proxy, which needs no client certificate either.
    pub(super) pin: Option<&'a Path>,
    pub(super) stream: bool,
}

impl OpenAi<'_> {
    /// The answer, which must be whole.
    pub(super) fn ask(
        &self,
        scene: &Scene<'_>,
        model: &str,
        prompt: &str,
    ) -> anyhow::Result<String> {
        let ended = self.run(scene, model, prompt)?;
        ensure!(ended.code == Some(0), "the OpenAI client failed: {}", ended.said());
        Ok(ended.stdout)
    }

    pub(super) fn run(
        &self,
        scene: &Scene<'_>,
        model: &str,
        prompt: &str,
    ) -> anyhow::Result<tool::Ended> {
        let python = scene.bench.inputs.python.as_deref().context("no --python")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/openai_chat.py");
        let scratch = scene.path("openai");
        std::fs::create_dir(&scratch)?;
        let mut command = tool::command(python);
        command.arg(script).arg("--base-url").arg(format!("{}/v1", self.base));
        if let Some(pin) = self.pin {
            let site = scene.bench.site();
            command.arg("--ca").arg(pin).arg("--cert").arg(site.join("client.pem"));
            command.arg("--key").arg(site.join("client.key"));
        }
        command.args(["--model", model, "--temperature", "0"]);
        command.arg("--max-tokens").arg(ANSWER_TOKENS.to_string());
        command.args(self.stream.then_some("--stream")).arg(prompt);
        tool::run(&mut command, &scratch, scene.within(Duration::from_secs(600))?)
    }
}

/// A request and what it must get.
struct Bad {
    what: &'static str,
    path: &'static str,
    body: String,
    status: u16,
    /// `error.code`; `None` is JSON's null.
    code: Option<&'static str>,
}

fn bad_chats(model: &str, context_tokens: u64) -> Vec<Bad> {
    let chat = |what, status, code, edit: fn(&mut Value)| {
        let mut body = chat_body(model, PROMPT, 4, false);
        edit(&mut body);
        Bad { what, path: CHAT, body: body.to_string(), status, code: Some(code) }
    };
    let raw = |what, body: &str, status, code| Bad {
        what,
        path: CHAT,
        body: body.to_owned(),
        status,
        code,
    };
    // A word is at least a token.
    let words = usize::try_from(context_tokens + 100).unwrap_or(usize::MAX).min(100_000);
    let mut long = chat("a prompt over the context", 400, "context_length_exceeded", |_| {});
    long.body = chat_body(model, &"colour ".repeat(words), 4, false).to_string();
    let mut many = chat("max_tokens over the context", 400, "invalid_value", |_| {});
    many.body = chat_body(model, PROMPT, u32::MAX, false).to_string();
    vec![
        raw("half of an object", "{\"model\":", 400, None),
        raw("no object", "[]", 400, None),
        raw("bytes that are not JSON", "\u{1}\u{2}", 400, None),
        chat("no model of that name", 404, "model_not_found", |body| body["model"] = "no".into()),
        chat("no messages", 400, "invalid_value", |body| body["messages"] = json!([])),
        chat("an unknown role", 400, "invalid_value", |body| {
            body["messages"][0]["role"] = "wizard".into();
        }),
        chat("max_tokens of 0", 400, "invalid_value", |body| body["max_tokens"] = 0.into()),
        chat("temperature of -1", 400, "invalid_value", |body| body["temperature"] = (-1).into()),
        long,
        many,
        Bad {
            what: "an unknown path",
            path: "/v1/nothing",
            body: "{}".to_owned(),
            status: 404,
            code: Some("unknown_url"),
        },
        Bad {
            what: "a method that the path does not have",
            path: "/v1/models",
            body: "{}".to_owned(),
            status: 405,
            code: Some("method_not_allowed"),
        },
    ]
}

pub(super) fn bad_requests(scene: &Scene<'_>) -> anyhow::Result<()> {
    let model = &scene.bench.serving()?.model;
    let machine = scene.fork_serving()?;
    let api = scene.api(&machine)?;
    let models = api.get("/v1/models")?.expect(200)?.json()?;
    let context = models.pointer("/data/0/max_model_len").and_then(Value::as_u64);
    for bad in bad_chats(model, context.context("no max_model_len")?) {
        let response = api.post(bad.path, &bad.body).context(bad.what)?;
        expect_error(&response, bad.status, bad.code).context(bad.what)?;
    }
    // Over the gateway's limit of one frame, and short enough to be drained.
    let huge = chat_body(model, &"x".repeat(2 << 20), 4, false).to_string();
    expect_error(&api.post(CHAT, &huge)?, 413, Some("request_too_large")).context("2 MiB")?;
    for garbage in ["GARBAGE\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\0\0\0\0\r\n\r\n"] {
        let reply = api.raw(garbage.as_bytes())?;
        let refused = reply.is_empty() || reply.starts_with("HTTP/1.1 400");
        ensure!(refused, "{garbage:?} was answered with {reply:?}");
    }
    api.wait_health(200, scene.within(HEALTH_LIMIT)?)?;
    api.chat(model, PROMPT, 4).context("a good request after the bad ones")?;
    Ok(())
}

/// The object that OpenAI clients read: `{"error": {message, type, param, code}}`.
fn expect_error(response: &Response, status: u16, code: Option<&str>) -> anyhow::Result<()> {
    let value = response.clone().expect(status)?.json()?;
    let error = value.get("error").with_context(|| format!("no error in {value}"))?;
    let message = error.get("message").and_then(Value::as_str).unwrap_or_default();
    let whole = ["type", "param", "code"].iter().all(|field| error.get(field).is_some());
    ensure!(!message.is_empty() && whole, "not an error object: {value}");
    let found = error.get("code").and_then(Value::as_str);
    ensure!(found == code, "code {found:?}, expected {code:?}: {value}");
    Ok(())
}

pub(super) fn no_client_certificate(scene: &Scene<'_>) -> anyhow::Result<()> {
    only_the_sites_client_is_answered(scene, Identity::Nobody)
}

pub(super) fn foreign_client_certificate(scene: &Scene<'_>) -> anyhow::Result<()> {
    only_the_sites_client_is_answered(scene, Identity::Foreign)
}

fn only_the_sites_client_is_answered(scene: &Scene<'_>, other: Identity) -> anyhow::Result<()> {
    let machine = scene.fork_serving()?;
    let api = scene.api(&machine)?;
    for path in ["/healthz", "/v1/models", "/casemate/evidence"] {
        api.get("/healthz")?.expect(200)?;
        match api.request(other, path, &[], None) {
            Ok(response) => bail!("{other:?} got status {} for {path}", response.status),
            Err(error) => {
                // A timeout or a missing file is not a refusal.
                let text = format!("{error:#}");
                let refused = TLS_ENDED.iter().any(|code| text.contains(code));
                ensure!(refused, "{path} failed otherwise: {text}");
            }
        }
    }
    api.get("/healthz")?.expect(200)?;
    Ok(())
}

pub(super) fn concurrent(scene: &Scene<'_>) -> anyhow::Result<()> {
    const PROMPTS: [&str; 3] = [PROMPT, "Count to three.", "Say hello in French."];
    let model = &scene.bench.serving()?.model;
    let machine = scene.fork_serving()?;
    let api = scene.api(&machine)?;
    let alone = PROMPTS.map(|prompt| api.chat(model, prompt, 6));
    let together = std::thread::scope(|threads| {
        PROMPTS
            .map(|prompt| threads.spawn(|| api.chat(model, prompt, 6)))
            .map(std::thread::ScopedJoinHandle::join)
    });
    for ((prompt, alone), together) in PROMPTS.iter().zip(alone).zip(together) {
        let (alone, together) = (
            alone.with_context(|| format!("{prompt} alone"))?,
            together
                .map_err(|_| anyhow::anyhow!("a client panicked"))?
                .with_context(|| format!("{prompt} beside others"))?,
        );
        ensure!(alone.id != together.id, "two exchanges have the same identifier");
        ensure!(
            alone.text == together.text,
            "{prompt}: alone {:?}, beside others {:?}",
            alone.text,
            together.text
        );
    }
    Ok(())
}

pub(super) fn cancelled(scene: &Scene<'_>) -> anyhow::Result<()> {
    let model = &scene.bench.serving()?.model;
    let machine = scene.fork_serving()?;
    let api = scene.api(&machine)?;
    api.chat_and_leave(model, "Write a long story about a lighthouse.", 400)?;
    api.chat(model, PROMPT, 4).context("the next request")?;
    let deadline = Instant::now() + scene.within(HEALTH_LIMIT)?;
    loop {
        let records = auditor::records(&api.evidence(&auditor::nonce()?)?)?;
        if records.iter().any(|(_, text)| text.contains("\"outcome\":\"cancelled\"")) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no cancelled exchange in the ledger: {records:?}");
        std::thread::sleep(Duration::from_secs(2));
    }
}
