//! Bad clients and bad requests: a status and an object that OpenAI clients expect, or a line in the log.

use gateway::limits::HEAD_BYTES_MAX;
use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::certificates::{Authority, Leaf, client_config};
use crate::chat::records;
use crate::client::{Https, bare, chat, post};
use crate::peers::CONTEXT_TOKENS_MAX;

/// What a client sees that shows `leaf`: the handshake or the first read fails.
fn is_refused(
    appliance: &Appliance,
    leaf: Option<&Leaf>,
    version: &'static rustls::SupportedProtocolVersion,
) -> String {
    let config = client_config(&appliance.authority, leaf, version);
    let result = Https::connect(appliance.address, config).and_then(|mut client| {
        client.send(bare("GET", "/healthz"))?;
        client.read_to_end()
    });
    match result {
        Ok(text) => {
            // Closed without a word after a handshake that was fine.
            assert_eq!(text, "");
            String::new()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_client_without_certificate_fails_in_the_handshake() {
    let appliance = Appliance::start();
    let error = is_refused(&appliance, None, &rustls::version::TLS13);
    assert!(error.contains("CertificateRequired") || error.contains("reset"), "{error}");
    appliance.wait_log(&["client refused", "peer=\"127.0.0.1:", "no certificates"]);
    assert_eq!(appliance.connect().ask_chat("others go on", &json!({})).status, 200);
}

#[test]
fn a_client_of_another_authority_fails_in_the_handshake() {
    let appliance = Appliance::start();
    // The second takes the name of the right one.
    for (authority, reason) in
        [(Authority::named("another"), "UnknownIssuer"), (Authority::new(), "BadSignature")]
    {
        let mallory = authority.client(&["alice"]);
        let error = is_refused(&appliance, Some(&mallory), &rustls::version::TLS13);
        assert!(!error.is_empty());
        appliance.wait_log(&["client refused", "invalid peer certificate", reason]);
    }
}

#[test]
fn a_server_certificate_is_no_client_certificate() {
    let appliance = Appliance::start();
    let server = appliance.authority.server();
    assert!(!is_refused(&appliance, Some(&server), &rustls::version::TLS13).is_empty());
    appliance.wait_log(&["client refused", "certificate"]);
}

#[test]
fn a_certificate_that_names_nobody_is_refused() {
    let appliance = Appliance::start();
    let nameless = appliance.authority.client(&[]);
    is_refused(&appliance, Some(&nameless), &rustls::version::TLS13);
    appliance.wait_log(&["client refused", "0 common names"]);
}

#[test]
fn tls_1_2_is_refused() {
    let appliance = Appliance::start();
    let error = is_refused(&appliance, Some(&appliance.alice), &rustls::version::TLS12);
    assert!(error.contains("ProtocolVersion"), "{error}");
    appliance.wait_log(&["client refused", "handshake failed"]);
}

#[test]
fn bytes_that_are_not_http_are_a_line_in_the_log() {
    let appliance = Appliance::start();
    for garbage in ["\0\u{1}\u{2} nonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /\r\nx\r\n\r\n"]
    {
        assert_eq!(appliance.connect().ask(garbage).status, 400, "{garbage:?}");
    }
    appliance.wait_log(&["connection ended", "alice", "invalid HTTP"]);
    let smuggled = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\
                    content-length: 6\r\n\r\n";
    assert_eq!(appliance.connect().ask(smuggled).status, 400);
    // As long as a head may be and without its end, so that all of it is read before the answer.
    let long = format!("{:y<HEAD_BYTES_MAX$}", "GET / HTTP/1.1\r\nx: ");
    assert_eq!(appliance.connect().ask(long).status, 431);
    let many: String = (0..200).map(|at| format!("x{at}: y\r\n")).collect();
    assert_eq!(appliance.connect().ask(format!("GET / HTTP/1.1\r\n{many}\r\n")).status, 431);
}

#[test]
fn a_request_that_cannot_be_read_is_refused_and_not_recorded() {
    let appliance = Appliance::start();
    let code = |bytes: String| appliance.connect().ask(bytes).error();
    let good = post(&chat("x", &json!({})).to_string());
    let cases = [
        (post("{\"model\": "), 400, ""),
        (post("[]"), 400, ""),
        (post("{}"), 400, "invalid_value"),
        (post(&chat("x", &json!({"temperature": 9})).to_string()), 400, "invalid_value"),
        (post(&chat("x", &json!({"n": 2})).to_string()), 400, "unsupported_parameter"),
        (post(&chat("x", &json!({"tools": [{}]})).to_string()), 400, "unsupported_parameter"),
        (post(&chat("x", &json!({"best_of": 2})).to_string()), 400, "unknown_parameter"),
        (good.replace("application/json", "text/plain"), 415, "unsupported_media"),
        (good.replace("content-type: application/json\r\n", ""), 415, "unsupported_media"),
        (good.replace("host: ", "content-encoding: gzip\r\nhost: "), 415, "unsupported_media"),
        (good.replace("/v1/chat/completions", "/v1/completions"), 404, "unknown_url"),
        (bare("GET", "/"), 404, "unknown_url"),
        (bare("GET", "/v1/chat/completions"), 405, "method_not_allowed"),
        (bare("DELETE", "/v1/models"), 405, "method_not_allowed"),
    ];
    for (bytes, status, expected) in cases {
        assert_eq!(code(bytes.clone()), (status, expected.to_owned()), "{bytes}");
    }
    appliance.wait_log(&["refused", "alice", "unknown_parameter"]);
    assert_eq!(appliance.agent.change(|state| state.appends_seen), 0);
    assert!(appliance.connect().ask(bare("PUT", "/healthz")).head.contains("allow: get"));
}

#[test]
fn an_oversized_body_is_413_whether_declared_or_not() {
    let appliance = Appliance::start();
    let too_large = (413, "request_too_large".to_owned());
    let text = "x".repeat(2 << 20);
    assert_eq!(appliance.connect().ask_chat(&text, &json!({})).error(), too_large);
    let declared = post("").replace("content-length: 0", "content-length: 99999999999");
    assert_eq!(appliance.connect().ask(declared).error(), too_large);
    let chunk = format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len());
    let chunked = post("").replace("content-length: 0", "transfer-encoding: chunked") + &chunk;
    assert_eq!(appliance.connect().ask(chunked).error(), too_large);
    // The largest body that is allowed reaches the engine, whatever its text takes in a frame.
    let empty = chat("", &json!({})).to_string().len();
    let most = gateway::limits::BODY_BYTES_MAX - empty;
    let response = appliance.connect().ask_chat(&"é".repeat(most / 2), &json!({"max_tokens": 1}));
    assert_eq!(response.error(), too_large);
    let response = appliance.connect().ask_chat(&"\u{1}".repeat(most / 6), &json!({}));
    assert_eq!(response.status, 200, "{}", response.body.get(..300).unwrap_or_default());
}

#[test]
fn a_request_that_does_not_fit_the_model_is_refused_and_recorded() {
    let appliance = Appliance::start();
    let other = json!({"model": "gpt-4o"});
    let response = appliance.connect().ask_chat("x", &other);
    assert_eq!(response.error(), (404, "model_not_found".to_owned()));

    let most = json!({"max_completion_tokens": CONTEXT_TOKENS_MAX});
    assert_eq!(appliance.connect().ask_chat("x", &most).status, 200);
    let more = json!({"max_completion_tokens": CONTEXT_TOKENS_MAX + 1, "stream": true});
    let response = appliance.connect().ask_chat("x", &more);
    assert_eq!(response.error(), (400, "invalid_value".to_owned()));
    let error = &response.json()["error"];
    assert_eq!(error["param"], "max_completion_tokens");
    assert!(error["message"].as_str().unwrap().contains(&CONTEXT_TOKENS_MAX.to_string()));

    let records = records(&appliance, 3);
    let outcomes: Vec<_> = records.iter().map(|record| record.outcome.as_str()).collect();
    assert_eq!(outcomes, ["error:model-not-found", "stop", "error:invalid"]);
    assert_eq!(records[0].model, "");
}

#[test]
fn what_the_engine_refuses_has_the_status_that_clients_expect() {
    let appliance = Appliance::start();
    let cases = [
        ("no-model", 503, "model_unavailable"),
        ("prompt-too-long", 400, "context_length_exceeded"),
        ("invalid", 400, "invalid_value"),
        ("overloaded", 429, "overloaded"),
        ("internal", 500, "internal_error"),
    ];
    for (at, (kind, status, code)) in cases.into_iter().enumerate() {
        // A stream that never began is an ordinary error.
        let stream: Value = json!({"stream": at % 2 == 0});
        let response = appliance.connect().ask_chat(kind, &stream);
        assert_eq!(response.error(), (status, code.to_owned()));
        assert_eq!(response.head.contains("retry-after: "), status == 429);
        assert_eq!(records(&appliance, at + 1)[at].outcome, format!("error:{kind}"));
    }
}

#[test]
fn without_engine_or_model_the_answer_is_503() {
    let appliance = Appliance::start();
    appliance.stop_engine();
    let response = appliance.connect().ask_chat("x", &json!({}));
    assert_eq!(response.error(), (503, "engine_unavailable".to_owned()));
    appliance.agent.change(|state| {
        state.status.model = None;
        state.status.refusal = Some("1 signature of 2".to_owned());
    });
    let response = appliance.connect().ask_chat("x", &json!({}));
    assert_eq!(response.error(), (503, "model_unavailable".to_owned()));
    assert!(response.body.contains("1 signature of 2"));
    let outcomes: Vec<_> = records(&appliance, 2).into_iter().map(|r| r.outcome).collect();
    assert_eq!(outcomes, ["error:engine-down", "error:no-model"]);
}
