//! The whole life of a machine, with firmware alone: boot, freeze, fork, plug, power cut, boot again.
//! Needs no image: OVMF with an empty disk stays in its boot menu.

use std::fs;
use std::path::Path;
use std::time::Duration;

use qemu::{Accel, Config, Machine, MachineError};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn firmware_boots_freezes_forks_and_boots_again() {
    if !Path::new("/usr/bin/qemu-system-x86_64").exists() || !Path::new("/usr/share/OVMF").exists()
    {
        println!("skipped: QEMU and OVMF are not here; run it in the tools tree");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("casemate.raw"), vec![0; 1 << 20]).unwrap();
    fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", image.join("OVMF_VARS.fd")).unwrap();
    let medium = dir.path().join("medium.img");
    fs::write(&medium, vec![0; 1 << 20]).unwrap();

    let mut config = Config::new(&image, dir.path().join("first"), Accel::Tcg);
    config.memory_mib = 256;
    let mut machine = Machine::boot(config.clone()).unwrap();
    machine.wait_for("BdsDxe", LIMIT).unwrap();
    assert!(machine.forbid("BdsDxe").is_err());
    let snapshot = machine.snapshot().unwrap();
    assert!(snapshot.console().contains("BdsDxe"));
    assert!(matches!(Machine::boot(config), Err(MachineError::State { .. })), "it is frozen");

    let mut fork = snapshot.fork(&dir.path().join("fork")).unwrap();
    let mut other = snapshot.fork(&dir.path().join("other")).unwrap();
    assert_ne!(fork.port(), other.port());
    for machine in [&mut fork, &mut other] {
        assert_eq!(machine.qmp().execute("query-status", &json!({})).unwrap()["status"], "running");
    }
    fork.plug_bundle(&medium).unwrap();
    assert!(fork.qmp().human("info block").unwrap().contains("medium.img"));
    assert!(!other.qmp().human("info block").unwrap().contains("medium.img"));
    let nothing = other.wait_for("never printed", Duration::from_millis(200));
    assert!(matches!(nothing, Err(MachineError::NotSeen { .. })));

    let config = fork.config().clone();
    assert_eq!(config.bundles, [medium]);
    fork.cut_power().unwrap();
    let mut again = Machine::boot(config).unwrap();
    again.wait_for("BdsDxe", LIMIT).unwrap();
    again.quit().unwrap();
}
