//! Every unit of ours is as tight as it can be: `systemd-analyze security` rates it at most 1.5, and each remaining
//! exposure has its reason here. A reason that no unit needs any more fails as well.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its functions too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Highest rating of a unit of ours, in tenths.
const EXPOSURE_TENTHS_MAX: u32 = 15;
/// Unit, setting as systemd-analyze names it, why it stays.
const EXPOSED: &[(&str, &str, &str)] = &[
    (
        "*",
        "RootDirectoryOrRootImage",
        "the root is the verified image; there is no other tree to confine to",
    ),
    ("*", "DeviceAllow", "ProtectClock= itself lets a service read the clock's device"),
    ("*", "SystemCallFilter_privileged", "capset, to drop the capabilities that there are none of"),
    ("casemate-agentd.service", "SupplementaryGroups", "group tss opens the TPM"),
    ("casemate-agentd.service", "PrivateDevices", "the TPM is a device"),
    (
        "casemate-agentd.service",
        "RestrictSUIDSGID",
        "it takes openat2(2) away, which follows no link out of a medium",
    ),
    (
        "casemate-agentd.service",
        "PrivateUsers",
        "the ledger's owner and the TPM's group are the system's",
    ),
    (
        "casemate-agentd.service",
        "RestrictAddressFamilies_AF_UNIX",
        "engine and gateway are reached by Unix sockets",
    ),
    (
        "casemate-recovery.service",
        "UserOrDynamicUser",
        "root owns the partition's device and locks",
    ),
    ("casemate-recovery.service", "PrivateDevices", "the TPM and the partition are devices"),
    (
        "casemate-recovery.service",
        "RestrictAddressFamilies_OTHER",
        "AF_ALG: libcryptsetup encrypts a key slot by the kernel's ciphers",
    ),
    ("casemate-recovery.service", "PrivateUsers", "the device's owner is the system's root"),
    ("casemate-reseal-accept.service", "SupplementaryGroups", "group tss opens the TPM"),
    ("casemate-reseal-accept.service", "PrivateDevices", "the TPM is a device"),
    (
        "casemate-reseal-accept.service",
        "RestrictSUIDSGID",
        "it takes openat2(2) away, which follows no link out of a medium",
    ),
    (
        "casemate-reseal-accept.service",
        "PrivateUsers",
        "the order's owner and the TPM's group are the system's",
    ),
    ("casemate-reseal-accept.service", "UMask", "casemate-reseal.service reads the order as group"),
    ("casemate-reseal.service", "UserOrDynamicUser", "root owns the partition's device and locks"),
    ("casemate-reseal.service", "PrivateDevices", "the TPM and the partition are devices"),
    (
        "casemate-reseal.service",
        "RestrictAddressFamilies_OTHER",
        "AF_ALG: libcryptsetup encrypts a key slot by the kernel's ciphers",
    ),
    ("casemate-reseal.service", "PrivateUsers", "the device's owner is the system's root"),
    ("casemate-reseal.service", "UMask", "casemate-reseal-accept.service reads the list as group"),
    ("casemate-reset.service", "SupplementaryGroups", "groups tss and disk open TPM and disk"),
    ("casemate-reset.service", "PrivateDevices", "the TPM and the disk are devices"),
    (
        "casemate-reset.service",
        "RestrictSUIDSGID",
        "it takes openat2(2) away, which follows no link out of a medium",
    ),
    ("casemate-reset.service", "PrivateUsers", "the groups of TPM and disk are the system's"),
    ("casemate-update.service", "UserOrDynamicUser", "root owns the disk and its partitions"),
    ("casemate-update.service", "PrivateDevices", "an image is written to partitions"),
    (
        "casemate-update.service",
        "RestrictSUIDSGID",
        "it takes openat2(2) away, which follows no link out of a medium",
    ),
    ("casemate-update.service", "PrivateUsers", "the disk's owner is the system's root"),
    ("casemate-update-bless.service", "UserOrDynamicUser", "root owns the EFI system partition"),
    ("casemate-update-bless.service", "PrivateUsers", "its owner is the system's root"),
    ("casemate-update-retry.service", "UserOrDynamicUser", "the initrd has no other user"),
    (
        "casemate-gateway.service",
        "RestrictAddressFamilies_AF_UNIX",
        "engine and agentd are reached by Unix sockets",
    ),
    (
        "casemate-gateway.service",
        "IPAddressDeny",
        "clients come from the whole internal network; nftables bounds the rest",
    ),
];

fn systemd_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join("systemd")
}

fn units() -> Vec<PathBuf> {
    let entries = fs::read_dir(systemd_folder()).unwrap();
    let mut units: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "service"))
        .collect();
    units.sort();
    assert!(units.len() >= 3, "{units:?}");
    units
}

fn analyze(unit: &Path, json: &str) -> String {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", json])
        .arg(unit)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `→ Overall exposure level for x.service: 0.9 SAFE :-}`, in tenths.
fn overall_tenths(unit: &Path) -> u32 {
    let text = analyze(unit, "--json=off");
    let line = text.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let number = line.rsplit_once(": ").unwrap().1.split_whitespace().next().unwrap();
    number.replace('.', "").parse().unwrap()
}

/// Settings that systemd-analyze counts against the unit.
fn exposed(unit: &Path) -> BTreeSet<String> {
    let settings: Vec<Value> = serde_json::from_str(&analyze(unit, "--json=short")).unwrap();
    settings
        .iter()
        .filter(|setting| setting["set"] == false && setting["exposure"].is_string())
        .filter(|setting| setting["exposure"] != "0.0")
        .map(|setting| setting["json_field"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_unit_of_ours_is_rated_at_most_1_5() {
    for unit in units() {
        let tenths = overall_tenths(&unit);
        assert!(tenths <= EXPOSURE_TENTHS_MAX, "{}: {tenths} tenths", unit.display());
    }
}

#[test]
fn every_remaining_exposure_has_its_reason_and_no_reason_is_stale() {
    let mut needed = BTreeSet::new();
    let mut unexplained = Vec::new();
    for unit in units() {
        let name = unit.file_name().unwrap().to_string_lossy().into_owned();
        for setting in exposed(&unit) {
            let rows: Vec<usize> = (0..EXPOSED.len())
                .filter(|&row| {
                    (EXPOSED[row].0 == "*" || EXPOSED[row].0 == name) && EXPOSED[row].1 == setting
                })
                .collect();
            if rows.is_empty() {
                unexplained.push(format!("{name}: {setting}"));
            }
            needed.extend(rows);
        }
    }
    assert!(unexplained.is_empty(), "no reason in EXPOSED for:\n{}", unexplained.join("\n"));
    let stale: Vec<_> = (0..EXPOSED.len()).filter(|row| !needed.contains(row)).collect();
    assert!(stale.is_empty(), "EXPOSED explains what no unit has: rows {stale:?}");
}
