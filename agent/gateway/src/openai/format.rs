//! `response_format`: what the answer must be like.

use ipc::AnswerFormat;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::ApiError;
use super::request::{Fields, value};
use crate::limits::{SCHEMA_BYTES_MAX, SCHEMA_NAME_BYTES_MAX};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    r#type: String,
    #[serde(borrow, default)]
    json_schema: Option<&'a RawValue>,
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
    let Wire { r#type, json_schema } = serde_json::from_str(raw.get()).map_err(invalid)?;
    match (r#type.as_str(), json_schema) {
        ("text", None) => Ok(None),
        ("json_object", None) => Ok(Some(AnswerFormat::JsonObject)),
        ("json_schema", Some(schema)) => Ok(Some(json_schema_of(schema)?)),
        ("json_schema", None) => {
            Err(ApiError::invalid(format!("{PARAM}.json_schema"), "this member is required"))
        }
        ("text" | "json_object", Some(_)) => Err(ApiError::invalid(
            format!("{PARAM}.json_schema"),
            "only allowed when the type is json_schema",
        )),
        (other, _) => Err(ApiError::invalid(
            format!("{PARAM}.type"),
            format!("found {other:?}, expected text, json_object or json_schema"),
        )),
    }
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
