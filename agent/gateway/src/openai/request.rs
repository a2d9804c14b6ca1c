//! `POST /v1/chat/completions`, from bytes to what the engine is asked.
//!
//! Invariants: no parameter is read twice and none is dropped in silence. One that changes the
//! answer is honoured or refused by name; one that does not is in [`IGNORED`]; one that this appliance
//! knows in a single value is in [`NEUTRAL`]. `null` is the same as absent, as in OpenAI's API.

use std::collections::BTreeMap;
use std::fmt;

use ipc::{AnswerFormat, Chat, Message, Sampling};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::ApiError;
use super::{format, messages, sampling};
use crate::limits::{FIELDS_MAX, STOP_BYTES_MAX, STOPS_MAX};

/// Accepted and without effect: bookkeeping of the caller, and hints to caches and queues.
/// `parallel_tool_calls` has no effect where there are no tools.
pub const IGNORED: &[&str] = &[
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
];

/// Accepted in these values only, because any other asks for what this appliance does not offer.
pub const NEUTRAL: &[(&str, &[&str])] = &[
    ("audio", &[]),
    ("function_call", &[r#""none""#, r#""auto""#]),
    ("functions", &["[]"]),
    ("modalities", &[r#"["text"]"#]),
    ("n", &["1"]),
    ("prediction", &[]),
    ("reasoning_effort", &[r#""none""#]),
    ("store", &["false"]),
    ("tool_choice", &[r#""none""#, r#""auto""#]),
    ("tools", &["[]"]),
    ("verbosity", &[r#""medium""#]),
    ("web_search_options", &[]),
];

/// Name of the parameter that asks for a receipt, and of the member that has it.
pub const RECEIPT: &str = "casemate_receipt";

/// Longest JSON text of a value in [`NEUTRAL`]; a longer one is none of them.
const NEUTRAL_BYTES_MAX: usize = 64;

/// A chat request whose parameters are each in range. Whether the model exists and the numbers fit
/// its context is for the loaded model to say.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// Name of the model asked for.
    pub model: String,
    /// The conversation, oldest first; at least one message.
    pub messages: Vec<Turn>,
    /// Most tokens to answer with, at least 1, and the parameter that said so.
    pub max_tokens: Option<(u32, &'static str)>,
    /// How tokens are chosen, but for the seed.
    pub sampling: Sampling,
    /// Seed, if the client wants the answer to be repeatable.
    pub seed: Option<u64>,
    /// Whether the answer comes with logprobs, and with those of how many of the likeliest tokens.
    pub logprobs: Option<u8>,
    /// What the answer must be like, if not any text.
    pub format: Option<AnswerFormat>,
    /// At most [`STOPS_MAX`] strings that end the answer.
    pub stop: Vec<String>,
    /// Whether the answer comes as events.
    pub stream: bool,
    /// Whether a stream ends with a usage event.
    pub include_usage: bool,
    /// Whether the answer comes with a receipt: `casemate_receipt`, which is no parameter of OpenAI's.
    pub receipt: bool,
}

impl ChatRequest {
    /// What the engine is asked: with `seed` if the client chose none, and up to the model's whole context,
    /// `context_tokens_max`, if it set no maximum.
    ///
    /// # Errors
    /// If the client asks for more than the context.
    pub fn chat(
        &self,
        context_tokens_max: u32,
        seed: u64,
        partition: String,
    ) -> Result<Chat, ApiError> {
        let max = context_tokens_max;
        if let Some((found, param)) = self.max_tokens.filter(|(found, _)| *found > max) {
            let message = format!("found {found}, the maximum is {max}, the model's whole context");
            return Err(ApiError::invalid(param, message));
        }
        Ok(Chat {
            messages: self.messages.iter().map(|Turn(message)| message.clone()).collect(),
            max_tokens: self.max_tokens.map_or(max, |(found, _)| found),
            sampling: Sampling { seed: self.seed.unwrap_or(seed), ..self.sampling.clone() },
            logprobs: self.logprobs,
            format: self.format.clone(),
            stop: self.stop.clone(),
            partition,
            // All clients are equal.
            priority: 0,
            receipt: None,
        })
    }
}

/// A message; a type of its own so that tests can compare.
#[derive(Clone, Debug)]
pub struct Turn(pub Message);

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        (self.0.role, &self.0.content) == (other.0.role, &other.0.content)
    }
}

/// Parses the body of a chat request.
///
/// # Errors
/// [`ApiError::MalformedJson`], or the first parameter that is not acceptable.
pub fn parse(body: &[u8]) -> Result<ChatRequest, ApiError> {
    let mut fields = fields(body)?;
    let stream = fields.take("stream")?.unwrap_or(false);
    let request = ChatRequest {
        model: fields.required("model")?,
        messages: messages::parse(fields.raw_required("messages")?)?,
        max_tokens: max_tokens(&mut fields)?,
        sampling: sampling::sampling(&mut fields)?,
        seed: sampling::seed(&mut fields)?,
        logprobs: sampling::logprobs(&mut fields)?,
        format: format::format(&mut fields)?,
        stop: stop(&mut fields)?,
        stream,
        include_usage: include_usage(&mut fields, stream)?,
        receipt: fields.take(RECEIPT)?.unwrap_or(false),
    };
    fields.refuse_rest(IGNORED, NEUTRAL)?;
    Ok(request)
}

/// The members of a body, which must be one object.
pub(super) fn fields(body: &[u8]) -> Result<Fields<'_>, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::MalformedJson { found: error.to_string() })
}

/// Parses one value, naming it in the error.
pub(super) fn value<T: DeserializeOwned>(raw: &RawValue, param: &str) -> Result<T, ApiError> {
    serde_json::from_str(raw.get()).map_err(|error| ApiError::invalid(param, error.to_string()))
}

/// The members of the request's object that nobody took yet.
pub(super) struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    pub(super) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.0.remove(name).filter(|raw| raw.get() != "null")
    }

    fn raw_required(&mut self, name: &str) -> Result<&'a RawValue, ApiError> {
        self.raw(name).ok_or_else(|| ApiError::invalid(name, "this parameter is required"))
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        self.raw(name).map(|raw| value(raw, name)).transpose()
    }

    pub(super) fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        value(self.raw_required(name)?, name)
    }

    /// Nothing is left but what has no effect: `ignored` names, `neutral` ones with one of their values.
    pub(super) fn refuse_rest(
        self,
        ignored: &[&str],
        neutral: &[(&str, &[&str])],
    ) -> Result<(), ApiError> {
        for (name, raw) in self.0 {
            if ignored.contains(&name.as_str()) {
                continue;
            }
            let Some((_, accepted)) = neutral.iter().find(|(neutral, _)| *neutral == name) else {
                return Err(ApiError::UnknownParameter { param: name });
            };
            if raw.get() != "null" && !is_one_of(raw, accepted) {
                let message = match accepted {
                    [] => "leave it out".to_owned(),
                    accepted => format!("only {} is accepted here", accepted.join(" or ")),
                };
                return Err(ApiError::unsupported(name, message));
            }
        }
        Ok(())
    }
}

fn is_one_of(raw: &RawValue, accepted: &[&str]) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    raw.get().len() <= NEUTRAL_BYTES_MAX
        && parse(raw.get()).is_some_and(|found| {
            accepted.iter().any(|text| parse(text).is_some_and(|wanted| wanted == found))
        })
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = BTreeMap<String, &'de RawValue>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, raw)) = map.next_entry::<String, &RawValue>()? {
                    if members.len() == FIELDS_MAX {
                        return Err(A::Error::custom(format!("more than {FIELDS_MAX} members")));
                    }
                    // Which of two values counts would depend on the parser.
                    if members.insert(name, raw).is_some() {
                        return Err(A::Error::custom("a member occurs twice"));
                    }
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Members).map(Self)
    }
}

fn max_tokens(fields: &mut Fields<'_>) -> Result<Option<(u32, &'static str)>, ApiError> {
    let mut found = None;
    for name in ["max_tokens", "max_completion_tokens"] {
        let Some(tokens) = fields.take::<u32>(name)? else { continue };
        if tokens == 0 {
            return Err(ApiError::invalid(name, "found 0, expected at least 1"));
        }
        if found.is_some_and(|(other, _)| other != tokens) {
            return Err(ApiError::invalid(name, "differs from max_tokens; send one of them"));
        }
        found = Some((tokens, name));
    }
    Ok(found)
}

fn stop(fields: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    let Some(raw) = fields.raw("stop") else { return Ok(Vec::new()) };
    let stops: Vec<String> =
        if raw.get().starts_with('"') { vec![value(raw, "stop")?] } else { value(raw, "stop")? };
    if stops.len() > STOPS_MAX {
        let message = format!("found {} strings, expected at most {STOPS_MAX}", stops.len());
        return Err(ApiError::invalid("stop", message));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX) {
        let message = format!("each string must have 1 to {STOP_BYTES_MAX} bytes");
        return Err(ApiError::invalid("stop", message));
    }
    Ok(stops)
}

fn include_usage(fields: &mut Fields<'_>, stream: bool) -> Result<bool, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct StreamOptions {
        include_usage: Option<bool>,
        /// Whether events may be padded; here they never are.
        #[serde(rename = "include_obfuscation")]
        _include_obfuscation: Option<bool>,
    }
    let Some(options) = fields.take::<StreamOptions>("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(ApiError::invalid("stream_options", "only allowed when stream is true"));
    }
    Ok(options.include_usage.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{GRAMMAR_BYTES_MAX, SCHEMA_BYTES_MAX};
    use ipc::GrammarSyntax;

    /// Parses a small request with more members, such as `"n":2`.
    fn with(members: &str) -> Result<ChatRequest, ApiError> {
        let comma = if members.is_empty() { "" } else { "," };
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{comma}{members}}}"#
        );
        parse(body.as_bytes())
    }

    /// The parameter that the error names.
    fn param_of(members: &str) -> String {
        let error = with(members).unwrap_err();
        assert_eq!(error.status(), 400, "{error}");
        error.object()["error"]["param"].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn defaults_are_those_of_the_api() {
        let request = with("").unwrap();
        assert_eq!(request.sampling, Sampling::default());
        assert_eq!(request.logprobs, None);
        assert_eq!((request.max_tokens, request.seed, request.stream), (None, None, false));
        assert!(request.stop.is_empty() && !request.include_usage && !request.receipt);
        assert!(with(r#""casemate_receipt":true"#).unwrap().receipt);
        assert_eq!(with(r#""temperature":null,"stop":null,"stream":null"#).unwrap(), request);
    }

    #[test]
    fn parameters_arrive() {
        let request = with(
            r#""max_completion_tokens":7,"temperature":0,"top_p":0.5,"seed":-1,"stop":["a","b"],
               "top_k":40,"min_p":0.05,"presence_penalty":-2,"frequency_penalty":1.5,
               "repetition_penalty":1.1,"logit_bias":{"50256":-100,"0":1.5},
               "logprobs":true,"top_logprobs":20,"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}"#,
        )
        .unwrap();
        assert_eq!(request.max_tokens, Some((7, "max_completion_tokens")));
        let sampling = Sampling {
            temperature: 0.0,
            top_k: 40,
            top_p: 0.5,
            min_p: 0.05,
            presence_penalty: -2.0,
            frequency_penalty: 1.5,
            repetition_penalty: 1.1,
            logit_bias: BTreeMap::from([(50256, -100.0), (0, 1.5)]),
            seed: 0,
        };
        assert_eq!((&request.sampling, request.logprobs), (&sampling, Some(20)));
        let chat = request.chat(2048, 5, String::new()).unwrap();
        assert_eq!(chat.sampling, Sampling { seed: u64::MAX, ..sampling });
        assert_eq!(with("").unwrap().chat(9, 5, String::new()).unwrap().sampling.seed, 5);
        assert_eq!(with(r#""logprobs":true"#).unwrap().logprobs, Some(0));
        assert_eq!(with(r#""logprobs":false,"top_logprobs":0"#).unwrap().logprobs, None);
        assert_eq!(request.seed, Some(u64::MAX));
        assert_eq!(request.stop, ["a", "b"]);
        assert!(request.stream && request.include_usage);
        assert_eq!(with(r#""stop":"x""#).unwrap().stop, ["x"]);
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_name() {
        let cases = [
            (r#""temperature":2.1"#, "temperature"),
            (r#""temperature":-0.1"#, "temperature"),
            (r#""temperature":1e999"#, "temperature"),
            (r#""temperature":"hot""#, "temperature"),
            (r#""top_p":0"#, "top_p"),
            (r#""top_p":1.5"#, "top_p"),
            (r#""top_k":-1"#, "top_k"),
            (r#""top_k":1.5"#, "top_k"),
            (r#""min_p":1.01"#, "min_p"),
            (r#""presence_penalty":2.01"#, "presence_penalty"),
            (r#""frequency_penalty":-2.01"#, "frequency_penalty"),
            (r#""repetition_penalty":0"#, "repetition_penalty"),
            (r#""logit_bias":{"1":101}"#, "logit_bias"),
            (r#""logit_bias":{"1":1,"1":2}"#, "logit_bias"),
            (r#""logit_bias":{"01":1}"#, "logit_bias"),
            (r#""logit_bias":{"-1":1}"#, "logit_bias"),
            (r#""logit_bias":{"4294967296":1}"#, "logit_bias"),
            (r#""logit_bias":[1]"#, "logit_bias"),
            (r#""logprobs":2"#, "logprobs"),
            (r#""top_logprobs":1"#, "top_logprobs"),
            (r#""logprobs":true,"top_logprobs":21"#, "top_logprobs"),
            (r#""logprobs":true,"top_logprobs":-1"#, "top_logprobs"),
            (r#""response_format":"json""#, "response_format"),
            (r#""response_format":{"type":"xml"}"#, "response_format.type"),
            (r#""response_format":{"type":"json_object","schema":{}}"#, "response_format"),
            (r#""response_format":{"type":"json_schema"}"#, "response_format.json_schema"),
            (r#""response_format":{"type":"grammar","definition":"a"}"#, "response_format.syntax"),
            (
                r#""response_format":{"type":"grammar","syntax":"regex"}"#,
                "response_format.definition",
            ),
            (
                r#""response_format":{"type":"grammar","syntax":"gbnf","definition":"a"}"#,
                "response_format",
            ),
            (r#""response_format":{"type":"text","syntax":"lark"}"#, "response_format.syntax"),
            (
                r#""response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}}"#,
                "response_format.json_schema.name",
            ),
            (
                r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":7}}"#,
                "response_format.json_schema.schema",
            ),
            (
                r#""response_format":{"type":"json_schema","json_schema":{"name":"a"}}"#,
                "response_format.json_schema",
            ),
            (r#""max_tokens":0"#, "max_tokens"),
            (r#""max_tokens":-1"#, "max_tokens"),
            (r#""max_tokens":99999999999"#, "max_tokens"),
            (r#""max_tokens":1.5"#, "max_tokens"),
            (r#""max_tokens":1,"max_completion_tokens":2"#, "max_completion_tokens"),
            (r#""seed":1.5"#, "seed"),
            (r#""stop":["a","b","c","d","e"]"#, "stop"),
            (r#""stop":[""]"#, "stop"),
            (r#""stop":[1]"#, "stop"),
            (r#""stream":1"#, "stream"),
            (r#""casemate_receipt":"yes""#, "casemate_receipt"),
            (r#""stream_options":{"include_usage":true}"#, "stream_options"),
            (r#""stream":true,"stream_options":{"other":1}"#, "stream_options"),
        ];
        for (members, param) in cases {
            assert_eq!(param_of(members), param, "{members}");
        }
    }

    #[test]
    fn biases_are_bounded_in_number() {
        let biases = |count| {
            let all: Vec<String> = (0..count).map(|token| format!(r#""{token}":1"#)).collect();
            format!(r#""logit_bias":{{{}}}"#, all.join(","))
        };
        assert_eq!(with(&biases(300)).unwrap().sampling.logit_bias.len(), 300);
        assert_eq!(param_of(&biases(301)), "logit_bias");
    }

    #[test]
    fn a_format_arrives_and_its_schema_word_by_word() {
        let format = |value: &str| with(&format!(r#""response_format":{value}"#)).unwrap().format;
        assert_eq!(format("null"), None);
        assert_eq!(format(r#"{"type":"text"}"#), None);
        assert_eq!(format(r#"{"type":"json_object"}"#), Some(AnswerFormat::JsonObject));
        let asked = r#"{"type":"json_schema","json_schema":{"name":"a","strict":true,"schema":{"b": 1, "a":2}}}"#;
        let schema = r#"{"b": 1, "a":2}"#.to_owned();
        assert_eq!(format(asked), Some(AnswerFormat::JsonSchema { schema }));
        let definition = "[a-z]\n+".to_owned();
        assert_eq!(
            format(r#"{"type":"grammar","syntax":"regex","definition":"[a-z]\n+"}"#),
            Some(AnswerFormat::Grammar { syntax: GrammarSyntax::Regex, definition })
        );
        let long = "x".repeat(GRAMMAR_BYTES_MAX + 1);
        let long = format!(
            r#""response_format":{{"type":"grammar","syntax":"lark","definition":"{long}"}}"#
        );
        assert_eq!(param_of(&long), "response_format.definition");
        let long = format!(r#"{{"title":"{}"}}"#, "x".repeat(SCHEMA_BYTES_MAX));
        let long = format!(
            r#""response_format":{{"type":"json_schema","json_schema":{{"name":"a","schema":{long}}}}}"#
        );
        assert_eq!(param_of(&long), "response_format.json_schema.schema");
    }

    #[test]
    fn a_range_is_told_with_what_was_found() {
        let error = with(r#""frequency_penalty":3"#).unwrap_err();
        assert_eq!(error.to_string(), "invalid frequency_penalty: found 3, expected -2 to 2");
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (name, accepted) in NEUTRAL {
            for value in *accepted {
                with(&format!(r#""{name}":{value}"#)).unwrap();
            }
            with(&format!(r#""{name}":null"#)).unwrap();
            for other in ["2", "true", r#""other""#, r#"[{"type":"function"}]"#, r#"{"a":"b"}"#] {
                assert_eq!(param_of(&format!(r#""{name}":{other}"#)), *name);
            }
        }
    }

    #[test]
    fn bookkeeping_is_ignored_and_the_unknown_is_not() {
        for name in IGNORED {
            with(&format!(r#""{name}":"anything""#)).unwrap();
        }
        assert_eq!(param_of(r#""temprature":0"#), "temprature");
    }

    #[test]
    fn a_body_that_is_not_one_object_is_malformed() {
        let deep = "[".repeat(100_000);
        let twice = r#"{"model":"a","model":"b","messages":[]}"#;
        let many: String = (0..=FIELDS_MAX).map(|i| format!(r#""k{i}":1,"#)).collect();
        let many = format!(r#"{{{many}"model":"m"}}"#);
        let bodies = ["", "{", "null", "[]", r#""text""#, "{}x", "\u{feff}{}", &deep, twice, &many];
        for body in bodies {
            let error = parse(body.as_bytes()).unwrap_err();
            assert!(matches!(error, ApiError::MalformedJson { .. }), "{body:.20}: {error}");
        }
        let invalid_utf8 = parse(b"{\"model\":\"\xff\"}").unwrap_err();
        assert!(matches!(invalid_utf8, ApiError::MalformedJson { .. }), "{invalid_utf8}");
    }

    #[test]
    fn model_and_messages_are_required() {
        let missing =
            |body: &str| parse(body.as_bytes()).unwrap_err().object()["error"]["param"].clone();
        assert_eq!(missing(r#"{"messages":[{"role":"user","content":"x"}]}"#), "model");
        assert_eq!(missing(r#"{"model":"m"}"#), "messages");
        assert_eq!(missing(r#"{"model":null,"messages":[]}"#), "model");
    }

    #[test]
    fn no_mutation_of_a_request_panics_or_gets_past_the_ranges() {
        let body = br#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"\u00e9"}]}],
            "max_tokens":10,"temperature":1.5,"top_p":0.9,"seed":-3,"stop":["a"],"stream":true,
            "logit_bias":{"17":-5.5},"min_p":0.1,"logprobs":true,"top_logprobs":2,
            "stream_options":{"include_usage":true},"n":1,"tools":[],"user":"u"}"#;
        parse(body).unwrap();
        let check = |mutated: &[u8]| match parse(mutated) {
            Ok(request) => {
                request.sampling.check().unwrap();
                assert!(request.logprobs.is_none_or(|top| top <= 20));
                assert!(!request.messages.is_empty() && request.stop.len() <= STOPS_MAX);
                assert!(request.max_tokens.is_none_or(|(tokens, _)| tokens > 0));
            }
            Err(error) => assert_eq!(error.status(), 400, "{error}"),
        };
        for at in 0..body.len() {
            check(&body[..at]);
            check(&[&body[..at], &body[at + 1..]].concat());
            for byte in *b"\"\\{}[],:019-.eEn \0\xff" {
                let mut mutated = body.to_vec();
                mutated[at] = byte;
                check(&mutated);
                mutated.insert(at, byte);
                check(&mutated);
            }
        }
    }
}
