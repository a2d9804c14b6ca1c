//! Keys and bundles through the real binary and the real tools: openssl, SoftHSM, mkfs.erofs,
//! systemd-repart. Skips, saying so, where one of them is missing.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod tools;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

const NEEDED: [&str; 4] = [
    "/usr/bin/openssl",
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/bin/mkfs.erofs",
    "/usr/bin/systemd-repart",
];

/// A folder of this test run's own, emptied at its start, with a key set in it.
static KEYS: LazyLock<PathBuf> = LazyLock::new(|| {
    let keys = scratch("keys").join("set");
    let made = casemate(&[&"keys", &keys]);
    assert!(made.status.success(), "{}", stderr(&made));
    keys
});

fn tools_are_there() -> bool {
    tools::are_there(&NEEDED)
}

fn scratch(name: &str) -> PathBuf {
    tools::scratch("bundle", name)
}

fn casemate(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(args.iter().map(AsRef::as_ref))
        .env("RUST_BACKTRACE", "0")
        .env_remove("SOFTHSM2_CONF")
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn check_ok(args: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = casemate(args);
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn check_refused(args: &[&dyn AsRef<std::ffi::OsStr>], expected: &str) {
    let output = casemate(args);
    let text = stderr(&output);
    assert!(!output.status.success() && text.contains(expected), "{text:?}, not {expected:?}");
}

/// A model folder in `dir`, signed by the keys numbered in `signers`.
fn signed_model(dir: &Path, signers: &[u8]) -> (PathBuf, Vec<PathBuf>) {
    let (weights, model) = (dir.join("w.gguf"), dir.join("model"));
    fs::write(&weights, [b"GGUF".as_slice(), &[7; 100_000]].concat()).unwrap();
    check_ok(&[&"bundle", &"model", &"--gguf", &weights, &"--model-id", &"tiny", &"--out", &model]);
    let signatures = signers.iter().map(|number| {
        let uri = KEYS.join(format!("release/release-{number}.uri"));
        let signature = dir.join(format!("{number}.sig"));
        check_ok(&[&"bundle", &"sign", &model, &"--key", &uri, &"--out", &signature]);
        signature
    });
    (model.clone(), signatures.collect())
}

#[test]
fn a_key_set_is_complete_private_and_never_overwritten() {
    if !tools_are_there() {
        return;
    }
    let mode = |name: &str| fs::metadata(KEYS.join(name)).unwrap().permissions().mode() & 0o777;
    for name in ["hsm/pin", "site/ca.key", "site/client.key", "site/foreign.key"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    assert_eq!(mode(""), 0o700);
    assert_eq!(fs::read_to_string(KEYS.join("profile")).unwrap(), "development\n");
    assert!(!KEYS.join("site/server.key").exists(), "the appliance makes its own");
    let site = fs::read_to_string(KEYS.join("site/site.json")).unwrap();
    let client_ca = fs::read(KEYS.join("site/client-ca.pem")).unwrap();
    evidence::format::Site::parse(&site, &client_ca).unwrap();
    for name in ["secureboot/owner.guid", "secureboot/OVMF_VARS.fd", "release/release-3.pub.pem"] {
        assert!(KEYS.join(name).is_file(), "{name}");
    }
    check_refused(&[&"keys", &*KEYS], "is not empty");
}

#[test]
fn a_key_set_that_cannot_be_completed_is_removed() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("incomplete").join("set");
    check_refused(&[&"keys", &dir, &"--module", &"/nonexistent.so"], "/nonexistent.so");
    assert!(!dir.exists());
}

#[test]
fn certificates_are_of_their_authority() {
    if !tools_are_there() {
        return;
    }
    let verifies = |certificate: &str, purpose: &str| {
        Command::new("openssl")
            .args(["verify", "-purpose", purpose, "-CAfile"])
            .args([KEYS.join("site/client-ca.pem"), KEYS.join("site").join(certificate)])
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(verifies("client.pem", "sslclient"));
    assert!(!verifies("client.pem", "sslserver"));
    assert!(!verifies("foreign.pem", "sslclient"));
}

#[test]
fn two_of_three_sign_the_identical_statement() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("quorum");
    let (model, signatures) = signed_model(&dir, &[1, 3]);
    let policy = KEYS.join("policy.json");
    let (one, three) = (&signatures[0], &signatures[1]);
    let said = check_ok(&[
        &"bundle",
        &"verify",
        &model,
        &"--policy",
        &policy,
        &"--signature",
        one,
        &"--signature",
        three,
    ]);
    assert!(said.contains("signed by release-1, release-3"), "{said}");
    check_refused(
        &[&"bundle", &"verify", &model, &"--policy", &policy, &"--signature", one],
        "1 of 2 needed signatures: release-1",
    );
    let key = KEYS.join("release/release-3.pub.pem");
    check_ok(&[&"bundle", &"verify", &model, &"--key", &key, &"--signature", three]);
    check_refused(
        &[&"bundle", &"verify", &model, &"--key", &key, &"--signature", one],
        "does not verify",
    );
    check_refused(
        &[&"bundle", &"sign", &model, &"--key", &KEYS.join("release/release-1.uri"), &"--out", one],
        "exists already",
    );
}

/// Without a lock SoftHSM failed about one in thirty of these.
#[test]
fn processes_that_log_in_at_once_all_sign() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("at-once");
    let (model, _) = signed_model(&dir, &[]);
    std::thread::scope(|threads| {
        for number in 1..=3 {
            let (dir, model) = (&dir, &model);
            threads.spawn(move || {
                let uri = KEYS.join(format!("release/release-{number}.uri"));
                for round in 0..20 {
                    let signature = dir.join(format!("{number}-{round}.sig"));
                    check_ok(&[&"bundle", &"sign", model, &"--key", &uri, &"--out", &signature]);
                }
            });
        }
    });
}

#[test]
fn a_second_signer_signs_only_what_the_folder_holds() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("payload-of");
    let (model, signatures) = signed_model(&dir, &[1]);
    let (second, key) = (dir.join("2.sig"), KEYS.join("release/release-2.uri"));
    let sign: [&dyn AsRef<std::ffi::OsStr>; 9] = [
        &"bundle",
        &"sign",
        &model,
        &"--key",
        &key,
        &"--payload-of",
        &signatures[0],
        &"--out",
        &second,
    ];
    fs::write(model.join("extra"), "").unwrap();
    check_refused(&sign, "1 not signed: extra");
    assert!(!second.exists());
    fs::remove_file(model.join("extra")).unwrap();
    check_ok(&sign);
    let policy = KEYS.join("policy.json");
    let verify: [&dyn AsRef<std::ffi::OsStr>; 9] = [
        &"bundle",
        &"verify",
        &model,
        &"--policy",
        &policy,
        &"--signature",
        &signatures[0],
        &"--signature",
        &second,
    ];
    check_ok(&verify);
    fs::write(model.join("w.gguf"), "GGUF!").unwrap();
    check_refused(&verify, "1 changed: w.gguf (5 bytes)");
}

#[test]
fn the_same_bundle_packs_into_the_same_medium() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("pack");
    let (model, signatures) = signed_model(&dir, &[1, 2]);
    let pack = |name: &str, signatures: &[PathBuf]| {
        let out = dir.join(name);
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"bundle", &"pack", &model];
        for signature in signatures {
            args.extend([&"--signature" as &dyn AsRef<std::ffi::OsStr>, signature]);
        }
        let policy = KEYS.join("policy.json");
        args.extend([&"--policy" as &dyn AsRef<std::ffi::OsStr>, &policy, &"--out", &out]);
        let output = casemate(&args);
        assert!(output.status.success(), "{}", stderr(&output));
        (fs::read(out).unwrap(), stderr(&output))
    };
    let (image, warnings) = pack("a.img", &signatures);
    assert_eq!(warnings, "");
    // GUID Partition Table: the header is block 1, the first entry block 2, its name at byte 56.
    assert_eq!(&image[512..520], b"EFI PART");
    let label: Vec<u8> = "casemate-bundle".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(&image[1024 + 56..][..label.len()], label);

    fs::set_permissions(model.join("w.gguf"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(pack("b.img", &signatures).0 == image, "the image depends on more than its content");

    let (_, warnings) = pack("c.img", &signatures[..1]);
    assert!(warnings.contains("1 of 2 needed signatures: release-1"), "{warnings}");
    fs::write(model.join("w.gguf"), "GGUF!").unwrap();
    let (_, warnings) = pack("d.img", &signatures);
    assert_eq!(warnings.matches("1 changed: w.gguf").count(), 2, "{warnings}");
}

#[test]
fn an_exception_is_signed_by_a_quorum_and_travels_with_or_without_a_bundle() {
    if !tools_are_there() {
        return;
    }
    let dir = scratch("exception");
    let (file, name) = (dir.join("exception.json"), format!("000b{}", "ab".repeat(32)));
    let out: [&dyn AsRef<std::ffi::OsStr>; 2] = [&"--out", &file];
    let create = |more: &[&'static str]| {
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> =
            vec![&"exception", &"create", &"--machine", &name, &"--reason", &"v2 is broken"];
        args.extend(more.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
        args.extend(out);
        casemate(&args)
    };
    for incomplete in [&["--counter", "7"][..], &["--image", "1"], &["--no-counter"]] {
        assert!(!create(incomplete).status.success(), "{incomplete:?}");
    }
    let made = create(&["--counter", "7", "--bundle", "tiny=1"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let signatures: Vec<_> = [1, 3]
        .map(|number| {
            let uri = KEYS.join(format!("release/release-{number}.uri"));
            let out = dir.join(format!("{number}.sig"));
            let said = check_ok(&[&"exception", &"sign", &file, &"--key", &uri, &"--out", &out]);
            assert!(said.contains("while its counter is 7: tiny 1"), "{said}");
            out
        })
        .into();
    let policy = KEYS.join("policy.json");
    let verify: [&dyn AsRef<std::ffi::OsStr>; 7] =
        [&"exception", &"verify", &file, &"--policy", &policy, &"--signature", &signatures[0]];
    check_refused(&verify, "1 of 2 needed signatures");
    let both = [&verify[..], &[&"--signature", &signatures[1]]].concat();
    assert!(check_ok(&both).contains("signed by release-1, release-3"));

    let alone = dir.join("alone.img");
    let pack: [&dyn AsRef<std::ffi::OsStr>; 7] =
        [&"exception", &"pack", &file, &"--signature", &signatures[0], &"--out", &alone];
    check_ok(&pack);
    let (model, of_model) = signed_model(&dir, &[2]);
    let beside = dir.join("beside.img");
    check_ok(&[
        &"bundle",
        &"pack",
        &model,
        &"--signature",
        &of_model[0],
        &"--exception",
        &file,
        &"--exception-signature",
        &signatures[0],
        &"--out",
        &beside,
    ]);
    for image in [alone, beside] {
        assert!(fs::metadata(image).unwrap().len() > 4096);
    }
    // An exception is no bundle, and its signature not one of a bundle.
    check_refused(
        &[
            &"bundle",
            &"verify",
            &model,
            &"--policy",
            &policy,
            &"--signature",
            &signatures[0],
            &"--signature",
            &signatures[1],
        ],
        "files differ",
    );
}
