//! Key sets through the real binary, SoftHSM and virt-fw-vars: what is made, and what a build refuses before it begins.
//! Skips, saying so, where a tool is missing.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod tools;

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const NEEDED: [&str; 6] = [
    "/usr/bin/openssl",
    "/usr/bin/script",
    "/usr/bin/softhsm2-util",
    "/usr/bin/virt-fw-vars",
    "/usr/share/OVMF/OVMF_VARS_4M.fd",
    MODULE,
];

/// A developer's set, made once.
static KEYS: LazyLock<PathBuf> = LazyLock::new(|| {
    let keys = scratch("developer").join("set");
    check_ok(&casemate(&["keys", text(&keys)], None));
    keys
});

fn tools_are_there() -> bool {
    tools::are_there(&NEEDED)
}

fn scratch(name: &str) -> PathBuf {
    tools::scratch("keys", name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn casemate(args: &[&str], conf: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
    command.args(args).env("RUST_BACKTRACE", "0").env_remove("SOFTHSM2_CONF").stdin(Stdio::null());
    if let Some(conf) = conf {
        command.env("SOFTHSM2_CONF", conf);
    }
    command.output().unwrap()
}

fn check_ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn check_refused(output: &Output, expected: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(expected), "{said:?}, not {expected:?}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Copies the developer's set, lets `change` alter it, and builds from it and from sources without a lock, the first
/// thing that a build reads once its keys are open.
fn build(name: &str, profile: &str, conf: Option<&Path>, change: impl FnOnce(&Path)) -> Output {
    let dir = scratch(name);
    let keys = dir.join("set");
    copy(&KEYS, &keys);
    change(&keys);
    build_from(&dir, &keys, profile, conf)
}

fn build_from(dir: &Path, keys: &Path, profile: &str, conf: Option<&Path>) -> Output {
    let (source, out, cache) = (dir.join("source"), dir.join("image"), dir.join("cache"));
    fs::create_dir_all(&source).unwrap();
    if out.exists() {
        fs::remove_dir_all(&out).unwrap();
    }
    let mut args = vec!["build", "--keys", text(keys), "--out", text(&out), "--profile", profile];
    args.extend(["--source", text(&source), "--cache", text(&cache)]);
    let output = casemate(&args, conf);
    let opened = String::from_utf8_lossy(&output.stderr).contains("packages.lock");
    assert_eq!(out.exists(), opened, "written before the keys were open");
    output
}

/// The developer's db URI with one part of it replaced.
fn edit_db(keys: &Path, from: &str, to: &str) {
    let file = keys.join("secureboot/db.uri");
    let uri = fs::read_to_string(&file).unwrap();
    assert!(uri.contains(from), "{uri}");
    fs::write(&file, uri.replace(from, to)).unwrap();
}

/// A token store of a test's own, and a PIN file beside it.
struct Bank {
    conf: PathBuf,
    pin: PathBuf,
}

const PIN: &str = "7351-bank";

impl Bank {
    fn new(dir: &Path) -> Self {
        let (conf, pin, tokens) = (dir.join("softhsm2.conf"), dir.join("pin"), dir.join("tokens"));
        fs::create_dir_all(&tokens).unwrap();
        fs::write(&conf, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
        fs::write(&pin, PIN).unwrap();
        fs::set_permissions(&pin, Permissions::from_mode(0o600)).unwrap();
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", "bank", "--pin", PIN, "--so-pin", PIN])
            .env("SOFTHSM2_CONF", &conf)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { conf, pin }
    }

    fn uri(&self, object: &str) -> String {
        let pin = self.pin.display();
        format!("pkcs11:token=bank;object={object}?module-path={MODULE}&pin-source=file:{pin}")
    }

    /// `casemate keys --profile release`, with a URI for each role in order: PK, KEK, db, PCR, build.
    fn keys(&self, set: &Path, uris: [&str; 5]) -> Output {
        let holder = |number: u8| {
            let pem = KEYS.join(format!("release/release-{number}.pub.pem"));
            format!("holder-{number}={}", pem.display())
        };
        let (one, two, site) = (holder(1), holder(2), KEYS.join("site"));
        let mut args = vec!["keys", text(set), "--profile", "release", "--name", "Bank X"];
        for (option, uri) in ["--pk", "--kek", "--db", "--pcr", "--build"].iter().zip(uris) {
            args.extend([option, uri]);
        }
        args.extend(["--release-key", &one, "--release-key", &two, "--threshold", "2"]);
        args.extend(["--site", text(&site)]);
        casemate(&args, Some(&self.conf))
    }
}

fn openssl(args: &[&str]) -> String {
    check_ok(&Command::new("openssl").args(args).output().unwrap())
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn no_signing_key_is_a_file_and_every_token_is_marked() {
    if !tools_are_there() {
        return;
    }
    for (file, name) in [
        ("secureboot/PK.uri", "pk"),
        ("secureboot/KEK.uri", "kek"),
        ("secureboot/db.uri", "db"),
        ("pcr/pcr.uri", "pcr"),
        ("build/build.uri", "build"),
        ("release/release-3.uri", "release-3"),
    ] {
        let uri = read(KEYS.join(file));
        let start = format!("pkcs11:token=casemate%20development%20{name};object={name};id=%");
        assert!(uri.starts_with(&start), "{uri}");
    }
    for folder in ["secureboot", "pcr", "build", "release"] {
        for entry in fs::read_dir(KEYS.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(11).any(|window| window == b"PRIVATE KEY"), "{path:?}");
        }
    }
    for name in ["PK", "KEK", "db"] {
        let file = KEYS.join(format!("secureboot/{name}.crt"));
        openssl(&["verify", "-check_ss_sig", "-CAfile", text(&file), text(&file)]);
        let said = openssl(&["x509", "-noout", "-subject", "-in", text(&file)]);
        assert!(said.contains(&format!("casemate development {name}")), "{said}");
    }
    for name in ["PK", "KEK", "db", "dbx"] {
        let file =
            |ending: &str| fs::read(KEYS.join(format!("secureboot/{name}.{ending}"))).unwrap();
        // After the date and WIN_CERTIFICATE_UEFI_GUID comes the content itself.
        assert!(file("auth").ends_with(&file("esl")), "{name}");
        assert!(file("auth").len() > file("esl").len() + 256, "{name}");
    }
}

#[test]
fn a_build_opens_its_keys_before_it_writes_anything() {
    if !tools_are_there() {
        return;
    }
    check_refused(&build("good", "development", None, |_| {}), "packages.lock");
    let refuse = |name: &str, from: &str, to: &str, expected: &str| {
        check_refused(&build(name, "development", None, |keys| edit_db(keys, from, to)), expected);
    };
    refuse("module", MODULE, "/usr/lib/none.so", "/usr/lib/none.so");
    refuse("token", "%20development%20db;", "%20db;", "0 tokens match");
    let absent = "0 private keys match";
    refuse("object", "object=db;", "object=bd;", absent);
    refuse("present", "object=db;", "object=bd;", "expected exactly 1 of: \"db\"");
    let no_pin = |keys: &Path| {
        let uri = read(keys.join("secureboot/db.uri"));
        let (uri, _) = uri.split_once("&pin-source").unwrap();
        fs::write(keys.join("secureboot/db.uri"), uri).unwrap();
    };
    let conf = KEYS.join("hsm/softhsm2.conf");
    let without = build("no-pin", "development", Some(&conf), no_pin);
    check_refused(&without, "the token wants a PIN");
    let wrong = build("wrong-pin", "development", Some(&conf), |keys| {
        let pin = keys.join("wrong");
        fs::write(&pin, "0000").unwrap();
        fs::set_permissions(&pin, Permissions::from_mode(0o600)).unwrap();
        no_pin(keys);
        let file = keys.join("secureboot/db.uri");
        let uri = format!("{}&pin-source=file:{}", read(file.clone()), pin.display());
        fs::write(&file, uri).unwrap();
    });
    check_refused(&wrong, "\"casemate development db\" refused the PIN from");
    let other = |name: &str, file: &str, expected: &str| {
        let replaced = build(name, "development", None, |keys| {
            fs::copy(keys.join(file), keys.join("secureboot/db.uri")).map(drop).unwrap();
        });
        check_refused(&replaced, expected);
    };
    let torn = |name: &str, from: &str, to: &str, expected: &str| {
        let torn = build(name, "development", None, |keys| {
            fs::copy(keys.join(from), keys.join(to)).map(drop).unwrap();
        });
        check_refused(&torn, expected);
    };
    torn("torn-db", "secureboot/PK.crt", "secureboot/db.crt", "secureboot/db.esl");
    torn("torn-pk", "secureboot/db.crt", "secureboot/PK.esl", "PK.esl is not in");
    other("kind", "release/release-1.uri", "is EC on P-256; expected RSA");
    other("other-key", "secureboot/PK.uri", "secureboot/db.crt is not of the key that");
}

#[test]
fn a_developers_set_gives_no_release() {
    if !tools_are_there() {
        return;
    }
    let unmarked = |keys: &Path| fs::write(keys.join("profile"), "release\n").unwrap();
    let asked = build("asked", "release", None, |_| {});
    check_refused(&asked, "the key set is of profile `development`, the build of `release`");
    let with_secrets = build("with-secrets", "release", None, unmarked);
    check_refused(&with_secrets, "is a private key in a key set for releases");
    // The tokens' labels are the mark that stays.
    let relabelled = build("relabelled", "release", None, |keys| {
        unmarked(keys);
        for entry in fs::read_dir(keys.join("site")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "key") {
                fs::remove_file(path).unwrap();
            }
        }
    });
    check_refused(&relabelled, "\"casemate development db\", which `casemate keys` made for");
}

#[test]
fn a_release_set_holds_nothing_secret_and_is_built_from() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("release");
    let bank = Bank::new(&dir);
    let uris = ["pk", "kek", "db", "pcr", "build"].map(|object| bank.uri(object));
    let [pk, kek, db, pcr, build] = uris.each_ref().map(String::as_str);
    let set = dir.join("set");
    let said = check_ok(&bank.keys(&set, [pk, kek, db, pcr, build]));
    assert_eq!(said.matches("generated").count(), 5, "{said}");
    assert_eq!(read(set.join("profile")), "release\n");
    assert!(!set.join("hsm").exists() && !set.join("site/client.key").exists());
    let subject =
        openssl(&["x509", "-noout", "-subject", "-in", text(&set.join("secureboot/db.crt"))]);
    assert!(subject.contains("Bank X db"), "{subject}");
    let opened = |set: &Path, profile| build_from(&dir, set, profile, Some(&bank.conf));
    check_refused(&opened(&set, "development"), "the key set is of profile `release`");
    check_refused(&opened(&set, "release"), "packages.lock");

    // The keys that are there are used, not replaced.
    let again = dir.join("again");
    let said = check_ok(&bank.keys(&again, [pk, kek, db, pcr, build]));
    assert_eq!(said.matches("generated").count(), 0, "{said}");
    assert_eq!(read(again.join("pcr/pcr.pub")), read(set.join("pcr/pcr.pub")));

    let rotate = |uri: Option<&str>| {
        let mut args = vec!["keys", text(&again), "--rotate", "db"];
        args.extend(uri.map(|uri| ["--db", uri]).into_iter().flatten());
        casemate(&args, Some(&bank.conf))
    };
    check_refused(&rotate(None), "needs --db URI");
    check_refused(&rotate(Some(db)), "--db and --db name the same key");
    check_ok(&rotate(Some(&bank.uri("db-next"))));
    assert!(read(again.join("secureboot/db.uri")).contains("object=db-next"));
    assert_eq!(read(again.join("secureboot/db-1.uri")).trim(), db);
    check_refused(&opened(&again, "release"), "packages.lock");

    let none = dir.join("none");
    let refused = |uris: [&str; 5], expected: &str| {
        check_refused(&bank.keys(&none, uris), expected);
        assert!(!none.exists());
    };
    refused([pk, pk, db, pcr, build], "--pk and --kek name the same key");
    refused([pk, kek, build, pcr, db], "is EC on P-256; expected RSA of 2048 to 4096 bits");
    refused([pk, kek, db, pcr, "pkcs11:token=bank;object=b"], "no PKCS#11 module");
    let absent = bank.uri("db").replace("token=bank", "token=vault");
    refused([pk, kek, &absent, pcr, build], "0 tokens match");
    let pin = again.join("pin");
    fs::write(&pin, PIN).unwrap();
    let uri = format!("pkcs11:token=bank;object=db?pin-source=file:{}\n", pin.display());
    fs::write(again.join("secureboot/db.uri"), uri).unwrap();
    check_refused(&opened(&again, "release"), "pin is the PIN of a token in a key set");
    let incomplete = casemate(&["keys", text(&none), "--profile", "release", "--pk", pk], None);
    check_refused(&incomplete, "--threshold");
    let both = casemate(&["keys", text(&none), "--pk", pk], None);
    check_refused(&both, "use --profile release");
}

#[test]
fn a_developers_token_is_refused_where_a_release_set_is_made() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("developers-token");
    let bank = Bank { conf: KEYS.join("hsm/softhsm2.conf"), pin: KEYS.join("hsm/pin") };
    let uri = |file: &str| read(KEYS.join(file)).trim().to_owned();
    let (pk, kek) = (uri("secureboot/PK.uri"), uri("secureboot/KEK.uri"));
    let (db, pcr, build) = (uri("secureboot/db.uri"), uri("pcr/pcr.uri"), uri("build/build.uri"));
    let refused = bank.keys(&dir.join("set"), [&pk, &kek, &db, &pcr, &build]);
    check_refused(&refused, "--pk: the token \"casemate development pk\" is a developer's");
}

#[test]
fn a_rotated_db_key_signs_beside_the_one_before() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("rotated");
    let set = dir.join("set");
    check_ok(&casemate(&["keys", text(&set)], None));
    let secure_boot = |name: &str| fs::read(set.join("secureboot").join(name)).unwrap();
    let (certificate, list) = (secure_boot("db.crt"), secure_boot("db.esl"));
    check_ok(&casemate(&["keys", text(&set), "--rotate", "db"], None));
    assert_eq!(secure_boot("db-1.crt"), certificate);
    assert_ne!(secure_boot("db.crt"), certificate);
    let both = secure_boot("db.esl");
    assert!(both.starts_with(&list) && both.len() > list.len());
    assert!(secure_boot("db.auth").ends_with(&both));
    // Appended alone: firmware keeps what it has.
    let append = secure_boot("db-append.auth");
    assert!(append.ends_with(&both[list.len()..]) && !append.ends_with(&both));
    let store = secure_boot("OVMF_VARS.fd");
    assert!(store.windows(both.len()).any(|window| window == both));
    let uri = String::from_utf8(secure_boot("db.uri")).unwrap();
    assert!(uri.contains("development%20db-2;"), "{uri}");
    check_refused(&build_from(&dir, &set, "development", None), "packages.lock");
    check_ok(&casemate(&["keys", text(&set), "--rotate", "db"], None));
    assert_eq!(secure_boot("db-1.crt"), certificate);
    assert!(secure_boot("db.esl").starts_with(&both));
    let other = casemate(&["keys", text(&set), "--rotate", "db", "--db", "pkcs11:token=x"], None);
    check_refused(&other, "no --db");
    check_refused(&casemate(&["keys", text(&dir), "--rotate", "db"], None), "is no key set");
}

#[test]
fn a_rotated_pcr_key_signs_beside_the_one_before_until_that_is_retired() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("rotated-pcr");
    let set = dir.join("set");
    check_ok(&casemate(&["keys", text(&set)], None));
    let keys = |args: &[&str]| casemate(&[&["keys", text(&set)], args].concat(), None);
    let file = |name: &str| read(set.join("pcr").join(name));
    let before = (file("pcr.pub"), file("pcr.uri"));
    check_refused(&keys(&["--retire", "pcr"]), "no rotation of pcr is going on");
    check_refused(&keys(&["--rotate", "pcr", "--pcr", "pkcs11:token=x"]), "no --pcr");
    check_ok(&keys(&["--rotate", "pcr"]));
    assert_eq!((file("earlier.pub"), file("earlier.uri")), before);
    assert_ne!(file("pcr.pub"), before.0);
    assert!(file("pcr.uri").contains("development%20pcr-2;"), "{}", file("pcr.uri"));
    check_refused(&build_from(&dir, &set, "development", None), "packages.lock");
    check_refused(&keys(&["--rotate", "pcr"]), "--retire pcr, once no machine needs it");
    // Both keys are opened before anything is written.
    let earlier = file("earlier.uri");
    let edited = earlier.replace("object=pcr;", "object=rcp;");
    fs::write(set.join("pcr/earlier.uri"), edited).unwrap();
    check_refused(&build_from(&dir, &set, "development", None), "0 private keys match");
    fs::write(set.join("pcr/earlier.uri"), earlier).unwrap();

    check_ok(&keys(&["--retire", "pcr"]));
    assert!(!set.join("pcr/earlier.uri").exists() && !set.join("pcr/earlier.pub").exists());
    check_refused(&build_from(&dir, &set, "development", None), "packages.lock");
    check_ok(&keys(&["--rotate", "pcr"]));
    assert!(file("pcr.uri").contains("development%20pcr-3;"), "{}", file("pcr.uri"));
}

#[test]
fn a_pin_is_typed_without_echo() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("prompt");
    let bank = Bank::new(&dir);
    let set = dir.join("set");
    let uris = ["pk", "kek", "db", "pcr", "build"].map(|object| bank.uri(object));
    check_ok(&bank.keys(&set, uris.each_ref().map(String::as_str)));
    let (weights, model) = (dir.join("w.gguf"), dir.join("model"));
    fs::write(&weights, b"GGUF").unwrap();
    let make =
        ["bundle", "model", "--gguf", text(&weights), "--model-id", "m", "--out", text(&model)];
    check_ok(&casemate(&make, None));
    let signature = dir.join("typed.sig");
    let command = format!(
        "{} bundle sign {} --key 'pkcs11:token=bank;object=build?module-path={MODULE}' --out {}",
        env!("CARGO_BIN_EXE_casemate"),
        model.display(),
        signature.display()
    );
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("SOFTHSM2_CONF", &bank.conf)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut shown = Vec::new();
    let mut byte = [0];
    while !shown.ends_with(b"PIN of token \"bank\": ") {
        assert_eq!(output.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&shown));
        shown.extend(byte);
    }
    writeln!(input, "{PIN}").unwrap();
    output.read_to_end(&mut shown).unwrap();
    let shown = String::from_utf8_lossy(&shown);
    assert!(child.wait().unwrap().success() && signature.exists(), "{shown}");
    assert!(!shown.contains(PIN), "{shown}");
}
