//! Vectors, and the records that come before them.

use ipc::{EmbedInput, Exchange};
use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::chat::{cert_sha256, records, sha256};
use crate::client::{Response, post_to};
use crate::peers::{PROMPT_TOKENS, model, vector};

const PATH: &str = "/v1/embeddings";

fn body(input: &Value, more: &Value) -> String {
    let mut body = json!({"model": model().model_id, "input": input});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn ask(appliance: &Appliance, input: &Value, more: &Value) -> Response {
    appliance.connect().ask(post_to(PATH, &body(input, more)))
}

#[test]
fn vectors_are_what_the_engine_made_and_are_on_record() {
    let appliance = Appliance::start();
    let body = body(&json!(["secret", "deux"]), &json!({"user": "u"}));
    let response = appliance.connect().ask(post_to(PATH, &body));
    assert_eq!(response.status, 200, "{response:?}");
    let entry =
        |number: u8| json!({"object": "embedding", "index": number, "embedding": vector(number)});
    let object: Value = response.json();
    let expected: Value = serde_json::from_str(
        &json!({
            "object": "list", "model": model().model_id, "data": [entry(0), entry(1)],
            "usage": {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS},
        })
        .to_string(),
    )
    .unwrap();
    let close = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-7;
    for number in 0..2 {
        let numbers = |object: &Value| object["data"][number]["embedding"].as_array().cloned();
        let (found, expected) = (numbers(&object).unwrap(), numbers(&expected).unwrap());
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(&expected).all(|(a, b)| close(a, b)), "{found:?}");
    }
    assert_eq!(object["usage"], expected["usage"]);

    let record = records(&appliance, 1).remove(0);
    let bytes: Vec<u8> =
        [vector(0), vector(1)].concat().iter().flat_map(|x| x.to_le_bytes()).collect();
    let expected = Exchange {
        request: record.request.clone(),
        client: "alice".to_owned(),
        client_cert_sha256: cert_sha256(&appliance.alice),
        model: model().bundle_digest,
        prompt_sha256: sha256(&body),
        answer_sha256: sha256(bytes),
        prompt_tokens: PROMPT_TOKENS,
        completion_tokens: 0,
        outcome: "stop".to_owned(),
        receipt_sha256: None,
    };
    assert_eq!(record, expected);
    assert!(record.request.starts_with("embd-"), "{record:?}");
    assert!(response.head.contains(&record.request), "x-request-id");
    let asked = appliance.engine.change(|state| state.embeds.remove(0));
    let texts = ["secret", "deux"].map(|text| EmbedInput::Text(text.to_owned()));
    assert_eq!((asked.inputs.as_slice(), asked.dimensions), (&texts[..], None));
    assert_eq!(asked.partition, cert_sha256(&appliance.alice));
    let line = appliance.wait_log(&["embeddings", "alice", "stop"]);
    assert!(!line.contains("secret"), "{line}");
}

#[test]
fn what_the_engine_refuses_is_an_error_that_clients_expect() {
    let appliance = Appliance::start();
    let cases = [
        (json!("unsuited"), json!({}), (404, "model_not_supported"), "error:unsuited"),
        (json!("long"), json!({}), (400, "context_length_exceeded"), "error:prompt-too-long"),
        (json!("x"), json!({"model": "other"}), (404, "model_not_found"), "error:model-not-found"),
    ];
    for (number, (input, more, (status, code), outcome)) in cases.iter().enumerate() {
        let response = ask(&appliance, input, more);
        assert_eq!(response.error(), (*status, (*code).to_owned()));
        assert_eq!(records(&appliance, number + 1)[number].outcome, *outcome);
    }
    let param = |input| ask(&appliance, &input, &json!({})).json()["error"]["param"].clone();
    assert_eq!(param(json!("long")), "input");
    assert_eq!(param(json!([])), "input");
}

#[test]
fn vectors_that_are_not_all_there_are_none() {
    let appliance = Appliance::start();
    for (number, (text, code)) in
        [("die", "engine_lost"), ("nan", "internal_error"), ("short", "internal_error")]
            .into_iter()
            .enumerate()
    {
        let response = ask(&appliance, &json!([text, "b"]), &json!({}));
        assert_eq!(response.error(), (500, code.to_owned()));
        let record = records(&appliance, number + 1).remove(number);
        assert_eq!(record.answer_sha256, sha256(""), "nothing was sent");
    }
    // One more or less than was asked for.
    let response = ask(&appliance, &json!("a"), &json!({"dimensions": 2}));
    assert_eq!(response.error(), (500, "internal_error".to_owned()));
}

#[test]
fn without_a_record_no_vector_leaves() {
    let appliance = Appliance::start();
    appliance.agent.change(|state| state.disk_full = true);
    let response = ask(&appliance, &json!("classified"), &json!({}));
    assert_eq!(response.error(), (500, "ledger_unavailable".to_owned()));
    let line = appliance.wait_log(&["embeddings NOT RECORDED", "no space left"]);
    assert!(!line.contains("classified"), "{line}");
}
