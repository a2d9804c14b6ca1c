//! The part of JSON Schema (draft 2020-12) that is offered: what OpenAI's structured outputs have, less regular
//! expressions and formats.
//!
//! Invariant: what is parsed has a bounded size, depth and number of repetitions, no keyword that is not in
//! [`KEYWORDS`], and no reference that leads out of it.

use serde_json::Value;

use super::ConstraintError;
use crate::limits::{SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX, SCHEMA_NODES_MAX, SCHEMA_REPEATS_MAX};

/// What a keyword's value is.
#[derive(Clone, Copy)]
enum Kind {
    /// Any value, of no meaning or compared as a whole.
    Plain,
    /// How often something is repeated.
    Repeats,
    /// A schema, `true` or `false`.
    Schema,
    /// Schemas in a row.
    Schemas,
    /// Schemas by names.
    Named,
    /// A reference within the schema.
    Reference,
}

const KEYWORDS: &[(&str, Kind)] = &[
    ("$comment", Kind::Plain),
    ("$defs", Kind::Named),
    ("$ref", Kind::Reference),
    ("additionalProperties", Kind::Schema),
    ("anyOf", Kind::Schemas),
    ("const", Kind::Plain),
    ("default", Kind::Plain),
    ("definitions", Kind::Named),
    ("description", Kind::Plain),
    ("enum", Kind::Plain),
    ("examples", Kind::Plain),
    ("exclusiveMaximum", Kind::Plain),
    ("exclusiveMinimum", Kind::Plain),
    ("items", Kind::Schema),
    ("maxItems", Kind::Repeats),
    ("maxLength", Kind::Repeats),
    ("maximum", Kind::Plain),
    ("minItems", Kind::Repeats),
    ("minLength", Kind::Repeats),
    ("minimum", Kind::Plain),
    ("prefixItems", Kind::Schemas),
    ("properties", Kind::Named),
    ("required", Kind::Plain),
    ("title", Kind::Plain),
    ("type", Kind::Plain),
];

fn refuse<T>(place: &str, found: String, expected: String) -> Result<T, ConstraintError> {
    Err(ConstraintError::Schema { place: place.to_owned(), found, expected })
}

/// Reads a schema.
pub(super) fn parse(text: &str) -> Result<Value, ConstraintError> {
    if text.len() > SCHEMA_BYTES_MAX {
        let found = format!("{} bytes", text.len());
        return refuse("", found, format!("at most {SCHEMA_BYTES_MAX}"));
    }
    let schema: Value = match serde_json::from_str(text) {
        Ok(schema) => schema,
        Err(error) => return refuse("", error.to_string(), "JSON".to_owned()),
    };
    if !schema.is_object() {
        return refuse("", "no object".to_owned(), "an object".to_owned());
    }
    let mut nodes = 0;
    count(&schema, &mut nodes);
    if nodes > SCHEMA_NODES_MAX {
        return refuse("", format!("{nodes} values"), format!("at most {SCHEMA_NODES_MAX}"));
    }
    check(&schema, "", 0)?;
    Ok(schema)
}

/// Counts values; serde_json has bounded their depth.
fn count(value: &Value, nodes: &mut usize) {
    *nodes += 1;
    match value {
        Value::Array(items) => items.iter().for_each(|item| count(item, nodes)),
        Value::Object(members) => members.values().for_each(|member| count(member, nodes)),
        _ => {}
    }
}

fn check(schema: &Value, place: &str, depth: usize) -> Result<(), ConstraintError> {
    if depth > SCHEMA_DEPTH_MAX {
        return refuse(place, format!("depth {depth}"), format!("at most {SCHEMA_DEPTH_MAX}"));
    }
    let members = match schema {
        Value::Object(members) => members,
        Value::Bool(_) => return Ok(()),
        _ => return refuse(place, "another value".to_owned(), "a schema".to_owned()),
    };
    for (name, value) in members {
        let here = format!("{place}/{name}");
        let Some((_, kind)) = KEYWORDS.iter().find(|(keyword, _)| keyword == name) else {
            let offered: Vec<&str> = KEYWORDS.iter().map(|(keyword, _)| *keyword).collect();
            return refuse(
                &here,
                "this keyword".to_owned(),
                format!("one of {}", offered.join(", ")),
            );
        };
        let under = |child: &Value, at: &str| check(child, &format!("{here}{at}"), depth + 1);
        match (kind, value) {
            (Kind::Plain, _) => {}
            (Kind::Repeats, value) => repeats(value, &here)?,
            (Kind::Schema, child) => under(child, "")?,
            (Kind::Schemas, Value::Array(children)) => {
                for (at, child) in children.iter().enumerate() {
                    under(child, &format!("/{at}"))?;
                }
            }
            (Kind::Named, Value::Object(children)) => {
                for (at, child) in children {
                    under(child, &format!("/{at}"))?;
                }
            }
            (Kind::Reference, Value::String(to)) if to.starts_with("#/") => {}
            (Kind::Schemas | Kind::Named | Kind::Reference, _) => {
                let expected =
                    "schemas in an array or an object, or a reference that begins with #/";
                return refuse(&here, "another value".to_owned(), expected.to_owned());
            }
        }
    }
    Ok(())
}

fn repeats(value: &Value, place: &str) -> Result<(), ConstraintError> {
    match value.as_u64() {
        Some(count) if count <= SCHEMA_REPEATS_MAX => Ok(()),
        _ => refuse(place, value.to_string(), format!("0 to {SCHEMA_REPEATS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_offer_is_refused_where_it_stands() {
        let deep = format!("{}true{}", r#"{"items":"#.repeat(40), "}".repeat(40));
        let many = format!(r#"{{"enum":[{}0]}}"#, "0,".repeat(3000));
        let long = format!(r#"{{"title":"{}"}}"#, "x".repeat(SCHEMA_BYTES_MAX));
        for (text, place) in [
            ("{", ""),
            ("true", ""),
            (many.as_str(), ""),
            (long.as_str(), ""),
            (r#"{"pattern":"(a*)*"}"#, "/pattern"),
            (r#"{"properties":{"a":{"format":"date"}}}"#, "/properties/a/format"),
            (r#"{"properties":{"a":7}}"#, "/properties/a"),
            (r#"{"properties":[]}"#, "/properties"),
            (r#"{"anyOf":[true,{"not":{}}]}"#, "/anyOf/1/not"),
            (r#"{"$ref":"https://example.org/"}"#, "/$ref"),
            (r##"{"$ref":"#"}"##, "/$ref"),
            (r#"{"maxItems":100000}"#, "/maxItems"),
            (r#"{"minLength":-1}"#, "/minLength"),
            (r#"{"x-guidance":{"lenient":true}}"#, "/x-guidance"),
        ] {
            match parse(text) {
                Err(ConstraintError::Schema { place: found, .. }) => assert_eq!(found, place),
                other => panic!("{text:.40}: {other:?}"),
            }
        }
        let Err(ConstraintError::Schema { found, .. }) = parse(&deep) else { panic!("{deep}") };
        assert!(found.starts_with("depth"), "{found}");
        parse(r#"{"type":"object","properties":{"pattern":{"type":"string"}}}"#).unwrap();
    }
}
