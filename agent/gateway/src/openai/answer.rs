//! Answers to a chat request: one object, or server-sent events.
//!
//! Source: OpenAI API reference, "The chat completion object" and "The chat completion chunk object".
//! Invariants of a stream: every event has the same `id`; only the first delta has a role; the event with
//! `finish_reason` has no content; the usage event has no choice; `[DONE]` is last.

use ipc::{Finish, ModelInfo, Receipt, TokenLogprob, TokenLogprobs};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::error::ApiError;

/// Last event of a stream that is complete.
const DONE: &str = "data: [DONE]\n\n";
/// Digits of the bundle digest in `system_fingerprint`.
const FINGERPRINT_DIGITS: usize = 16;

/// What stays the same in every object of one answer.
#[derive(Clone, Debug)]
pub struct Header {
    /// `chatcmpl-…`
    pub id: String,
    /// Seconds since 1970 by the appliance's clock.
    pub created: u64,
    /// Name of the model that answers.
    pub model: String,
    /// Changes whenever equal requests may be answered differently: other weights, other kernels.
    pub system_fingerprint: String,
}

/// Token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, chat template included.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Tokens of the prompt whose keys and values the engine had from an earlier request of the same client.
    pub cached_tokens: u32,
}

/// The end of an answer that is complete.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Why it ended.
    pub finish: Finish,
    /// Token counts.
    pub usage: Usage,
    /// What makes the answer, if the client asked for that: `casemate_receipt` beside OpenAI's members.
    pub receipt: Option<Box<Receipt>>,
}

/// `system_fingerprint` of what `model` is now.
#[must_use]
pub fn fingerprint(model: &ModelInfo) -> String {
    let digest: String = model.bundle_digest.chars().take(FINGERPRINT_DIGITS).collect();
    format!("fp_{digest}_{}", model.kernels)
}

/// `finish_reason` of the API, `outcome` of the ledger.
#[must_use]
pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

impl Usage {
    fn object(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": u64::from(self.prompt_tokens) + u64::from(self.completion_tokens),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }
}

/// A token of an answer as an entry of `logprobs.content`, in JSON.
pub type Entry = Box<RawValue>;

/// The entries of `tokens`.
///
/// # Errors
/// [`ApiError::Internal`], which has no cause: all of it can be JSON.
pub fn entries(tokens: &[TokenLogprobs]) -> Result<Vec<Entry>, ApiError> {
    #[derive(Serialize)]
    struct Likely<'a> {
        token: &'a str,
        logprob: f32,
        bytes: Option<&'a [u8]>,
    }
    #[derive(Serialize)]
    struct Chosen<'a> {
        #[serde(flatten)]
        chosen: Likely<'a>,
        top_logprobs: Vec<Likely<'a>>,
    }
    fn likely(TokenLogprob { token, bytes, logprob }: &TokenLogprob) -> Likely<'_> {
        Likely { token, logprob: *logprob, bytes: bytes.as_deref() }
    }
    let entry = |TokenLogprobs { chosen, top }: &TokenLogprobs| {
        let top_logprobs = top.iter().map(likely).collect();
        to_raw_value(&Chosen { chosen: likely(chosen), top_logprobs })
    };
    tokens.iter().map(entry).collect::<Result<_, _>>().map_err(|_| ApiError::Internal)
}

/// `logprobs` of a choice.
#[derive(Serialize)]
struct Logprobs<'a> {
    content: &'a [Entry],
    refusal: Option<&'a [Entry]>,
}

impl<'a> Logprobs<'a> {
    fn of(content: &'a [Entry]) -> Self {
        Self { content, refusal: None }
    }
}

/// The whole answer as one object in JSON; with `entries` if logprobs were asked for.
///
/// # Errors
/// [`ApiError::Internal`], which has no cause: all of it can be JSON.
pub fn completion(
    header: &Header,
    text: &str,
    entries: Option<&[Entry]>,
    end: &Ending,
) -> Result<String, ApiError> {
    #[derive(Serialize)]
    struct Completion<'a> {
        id: &'a str,
        object: &'static str,
        created: u64,
        model: &'a str,
        system_fingerprint: &'a str,
        choices: [Choice<'a>; 1],
        usage: Value,
        #[serde(skip_serializing_if = "Option::is_none")]
        casemate_receipt: Option<&'a Receipt>,
    }
    #[derive(Serialize)]
    struct Choice<'a> {
        index: u32,
        message: Value,
        logprobs: Option<Logprobs<'a>>,
        finish_reason: &'static str,
    }
    let choice = Choice {
        index: 0,
        message: json!({"role": "assistant", "content": text, "refusal": null}),
        logprobs: entries.map(Logprobs::of),
        finish_reason: finish_reason(end.finish),
    };
    let completion = Completion {
        id: &header.id,
        object: "chat.completion",
        created: header.created,
        model: &header.model,
        system_fingerprint: &header.system_fingerprint,
        choices: [choice],
        usage: end.usage.object(),
        casemate_receipt: end.receipt.as_deref(),
    };
    serde_json::to_string(&completion).map_err(|_| ApiError::Internal)
}

/// The events of one stream.
#[derive(Clone, Debug)]
pub struct Events {
    header: Header,
    include_usage: bool,
    logprobs: bool,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [Choice<'a>],
    /// With `include_usage`, every event has it, `null` in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
    /// In the event with `finish_reason`, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    casemate_receipt: Option<&'a Receipt>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    delta: Value,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

impl Events {
    /// Events under `header`; with logprobs, and with a usage event at the end, if the client asked for them.
    #[must_use]
    pub fn new(header: Header, include_usage: bool, logprobs: bool) -> Self {
        Self { header, include_usage, logprobs }
    }

    /// First event: who speaks.
    #[must_use]
    pub fn role(&self) -> String {
        self.choice(json!({"role": "assistant", "content": ""}), None)
    }

    /// More text, and the tokens that begin in it.
    #[must_use]
    pub fn delta(&self, text: &str, entries: &[Entry]) -> String {
        let logprobs = self.logprobs.then(|| Logprobs::of(entries));
        self.choice(json!({"content": text}), logprobs)
    }

    /// Why it ended with the receipt, the usage if it was asked for, and `[DONE]`.
    #[must_use]
    pub fn end(&self, end: &Ending) -> String {
        let finish_reason = Some(finish_reason(end.finish));
        let choice = Choice { index: 0, delta: json!({}), logprobs: None, finish_reason };
        let usage = self.include_usage.then_some(Value::Null);
        let mut events = self.chunk(&[choice], usage, end.receipt.as_deref());
        if self.include_usage {
            events.push_str(&self.chunk(&[], Some(end.usage.object()), None));
        }
        events.push_str(DONE);
        events
    }

    /// What went wrong; nothing follows it, not even `[DONE]`.
    #[must_use]
    pub fn error(error: &ApiError) -> String {
        event(&error.object())
    }

    fn choice(&self, delta: Value, logprobs: Option<Logprobs<'_>>) -> String {
        let choice = Choice { index: 0, delta, logprobs, finish_reason: None };
        self.chunk(&[choice], self.include_usage.then_some(Value::Null), None)
    }

    fn chunk(
        &self,
        choices: &[Choice<'_>],
        usage: Option<Value>,
        casemate_receipt: Option<&Receipt>,
    ) -> String {
        let Header { id, created, model, system_fingerprint } = &self.header;
        event(&Chunk {
            id,
            object: "chat.completion.chunk",
            created: *created,
            model,
            system_fingerprint,
            choices,
            usage,
            casemate_receipt,
        })
    }
}

/// One event. JSON text has no line break outside its strings, and none unescaped inside.
fn event(object: &impl Serialize) -> String {
    let text = serde_json::to_string(object);
    // All of it can be JSON; if it were not, the stream would end as any that failed.
    let text = text.unwrap_or_else(|_| ApiError::Internal.object().to_string());
    format!("data: {text}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            id: "chatcmpl-1".to_owned(),
            created: 5,
            model: "m".to_owned(),
            system_fingerprint: "fp_0_scalar".to_owned(),
        }
    }

    const USAGE: Usage = Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 1 };

    fn end(finish: Finish) -> Ending {
        Ending { finish, usage: USAGE, receipt: None }
    }

    /// The JSON of each event, `[DONE]` as text.
    fn read(stream: &str) -> Vec<Value> {
        let events = stream.strip_suffix("\n\n").unwrap().split("\n\n");
        let data = events.map(|event| event.strip_prefix("data: ").unwrap());
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
    }

    fn stream(include_usage: bool) -> Vec<Value> {
        let events = Events::new(header(), include_usage, false);
        let text = "a\r\n\n\u{2028}data: [DONE]";
        read(&(events.role() + &events.delta(text, &[]) + &events.end(&end(Finish::Length))))
    }

    /// A token of two bytes that are no whole character, beside a control token.
    fn tokens() -> Vec<TokenLogprobs> {
        let logprob =
            |token: &str, bytes, logprob| TokenLogprob { token: token.to_owned(), bytes, logprob };
        let chosen = logprob("\u{fffd}", Some(vec![0xf0, 0x9f]), -0.1);
        vec![TokenLogprobs { top: vec![chosen.clone(), logprob("<|end|>", None, -9999.0)], chosen }]
    }

    fn entry() -> Value {
        json!({
            "token": "\u{fffd}", "logprob": -0.1, "bytes": [0xf0, 0x9f], "top_logprobs": [
                {"token": "\u{fffd}", "logprob": -0.1, "bytes": [0xf0, 0x9f]},
                {"token": "<|end|>", "logprob": -9999.0, "bytes": null},
            ]
        })
    }

    #[test]
    fn logprobs_come_with_their_text_and_only_when_asked_for() {
        let events = Events::new(header(), false, true);
        let entries = entries(&tokens()).unwrap();
        let stream = events.role()
            + &events.delta("", &entries)
            + &events.delta("x", &[])
            + &events.end(&end(Finish::Stop));
        let found: Vec<Value> =
            read(&stream)[..4].iter().map(|e| e["choices"][0]["logprobs"].clone()).collect();
        let content = |entries: Value| json!({"content": entries, "refusal": null});
        let expected = [Value::Null, content(json!([entry()])), content(json!([])), Value::Null];
        assert_eq!(found, expected);
        let whole = completion(&header(), "x", Some(&entries), &end(Finish::Stop)).unwrap();
        let whole: Value = serde_json::from_str(&whole).unwrap();
        assert_eq!(whole["choices"][0]["logprobs"], content(json!([entry()])));
        assert!(stream_without().iter().all(|e| e["choices"][0]["logprobs"] == Value::Null));
    }

    fn stream_without() -> Vec<Value> {
        stream(true).into_iter().filter(|event| event["choices"].is_array()).collect()
    }

    #[test]
    fn a_stream_is_role_text_reason_done() {
        let events = stream(false);
        assert_eq!(events.len(), 4);
        assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert_eq!(
            events[1]["choices"][0]["delta"],
            json!({"content": "a\r\n\n\u{2028}data: [DONE]"})
        );
        assert_eq!(events[1]["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(events[2]["choices"][0]["delta"], json!({}));
        assert_eq!(events[2]["choices"][0]["finish_reason"], "length");
        assert_eq!(events[3], "[DONE]");
        for chunk in &events[..3] {
            assert_eq!(
                (&chunk["id"], &chunk["object"], &chunk["created"]),
                (&json!("chatcmpl-1"), &json!("chat.completion.chunk"), &json!(5))
            );
            assert!(chunk.get("usage").is_none());
        }
    }

    #[test]
    fn usage_comes_without_choices_and_only_when_asked_for() {
        let events = stream(true);
        assert_eq!(events.len(), 5);
        assert!(events[..3].iter().all(|chunk| chunk["usage"] == Value::Null));
        assert!(events[..3].iter().all(|chunk| chunk.get("usage").is_some()));
        assert_eq!(events[3]["choices"], json!([]));
        let usage = json!({
            "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1}
        });
        assert_eq!(events[3]["usage"], usage);
    }

    #[test]
    fn a_whole_answer_has_message_reason_and_usage() {
        let object = completion(&header(), "hi", None, &end(Finish::Stop)).unwrap();
        let object: Value = serde_json::from_str(&object).unwrap();
        assert_eq!(object["choices"][0]["logprobs"], Value::Null);
        assert_eq!(object["object"], "chat.completion");
        assert_eq!(object["choices"][0]["message"]["content"], "hi");
        assert_eq!(object["choices"][0]["finish_reason"], "stop");
        assert_eq!(object["usage"]["total_tokens"], 5);
    }

    #[test]
    fn a_fingerprint_of_odd_text_does_not_panic() {
        let model = ModelInfo {
            model_id: "m".to_owned(),
            bundle_digest: "éé".to_owned(),
            context_tokens_max: 1,
            kernels: "avx2".to_owned(),
        };
        assert_eq!(fingerprint(&model), "fp_éé_avx2");
    }
}
