//! Forecasts through the real binary: what is said in both languages, and each bad input.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use evidence::fixture::log::{authenticated, signature_list};
use evidence::fixture::{Appliance, reference, sealed_key};
use evidence::forecast::{DatabaseName, Measured};
use evidence::format::Reference;
use evidence::sigdb::CERT_SHA256;

/// The files of whoever foresees an update of the fixture's machine.
struct Desk(PathBuf);

impl Desk {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("forecast").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        let desk = Self(folder);
        let appliance = Appliance::booted();
        let evidence = serde_json::to_vec(&appliance.evidence([7; 32])).unwrap();
        desk.write("evidence.json", &evidence);
        desk.write("machine.json", &serde_json::to_vec(&appliance.machine()).unwrap());
        desk.write("update.auth", &authenticated(&hashes(&[1, 2])));
        desk.write("reference.json", &serde_json::to_vec(&reference()).unwrap());
        desk.seal("medium", 1, &reference());
        desk
    }

    /// `sealed/key.json` of a medium for the machine made of `seed`, in the boot that `reference` predicts.
    fn seal(&self, medium: &str, seed: u8, reference: &Reference) {
        let key = sealed_key(seed, reference).to_json().unwrap();
        fs::create_dir_all(self.0.join(medium).join("sealed")).unwrap();
        self.write(&format!("{medium}/sealed/key.json"), key.as_bytes());
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    fn forecast(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.current_dir(&self.0).env("RUST_BACKTRACE", "0").arg("forecast").args(args);
        command.output().unwrap()
    }

    fn said(&self, args: &[&str]) -> String {
        let output = self.forecast(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn check_refused(&self, args: &[&str], because: &str) {
        let output = self.forecast(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(because), "{because:?}: {said}");
    }
}

fn hashes(fills: &[u8]) -> Vec<u8> {
    let digests: Vec<[u8; 32]> = fills.iter().map(|&fill| [fill; 32]).collect();
    signature_list(CERT_SHA256, [2; 16], &digests.iter().map(|d| &d[..]).collect::<Vec<_>>())
}

#[test]
fn a_dbx_update_is_foreseen_in_both_languages_and_prepared() {
    let desk = Desk::new("dbx");
    let english = desk.said(&["evidence.json", "--dbx-append", "update.auth"]);
    assert!(english.contains("dbx (event 6 of the log): signatures: 2 more, 0 less"), "{english}");
    assert!(english.contains("seal of the state partition: BREAKS, by PCRs [7]"), "{english}");
    let args = ["evidence.json", "--dbx-append", "update.auth", "--lang", "fr"];
    let french = desk.said(&args);
    assert!(french.contains("scellé (partition d'état) : SE BRISE"), "{french}");

    let order = ["--machine", "machine.json", "--reseal", "order", "--json"];
    let json = desk.said(&[&args[..3], &order[..]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let text = fs::read(desk.0.join("order/reseal.json")).unwrap();
    let order = evidence::reseal::Order::parse(&text).unwrap();
    assert_eq!(json["pcrs"]["7"]["before"], order.pcr7_present);
    assert_eq!(json["pcrs"]["7"]["after"], order.pcr7_forecast);
    assert_eq!(json["pcrs"]["0"]["outlook"], "stays");
    assert_eq!(json["seals"][0]["fate"], "breaks");
}

#[test]
fn a_sealed_bundle_is_listed_with_what_to_do() {
    let desk = Desk::new("sealed");
    let update = ["evidence.json", "--dbx-append", "update.auth"];
    let prepare = ["--reference", "reference.json", "--new-reference", "new.json"];
    let sealed = ["--sealed", "medium"];
    let english = desk.said(&[&update[..], &sealed, &prepare].concat());
    assert!(english.contains("seal of the state partition: BREAKS, by PCRs [7]"), "{english}");
    assert!(english.contains("seal of the bundle medium: BREAKS, by PCRs [7]"), "{english}");
    assert!(english.contains("-> pack the bundle again"), "{english}");
    let french = desk.said(&[&update[..], &["--lang", "fr"], &sealed].concat());
    assert!(french.contains("scellé (bundle medium) : SE BRISE"), "{french}");
    assert!(french.contains("-> empaquetez à nouveau le bundle"), "{french}");

    // What the advice says mends it; each way to name the file.
    let new: Reference =
        serde_json::from_slice(&fs::read(desk.0.join("new.json")).unwrap()).unwrap();
    desk.seal("again", 1, &new);
    for path in ["again", "again/sealed", "again/sealed/key.json"] {
        let args = [&update[..], &["--json", "--sealed", "medium", "--sealed", path]].concat();
        let json: serde_json::Value = serde_json::from_str(&desk.said(&args)).unwrap();
        let [state, present, again] = json["seals"].as_array().unwrap().as_slice() else {
            panic!("{json}")
        };
        assert_eq!((&state["name"], &state["fate"]), (&"state-partition".into(), &"breaks".into()));
        assert_eq!((&present["medium"], &present["fate"]), (&"medium".into(), &"breaks".into()));
        assert_eq!((&again["medium"], &again["fate"]), (&path.into(), &"opens".into()));
        assert_eq!(again["closed_now_by"], serde_json::json!([7]));
    }
    let english = desk.said(&[&update[..], &["--sealed", "again"]].concat());
    let waits = "seal of the bundle again: opens; it does not open now, by PCRs [7]";
    assert!(english.contains(waits) && !english.contains("pack the bundle again"), "{english}");

    desk.seal("others", 2, &reference());
    desk.check_refused(
        &[&update[..], &["--sealed", "others"]].concat(),
        "sealed to another machine",
    );
    desk.write("long.json", &[b' '; 16385]);
    desk.check_refused(&[&update[..], &["--sealed", "long.json"]].concat(), "is longer than 16384");
    desk.check_refused(&[&update[..], &["--sealed", "machine.json"]].concat(), "pack the medium");
    desk.check_refused(&[&update[..], &["--sealed", "."]].concat(), "key.json");
    let log = ["--log", "evidence.json", "--firmware", "--sealed", "medium"];
    desk.check_refused(&log, "cannot be used with");
}

#[test]
fn an_image_update_is_foreseen_with_what_it_seals() {
    let desk = Desk::new("image");
    let mut next = reference();
    next.uki_authenticode = "99".repeat(32);
    next.pcrs.insert(11, "11".repeat(32));
    desk.write("next.json", &serde_json::to_vec(&next).unwrap());
    let image = ["evidence.json", "--image", "next.json", "--sealed", "medium"];
    let english = desk.said(&image);
    assert!(english.contains("seal of the state partition: opens if the image was"), "{english}");
    assert!(english.contains("seal of the bundle medium: BREAKS, by PCRs [4, 11]"), "{english}");
    // Before such an image, the machine took a dbx update: its present values are no builder's.
    let update = ["evidence.json", "--image", "next.json", "--dbx-append", "update.auth"];
    let said = desk.said(&[&update[..], &["--new-reference", "new.json"]].concat());
    let new: Reference =
        serde_json::from_slice(&fs::read(desk.0.join("new.json")).unwrap()).unwrap();
    assert!(said.contains(&new.pcrs[&7]) && new.pcrs[&11] == next.pcrs[&11], "{said}");
    let mut other = next.clone();
    other.measurements.get_mut(&7).unwrap()[3].sha256 = "44".repeat(32);
    desk.write("other.json", &serde_json::to_vec(&other).unwrap());
    let bare = ["evidence.json", "--image", "other.json", "--new-reference", "never.json"];
    desk.check_refused(&bare, "give also --reference");
    desk.said(&[&bare[..4], &["after.json", "--reference", "reference.json"]].concat());
    assert!(!desk.0.join("never.json").exists() && desk.0.join("after.json").exists());
}

#[test]
fn bad_input_is_refused_with_its_reason() {
    let desk = Desk::new("bad");
    desk.write("cut.auth", &authenticated(&hashes(&[1]))[..90]);
    desk.check_refused(&["evidence.json", "--dbx", "cut.auth"], "signature list 0");
    desk.write("other.json", br#"{"ak_name":"000b00"}"#);
    let update = ["evidence.json", "--dbx", "update.auth"];
    let with = |more: &[&'static str]| [&update[..], more].concat();
    desk.check_refused(&with(&["--machine", "other.json"]), "other.json names 000b00");
    let mut development = reference();
    development.profile = "development".to_owned();
    desk.write("image.json", &serde_json::to_vec(&development).unwrap());
    desk.check_refused(&["evidence.json", "--image", "image.json"], "an update keeps the profile");
    desk.check_refused(&["evidence.json"], "required");
    desk.check_refused(&with(&["--reseal", "order"]), "--machine");
    desk.check_refused(&with(&["--dbx-append", "update.auth"]), "cannot be used with");

    let pinned = ["--machine", "machine.json", "--reseal", "order"];
    let firmware = [&["evidence.json", "--firmware"][..], &pinned].concat();
    desk.check_refused(&firmware, "no order: PCR 7 cannot be foreseen");
    let present = Measured::by_evidence(&Appliance::booted().evidence([7; 32])).unwrap();
    desk.write("same.esl", &present.database(DatabaseName::Dbx).unwrap());
    let same = [&["evidence.json", "--dbx", "same.esl"][..], &pinned].concat();
    desk.check_refused(&same, "no order: PCR 7 stays");
    assert!(!desk.0.join("order").exists());
}
