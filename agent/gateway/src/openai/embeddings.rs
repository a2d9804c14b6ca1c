//! `POST /v1/embeddings`: what is asked, and the answer.
//!
//! Source: OpenAI API reference, "Create embeddings" and "The embedding object". Invariants as in
//! [`super::request`]: each parameter is honoured or refused by its name.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipc::{EMBED_INPUTS_MAX, Embed, EmbedInput};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::ApiError;
use super::request::{Fields, fields};

/// Accepted and without effect: bookkeeping of the caller.
const IGNORED: &[&str] = &["user"];

/// A request for vectors whose parameters are each in range. Whether the model makes any, and whether the texts fit it,
/// is for the loaded model to say.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingsRequest {
    /// Name of the model asked for.
    pub model: String,
    /// 1 to [`EMBED_INPUTS_MAX`] texts, none empty.
    pub inputs: Vec<EmbedInput>,
    /// Numbers of each vector, if not as many as the model makes.
    pub dimensions: Option<u32>,
    /// How vectors are written.
    pub encoding: Encoding,
}

/// How a vector is written in the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As an array of numbers.
    #[default]
    Float,
    /// Little-endian floats of 32 bits, in base64 (RFC 4648, section 4).
    Base64,
}

impl EmbeddingsRequest {
    /// What the engine is asked.
    #[must_use]
    pub fn embed(&self, partition: String) -> Embed {
        Embed { inputs: self.inputs.clone(), dimensions: self.dimensions, partition }
    }
}

/// Parses the body of a request for vectors.
///
/// # Errors
/// [`ApiError::MalformedJson`], or the first parameter that is not acceptable.
pub fn parse(body: &[u8]) -> Result<EmbeddingsRequest, ApiError> {
    let mut fields: Fields<'_> = fields(body)?;
    let Inputs(inputs) = fields.required("input")?;
    if let Some(number) = inputs.iter().position(EmbedInput::is_empty) {
        let message = format!("input {number} is empty, expected at least a character or a token");
        return Err(ApiError::invalid("input", message));
    }
    let dimensions = fields.take("dimensions")?;
    if dimensions == Some(0) {
        return Err(ApiError::invalid("dimensions", "found 0, expected at least 1"));
    }
    let model = fields.required("model")?;
    let encoding = fields.take("encoding_format")?.unwrap_or_default();
    fields.refuse_rest(IGNORED, &[])?;
    Ok(EmbeddingsRequest { model, inputs, dimensions, encoding })
}

/// `input` in its four forms: a text, texts, tokens, arrays of tokens.
struct Inputs(Vec<EmbedInput>);

/// An element of `input`.
enum Element {
    Token(u32),
    Input(EmbedInput),
}

const EXPECTED: &str = "a text, an array of texts, an array of tokens, or an array of those";

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Inputs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(EXPECTED)
            }

            fn visit_str<E>(self, text: &str) -> Result<Inputs, E> {
                Ok(Inputs(vec![EmbedInput::Text(text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Inputs, A::Error> {
                let (mut inputs, mut tokens) = (Vec::new(), Vec::new());
                while let Some(element) = seq.next_element()? {
                    match element {
                        Element::Token(token) => tokens.push(token),
                        Element::Input(input) if inputs.len() < EMBED_INPUTS_MAX => {
                            inputs.push(input);
                        }
                        Element::Input(_) => {
                            let message = format!("expected at most {EMBED_INPUTS_MAX} inputs");
                            return Err(A::Error::custom(message));
                        }
                    }
                    let kind = |input: &EmbedInput| matches!(input, EmbedInput::Text(_));
                    let mixed = match (inputs.first(), inputs.last()) {
                        (Some(first), Some(last)) => kind(first) != kind(last),
                        _ => false,
                    };
                    if mixed || !(inputs.is_empty() || tokens.is_empty()) {
                        return Err(A::Error::custom(format!(
                            "found a mixture, expected {EXPECTED}"
                        )));
                    }
                }
                if inputs.is_empty() {
                    inputs.push(EmbedInput::Tokens(tokens));
                }
                Ok(Inputs(inputs))
            }
        }
        deserializer.deserialize_any(Whole)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Element;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text, a token's number, or an array of those")
            }

            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Input(EmbedInput::Text(text.to_owned())))
            }

            fn visit_u64<E: serde::de::Error>(self, token: u64) -> Result<Element, E> {
                let token = u32::try_from(token);
                token.map(Element::Token).map_err(|_| E::custom("a token's number is too large"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = seq.next_element()? {
                    tokens.push(token);
                }
                Ok(Element::Input(EmbedInput::Tokens(tokens)))
            }
        }
        deserializer.deserialize_any(One)
    }
}

/// The whole answer as one object in JSON.
///
/// # Errors
/// [`ApiError::Internal`], which has no cause: all of it can be JSON.
pub fn answer(
    model: &str,
    vectors: &[Vec<f32>],
    encoding: Encoding,
    prompt_tokens: u32,
) -> Result<String, ApiError> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Vector<'a> {
        Float(&'a [f32]),
        Base64(String),
    }
    #[derive(Serialize)]
    struct Embedding<'a> {
        object: &'static str,
        index: usize,
        embedding: Vector<'a>,
    }
    #[derive(Serialize)]
    struct Usage {
        prompt_tokens: u32,
        total_tokens: u32,
    }
    #[derive(Serialize)]
    struct Answer<'a> {
        object: &'static str,
        data: Vec<Embedding<'a>>,
        model: &'a str,
        usage: Usage,
    }
    let data = vectors.iter().enumerate().map(|(index, vector)| {
        let embedding = match encoding {
            Encoding::Float => Vector::Float(vector),
            Encoding::Base64 => Vector::Base64(STANDARD.encode(bytes(vector))),
        };
        Embedding { object: "embedding", index, embedding }
    });
    let usage = Usage { prompt_tokens, total_tokens: prompt_tokens };
    let answer = Answer { object: "list", data: data.collect(), model, usage };
    serde_json::to_string(&answer).map_err(|_| ApiError::Internal)
}

/// A vector's numbers as the ledger's digest and base64 have them.
#[must_use]
pub fn bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn with(input: &str, more: &str) -> Result<EmbeddingsRequest, ApiError> {
        parse(format!(r#"{{"model":"m","input":{input}{more}}}"#).as_bytes())
    }

    fn text(text: &str) -> EmbedInput {
        EmbedInput::Text(text.to_owned())
    }

    #[test]
    fn the_four_forms_of_an_input_arrive() {
        let inputs = |input: &str| with(input, "").unwrap().inputs;
        assert_eq!(inputs(r#""\u00e9""#), [text("é")]);
        assert_eq!(inputs(r#"["a","b"]"#), [text("a"), text("b")]);
        assert_eq!(inputs("[1,4294967295]"), [EmbedInput::Tokens(vec![1, u32::MAX])]);
        let two = [EmbedInput::Tokens(vec![1]), EmbedInput::Tokens(vec![2, 3])];
        assert_eq!(inputs("[[1],[2,3]]"), two);
    }

    #[test]
    fn parameters_arrive_and_their_defaults_are_those_of_the_api() {
        let plain = with(r#""a""#, "").unwrap();
        assert_eq!((plain.dimensions, plain.encoding), (None, Encoding::Float));
        let more = r#","encoding_format":"base64","dimensions":3,"user":"u""#;
        let full = with(r#""a""#, more).unwrap();
        assert_eq!((full.dimensions, full.encoding), (Some(3), Encoding::Base64));
        let null = r#","encoding_format":null,"dimensions":null"#;
        assert_eq!(with(r#""a""#, null).unwrap(), plain);
    }

    #[test]
    fn what_is_not_acceptable_is_refused_by_name() {
        let many = format!("[{}]", vec![r#""a""#; EMBED_INPUTS_MAX + 1].join(","));
        let cases = [
            ("null", "", "input"),
            (r#""""#, "", "input"),
            ("[]", "", "input"),
            (r#"["a",""]"#, "", "input"),
            ("[[1],[]]", "", "input"),
            (r#"["a",1]"#, "", "input"),
            (r#"[1,"a"]"#, "", "input"),
            (r#"["a",[1]]"#, "", "input"),
            ("[[1],2]", "", "input"),
            ("[[[1]]]", "", "input"),
            ("[-1]", "", "input"),
            ("[1.5]", "", "input"),
            ("[4294967296]", "", "input"),
            ("{}", "", "input"),
            ("7", "", "input"),
            (&many, "", "input"),
            (r#""a""#, r#","dimensions":0"#, "dimensions"),
            (r#""a""#, r#","dimensions":-1"#, "dimensions"),
            (r#""a""#, r#","encoding_format":"int8""#, "encoding_format"),
            (r#""a""#, r#","temperature":0"#, "temperature"),
            (r#""a""#, r#","truncate":true"#, "truncate"),
        ];
        for (input, more, param) in cases {
            let error = with(input, more).unwrap_err();
            assert_eq!(error.status(), 400, "{error}");
            assert_eq!(error.object()["error"]["param"], param, "{input:.40} {more}: {error}");
        }
        assert_eq!(parse(br#"{"input":"a"}"#).unwrap_err().object()["error"]["param"], "model");
        assert!(matches!(parse(b"[]").unwrap_err(), ApiError::MalformedJson { .. }));
    }

    #[test]
    fn both_encodings_carry_the_same_bits() {
        let vectors = [vec![1.0, -0.1], vec![f32::MIN_POSITIVE, 3.402_823_5e38]];
        let object = |encoding| -> Value {
            serde_json::from_str(&answer("m", &vectors, encoding, 7).unwrap()).unwrap()
        };
        let floats = object(Encoding::Float);
        assert_eq!(floats["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
        assert_eq!((&floats["object"], &floats["model"]), (&json!("list"), &json!("m")));
        let base64 = object(Encoding::Base64);
        for (index, vector) in vectors.iter().enumerate() {
            let entry = &floats["data"][index];
            assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
            let read: Vec<f32> = serde_json::from_value(entry["embedding"].clone()).unwrap();
            assert_eq!(&read, vector);
            let text = base64["data"][index]["embedding"].as_str().unwrap();
            assert_eq!(STANDARD.decode(text).unwrap(), bytes(vector));
        }
    }

    #[test]
    fn no_mutation_of_a_request_panics_or_gets_past_the_bounds() {
        let body = br#"{"model":"m","input":[[1,22],[333]],"dimensions":3,"encoding_format":"base64","user":"u"}"#;
        parse(body).unwrap();
        let check = |mutated: &[u8]| match parse(mutated) {
            Ok(request) => {
                assert!((1..=EMBED_INPUTS_MAX).contains(&request.inputs.len()));
                assert!(request.inputs.iter().all(|input| !input.is_empty()));
                assert_ne!(request.dimensions, Some(0));
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
