//! The `messages` of a chat request.

use ipc::{Message, Role};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::ApiError;
use super::request::{Turn, value};
use crate::limits::{MESSAGES_MAX, PARTS_MAX};

/// One message as clients send it. What a client copies from an earlier answer (`refusal`,
/// `annotations`…) is accepted while it is empty; `name` has no place in the models' chat templates.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMessage<'a> {
    role: String,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function_call: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow, default)]
    annotations: Option<&'a RawValue>,
    #[serde(borrow, default)]
    audio: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PartType {
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextPart {
    #[serde(rename = "type")]
    _type: String,
    text: String,
}

/// Parses the conversation.
pub(super) fn parse(raw: &RawValue) -> Result<Vec<Turn>, ApiError> {
    let raws = list(raw, "messages", MESSAGES_MAX)?;
    if raws.is_empty() {
        return Err(ApiError::invalid("messages", "found none, expected at least one"));
    }
    raws.into_iter().enumerate().map(|(at, raw)| message(raw, &format!("messages[{at}]"))).collect()
}

fn list<'a>(raw: &'a RawValue, param: &str, max: usize) -> Result<Vec<&'a RawValue>, ApiError> {
    let items: Vec<&RawValue> = serde_json::from_str(raw.get())
        .map_err(|error| ApiError::invalid(param, error.to_string()))?;
    if items.len() > max {
        let message = format!("found {}, expected at most {max}", items.len());
        return Err(ApiError::invalid(param, message));
    }
    Ok(items)
}

fn message(raw: &RawValue, param: &str) -> Result<Turn, ApiError> {
    let wire: WireMessage<'_> = serde_json::from_str(raw.get())
        .map_err(|error| ApiError::invalid(param, error.to_string()))?;
    let role = role(&wire.role, param)?;
    let copied = [
        ("tool_calls", wire.tool_calls),
        ("function_call", wire.function_call),
        ("refusal", wire.refusal),
        ("annotations", wire.annotations),
        ("audio", wire.audio),
    ];
    for (name, value) in copied {
        if value.is_some_and(|value| !matches!(value.get(), "null" | "[]")) {
            return Err(ApiError::unsupported(format!("{param}.{name}"), "leave it out"));
        }
    }
    let content = match wire.content {
        Some(raw) => content(raw, &format!("{param}.content"))?,
        None => {
            return Err(ApiError::invalid(format!("{param}.content"), "this member is required"));
        }
    };
    Ok(Turn(Message { role, content }))
}

fn role(role: &str, param: &str) -> Result<Role, ApiError> {
    match role {
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        // OpenAI's newer name for the application's own instructions.
        "system" | "developer" => Ok(Role::System),
        "tool" | "function" => {
            Err(ApiError::unsupported(format!("{param}.role"), "tools are not offered here"))
        }
        other => Err(ApiError::invalid(
            format!("{param}.role"),
            format!("found {other:?}, expected system, developer, user or assistant"),
        )),
    }
}

fn content(raw: &RawValue, param: &str) -> Result<String, ApiError> {
    match raw.get().as_bytes().first() {
        Some(b'"') => value(raw, param),
        Some(b'[') => parts(raw, param),
        _ => Err(ApiError::invalid(param, "expected a string or an array of text parts")),
    }
}

/// Text parts are lines of one text, as other servers of open models join them.
fn parts(raw: &RawValue, param: &str) -> Result<String, ApiError> {
    let raws = list(raw, param, PARTS_MAX)?;
    if raws.is_empty() {
        return Err(ApiError::invalid(param, "found no part, expected at least one"));
    }
    let mut texts = Vec::with_capacity(raws.len());
    for (at, raw) in raws.into_iter().enumerate() {
        let param = format!("{param}[{at}]");
        let PartType { r#type } = value(raw, &param)?;
        if r#type != "text" {
            return Err(ApiError::unsupported(
                format!("{param}.type"),
                format!("found {:?}, only \"text\" is offered here", r#type),
            ));
        }
        texts.push(value::<TextPart>(raw, &param)?.text);
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Vec<Turn>, ApiError> {
        parse(serde_json::from_str::<&RawValue>(json).unwrap())
    }

    fn param_of(json: &str) -> String {
        check(json).unwrap_err().object()["error"]["param"].as_str().unwrap_or_default().to_owned()
    }

    fn turn(role: Role, content: &str) -> Turn {
        Turn(Message { role, content: content.to_owned() })
    }

    #[test]
    fn strings_and_text_parts_are_text() {
        let messages = check(
            r#"[{"role":"developer","content":"be brief"},
                {"role":"user","name":"ada","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                {"role":"assistant","content":"","refusal":null,"annotations":[],"tool_calls":null},
                {"role":"user","content":"\u00e9\ud83d\ude00"}]"#,
        )
        .unwrap();
        let expected = [
            turn(Role::System, "be brief"),
            turn(Role::User, "a\nb"),
            turn(Role::Assistant, ""),
            turn(Role::User, "é😀"),
        ];
        assert_eq!(messages, expected);
    }

    #[test]
    fn what_is_not_text_is_refused_where_it_stands() {
        let cases = [
            ("[]", "messages"),
            (r#""hi""#, "messages"),
            ("[1]", "messages[0]"),
            (r#"[{"content":"x"}]"#, "messages[0]"),
            (r#"[{"role":"user"}]"#, "messages[0].content"),
            (r#"[{"role":"assistant","content":null}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":7}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":[]}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":"\ud800"}]"#, "messages[0].content"),
            (r#"[{"role":"robot","content":"x"}]"#, "messages[0].role"),
            (r#"[{"role":"tool","content":"x"}]"#, "messages[0].role"),
            (r#"[{"role":"user","content":"x","images":[]}]"#, "messages[0]"),
            (r#"[{"role":"user","role":"system","content":"x"}]"#, "messages[0]"),
            (
                r#"[{"role":"user","content":"x"},{"role":"assistant","content":"x","tool_calls":[{}]}]"#,
                "messages[1].tool_calls",
            ),
            (
                r#"[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{}}]}]"#,
                "messages[0].content[1].type",
            ),
            (r#"[{"role":"user","content":[{"type":"text"}]}]"#, "messages[0].content[0]"),
        ];
        for (json, param) in cases {
            assert_eq!(param_of(json), param, "{json}");
        }
    }

    #[test]
    fn their_number_is_bounded() {
        let one = r#"{"role":"user","content":"x"}"#;
        let many = format!("[{}{one}]", format!("{one},").repeat(MESSAGES_MAX));
        assert_eq!(param_of(&many), "messages");
        let part = r#"{"type":"text","text":"x"}"#;
        let many = format!("{}{part}", format!("{part},").repeat(PARTS_MAX));
        assert_eq!(
            param_of(&format!(r#"[{{"role":"user","content":[{many}]}}]"#)),
            "messages[0].content"
        );
    }
}
