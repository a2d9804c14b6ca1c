//! agentd and bundles that are encrypted to one machine in one state of it, with real TPMs (swtpm).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod appliance;

use std::convert::Infallible;
use std::fs;
use std::path::Path;

use appliance::engine::Engine;
use appliance::medium::{self, Files};
use appliance::{Agentd, Appliance};
use evidence::fixture::{pinned, reference};
use evidence::format::{Evidence, Identity, Machine, Reference};
use evidence::sealed::{self, ContentKey, Draw, Encryptor, PCRS, SealedKey};
use ipc::{AgentReply, AgentRequest};
use serde_json::{Value, json};

/// What the packer of a bundle knows of a machine that runs: its identity, enrolled, and the boot as it should be.
struct Known {
    identity: Identity,
    machine: Machine,
    reference: Reference,
}

impl Known {
    fn of(agentd: &Agentd) -> Self {
        let AgentReply::Identity { json } = agentd.ask(&AgentRequest::Identity) else {
            panic!("no identity")
        };
        let identity: Identity = serde_json::from_str(&json).unwrap();
        let machine = pinned(&identity);
        let nonce = "a5".repeat(32);
        let AgentReply::Evidence { json } = agentd.ask(&AgentRequest::Evidence { nonce }) else {
            panic!("no evidence")
        };
        let pcrs = serde_json::from_str::<Evidence>(&json).unwrap().quote.pcrs;
        let predicted = PCRS.map(|pcr| (pcr, pcrs[&pcr].clone()));
        Self { identity, machine, reference: Reference { pcrs: predicted.into(), ..reference() } }
    }

    fn seal(&self) -> (SealedKey, ContentKey) {
        let draw = Draw::new(|bytes| {
            bytes.fill(0x5e);
            Ok::<_, Infallible>(())
        });
        SealedKey::seal(&self.identity, &self.machine, &self.reference, &draw.unwrap()).unwrap()
    }

    /// Plugs a medium for this machine in, after `change`.
    fn insert(&self, appliance: &Appliance, files: &Files, change: impl FnOnce(&Path)) {
        let (sealed, content) = self.seal();
        medium::insert_changed(&appliance.path("bundle"), files, &[1, 2], |medium| {
            for (name, plain) in files {
                encrypt(medium, name, plain, &content);
            }
            fs::create_dir(medium.join(sealed::FOLDER)).unwrap();
            fs::write(medium.join("sealed/key.json"), sealed.to_json().unwrap()).unwrap();
            change(medium);
        });
    }
}

fn encrypt(medium: &Path, name: &str, plain: &[u8], content: &ContentKey) {
    let mut file = fs::File::create(medium.join("model").join(name)).unwrap();
    std::io::copy(&mut Encryptor::new(content, name, plain), &mut file).unwrap();
}

/// Changes one field of the key's file.
fn edit(medium: &Path, field: &str, value: Value) {
    let path = medium.join("sealed/key.json");
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    file[field] = value;
    fs::write(path, file.to_string()).unwrap();
}

#[test]
fn a_sealed_bundle_runs_in_the_boot_for_which_it_was_packed() {
    let Some(mut appliance) = Appliance::boot_certified() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    let agentd = appliance.start_ready();
    let (known, files) = (Known::of(&agentd), medium::files("w"));
    assert!(agentd.terminate().success());

    // Secure Boot's variables changed; then a command line from outside.
    for (pcr, name) in [(7, "PCR 7 is "), (12, "PCR 12 is ")] {
        appliance.reboot();
        appliance.extend(pcr);
        known.insert(&appliance, &files, |_| ());
        let mut agentd = appliance.start_ready();
        agentd.wait_for("agentd: bundle refused: the bundle is encrypted: it is sealed to another");
        let reason = agentd.status().refusal.unwrap();
        assert!(reason.contains(name) && reason.contains("--seal-reference"), "{reason}");
        assert_eq!(reason.matches("expected").count(), 1, "{reason}");
        assert!(engine.is_untouched());
        assert!(agentd.terminate().success());
    }

    appliance.reboot();
    let mut agentd = appliance.start_ready();
    agentd.wait_for("agentd: bundle admitted smollm2-135m");
    let given = engine.given();
    let expected = files.into_iter().map(|(name, content)| (name.to_owned(), content));
    assert_eq!(given.files, expected.collect::<Vec<_>>());
    let weights = fs::read(appliance.path("bundle/model/weights/model.gguf")).unwrap();
    assert!(weights != given.files[1].1, "the medium shows the weights");
}

#[test]
fn a_bundle_that_is_sealed_to_another_machine_is_refused() {
    let Some(one) = Appliance::boot_certified() else { return };
    let Some(two) = Appliance::boot_certified() else { return };
    let engine = Engine::listen(&two.path("engine.sock"), None);
    let first = Known::of(&one.start_ready());
    let mut agentd = two.start_ready();
    let (second, files) = (Known::of(&agentd), medium::files("w"));
    first.insert(&two, &files, |_| ());
    let (found, expected) = (&second.machine.ak_name, &first.machine.ak_name);
    let reason = format!(
        "agentd: bundle refused: the bundle is encrypted: it is sealed to another machine, with the attestation key \
         {expected}; this machine has {found}"
    );
    agentd.wait_for(&reason);
    // The names on the file are not what protects it.
    first.insert(&two, &files, |medium| edit(medium, "ak_name", json!(found)));
    agentd.wait_for("with the EK certificate");
    let certificate = &second.machine.enrolment.as_ref().unwrap().ek_certificate_sha256;
    first.insert(&two, &files, |medium| {
        edit(medium, "ak_name", json!(found));
        edit(medium, "ek_certificate_sha256", json!(certificate));
    });
    agentd.wait_for("the TPM does not give out its key: TPM command TPM2_Import failed");
    assert!(engine.is_untouched());
    // What the TPM was asked has not broken anything.
    second.insert(&two, &files, |_| ());
    assert_eq!(engine.given().files.len(), 2);
}

#[test]
fn what_was_changed_on_a_sealed_medium_is_named() {
    let Some(appliance) = Appliance::boot_certified() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    let mut agentd = appliance.start_ready();
    let (known, files) = (Known::of(&agentd), medium::files("w"));
    let weights = "model/weights/model.gguf";
    known.insert(&appliance, &files, |medium| {
        let mut content = fs::read(medium.join(weights)).unwrap();
        content[sealed::CHUNK_BYTES + 100] ^= 1;
        fs::write(medium.join(weights), content).unwrap();
    });
    agentd.wait_for("\"weights/model.gguf\" does not open with the bundle's key at chunk 1 ");
    known.insert(&appliance, &files, |medium| {
        let file = fs::File::options().write(true).open(medium.join(weights)).unwrap();
        file.set_len((sealed::CHUNK_BYTES + sealed::TAG_BYTES) as u64).unwrap();
    });
    agentd.wait_for("\"weights/model.gguf\" does not open with the bundle's key at chunk 0 ");
    known.insert(&appliance, &files, |medium| fs::write(medium.join(weights), "short").unwrap());
    agentd.wait_for("\"weights/model.gguf\" has 5 bytes, a length that no encrypted file has");
    known.insert(&appliance, &files, |medium| {
        fs::write(medium.join("model/casemate.json"), &files[0].1).unwrap();
    });
    agentd.wait_for("\"casemate.json\" does not open with the bundle's key at chunk 0 ");
    known.insert(&appliance, &files, |medium| {
        fs::remove_file(medium.join("sealed/key.json")).unwrap();
    });
    agentd.wait_for("\"sealed/key.json\" on the medium cannot be opened or read: No such file");
    known.insert(&appliance, &files, |medium| {
        fs::remove_dir_all(medium.join("sealed")).unwrap();
    });
    agentd.wait_for("files differ from what was signed: 2 changed");
    known.insert(&appliance, &files, |medium| edit(medium, "note", json!(1)));
    agentd.wait_for("sealed/key.json refused: unknown field");
    known.insert(&appliance, &files, |medium| edit(medium, "duplicate", json!("AAAA")));
    agentd.wait_for("the TPM does not give out its key");
    // Encrypted content that the quorum did not sign.
    known.insert(&appliance, &files, |medium| {
        encrypt(medium, "weights/model.gguf", b"other weights", &known.seal().1);
    });
    agentd.wait_for("files differ from what was signed: 1 changed: weights/model.gguf");
    assert!(engine.is_untouched());
    known.insert(&appliance, &files, |_| ());
    assert_eq!(engine.given().files.len(), 2);
}
