//! `state recovery` on real LUKS2 volumes, with a real TPM (swtpm). systemd-cryptenroll is stood in for by cryptsetup, which
//! knows a key: the volume here is sealed to no TPM.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod appliance;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use appliance::{Appliance, volume};
use evidence::format::Site;
use evidence::recovery::{EscrowKey, FILE, Recovery, RecoveryError};
use evidence::reseal::Slots;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use zeroize::Zeroizing;

/// The secret of the slot that is the TPM's.
const TPM_KEY: &str = "the TPM's";
/// As systemd-cryptenroll does with these arguments: a new slot with its token, then the old one is wiped.
const ENROLL: &str = r#"#!/bin/sh -e
PATH=/usr/sbin:/usr/bin:/sbin:/bin
here=${0%/*}
[ "$1 $2 $3" = "--unlock-tpm2-device=auto --recovery-key --wipe-slot=recovery" ]
n=$(($(cat "$here/count") + 1))
echo "$n" > "$here/count"
key=$(printf 'cbdefgh%s-cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi' "$(echo "$n" | tr 0-9 cbdefghijk)")
printf %s "$key" > "$here/new"
cryptsetup luksAddKey --batch-mode --key-file "$here/key" --key-slot "$n" --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$4" "$here/new"
echo "{\"type\":\"systemd-recovery\",\"keyslots\":[\"$n\"]}" | cryptsetup token import --token-id "$n" "$4"
old=$((n - 1))
if [ "$old" -gt 0 ]; then
    cryptsetup luksKillSlot --batch-mode --key-file "$here/key" "$4" "$old"
    cryptsetup token remove --token-id "$old" "$4"
fi
echo "$key"
echo "A secret recovery key has been generated for this volume" >&2
"#;

struct Volume {
    appliance: Appliance,
    folder: tempfile::TempDir,
}

impl Volume {
    /// A partition as the first boot leaves it: one slot, of the TPM's. `None` without the tools.
    fn new() -> Option<Self> {
        let appliance = Appliance::boot()?;
        if !volume::can_be_made() {
            return None;
        }
        let volume = Self { appliance, folder: tempfile::tempdir().unwrap() };
        volume::make(&volume.path("volume"), 32 << 20, TPM_KEY);
        fs::write(volume.path("key"), TPM_KEY).unwrap();
        fs::write(volume.path("count"), "0").unwrap();
        fs::write(volume.path("enroll"), ENROLL).unwrap();
        fs::set_permissions(volume.path("enroll"), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(volume.appliance.path("recovery")).unwrap();
        Some(volume)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The site gets an escrow key, or none.
    fn escrow_to(&self, pem: Option<String>) {
        let file = self.appliance.path("site/site.json");
        let mut site: Site = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        site.recovery_escrow = pem;
        fs::write(file, serde_json::to_string(&site).unwrap()).unwrap();
    }

    /// What a boot does; standard output is the console.
    fn boot(&self) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_state"));
        self.appliance.reach_tpm(&mut command);
        command.arg("--device").arg(self.path("volume")).arg("recovery");
        command.arg("--site").arg(self.appliance.path("site"));
        command.arg("--kept").arg(self.appliance.path("recovery"));
        command.arg("--cryptenroll").arg(self.path("enroll"));
        command.output().unwrap()
    }

    fn boot_ok(&self) -> (String, String) {
        let Output { status, stdout, stderr } = self.boot();
        let (shown, said) =
            (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert!(status.success(), "{said}");
        (shown, said)
    }

    fn kept(&self) -> Recovery {
        Recovery::parse(&fs::read(self.appliance.path("recovery").join(FILE)).unwrap()).unwrap()
    }

    fn slots(&self) -> Slots {
        Slots::parse(&fs::read(self.path("volume")).unwrap()[..64 << 10]).unwrap()
    }

    /// Whether cryptsetup opens the volume by this passphrase, typed.
    fn opens(&self, passphrase: &str) -> bool {
        let mut open = Command::new(volume::CRYPTSETUP);
        open.args(["open", "--test-passphrase"]).arg(self.path("volume"));
        volume::run(&mut open, passphrase).status.success()
    }
}

/// An escrow key in software, as the officer's token has it.
fn officer() -> (p256::SecretKey, String) {
    let secret = p256::SecretKey::from_slice(&[0x0f; 32]).unwrap();
    let pem = secret.public_key().to_public_key_pem(LineEnding::LF).unwrap();
    (secret, pem)
}

fn open(file: &Recovery, (secret, pem): &(p256::SecretKey, String)) -> String {
    let escrow = EscrowKey::from_pem(pem).unwrap();
    let agree = |point: &[u8; 65]| {
        let point = p256::PublicKey::from_sec1_bytes(point).unwrap().to_projective();
        let shared = (point * *secret.to_nonzero_scalar()).to_affine().to_encoded_point(false);
        Ok::<_, RecoveryError>(Zeroizing::new((*shared.x().unwrap()).into()))
    };
    file.open(&escrow, agree).unwrap().expose().to_owned()
}

/// The one key on the console.
fn shown(console: &str) -> String {
    let keys: Vec<_> = console.split_whitespace().filter(|word| word.len() == 71).collect();
    let [key] = keys.as_slice() else { panic!("not one key in {console:?}") };
    (*key).to_owned()
}

#[test]
fn an_escrowed_key_opens_the_volume_and_is_on_no_console() {
    let Some(volume) = Volume::new() else { return };
    let officer = officer();
    volume.escrow_to(Some(officer.1.clone()));
    let (console, journal) = volume.boot_ok();
    let key = open(&volume.kept(), &officer);
    assert!(volume.opens(&key) && !volume.opens("another"));
    assert!(console.is_empty() && !journal.contains(&key), "{console}{journal}");
    // The line of the journal is the file.
    let line = &journal[journal.find('{').unwrap()..];
    assert_eq!(Recovery::parse(line.trim_end().as_bytes()).unwrap(), volume.kept());
    assert_eq!(volume.slots().recovery(), [1]);
    assert_eq!(
        (volume.kept().state.as_str(), volume.slots().slots().len()),
        (volume.slots().uuid(), 1)
    );

    let header = fs::read(volume.path("volume")).unwrap();
    assert_eq!(volume.boot_ok(), (String::new(), String::new()), "once");
    assert!(header == fs::read(volume.path("volume")).unwrap(), "the header changed");

    // agentd gives the file to a medium.
    let mut agentd = volume.appliance.start_ready();
    fs::create_dir(volume.appliance.path("exchange/medium")).unwrap();
    agentd.wait_for("exchange medium: recovery.json written");
    let given = fs::read(volume.appliance.path("exchange/medium").join(FILE)).unwrap();
    assert_eq!(Recovery::parse(&given).unwrap(), volume.kept());
}

#[test]
fn without_an_escrow_key_it_is_shown_once() {
    let Some(volume) = Volume::new() else { return };
    let (console, journal) = volume.boot_ok();
    let key = shown(&console);
    assert!(volume.opens(&key) && !journal.contains(&key), "{journal}");
    assert!(console.contains("RECOVERY KEY") && console.contains("CLÉ DE RECOUVREMENT"));
    assert_eq!(volume.kept().escrow, None);
    assert_eq!(volume.boot_ok(), (String::new(), String::new()), "once");

    // A site that names an escrow key gets a key of its own making, and what was shown opens nothing any more.
    let officer = officer();
    volume.escrow_to(Some(officer.1.clone()));
    let (console, _) = volume.boot_ok();
    assert!(console.is_empty() && !volume.opens(&key), "{console}");
    assert!(volume.opens(&open(&volume.kept(), &officer)));
    assert_eq!(volume.slots().recovery().len(), 1);
}

#[test]
fn a_key_whose_fate_is_not_known_is_made_anew() {
    let Some(volume) = Volume::new() else { return };
    let first = shown(&volume.boot_ok().0);
    // Cut after the slot was added: nothing is kept of it.
    fs::remove_file(volume.appliance.path("recovery").join(FILE)).unwrap();
    let second = shown(&volume.boot_ok().0);
    assert!(volume.opens(&second) && !volume.opens(&first));
    // Spoiled, and of another partition.
    fs::write(volume.appliance.path("recovery").join(FILE), "{}").unwrap();
    let third = shown(&volume.boot_ok().0);
    let other =
        Recovery { state: volume.kept().state.replace(|c: char| c != '-', "0"), ..volume.kept() };
    fs::write(volume.appliance.path("recovery").join(FILE), other.to_json().unwrap()).unwrap();
    assert!(volume.opens(&third) && volume.opens(&shown(&volume.boot_ok().0)));
    assert!(!volume.opens(&third));
}

#[test]
fn what_fails_leaves_the_header_and_keeps_nothing() {
    let Some(volume) = Volume::new() else { return };
    let header = fs::read(volume.path("volume")).unwrap();
    let fails = |script: &str, why: &str| {
        fs::write(volume.path("enroll"), script).unwrap();
        let Output { status, stdout, stderr } = volume.boot();
        let said = String::from_utf8(stderr).unwrap();
        assert!(!status.success() && stdout.is_empty() && said.contains(why), "{said}");
        assert!(said.starts_with("state: no recovery key: "), "{said}");
        assert!(!volume.appliance.path("recovery").join(FILE).exists());
    };
    fails("#!/bin/sh\necho no TPM >&2\nexit 1\n", "no TPM");
    fails("#!/bin/sh\necho something\n", "printed something else");
    let lying =
        "#!/bin/sh\necho cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi\n";
    fails(lying, "not the only one in the header");
    assert!(header == fs::read(volume.path("volume")).unwrap());
}
