//! What is not a chat: models, health, evidence.

use serde_json::json;

use crate::appliance::Appliance;
use crate::client::{Response, bare, post_to};
use crate::peers::{CONTEXT_TOKENS_MAX, CSR, model};

fn get(appliance: &Appliance, path: &str) -> Response {
    appliance.connect().ask(bare("GET", path))
}

#[test]
fn the_admitted_model_is_listed() {
    let appliance = Appliance::start();
    let list = get(&appliance, "/v1/models").json();
    assert_eq!((&list["object"], list["data"].as_array().unwrap().len()), (&json!("list"), 1));
    let found = &list["data"][0];
    assert_eq!(found["id"], model().model_id);
    assert_eq!((&found["object"], &found["owned_by"]), (&json!("model"), &json!("casemate")));
    assert_eq!(found["max_model_len"], CONTEXT_TOKENS_MAX);
    assert!(found["created"].as_u64().unwrap() > 0);
    assert_eq!(get(&appliance, &format!("/v1/models/{}", model().model_id)).json(), *found);
    let missing = get(&appliance, "/v1/models/gpt-4o");
    assert_eq!(missing.error(), (404, "model_not_found".to_owned()));

    appliance.agent.change(|state| state.status.model = None);
    assert_eq!(get(&appliance, "/v1/models").json()["data"], json!([]));
    appliance.stop_agent();
    assert_eq!(get(&appliance, "/v1/models").error(), (503, "agent_unavailable".to_owned()));
}

#[test]
fn health_says_what_is_missing() {
    let appliance = Appliance::start();
    let healthy = get(&appliance, "/healthz");
    assert_eq!(healthy.status, 200);
    assert_eq!(healthy.json()["status"], "ok");
    assert_eq!(healthy.json()["bundle_digest"], model().bundle_digest);

    let reason = |appliance: &Appliance| {
        let response = get(appliance, "/healthz");
        assert_eq!(response.status, 503, "{response:?}");
        assert_eq!(response.json()["status"], "unavailable");
        response.json()["reason"].as_str().unwrap().to_owned()
    };
    appliance.engine.change(|state| state.other_model = Some(None));
    assert!(reason(&appliance).contains("the engine runs bundle none"));
    appliance.stop_engine();
    assert!(reason(&appliance).contains("cannot reach the engine"));
    appliance.agent.change(|state| state.status.model = None);
    assert!(reason(&appliance).contains("no bundle was presented"));
    appliance.agent.change(|state| state.status.refusal = Some("one flipped byte".to_owned()));
    assert!(reason(&appliance).contains("one flipped byte"));
    appliance.stop_agent();
    assert!(reason(&appliance).contains("cannot reach agentd"));
}

#[test]
fn evidence_comes_from_agentd_under_the_verifiers_nonce() {
    let appliance = Appliance::start();
    let nonce = "0F".repeat(32);
    let response = get(&appliance, &format!("/casemate/evidence?nonce={nonce}"));
    assert_eq!(response.status, 200);
    assert!(response.head.contains("content-type: application/json"));
    assert!(response.head.contains("cache-control: no-store"));
    assert_eq!(response.json()["nonce"], nonce.to_lowercase());
    for query in ["", "?nonce=", "?nonce=zz", "?nonce=00", &format!("?nonce={nonce}&nonce={nonce}")]
    {
        let response = get(&appliance, &format!("/casemate/evidence{query}"));
        assert_eq!(response.error(), (400, "invalid_value".to_owned()), "{query}");
    }
    appliance.stop_agent();
    let response = get(&appliance, &format!("/casemate/evidence?nonce={nonce}"));
    assert_eq!(response.error(), (503, "agent_unavailable".to_owned()));
}

#[test]
fn the_confinement_is_reported_once_before_any_client_is_heard() {
    let appliance = Appliance::start();
    let reports = appliance.agent.change(|state| state.confinements.clone());
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].process, "gateway");
    assert_eq!(reports[0].table_sha256, sandbox::GATEWAY.table_sha256());
    assert_eq!(reports[0].self_test, sandbox::self_test_names());
}

#[test]
fn the_signing_request_comes_from_agentd() {
    let appliance = Appliance::start();
    let response = get(&appliance, "/casemate/csr");
    assert_eq!((response.status, response.body.as_str()), (200, CSR));
    appliance.stop_agent();
    assert_eq!(get(&appliance, "/casemate/csr").error(), (503, "agent_unavailable".to_owned()));
}

#[test]
fn identity_and_enrolment_are_agentd_s_words() {
    let appliance = Appliance::start();
    let response = get(&appliance, "/casemate/identity");
    assert_eq!((response.status, &response.json()["schema"]), (200, &json!("i")));
    let enrol = |body: &str| appliance.connect().ask(post_to("/casemate/enrol", body));
    let response = enrol("{}");
    assert_eq!((response.status, &response.json()["schema"]), (200, &json!("r")));
    assert_eq!(enrol("{\"schema\":1}").error(), (400, "invalid_value".to_owned()));
    assert_eq!(enrol("[]").error(), (429, "overloaded".to_owned()));
    let long = format!("\"{}\"", "x".repeat(ipc::CHALLENGE_BYTES_MAX));
    assert_eq!(enrol(&long).error(), (400, "invalid_value".to_owned()));
    let response = get(&appliance, "/casemate/enrol");
    assert_eq!(response.error(), (405, "method_not_allowed".to_owned()));
    appliance.stop_agent();
    assert_eq!(
        get(&appliance, "/casemate/identity").error(),
        (503, "agent_unavailable".to_owned())
    );
    assert_eq!(enrol("{}").error(), (503, "agent_unavailable".to_owned()));
}
