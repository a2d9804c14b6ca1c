//! What is sealed to one TPM in one state comes out there and then, and by no other command (swtpm, tpm2-tools).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod swtpm;

use std::convert::Infallible;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::fixture::{Says, Vendor, pinned, reference};
use evidence::format::{IDENTITY_SCHEMA, Identity, Machine, Reference};
use evidence::sealed::{ContentKey, Decryptor, Draw, Encryptor, PCRS, SealedKey};
use swtpm::Swtpm;
use tpm::{AttestationKey, EkKind, Tpm, TpmError};

/// A machine that has booted, and what the packer of a bundle knows of it.
struct Booted {
    tpm: Tpm,
    kind: EkKind,
    identity: Identity,
    machine: Machine,
    reference: Reference,
    /// Held as agentd holds it: it takes one of the TPM's three slots.
    _key: AttestationKey,
}

impl Booted {
    fn on(swtpm: &Swtpm) -> Self {
        let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
        for pcr in [4, 7, 11] {
            tpm.extend(pcr, [pcr; 32]).unwrap();
        }
        let key = AttestationKey::create(&mut tpm).unwrap();
        let endorsement = tpm.endorsement().unwrap();
        let certificates = endorsement.certificates.iter().map(|der| STANDARD.encode(der));
        let identity = Identity {
            schema: IDENTITY_SCHEMA.to_owned(),
            ek_certificates: certificates.collect(),
            ek_public: STANDARD.encode(&endorsement.public),
            ak_public: STANDARD.encode(key.public()),
        };
        let machine = pinned(&identity);
        let pcrs = tpm.pcrs().unwrap();
        let values = PCRS.map(|pcr| (pcr, hex::encode(pcrs[usize::from(pcr)])));
        let reference = Reference { pcrs: values.into(), ..reference() };
        Self { tpm, kind: endorsement.kind, identity, machine, reference, _key: key }
    }

    fn seal(&self) -> (SealedKey, ContentKey) {
        SealedKey::seal(&self.identity, &self.machine, &self.reference, &draw()).unwrap()
    }

    /// Refused by the TPM in a command whose error contains `part`; the next thing that is asked is answered.
    #[track_caller]
    fn check_closed(&mut self, sealed: &SealedKey, part: &str) {
        let error = self.tpm.unseal(self.kind, sealed).unwrap_err();
        assert!(matches!(error, TpmError::Command { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error} does not say {part:?}");
    }
}

fn draw() -> Draw {
    let fill = |bytes: &mut [u8]| {
        bytes.fill(0x5e);
        Ok::<_, Infallible>(())
    };
    Draw::new(fill).unwrap()
}

/// What `to` encrypts, `from` decrypts.
#[track_caller]
fn check_same(to: &ContentKey, from: &ContentKey) {
    let (mut encrypted, mut plain) = (Vec::new(), Vec::new());
    Encryptor::new(to, "w", &b"weights"[..]).read_to_end(&mut encrypted).unwrap();
    Decryptor::new(from, "w", &encrypted[..]).read_to_end(&mut plain).unwrap();
    assert_eq!(plain, b"weights");
}

fn check_opens(swtpm: &Swtpm, kind: EkKind) {
    let mut booted = Booted::on(swtpm);
    assert_eq!(booted.kind, kind);
    let (sealed, content) = booted.seal();
    // More often than there are slots and sessions: what is not flushed fails the second or the third round.
    for _ in 0..4 {
        check_same(&content, &booted.tpm.unseal(kind, &sealed).unwrap());
    }
    // A register to which nothing is sealed.
    booted.tpm.extend(14, [1; 32]).unwrap();
    check_same(&content, &booted.tpm.unseal(kind, &sealed).unwrap());
}

#[test]
fn a_tpm_with_an_rsa_endorsement_key_opens_what_is_sealed_to_it() {
    let Some(swtpm) = Swtpm::manufactured() else { return };
    check_opens(&swtpm, EkKind::Rsa2048);
}

/// swtpm's factory certifies an RSA key; this vendor the P-256 one.
fn certify_p256(swtpm: &Swtpm) {
    let public = {
        let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
        tpm.endorsement_public(EkKind::EccP256).unwrap()
    };
    swtpm.write_nv(0x01c0_000a, &Vendor::new(7).certify_public(&public, &Says::default()));
}

#[test]
fn a_tpm_with_a_p256_endorsement_key_opens_what_is_sealed_to_it() {
    let Some(swtpm) = Swtpm::manufactured() else { return };
    certify_p256(&swtpm);
    check_opens(&swtpm, EkKind::EccP256);
}

#[test]
fn nothing_comes_out_in_another_state() {
    let Some(swtpm) = Swtpm::manufactured() else { return };
    certify_p256(&swtpm);
    let mut booted = Booted::on(&swtpm);
    let (sealed, _) = booted.seal();
    let predicted = booted.reference.clone();
    // Secure Boot's variables; a command line from outside; a credential or extension; another UKI; another phase.
    for pcr in [7, 12, 13, 4, 11] {
        booted.tpm.extend(pcr, [0xee; 32]).unwrap();
        booted.check_closed(&sealed, "TPM2_PolicyPCR");
    }
    // Sealed to the new state, it opens, so the rounds above failed for the registers.
    let pcrs = booted.tpm.pcrs().unwrap();
    let values = PCRS.map(|pcr| (pcr, hex::encode(pcrs[usize::from(pcr)])));
    booted.reference = Reference { pcrs: values.into(), ..predicted };
    let (resealed, content) = booted.seal();
    check_same(&content, &booted.tpm.unseal(booted.kind, &resealed).unwrap());
}

#[test]
fn another_tpm_in_the_same_state_imports_nothing() {
    let (Some(one), Some(two)) = (Swtpm::manufactured(), Swtpm::manufactured()) else { return };
    let mut stranger = Booted::on(&two);
    let first = Booted::on(&one);
    let (sealed, _) = first.seal();
    stranger.check_closed(&sealed, "TPM2_Import");
    let (own, content) = stranger.seal();
    check_same(&content, &stranger.tpm.unseal(stranger.kind, &own).unwrap());
}

/// tpm2-tools on one TPM, in a folder of their own; objects and sessions lie there in files between two commands.
struct Tools<'a> {
    swtpm: &'a Swtpm,
    folder: tempfile::TempDir,
}

impl Tools<'_> {
    fn try_run(&self, words: &str) -> Output {
        let mut words = words.split(' ');
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.folder.path())
            .env("TPM2TOOLS_TCTI", self.swtpm.tcti())
            .output()
            .unwrap();
        let mut flush = Command::new("tpm2_flushcontext");
        flush.arg("-t").env("TPM2TOOLS_TCTI", self.swtpm.tcti());
        assert!(flush.output().unwrap().status.success());
        output
    }

    fn run(&self, words: &str) -> Output {
        let output = self.try_run(words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// A policy session in the file `session`, after these commands.
    fn session(&self, session: &str, commands: &[&str]) {
        self.run(&format!("tpm2_startauthsession --policy-session -S {session}"));
        for command in commands {
            self.run(&format!("{command} -S {session}"));
        }
    }

    /// A sized parameter as the tools read it.
    fn write(&self, name: &str, content: &[u8]) {
        let size = u16::try_from(content.len()).unwrap().to_be_bytes();
        std::fs::write(self.folder.path().join(name), [&size, content].concat()).unwrap();
    }
}

#[test]
fn tpm2_tools_unseal_it_and_cannot_duplicate_it() {
    if !Path::new("/usr/bin/tpm2_duplicate").exists() {
        eprintln!("SKIPPED: no tpm2_duplicate; run in the tools tree");
        return;
    }
    let Some(swtpm) = Swtpm::manufactured() else { return };
    certify_p256(&swtpm);
    let (sealed, content) = Booted::on(&swtpm).seal();
    let tools = Tools { swtpm: &swtpm, folder: tempfile::tempdir().unwrap() };
    tools.write("public", sealed.public());
    tools.write("duplicate", sealed.duplicate());
    tools.write("seed", sealed.encrypted_seed());
    let by_endorsement = ["tpm2_policysecret -c e"];
    tools.run("tpm2_createek -G ecc -c ek.ctx");
    tools.session("import", &by_endorsement);
    tools.run("tpm2_import -C ek.ctx -P session:import -i duplicate -u public -r private -s seed");
    tools.session("load", &by_endorsement);
    tools.run("tpm2_load -C ek.ctx -P session:load -u public -r private -c object.ctx");
    let pcrs = "tpm2_policypcr -l sha256:4,7,11,12,13";
    tools.session("unseal", &[pcrs, "tpm2_policycommandcode TPM2_CC_Unseal"]);
    let unsealed = tools.run("tpm2_unseal -c object.ctx -p session:unseal").stdout;
    check_same(&content, &ContentKey::parse(&unsealed).unwrap());

    for (name, commands) in [
        ("any", &[pcrs][..]),
        ("duplicates", &[pcrs, "tpm2_policycommandcode TPM2_CC_Duplicate"]),
        ("unseals", &[pcrs, "tpm2_policycommandcode TPM2_CC_Unseal"]),
    ] {
        tools.session(name, commands);
        let duplicate = "tpm2_duplicate -C null -G null -c object.ctx -r out -s outseed";
        let output = tools.try_run(&format!("{duplicate} -p session:{name}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("policy"), "{name}: {said}");
        assert!(!tools.folder.path().join("out").exists());
        tools.run(&format!("tpm2_flushcontext {name}"));
    }
    // Nor by an empty password, which an object without userWithAuth does not take.
    assert!(!tools.try_run("tpm2_unseal -c object.ctx").status.success());

    // An injected command line: the policy of the present registers is another one, and the TPM compares.
    let digest = "ee".repeat(32);
    tools.run(&format!("tpm2_pcrextend 12:sha256={digest}"));
    tools.session("extended", &[pcrs, "tpm2_policycommandcode TPM2_CC_Unseal"]);
    let output = tools.try_run("tpm2_unseal -c object.ctx -p session:extended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("policy"), "{said}");
}
