//! One client's or one peer's fault is nobody else's.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gateway::limits::CHATS_MAX;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::appliance::Appliance;
use crate::chat::records;
use crate::client::{chat, post};
use crate::peers::PROMPT_TOKENS;

/// Half of them hold a request that is not complete, half a stream that they do not read.
const SLOW_CLIENTS: usize = 50;

#[test]
fn an_engine_that_dies_in_mid_stream_is_an_error_event_without_done() {
    let appliance = Appliance::start();
    let events = appliance.connect().ask_chat("die", &json!({"stream": true})).events();
    assert_eq!(events[1]["choices"][0]["delta"]["content"], "half an ans");
    assert_eq!(events[2]["error"]["code"], "engine_lost");
    assert_eq!(events.len(), 3);
    let record = &records(&appliance, 1)[0];
    assert_eq!(record.outcome, "error:engine-lost");
    assert_eq!(record.answer_sha256, hex::encode(Sha256::digest("half an ans")));
    assert_eq!((record.prompt_tokens, record.completion_tokens), (PROMPT_TOKENS, 1));
    assert_eq!(appliance.connect().ask_chat("next", &json!({})).status, 200);
}

#[test]
fn an_engine_that_dies_before_a_plain_answer_is_an_error() {
    let appliance = Appliance::start();
    let response = appliance.connect().ask_chat("die", &json!({}));
    assert_eq!(response.error(), (500, "engine_lost".to_owned()));
    let record = &records(&appliance, 1)[0];
    // Nothing of the answer was sent.
    assert_eq!(record.answer_sha256, hex::encode(Sha256::digest("")));
}

#[test]
fn an_engine_that_says_too_much_or_out_of_turn_is_cut_off() {
    let appliance = Appliance::start();
    let response = appliance.connect().ask_chat("flood", &json!({}));
    assert_eq!(response.error(), (500, "internal_error".to_owned()));
    let response = appliance.connect().ask_chat("babble", &json!({"stream": true}));
    assert_eq!(response.error(), (500, "internal_error".to_owned()));
    let line = appliance.wait_log(&["out of turn", "delta"]);
    assert!(!line.contains("before its turn"), "{line}");
}

#[test]
fn a_client_that_leaves_cancels_its_request_and_is_on_record() {
    let appliance = Appliance::start();
    for (at, stream) in [(1, true), (2, false)] {
        let mut client = appliance.connect();
        client.send(post(&chat("hang", &json!({"stream": stream})).to_string())).unwrap();
        appliance.engine.wait("a chat", |state| (state.chats.len() == at).then_some(()));
        if stream {
            client.read_until("wait");
        }
        drop(client);
        appliance.engine.wait("a cancel", |state| (state.cancelled == at).then_some(()));
        let record = records(&appliance, at)[at - 1].clone();
        assert_eq!((record.outcome.as_str(), record.client.as_str()), ("cancelled", "alice"));
        let sent = if stream { "wait…" } else { "" };
        assert_eq!(record.answer_sha256, hex::encode(Sha256::digest(sent)));
    }
}

#[test]
fn slow_clients_do_not_block_another() {
    let appliance = Appliance::start();
    let mut slow = Vec::new();
    for at in 0..SLOW_CLIENTS {
        let mut client = appliance.connect();
        let request = match at % 2 {
            0 => "POST /v1/chat/completions HTTP/1.1\r\nhost: loc".to_owned(),
            _ => post(&chat("flood", &json!({"stream": true})).to_string()),
        };
        client.send(request).unwrap();
        slow.push(client);
    }
    let floods = SLOW_CLIENTS / 2;
    appliance.engine.wait("the floods", |state| (state.chats.len() == floods).then_some(()));
    // Connections that never start their handshake.
    let mut silent = Vec::new();
    for _ in 0..SLOW_CLIENTS {
        silent.push(TcpStream::connect(appliance.address).unwrap());
    }
    silent[0].write_all(&[22, 3, 1]).unwrap();
    let started = Instant::now();
    let response = appliance.connect().ask_chat("quick", &json!({}));
    assert_eq!(response.status, 200);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn more_chats_than_the_maximum_are_told_to_come_back() {
    let appliance = Appliance::start();
    let request = post(&chat("hang", &json!({"stream": true})).to_string());
    let chats_max = CHATS_MAX as usize;
    let mut hanging = Vec::new();
    for _ in 0..chats_max {
        let mut client = appliance.connect();
        client.send(&request).unwrap();
        hanging.push(client);
    }
    appliance.engine.wait("the chats", |state| (state.chats.len() == chats_max).then_some(()));
    let response = appliance.connect().ask_chat("one more", &json!({}));
    assert_eq!(response.error(), (429, "overloaded".to_owned()));
    assert!(response.head.contains("retry-after: "));
    drop(hanging.pop());
    records(&appliance, 1);
    assert_eq!(appliance.connect().ask_chat("one more", &json!({})).status, 200);
}

#[test]
fn on_sigterm_what_is_under_way_is_recorded() {
    let mut appliance = Appliance::start();
    let mut client = appliance.connect();
    client.send(post(&chat("hang", &json!({"stream": true})).to_string())).unwrap();
    client.read_until("wait");
    appliance.terminate();
    assert!(client.read_to_end().unwrap().contains("shutting_down"));
    assert!(appliance.wait_exit().success());
    assert_eq!(records(&appliance, 1)[0].outcome, "error:shutdown");
}
