//! agentd and an auditor enrol a machine with a real TPM (swtpm), over the gateway's socket and by a stick.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod appliance;

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use appliance::{Agentd, Appliance};
use evidence::enrol::{Draw, EnrolError, Enrollee, Roots, finish};
use evidence::format::{Challenge, Evidence, Identity, Response, Secret};
use ipc::{AgentReply, AgentRequest};
use serde::Serialize;

const DRAW: Draw = Draw { secret: [0x5e; 32], seed: [0x31; 32], padding: [0x32; 32] };

fn identity(agentd: &Agentd) -> Identity {
    match agentd.ask(&AgentRequest::Identity) {
        AgentReply::Identity { json } => serde_json::from_str(&json).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn challenge(appliance: &Appliance, identity: &Identity) -> (Challenge, Secret) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let roots = Roots::parse(&appliance.roots()).unwrap();
    let enrollee = Enrollee::verify(identity, &roots, now).unwrap();
    enrollee.challenge(&DRAW, "2026-11-01T00:00:00Z".to_owned()).unwrap()
}

fn enrol(agentd: &Agentd, challenge: &Challenge) -> AgentReply {
    loop {
        let challenge = serde_json::to_string(challenge).unwrap();
        match agentd.ask(&AgentRequest::Enrol { challenge }) {
            AgentReply::Busy { seconds } => {
                std::thread::sleep(std::time::Duration::from_secs(seconds));
            }
            other => return other,
        }
    }
}

#[test]
fn a_machine_is_enrolled_over_the_gateway_s_socket() {
    let Some(appliance) = Appliance::boot_certified() else { return };
    let agentd = appliance.start_ready();
    let identity = identity(&agentd);
    let (challenge, secret) = challenge(&appliance, &identity);
    let AgentReply::Enrolled { json } = enrol(&agentd, &challenge) else { panic!("no response") };
    let response: Response = serde_json::from_str(&json).unwrap();
    let machine = finish(&identity, &secret, &response).unwrap();
    assert!(agentd.console().contains(&format!("agentd: attestation key {}", machine.ak_name)));
    assert!(machine.enrolment.unwrap().tpm.contains("model swtpm"));

    let other = Draw { secret: [1; 32], ..DRAW };
    let error =
        finish(&identity, &Secret { secret: hex::encode(other.secret), ..secret }, &response);
    assert!(matches!(error, Err(EnrolError::OtherSecret { .. })), "{error:?}");
}

#[test]
fn challenges_are_paced_and_bad_ones_are_refused() {
    let Some(appliance) = Appliance::boot_certified() else { return };
    let agentd = appliance.start_ready();
    let identity = identity(&agentd);
    let (good, _) = challenge(&appliance, &identity);
    assert!(matches!(enrol(&agentd, &good), AgentReply::Enrolled { .. }));
    let json = serde_json::to_string(&good).unwrap();
    let again = agentd.ask(&AgentRequest::Enrol { challenge: json });
    assert!(matches!(again, AgentReply::Busy { .. }), "{again:?}");
    let refused = |challenge: &Challenge, part: &str| match enrol(&agentd, challenge) {
        AgentReply::Error { message } => assert!(message.contains(part), "{message}"),
        other => panic!("{other:?}"),
    };
    refused(&Challenge { schema: "v2".to_owned(), ..good.clone() }, "schema");
    refused(&Challenge { ak_name: "000b".to_owned(), ..good.clone() }, "this machine has 000b");
    refused(&Challenge { id_object: "AAAA".to_owned(), ..good.clone() }, "ActivateCredential");
    let long = "A".repeat(ipc::CHALLENGE_BYTES_MAX);
    refused(&Challenge { id_object: long, ..good.clone() }, "are read");
    // None of these leaves the TPM in a state in which it does not answer.
    assert!(matches!(enrol(&agentd, &good), AgentReply::Enrolled { .. }));
}

#[test]
fn a_machine_without_a_certificate_says_so_and_serves() {
    let Some(appliance) = Appliance::boot() else { return };
    let agentd = appliance.start_ready();
    match agentd.ask(&AgentRequest::Identity) {
        AgentReply::Error { message } => assert!(message.contains("no usable EK"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(agentd.status().model, None);
}

/// Lays a stick with these files into the mount point, at once.
fn plug(appliance: &Appliance, files: &[(&str, String)]) {
    let new = appliance.path("exchange/new");
    fs::create_dir(&new).unwrap();
    for (name, text) in files {
        fs::write(new.join(name), text).unwrap();
    }
    fs::rename(new, medium(appliance)).unwrap();
}

/// Takes the stick out. The next one may be in before agentd looks again.
fn pull(appliance: &Appliance) {
    fs::rename(medium(appliance), appliance.path("exchange/pulled")).unwrap();
}

fn medium(appliance: &Appliance) -> std::path::PathBuf {
    appliance.path("exchange/medium")
}

fn read<T: serde::de::DeserializeOwned>(folder: &Path, name: &str) -> T {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

#[test]
fn a_machine_is_enrolled_by_files_on_a_stick() {
    let Some(appliance) = Appliance::boot_certified() else { return };
    let mut agentd = appliance.start_ready();
    plug(&appliance, &[]);
    agentd.wait_for("exchange medium: identity.json written");
    agentd.wait_for("it may be pulled");
    let medium = medium(&appliance);
    let identity: Identity = read(&medium, "identity.json");
    assert_eq!(fs::read_dir(&medium).unwrap().count(), 1, "nobody asked for more");
    let (challenge, secret) = challenge(&appliance, &identity);
    pull(&appliance);

    let nonce = "A5".repeat(32);
    plug(&appliance, &[("challenge.json", text(&challenge)), ("nonce.txt", nonce + "\r\n")]);
    agentd.wait_for("exchange medium: evidence.json written");
    let machine = finish(&identity, &secret, &read::<Response>(&medium, "response.json")).unwrap();
    assert_eq!(machine.ak_name, secret.ak_name);
    let evidence: Evidence = read(&medium, "evidence.json");
    assert_eq!(evidence.nonce, "a5".repeat(32));
}

#[test]
fn a_bad_stick_is_one_line_for_each_fault_and_stops_nothing() {
    let Some(appliance) = Appliance::boot_certified() else { return };
    let mut agentd = appliance.start_ready();
    let (bad, long) = ("{}".to_owned(), "0".repeat(200));
    plug(&appliance, &[("challenge.json", bad), ("nonce.txt", long)]);
    agentd.wait_for("exchange medium: no answer to challenge.json");
    agentd.wait_for("exchange medium: cannot read nonce.txt: more than 128 bytes");
    agentd.wait_for("it may be pulled");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(agentd.console().matches("no answer to challenge.json").count(), 1);
    pull(&appliance);
    // A directory in the place of the new file stands for every write that fails, as on a full or read-only stick.
    let new = appliance.path("exchange/new");
    fs::create_dir_all(new.join("identity.json.new")).unwrap();
    fs::rename(new, medium(&appliance)).unwrap();
    agentd.wait_for("exchange medium: cannot write identity.json");
    assert_eq!(agentd.status().model, None);
    assert!(agentd.terminate().success());
}
