//! PyPI's `openai`, unchanged, against the gateway.

use std::path::Path;
use std::process::{Command, Output};

use crate::appliance::Appliance;
use crate::chat::records;
use crate::peers::{model, vector};

/// Path of a Python that has `openai` installed.
const PYTHON: &str = "CASEMATE_OPENAI_PYTHON";

fn run(python: &str, appliance: &Appliance, more: &[&str]) -> Output {
    run_script("openai_chat.py", python, appliance, more)
}

fn run_script(script: &str, python: &str, appliance: &Appliance, more: &[&str]) -> Output {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/system/clients");
    let script = clients.join(script);
    let directory = appliance.directory.path();
    std::fs::write(directory.join("ca.pem"), appliance.authority.pem()).unwrap();
    std::fs::write(directory.join("alice.pem"), &appliance.alice.certificate).unwrap();
    std::fs::write(directory.join("alice.key"), &appliance.alice.key).unwrap();
    Command::new(python)
        .arg(script)
        .args(["--base-url", &format!("https://localhost:{}/v1", appliance.address.port())])
        .arg("--ca")
        .arg(directory.join("ca.pem"))
        .arg("--cert")
        .arg(directory.join("alice.pem"))
        .arg("--key")
        .arg(directory.join("alice.key"))
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn an_openai_client_reads_answers_streams_and_errors() {
    let Ok(python) = std::env::var(PYTHON) else {
        println!("skipped: {PYTHON} does not name a Python that has openai installed");
        return;
    };
    let appliance = Appliance::start();
    let id = model().model_id;
    for stream in [&[][..], &["--stream"]] {
        let args = [&["--model", &id, "un deux trois"], stream].concat();
        let output = run(&python, &appliance, &args);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "un deux trois\n");
    }
    assert_eq!(records(&appliance, 2).len(), 2);
    for stream in [&[][..], &["--stream"]] {
        let args = [&["--model", &id, "--top-logprobs", "3", "un deux trois"], stream].concat();
        let output = run(&python, &appliance, &args);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text, "un deux trois\n-0.5\t3\tun \n-0.5\t3\tdeux \n-0.5\t3\ttrois\n");
    }
    let output = run(&python, &appliance, &["--model", &id, "--top-logprobs", "21", "x"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("BadRequestError (invalid_value)"), "{error}");
    for (model, prompt, expected) in [
        ("gpt-4o", "x", "NotFoundError (model_not_found)"),
        (&id, "prompt-too-long", "BadRequestError (context_length_exceeded)"),
        (&id, "overloaded", "RateLimitError (overloaded)"),
        (&id, "die", "APIError (engine_lost): the engine ended before the answer was complete"),
    ] {
        let output = run(&python, &appliance, &["--model", model, "--stream", prompt]);
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_openai_client_reads_vectors_in_both_encodings() {
    let Ok(python) = std::env::var(PYTHON) else {
        println!("skipped: {PYTHON} does not name a Python that has openai installed");
        return;
    };
    let appliance = Appliance::start();
    let id = model().model_id;
    let script = "openai_embeddings.py";
    let output = run_script(script, &python, &appliance, &["--model", &id, "un", "deux"]);
    assert!(output.status.success(), "{output:?}");
    let vectors: Vec<Vec<f32>> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(vectors, [vector(0), vector(1)]);
    assert_eq!(records(&appliance, 2).len(), 2);
    for (text, expected) in [
        ("long", "BadRequestError (context_length_exceeded)"),
        ("unsuited", "NotFoundError (model_not_supported)"),
    ] {
        let output = run_script(script, &python, &appliance, &["--model", &id, text]);
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(expected), "{error}");
    }
}
