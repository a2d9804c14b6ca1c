//! agentd against disks, images and bundles from the past, with a real TPM (swtpm).

use std::fs;
use std::path::Path;

use evidence::exception::{Allow, EXCEPTION_SCHEMA, Exception};
use evidence::format::Evidence;
use evidence::ledger::{Event, Record};
use ipc::{AgentReply, AgentRequest};
use serde_json::Value;

use crate::appliance::engine::Engine;
use crate::appliance::{Agentd, Appliance, medium};

const INDEX: &str = "0x0180ca5e";

/// Starts once, to the end.
fn start_and_stop(appliance: &Appliance) {
    assert!(appliance.start_ready().terminate().success());
}

fn versions(appliance: &Appliance) -> Value {
    serde_json::from_slice(&fs::read(appliance.path("ledger/versions.json")).unwrap()).unwrap()
}

fn count(appliance: &Appliance) -> u64 {
    versions(appliance)["count"]["value"].as_u64().unwrap()
}

/// What the console shows after `label`.
fn shown(agentd: &Agentd, label: &str) -> String {
    let console = agentd.console();
    let line = console.lines().find_map(|line| line.split_once(label)).unwrap();
    line.1.trim().to_owned()
}

fn events(agentd: &Agentd) -> Vec<Event> {
    let reply = agentd.ask(&AgentRequest::Evidence { nonce: "5a".repeat(32) });
    let AgentReply::Evidence { json } = reply else { panic!("{reply:?}") };
    let evidence: Evidence = serde_json::from_str(&json).unwrap();
    evidence.ledger.records.iter().map(|r| Record::parse(&r.record).unwrap().event).collect()
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn exception(machine: &str, counter: Option<u64>, allow: Allow) -> Exception {
    let reason = "the new one does not start here".to_owned();
    let schema = EXCEPTION_SCHEMA.to_owned();
    Exception { schema, machine: machine.to_owned(), counter, allow, reason }
}

/// A medium with nothing but an exception.
fn insert_exception(appliance: &Appliance, exception: &Exception, holders: &[u8]) {
    let (folder, new) = (appliance.path("bundle"), appliance.path("exception-only"));
    fs::create_dir(&new).unwrap();
    medium::except(&new, exception, holders);
    medium::eject(&folder);
    fs::rename(new, folder).unwrap();
}

fn eject(appliance: &Appliance) {
    medium::eject(&appliance.path("bundle"));
    fs::create_dir(appliance.path("bundle")).unwrap();
}

#[test]
fn the_counter_counts_once_for_each_boot() {
    let Some(mut appliance) = Appliance::boot() else { return };
    start_and_stop(&appliance);
    let first = count(&appliance);
    start_and_stop(&appliance);
    assert_eq!(count(&appliance), first, "a restart is no boot");
    appliance.reboot();
    let agentd = appliance.start_ready();
    assert_eq!(shown(&agentd, "counter "), format!("{}, state began at {first}", first + 1));
    let counts: Vec<_> =
        events(&agentd).iter().filter_map(Event::count).map(|count| count.value).collect();
    assert_eq!(counts, [first, first, first + 1]);
}

#[test]
fn a_power_cut_before_the_counter_counted_is_made_good() {
    let Some(mut appliance) = Appliance::boot() else { return };
    start_and_stop(&appliance);
    let before = count(&appliance);
    // What is on disk when the power fails between the file and the counter.
    let mut file = versions(&appliance);
    file["count"]["value"] = (before + 1).into();
    fs::write(appliance.path("ledger/versions.json"), file.to_string()).unwrap();
    appliance.reboot();
    start_and_stop(&appliance);
    assert!(count(&appliance) > before);
    appliance.reboot();
    start_and_stop(&appliance);
}

#[test]
fn a_power_cut_while_the_counter_is_defined_begins_again() {
    let Some(mut appliance) = Appliance::boot() else { return };
    start_and_stop(&appliance);
    let mut file = versions(&appliance);
    let began = file["count"]["began"].as_u64().unwrap();
    file["count"] = Value::Null;
    fs::write(appliance.path("ledger/versions.json"), file.to_string()).unwrap();
    appliance.reboot();
    let agentd = appliance.start_ready();
    assert!(agentd.terminate().success());
    // An auditor who pinned the beginning sees it.
    assert!(versions(&appliance)["count"]["began"].as_u64().unwrap() > began);
}

#[test]
fn a_state_restored_from_an_older_copy_serves_nobody() {
    let Some(mut appliance) = Appliance::boot() else { return };
    start_and_stop(&appliance);
    copy(&appliance.path("ledger"), &appliance.path("copy"));
    for _ in 0..2 {
        appliance.reboot();
        start_and_stop(&appliance);
    }
    copy(&appliance.path("ledger"), &appliance.path("newest"));
    copy(&appliance.path("copy"), &appliance.path("ledger"));
    appliance.reboot();
    appliance.start().wait_refused("the state was rolled back");
    appliance.start().wait_refused("belongs to the count 1, and the TPM's counter shows 3");
    // The refusal changed nothing: the right state still fits.
    copy(&appliance.path("newest"), &appliance.path("ledger"));
    start_and_stop(&appliance);
}

#[test]
fn a_state_of_another_machine_serves_nobody() {
    let Some(mut appliance) = Appliance::boot() else { return };
    let Some(other) = Appliance::boot() else { return };
    for appliance in [&appliance, &other] {
        start_and_stop(appliance);
    }
    // The counts are the same, the passwords are not.
    copy(&other.path("ledger"), &appliance.path("ledger"));
    appliance.reboot();
    appliance.start().wait_refused("TPM2_NV_Increment failed");
}

#[test]
fn a_state_without_its_file_or_counter_serves_nobody() {
    let Some(mut appliance) = Appliance::boot() else { return };
    start_and_stop(&appliance);
    let file = appliance.path("ledger/versions.json");
    let text = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    appliance.reboot();
    appliance.start().wait_refused("the state is gone: the TPM's counter shows 1");
    fs::write(&file, text).unwrap();
    appliance.tool(&["tpm2_nvundefine", INDEX]);
    appliance.start().wait_refused("the TPM's counter is gone: the state belongs to the count 1");
}

#[test]
fn a_counter_that_the_owner_redefined_serves_nobody() {
    let Some(mut appliance) = Appliance::boot() else { return };
    start_and_stop(&appliance);
    appliance.reboot();
    appliance.tool(&["tpm2_nvundefine", INDEX]);
    let attributes = "ownerread|authread|ownerwrite|authwrite|no_da|nt=counter";
    appliance.tool(&["tpm2_nvdefine", INDEX, "-s", "8", "-a", attributes]);
    appliance.tool(&["tpm2_nvincrement", INDEX]);
    appliance.start().wait_refused("is not the counter: its Name is 000b");

    // Attributes and policy as they should be, with a password of somebody else's.
    appliance.tool(&["tpm2_nvundefine", INDEX]);
    let policy = appliance.path("policy");
    fs::write(&policy, evidence::counter::policy()).unwrap();
    let (policy, attributes) =
        (policy.to_str().unwrap(), "ownerread|authread|policywrite|no_da|nt=counter");
    appliance.tool(&["tpm2_nvdefine", INDEX, "-s", "8", "-a", attributes, "-L", policy]);
    appliance.start().wait_refused("the TPM's counter is gone");
}

#[test]
fn an_older_bundle_is_refused_and_an_exception_allows_it_once() {
    let Some(mut appliance) = Appliance::boot() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    let bundle = appliance.path("bundle");
    medium::insert(&bundle, &medium::files_of(2, "new"), &[1, 2]);
    let mut agentd = appliance.start_ready();
    drop(engine.given());
    agentd.wait_for("versions raised: image 1, site 1, smollm2-135m 2");
    let machine = shown(&agentd, "attestation key ");
    assert!(agentd.terminate().success());

    appliance.reboot();
    let old = medium::files_of(1, "old");
    medium::insert(&bundle, &old, &[1, 2]);
    let mut agentd = appliance.start_ready();
    agentd.wait_for("bundle refused: smollm2-135m version 1 is below 2, which has run here");
    let now = Some(count(&appliance));
    let allow = || Allow { bundles: [("smollm2-135m".to_owned(), 1)].into(), ..Allow::default() };
    let insert = |exception: &Exception, holders: &[u8]| {
        medium::insert_changed(&bundle, &old, &[1, 2], |medium| {
            medium::except(medium, exception, holders);
        });
    };
    let other = format!("{}0", &machine[..machine.len() - 1]);
    let other = if other == machine { format!("{}1", &machine[..67]) } else { other };
    insert(&exception(&other, now, allow()), &[1, 2]);
    agentd.wait_for("exception refused: the exception is for the machine");
    insert(&exception(&machine, now, allow()), &[1]);
    agentd.wait_for("exception refused: exception: 1 of 2 needed signatures");
    assert!(engine.is_untouched());

    insert(&exception(&machine, now, allow()), &[1, 2]);
    agentd.wait_for(
        "exception accepted: the new one does not start here signers release-1, release-2",
    );
    agentd.wait_for("bundle admitted smollm2-135m");
    assert_eq!(engine.given().load.model_id, "smollm2-135m");
    let events = events(&agentd);
    let refused = events.iter().filter(|e| matches!(e, Event::ExceptionRefused { .. })).count();
    let accepted = events.iter().any(
        |e| matches!(e, Event::ExceptionAccepted { count, .. } if Some(count.value - 1) == now),
    );
    assert!(refused == 2 && accepted, "{events:#?}");
    assert!(agentd.terminate().success());

    // The new one runs again, and the used exception does not bring the old one back.
    appliance.reboot();
    medium::insert(&bundle, &medium::files_of(2, "new"), &[1, 2]);
    let mut agentd = appliance.start_ready();
    drop(engine.given());
    agentd.wait_for("versions raised");
    assert!(agentd.terminate().success());
    appliance.reboot();
    insert(&exception(&machine, now, allow()), &[1, 2]);
    let mut agentd = appliance.start_ready();
    agentd.wait_for("exception refused: the exception is for a counter of 3; it shows");
    agentd.wait_for("bundle refused: smollm2-135m version 1 is below 2");
}

#[test]
fn a_bundle_that_the_engine_refused_leaves_the_older_one_usable() {
    let Some(mut appliance) = Appliance::boot() else { return };
    let bundle = appliance.path("bundle");
    medium::insert(&bundle, &medium::files_of(2, "broken"), &[1, 2]);
    let engine = Engine::listen(&appliance.path("engine.sock"), Some("no GGUF"));
    let mut agentd = appliance.start_ready();
    agentd.wait_for("the engine refused it: no GGUF");
    drop(engine.given());
    assert!(agentd.terminate().success());
    appliance.reboot();
    medium::insert(&bundle, &medium::files_of(1, "good"), &[1, 2]);
    let mut agentd = appliance.start_ready();
    agentd.wait_for("bundle admitted smollm2-135m");
}

#[test]
fn an_older_image_is_refused_until_a_quorum_allows_it() {
    let Some(mut appliance) = Appliance::boot() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    appliance.install(3);
    medium::insert(&appliance.path("bundle"), &medium::files("w"), &[1, 2]);
    let mut agentd = appliance.start_ready();
    drop(engine.given());
    agentd.wait_for("versions raised: image 3");
    let machine = shown(&agentd, "attestation key ");
    assert!(agentd.terminate().success());

    eject(&appliance);
    appliance.reboot();
    appliance.install(2);
    let now = count(&appliance);
    let refusal = "image version 2 is below 3, which has run here";
    appliance.start().wait_refused(&format!("{refusal}; the TPM's counter shows {now};"));
    // The quorum takes its time; the machine is off meanwhile.
    appliance.reboot();
    let allow = |image| Allow { image: Some(image), ..Allow::default() };
    let now = Some(now);
    // Not low enough, not this machine's count, not signed by enough.
    insert_exception(&appliance, &exception(&machine, now, allow(3)), &[1, 2]);
    appliance.start().wait_refused("exception refused: image version 2 is below 3");
    insert_exception(&appliance, &exception(&machine, Some(1), allow(2)), &[1, 2]);
    appliance.start().wait_refused("exception refused: the exception is for a counter of 1");
    insert_exception(&appliance, &exception(&machine, now, allow(2)), &[3]);
    appliance.start().wait_refused("1 of 2 needed signatures");
    insert_exception(&appliance, &exception(&machine, now, allow(2)), &[2, 3]);
    let agentd = appliance.start_ready();
    let events = events(&agentd);
    assert!(events.iter().any(|e| matches!(e, Event::ExceptionAccepted { .. })), "{events:#?}");
    assert!(agentd.terminate().success());
    appliance.install(1);
    appliance.start().wait_refused("image version 1 is below 2");
}

#[test]
fn an_older_site_configuration_is_refused_until_a_quorum_allows_it() {
    let Some(mut appliance) = Appliance::boot() else { return };
    let engine = Engine::listen(&appliance.path("engine.sock"), None);
    let path = appliance.path("site/site.json");
    let site = |version: u64| {
        let mut text: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        text["version"] = version.into();
        fs::write(&path, text.to_string()).unwrap();
    };
    site(2);
    medium::insert(&appliance.path("bundle"), &medium::files("w"), &[1, 2]);
    let mut agentd = appliance.start_ready();
    drop(engine.given());
    agentd.wait_for("versions raised: image 1, site 2");
    let machine = shown(&agentd, "attestation key ");
    assert!(agentd.terminate().success());
    site(1);
    eject(&appliance);
    appliance.reboot();
    appliance.start().wait_refused("site configuration version 1 is below 2, which has run here");
    let allow = Allow { site: Some(1), ..Allow::default() };
    insert_exception(&appliance, &exception(&machine, Some(count(&appliance)), allow), &[1, 2]);
    start_and_stop(&appliance);
}

#[test]
fn a_quorum_lets_a_machine_go_on_with_an_older_state() {
    let Some(mut appliance) = Appliance::boot() else { return };
    let agentd = appliance.start_ready();
    let machine = shown(&agentd, "attestation key ");
    assert!(agentd.terminate().success());
    copy(&appliance.path("ledger"), &appliance.path("copy"));
    for _ in 0..2 {
        appliance.reboot();
        start_and_stop(&appliance);
    }
    let now = count(&appliance);
    copy(&appliance.path("copy"), &appliance.path("ledger"));
    appliance.reboot();
    let state = || Allow { state: true, ..Allow::default() };
    let image = Allow { image: Some(1), ..Allow::default() };
    insert_exception(&appliance, &exception(&machine, Some(now), image), &[1, 2]);
    appliance.start().wait_refused("allow.state");
    // The stick may come while the start is waiting for it.
    appliance.exception_wait_s = 60;
    eject(&appliance);
    let mut agentd = appliance.start();
    agentd.wait_for("the state was rolled back");
    insert_exception(&appliance, &exception(&machine, Some(now), state()), &[1, 2]);
    agentd.wait_for("agentd: ready");
    assert!(shown(&agentd, "state began at ").parse::<u64>().unwrap() > now);
    assert!(agentd.terminate().success());

    // The same stick does nothing for the next copy.
    appliance.exception_wait_s = 0;
    copy(&appliance.path("copy"), &appliance.path("ledger"));
    appliance.reboot();
    appliance.start().wait_refused("exception refused: the exception is for a counter of 3");
}
