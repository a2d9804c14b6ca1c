//! Answers, and the records that come before them.

use ipc::{Exchange, Receipt, Role};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::appliance::Appliance;
use crate::client::{chat, post};
use crate::peers::{PROMPT_TOKENS, model, receipt};

pub(crate) fn sha256(text: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(text))
}

pub(crate) fn cert_sha256(leaf: &crate::certificates::Leaf) -> String {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    hex::encode(Sha256::digest(
        CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap(),
    ))
}

/// Waits until `count` exchanges are on record; returns them.
pub(crate) fn records(appliance: &Appliance, count: usize) -> Vec<Exchange> {
    appliance
        .agent
        .wait("records", |state| (state.records.len() >= count).then(|| state.records.clone()))
}

#[test]
fn a_plain_answer_is_what_the_engine_said_and_is_on_record() {
    let appliance = Appliance::start();
    let body =
        chat("one two three", &json!({"seed": 5, "max_tokens": 9, "stop": ["x"]})).to_string();
    let response = appliance.connect().ask(post(&body));
    assert_eq!(response.status, 200, "{response:?}");
    let object = response.json();
    assert_eq!(object["object"], "chat.completion");
    assert_eq!(object["model"], model().model_id);
    assert_eq!(object["choices"][0]["message"]["content"], "one two three");
    assert_eq!(object["choices"][0]["finish_reason"], "stop");
    let usage = json!({
        "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4}
    });
    assert_eq!(object["usage"], usage);

    let expected = Exchange {
        request: object["id"].as_str().unwrap().to_owned(),
        client: "alice".to_owned(),
        client_cert_sha256: cert_sha256(&appliance.alice),
        model: model().bundle_digest,
        prompt_sha256: sha256(&body),
        answer_sha256: sha256("one two three"),
        prompt_tokens: PROMPT_TOKENS,
        completion_tokens: 3,
        outcome: "stop".to_owned(),
        receipt_sha256: None,
    };
    assert!(object.get("casemate_receipt").is_none());
    assert_eq!(records(&appliance, 1), [expected]);
    assert!(response.head.contains(object["id"].as_str().unwrap()), "x-request-id");

    let asked = appliance.engine.change(|state| state.chats.remove(0));
    assert_eq!((asked.sampling.seed, asked.max_tokens, asked.stop), (5, 9, vec!["x".to_owned()]));
    assert!(asked.logprobs.is_none() && object["choices"][0]["logprobs"].is_null());
    assert_eq!(asked.messages[0].role, Role::System);
    assert_eq!(asked.partition, cert_sha256(&appliance.alice));
    let line = appliance.wait_log(&["chat", "alice", "stop"]);
    assert!(!line.contains("one two"), "{line}");
}

#[test]
fn a_stream_ends_with_usage_and_done() {
    let appliance = Appliance::start();
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = appliance.connect().ask_chat("eins zwei", &more).events();
    let text: String =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "eins zwei");
    assert_eq!(events.last().unwrap(), "[DONE]");
    let usage = &events[events.len() - 2];
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(2)));
    assert_eq!(events[events.len() - 3]["choices"][0]["finish_reason"], "stop");
    let roles = events.iter().filter(|event| event["choices"][0]["delta"]["role"].is_string());
    assert_eq!(roles.count(), 1);
    let record = &records(&appliance, 1)[0];
    assert!(events[..events.len() - 1].iter().all(|event| event["id"] == record.request.as_str()));
    assert_eq!(record.answer_sha256, sha256("eins zwei"));
}

#[test]
fn a_receipt_comes_plain_and_streamed_and_its_digest_is_on_record() {
    let appliance = Appliance::start();
    for stream in [false, true] {
        let more = json!({"casemate_receipt": true, "stream": stream, "seed": 5});
        let body = chat("un deux", &more).to_string();
        let response = appliance.connect().ask(post(&body));
        let given = if stream {
            let events = response.events();
            let (last, before) = events[..events.len() - 1].split_last().unwrap();
            assert!(before.iter().all(|event| event.get("casemate_receipt").is_none()));
            assert_eq!(last["choices"][0]["finish_reason"], "stop");
            last["casemate_receipt"].clone()
        } else {
            response.json()["casemate_receipt"].clone()
        };
        let asked = appliance.engine.change(|state| state.chats.remove(0));
        assert_eq!(asked.receipt, Some(sha256(&body)));
        let given: Receipt = serde_json::from_value(given).unwrap();
        assert_eq!(Some(&given), receipt(&asked).as_ref());
        let record = records(&appliance, 1 + usize::from(stream)).pop().unwrap();
        assert_eq!(record.receipt_sha256, Some(given.digest().unwrap()));
    }
}

#[test]
fn logprobs_come_plain_and_streamed() {
    let appliance = Appliance::start();
    let likely = |token: &str| json!({"token": token, "logprob": -0.5, "bytes": token.as_bytes()});
    let entry = |token: &str| {
        let mut entry = likely(token);
        entry["top_logprobs"] = json!([likely(token), likely(token)]);
        entry
    };
    let expected = json!([entry("un "), entry("deux")]);
    let more = json!({"logprobs": true, "top_logprobs": 2, "top_k": 5, "logit_bias": {"7": -1}});
    let object = appliance.connect().ask(post(&chat("un deux", &more).to_string())).json();
    assert_eq!(object["choices"][0]["logprobs"], json!({"content": expected, "refusal": null}));
    let asked = appliance.engine.change(|state| state.chats.remove(0));
    assert_eq!((asked.logprobs, asked.sampling.top_k), (Some(2), 5));
    assert_eq!(asked.sampling.logit_bias[&7], -1.0);
    let mut more = more;
    more["stream"] = json!(true);
    let events = appliance.connect().ask_chat("un deux", &more).events();
    let content: Vec<&Value> = events
        .iter()
        .filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(json!(content), expected);
}

#[test]
fn a_plain_answer_keeps_no_endless_logprobs() {
    let appliance = Appliance::start();
    let many = |more: &Value| appliance.connect().ask(post(&chat("many", more).to_string()));
    let refused = many(&json!({"logprobs": true, "top_logprobs": 20}));
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["param"], "logprobs");
    assert_eq!(many(&json!({"logprobs": true, "top_logprobs": 1})).status, 200);
    let streamed = many(&json!({"logprobs": true, "top_logprobs": 20, "stream": true}));
    assert_eq!(streamed.events().last().unwrap(), "[DONE]");
}

#[test]
fn several_requests_of_one_connection_are_several_records() {
    let appliance = Appliance::start();
    let mut client = appliance.connect();
    for text in ["first", "second"] {
        let request =
            post(&chat(text, &json!({})).to_string()).replace("connection: close\r\n", "");
        client.send(request).unwrap();
        client.read_until(&format!("\"content\":\"{text}\""));
        client.read_until("}}");
    }
    let records = records(&appliance, 2);
    assert_ne!(records[0].request, records[1].request);
}

#[test]
fn a_plain_answer_waits_for_its_record() {
    let appliance = Appliance::start();
    appliance.agent.change(|state| state.disk_answers = false);
    let mut client = appliance.connect();
    client.send(post(&chat("hello", &json!({})).to_string())).unwrap();
    appliance.agent.wait("an append", |state| (state.appends_seen == 1).then_some(()));
    client.expect_silence();
    appliance.agent.change(|state| state.disk_answers = true);
    assert!(client.read_to_end().unwrap().contains("hello"));
}

#[test]
fn a_stream_is_not_done_before_its_record() {
    let appliance = Appliance::start();
    appliance.agent.change(|state| state.disk_answers = false);
    let mut client = appliance.connect();
    client.send(post(&chat("hello", &json!({"stream": true})).to_string())).unwrap();
    let before = client.read_until("\"content\":\"hello\"") + &client.read_until("\n\n\r\n");
    assert!(before.contains("\"finish_reason\":null") && !before.contains("stop"), "{before}");
    appliance.agent.wait("an append", |state| (state.appends_seen == 1).then_some(()));
    client.expect_silence();
    appliance.agent.change(|state| state.disk_answers = true);
    assert!(client.read_to_end().unwrap().contains("data: [DONE]"));
}

#[test]
fn an_answer_that_cannot_be_recorded_is_withheld() {
    let appliance = Appliance::start();
    appliance.agent.change(|state| state.disk_full = true);
    let response = appliance.connect().ask_chat("classified", &json!({}));
    assert_eq!(response.error(), (500, "ledger_unavailable".to_owned()));
    assert!(!response.body.contains("classified"));
    let line = appliance.wait_log(&["NOT RECORDED", "no space left"]);
    assert!(!line.contains("classified"), "{line}");

    let events = appliance.connect().ask_chat("classified", &json!({"stream": true})).events();
    let last = events.last().unwrap();
    assert_eq!(last["error"]["code"], "ledger_unavailable");
    let reasons = |event: &Value| event["choices"][0]["finish_reason"].is_string();
    assert!(!events.iter().any(|event| reasons(event) || event == "[DONE]"));
}

#[test]
fn without_agentd_nothing_is_asked_of_the_engine() {
    let appliance = Appliance::start();
    appliance.stop_agent();
    for stream in [false, true] {
        let response = appliance.connect().ask_chat("hello", &json!({"stream": stream}));
        assert_eq!(response.error(), (500, "ledger_unavailable".to_owned()));
    }
    assert_eq!(appliance.engine.change(|state| state.chats.len()), 0);
    appliance.wait_log(&["NOT RECORDED", "cannot reach agentd"]);
}

#[test]
fn the_engine_of_two_clients_sees_two_partitions() {
    let appliance = Appliance::start();
    let bob = appliance.authority.client(&["bob"]);
    assert_eq!(appliance.connect().ask_chat("a", &json!({})).status, 200);
    assert_eq!(appliance.connect_as(&bob).ask_chat("a", &json!({})).status, 200);
    let names: Vec<_> = records(&appliance, 2).into_iter().map(|record| record.client).collect();
    assert_eq!(names, ["alice", "bob"]);
    let partitions = appliance
        .engine
        .change(|state| state.chats.iter().map(|chat| chat.partition.clone()).collect::<Vec<_>>());
    assert_eq!(partitions, [cert_sha256(&appliance.alice), cert_sha256(&bob)]);
}
