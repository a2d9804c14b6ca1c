//! `response_format`: what the answer must be like.

use ipc::{AnswerFormat, GrammarSyntax};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::ApiError;
use super::request::{Fields, value};
use crate::limits::{GRAMMAR_BYTES_MAX, SCHEMA_BYTES_MAX, SCHEMA_NAME_BYTES_MAX};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    r#type: String,
    #[serde(borrow, default)]
    json_schema: Option<&'a RawValue>,
    syntax: Option<GrammarSyntax>,
    definition: Option<String>,
}

/// The answer keeps to the schema whether it is asked to be `strict` or not.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSchema<'a> {
    name: String,
    #[serde(borrow)]
    schema: &'a RawValue,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

/// Reads the format; `None` is any text.
pub(super) fn format(fields: &mut Fields<'_>) -> Result<Option<AnswerFormat>, ApiError> {
    const PARAM: &str = "response_format";
    let Some(raw) = fields.raw(PARAM) else { return Ok(None) };
    let invalid = |error: serde_json::Error| ApiError::invalid(PARAM, error.to_string());
    let wire: Wire<'_> = serde_json::from_str(raw.get()).map_err(invalid)?;
    let wrong =
        |member: &str, message: String| ApiError::invalid(format!("{PARAM}.{member}"), message);
    // Each member belongs to one type.
    let members = [
        ("json_schema", wire.json_schema.is_some(), "json_schema"),
        ("syntax", wire.syntax.is_some(), "grammar"),
        ("definition", wire.definition.is_some(), "grammar"),
    ];
    if !["text", "json_object", "json_schema", "grammar"].contains(&wire.r#type.as_str()) {
        let expected = "expected text, json_object, json_schema or grammar";
        return Err(wrong("type", format!("found {:?}, {expected}", wire.r#type)));
    }
    for (member, there, of) in members {
        match (there, of == wire.r#type) {
            (true, false) => {
                return Err(wrong(member, format!("only allowed when the type is {of}")));
            }
            (false, true) => return Err(wrong(member, "this member is required".to_owned())),
            _ => {}
        }
    }
    Ok(match (wire.json_schema, wire.syntax.zip(wire.definition)) {
        (Some(schema), _) => Some(json_schema_of(schema)?),
        (None, Some((syntax, definition))) => {
            if definition.len() > GRAMMAR_BYTES_MAX {
                let found = definition.len();
                let message = format!("found {found} bytes, expected at most {GRAMMAR_BYTES_MAX}");
                return Err(wrong("definition", message));
            }
            Some(AnswerFormat::Grammar { syntax, definition })
        }
        (None, None) if wire.r#type == "json_object" => Some(AnswerFormat::JsonObject),
        (None, None) => None,
    })
}

fn json_schema_of(raw: &RawValue) -> Result<AnswerFormat, ApiError> {
    const PARAM: &str = "response_format.json_schema";
    let invalid = |error: serde_json::Error| ApiError::invalid(PARAM, error.to_string());
    let WireSchema { name, schema, .. } = serde_json::from_str(raw.get()).map_err(invalid)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if !(1..=SCHEMA_NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(plain) {
        let message = format!("expected 1 to {SCHEMA_NAME_BYTES_MAX} letters, digits, _ or -");
        return Err(ApiError::invalid(format!("{PARAM}.name"), message));
    }
    let param = format!("{PARAM}.schema");
    if schema.get().len() > SCHEMA_BYTES_MAX {
        let message =
            format!("found {} bytes, expected at most {SCHEMA_BYTES_MAX}", schema.get().len());
        return Err(ApiError::invalid(param, message));
    }
    // The engine says what it may have.
    value::<serde::de::IgnoredAny>(schema, &param)?;
    if !schema.get().starts_with('{') {
        return Err(ApiError::invalid(param, "expected an object"));
    }
    Ok(AnswerFormat::JsonSchema { schema: schema.get().to_owned() })
}
