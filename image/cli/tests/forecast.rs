//! Forecasts through the real binary: what is said in both languages, and each bad input.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use evidence::fixture::log::{authenticated, signature_list};
use evidence::fixture::{Appliance, reference};
use evidence::forecast::{DatabaseName, Measured};
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
        desk
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
