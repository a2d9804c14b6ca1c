//! `casemate bundle pack --seal-…` through the real binary and mkfs.erofs, for a machine in software. Skips, saying so,
//! where a tool is missing.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod tools;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use evidence::fixture::{Says, SoftTpm, Vendor, pinned, reference};
use evidence::format::Machine;
use evidence::sealed::{Decryptor, SealedKey};
use serde::Serialize;

const NEEDED: [&str; 3] = ["/usr/bin/mkfs.erofs", "/usr/bin/fsck.erofs", "/usr/bin/systemd-repart"];

struct Desk(tempfile::TempDir);

impl Desk {
    /// A model, and the files of a machine that was enrolled; `None` without the tools.
    fn new() -> Option<Self> {
        if !tools::are_there(&NEEDED) {
            return None;
        }
        let desk = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(desk.path("model/weights")).unwrap();
        fs::write(desk.path("model/casemate.json"), "{}").unwrap();
        fs::write(desk.path("model/weights/w.gguf"), b"secret weights ".repeat(10_000)).unwrap();
        let tpm = SoftTpm::new(1);
        let identity = Vendor::new(1).identity(&tpm, &Says::default());
        let machine = pinned(&identity);
        desk.write("console.json", &Machine::from_console(machine.ak_name.clone()));
        desk.write("machine.json", &machine);
        desk.write("identity.json", &identity);
        desk.write("reference.json", &reference());
        Some(desk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &impl Serialize) {
        fs::write(self.path(name), serde_json::to_vec(content).unwrap()).unwrap();
    }

    fn pack(&self, out: &str, options: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.args(["bundle", "pack", "model", "--out", out]).args(options);
        command.current_dir(self.0.path()).output().unwrap()
    }

    /// Packs for the machine, and takes the medium apart again: the image, and the folder with what is on it.
    fn pack_sealed(&self, name: &str) -> (Vec<u8>, PathBuf) {
        let machine = ["--seal-machine", "machine.json", "--seal-reference", "reference.json"];
        let options = [&["--seal-identity", "identity.json"][..], &machine].concat();
        let image = format!("{name}.img");
        let output = self.pack(&image, &options);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("readable by the machine with the attestation key 000b"), "{said}");
        let content = fs::read(self.path(&image)).unwrap();
        // GUID Partition Table: the first entry is in block 2, its first block at byte 32.
        let first = u64::from_le_bytes(content[1024 + 32..][..8].try_into().unwrap());
        let folder = self.path(name);
        let output = Command::new("fsck.erofs")
            .arg(format!("--extract={}", folder.display()))
            .arg(format!("--offset={}", first * 512))
            .arg(self.path(&image))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (content, folder)
    }
}

#[test]
fn a_sealed_medium_holds_the_model_for_one_machine() {
    let Some(desk) = Desk::new() else { return };
    let (image, folder) = desk.pack_sealed("one");
    assert!(!image.windows(14).any(|window| window == b"secret weights"));
    let text = fs::read(folder.join("sealed/key.json")).unwrap();
    let sealed = SealedKey::parse(&text).unwrap();
    let key = SoftTpm::new(1).unseal(&sealed).unwrap();
    for name in ["casemate.json", "weights/w.gguf"] {
        let file = File::open(folder.join("model").join(name)).unwrap();
        let mut plain = Vec::new();
        Decryptor::new(&key, name, file).read_to_end(&mut plain).unwrap();
        assert!(plain == fs::read(desk.path("model").join(name)).unwrap(), "{name}");
    }
    assert!(SoftTpm::new(2).unseal(&sealed).is_none());

    let (again, folder) = desk.pack_sealed("two");
    assert!(again != image, "the same key for two media");
    let other = SealedKey::parse(&fs::read(folder.join("sealed/key.json")).unwrap()).unwrap();
    assert_ne!(other, sealed);
}

#[test]
fn a_machine_is_enrolled_before_anything_is_sealed_to_it() {
    let Some(desk) = Desk::new() else { return };
    let identity = ["--seal-identity", "identity.json"];
    let reference = ["--seal-reference", "reference.json"];
    let refused = |options: &[&[&str]], part: &str| {
        let output = desk.pack("refused.img", &options.concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(part), "{said:?}, not {part:?}");
        assert!(!desk.path("refused.img").exists());
    };
    let console = ["--seal-machine", "console.json"];
    refused(&[&identity, &reference, &console], "from the console only");
    refused(&[&identity], "--seal-machine");
    refused(&[&identity, &console], "--seal-reference");
    refused(&[&reference], "--seal-identity");

    let other = Vendor::new(1).identity(&SoftTpm::new(2), &Says::default());
    desk.write("identity.json", &other);
    let machine = ["--seal-machine", "machine.json"];
    refused(&[&identity, &reference, &machine], "they are of two machines");
    desk.write("identity.json", &"identity");
    refused(&[&identity, &reference, &machine], "not the expected JSON");
}
