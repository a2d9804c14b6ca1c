//! The gateway as a client sees it, through `curl`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::tool::{self, Guard};

/// Which certificate the client shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The site's client.
    Client,
    /// None.
    Nobody,
    /// One of another authority.
    Foreign,
}

/// One client of one machine's gateway.
#[derive(Debug)]
pub struct Api {
    port: u16,
    site: PathBuf,
    pin: PathBuf,
    scratch: PathBuf,
    deadline: Instant,
    requests: AtomicU32,
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body)
            .with_context(|| format!("status {}, body is not JSON: {}", self.status, self.body))
    }

    /// Fails unless the status is as expected.
    pub fn expect(self, status: u16) -> anyhow::Result<Self> {
        ensure!(self.status == status, "status {}, expected {status}: {}", self.status, self.body);
        Ok(self)
    }
}

/// A complete answer of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `chatcmpl-…`, as in the ledger.
    pub id: String,
    /// The text.
    pub text: String,
    /// Tokens of it.
    pub completion_tokens: u64,
}

/// A chat request at temperature 0.
#[must_use]
pub fn chat_body(model: &str, prompt: &str, max_tokens: u32, stream: bool) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": stream,
    })
}

impl Api {
    /// A client that gives up at `deadline`. `site` holds `client.pem`, `client.key` and the foreign pair; `pin` is the
    /// gateway's certificate, as `casemate-verify fetch` wrote it.
    #[must_use]
    pub fn new(port: u16, site: &Path, pin: &Path, scratch: &Path, deadline: Instant) -> Self {
        let (site, pin, scratch) = (site.to_owned(), pin.to_owned(), scratch.to_owned());
        Self { port, site, pin, scratch, deadline, requests: AtomicU32::new(0) }
    }

    /// The address up to the path.
    #[must_use]
    pub fn base(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// GET as the site's client.
    pub fn get(&self, path: &str) -> anyhow::Result<Response> {
        self.request(Identity::Client, path, &[], None)
    }

    /// POST of JSON text, right or wrong, as the site's client.
    pub fn post(&self, path: &str, body: &str) -> anyhow::Result<Response> {
        let json = ["--header", "content-type: application/json"];
        self.request(Identity::Client, path, &json, Some(body))
    }

    /// A whole answer, checked as far as one can be without the model.
    pub fn chat(&self, model: &str, prompt: &str, max_tokens: u32) -> anyhow::Result<Answer> {
        let body = chat_body(model, prompt, max_tokens, false).to_string();
        let value = self.post("/v1/chat/completions", &body)?.expect(200)?.json()?;
        let text = |at: &str| value.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let answer = Answer {
            id: text("/id").context("no id")?,
            text: text("/choices/0/message/content").context("no content")?,
            completion_tokens: value
                .pointer("/usage/completion_tokens")
                .and_then(Value::as_u64)
                .context("no completion_tokens")?,
        };
        let finish = text("/choices/0/finish_reason").context("no finish_reason")?;
        ensure!(!answer.text.trim().is_empty(), "empty answer: {value}");
        ensure!(matches!(finish.as_str(), "stop" | "length"), "finish_reason {finish}");
        let max = u64::from(max_tokens);
        ensure!((1..=max).contains(&answer.completion_tokens), "token count in {value}");
        Ok(answer)
    }

    /// The text of a streamed answer, from its events.
    pub fn chat_streamed(
        &self,
        model: &str,
        prompt: &str,
        max_tokens: u32,
    ) -> anyhow::Result<String> {
        let body = chat_body(model, prompt, max_tokens, true).to_string();
        let response = self.post("/v1/chat/completions", &body)?.expect(200)?;
        streamed_text(&response.body)
    }

    /// Evidence under a nonce of 64 hex digits, as the file's text.
    pub fn evidence(&self, nonce: &str) -> anyhow::Result<String> {
        Ok(self.get(&format!("/casemate/evidence?nonce={nonce}"))?.expect(200)?.body)
    }

    /// Asks `/healthz` until it answers with `status`; returns that answer.
    pub fn wait_health(&self, status: u16, limit: Duration) -> anyhow::Result<Response> {
        let deadline = self.deadline.min(Instant::now() + limit);
        loop {
            let last = match self.get("/healthz") {
                Ok(response) if response.status == status => return Ok(response),
                Ok(response) => format!("status {}: {}", response.status, response.body),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= deadline {
                bail!("/healthz did not come to {status}; last: {last}");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// A request; an error means that there was no HTTP answer.
    pub fn request(
        &self,
        identity: Identity,
        path: &str,
        extra: &[&str],
        body: Option<&str>,
    ) -> anyhow::Result<Response> {
        let scratch = self.request_folder()?;
        let mut curl = self.curl(identity, path, &scratch, body)?;
        curl.args(extra).arg("--output").arg(scratch.join("body"));
        curl.args(["--write-out", "%{http_code}"]);
        let ended = tool::run(&mut curl, &scratch, self.remaining()?)?;
        ensure!(ended.code == Some(0), "curl {path}: {}", ended.said());
        let status = ended.stdout.parse().with_context(|| format!("status {:?}", ended.stdout))?;
        let body = match std::fs::read(scratch.join("body")) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            // curl makes no file for an empty body.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Response { status, body })
    }

    /// Starts a streamed chat, and leaves when the first event is there.
    pub fn chat_and_leave(&self, model: &str, prompt: &str, max_tokens: u32) -> anyhow::Result<()> {
        let scratch = self.request_folder()?;
        let body = chat_body(model, prompt, max_tokens, true).to_string();
        let mut curl =
            self.curl(Identity::Client, "/v1/chat/completions", &scratch, Some(&body))?;
        curl.args(["--no-buffer", "--header", "content-type: application/json"]);
        curl.stdout(Stdio::piped());
        let mut child = Guard(curl.spawn().context("cannot start curl")?);
        let stdout = child.0.stdout.take().context("curl has no output")?;
        let mut line = String::new();
        // `--max-time` bounds this read.
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.starts_with("data:"), "first line of the stream: {line:?}");
        Ok(())
    }

    /// Sends bytes that need not be HTTP over TLS, and returns what comes back until the connection closes.
    pub fn raw(&self, bytes: &[u8]) -> anyhow::Result<String> {
        let scratch = self.request_folder()?;
        let input = scratch.join("input");
        std::fs::File::create(&input)?.write_all(bytes)?;
        let mut command = tool::command("openssl");
        command.args(["s_client", "-quiet", "-ign_eof", "-verify_return_error"]);
        command.arg("-connect").arg(format!("127.0.0.1:{}", self.port));
        command.arg("-CAfile").arg(&self.pin);
        command.arg("-cert").arg(self.site.join("client.pem"));
        command.arg("-key").arg(self.site.join("client.key"));
        command.stdin(std::fs::File::open(&input)?);
        let limit = self.remaining()?.min(Duration::from_secs(60));
        Ok(tool::run(&mut command, &scratch, limit)?.stdout)
    }

    fn curl(
        &self,
        identity: Identity,
        path: &str,
        scratch: &Path,
        body: Option<&str>,
    ) -> anyhow::Result<Command> {
        let mut curl = tool::command("curl");
        curl.args(["--silent", "--show-error", "--noproxy", "*"]);
        curl.arg("--max-time").arg(self.remaining()?.as_secs().max(1).to_string());
        curl.arg("--cacert").arg(&self.pin);
        let pair = match identity {
            Identity::Client => Some("client"),
            Identity::Foreign => Some("foreign"),
            Identity::Nobody => None,
        };
        if let Some(pair) = pair {
            curl.arg("--cert").arg(self.site.join(format!("{pair}.pem")));
            curl.arg("--key").arg(self.site.join(format!("{pair}.key")));
        }
        if let Some(body) = body {
            let input = scratch.join("input");
            std::fs::write(&input, body)?;
            curl.arg("--data-binary").arg(format!("@{}", input.display()));
        }
        curl.arg(format!("{}{path}", self.base()));
        Ok(curl)
    }

    /// A folder for one request's files, so that several may run at once.
    fn request_folder(&self) -> anyhow::Result<PathBuf> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let folder = self.scratch.join(format!("request-{}-{number}", self.port));
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    fn remaining(&self) -> anyhow::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the scenario's time is up");
        Ok(left)
    }
}

/// Joins the deltas of `chat.completion.chunk` events; the stream must end as OpenAI's does.
fn streamed_text(body: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut finished = false;
    for event in body.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim) {
        if event == "[DONE]" {
            ensure!(finished, "[DONE] before a finish_reason");
            ensure!(!text.trim().is_empty(), "an empty streamed answer");
            return Ok(text);
        }
        let value: Value = serde_json::from_str(event).with_context(|| event.to_owned())?;
        ensure!(value.get("error").is_none(), "an error in the stream: {event}");
        if let Some(more) = value.pointer("/choices/0/delta/content").and_then(Value::as_str) {
            text += more;
        }
        match value.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
            Some("stop" | "length") => finished = true,
            Some(other) => bail!("finish_reason {other}"),
            None => {}
        }
    }
    bail!("the stream ended without [DONE]: {body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_joined_and_must_be_whole() {
        let delta = r#"data: {"choices":[{"delta":{"content":"Par"},"finish_reason":null}]}"#;
        let more = r#"data: {"choices":[{"delta":{"content":"is"},"finish_reason":null}]}"#;
        let end = r#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
        let join = |lines: &[&str]| streamed_text(&lines.join("\n\n"));
        assert_eq!(join(&[delta, more, end, "data: [DONE]"]).unwrap(), "Paris");
        join(&[delta, end]).unwrap_err();
        join(&[delta, "data: [DONE]"]).unwrap_err();
        join(&[end, "data: [DONE]"]).unwrap_err();
        join(&[delta, r#"data: {"error":{}}"#, end, "data: [DONE]"]).unwrap_err();
    }
}
