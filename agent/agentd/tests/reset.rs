//! `state reset` on a disk with a real LUKS2 volume and a real TPM (swtpm); what sysfs says of them is a folder.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod appliance;

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use appliance::{Appliance, volume};
use evidence::bundle::SignedFile;
use evidence::fixture::{policy, sign_files};
use evidence::reseal::Slots;
use evidence::reset::{ORDER_FILE, Order, RESET_SCHEMA};
use sha2::{Digest as _, Sha256};

/// Where the state partition begins and its data do, on the disk.
const START: usize = 4 << 20;
const DATA: usize = START + (16 << 20);

struct Machine {
    appliance: Appliance,
    folder: tempfile::TempDir,
}

impl Machine {
    /// An appliance that has run once, and its disk; `None` without the tools.
    fn new() -> Option<Self> {
        let appliance = Appliance::boot()?;
        if !volume::can_be_made() {
            return None;
        }
        let machine = Self { appliance, folder: tempfile::tempdir().unwrap() };
        machine.make_disk();
        let partition = machine.path("dev/vda2");
        volume::make(&partition, 24 << 20, "key");
        let disk = fs::File::options().write(true).open(machine.path("dev/vda")).unwrap();
        disk.write_all_at(&fs::read(&partition).unwrap(), START as u64).unwrap();
        disk.write_all_at(b"ciphertext", DATA as u64).unwrap();
        fs::write(machine.path("policy.json"), serde_json::to_string(&policy()).unwrap()).unwrap();
        Some(machine)
    }

    fn make_disk(&self) {
        for folder in ["repart.d", "dev", "class", "sys/vda/vda2", "sys/vda/queue"] {
            fs::create_dir_all(self.path(folder)).unwrap();
        }
        for (file, label, size) in [("10", "first", "3M"), ("20", "casemate-state", "40M")] {
            let text = format!(
                "[Partition]\nType=linux-generic\nLabel={label}\nSizeMinBytes={size}\nSizeMaxBytes={size}\n"
            );
            fs::write(self.path(&format!("repart.d/{file}.conf")), text).unwrap();
        }
        let mut repart = Command::new("systemd-repart");
        repart.args(["--offline=yes", "--empty=create", "--size=64M", "--dry-run=no"]);
        let definitions = self.path("repart.d");
        repart.arg(format!("--definitions={}", definitions.display())).arg(self.path("dev/vda"));
        volume::check(&mut repart, "");
        let sectors = fs::metadata(self.path("dev/vda")).unwrap().len() / 512;
        fs::write(self.path("sys/vda/size"), format!("{sectors}\n")).unwrap();
        fs::write(self.path("sys/vda/vda2/partition"), "2\n").unwrap();
        fs::write(self.path("sys/vda/vda2/start"), format!("{}\n", START / 512)).unwrap();
        fs::write(self.path("sys/vda/queue/logical_block_size"), "512\n").unwrap();
        symlink(self.path("sys/vda/vda2"), self.path("class/vda2")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.path("dev/vda")).unwrap()
    }

    fn order(&self, machine: &str) -> Order {
        let header = fs::read(self.path("dev/vda2")).unwrap();
        Order {
            schema: RESET_SCHEMA.to_owned(),
            machine: machine.to_owned(),
            state: Slots::parse(&header[..64 << 10]).unwrap().uuid().to_owned(),
            reason: "the server is sold".to_owned(),
        }
    }

    /// Plugs the order in, signed by these keys; what `state reset` says.
    fn reset(&self, order: &Order, signers: &[usize]) -> (bool, String) {
        let medium = self.path("medium");
        let file = order.to_json().unwrap();
        if medium.exists() {
            fs::remove_dir_all(&medium).unwrap();
        }
        fs::create_dir_all(medium.join("order")).unwrap();
        fs::create_dir(medium.join("signatures")).unwrap();
        fs::write(medium.join("order").join(ORDER_FILE), &file).unwrap();
        let signed =
            [SignedFile { name: ORDER_FILE.to_owned(), sha256: Sha256::digest(&file).into() }];
        for (number, signature) in sign_files(&signed, signers).iter().enumerate() {
            fs::write(medium.join(format!("signatures/{number}.sig")), signature).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_state"));
        self.appliance.reach_tpm(&mut command);
        command.arg("--device").arg(self.path("dev/vda2")).arg("reset");
        for (option, name) in [
            ("--medium", "medium"),
            ("--policy", "policy.json"),
            ("--sysfs", "class"),
            ("--devices", "dev"),
        ] {
            command.arg(option).arg(self.path(name));
        }
        let Output { status, stderr, .. } = command.output().unwrap();
        (status.success(), String::from_utf8(stderr).unwrap())
    }
}

/// Starts agentd and stops it; Name of the key, and the count at which the state began.
fn serve_once(machine: &Machine) -> (String, u64) {
    let agentd = machine.appliance.start_ready();
    let console = agentd.console();
    let after = |text: &str| console.split_once(text).unwrap().1.lines().next().unwrap().to_owned();
    assert!(agentd.terminate().success());
    (after("attestation key "), after("state began at ").parse().unwrap())
}

#[test]
fn a_reset_state_opens_nowhere_and_a_new_one_is_told_from_it() {
    let Some(machine) = Machine::new() else { return };
    let (name, began) = serve_once(&machine);
    let before = machine.disk();
    let (done, said) = machine.reset(&machine.order(&name), &[0, 2]);
    assert!(done && said.contains("signed by release-1, release-3: the server is sold"), "{said}");
    assert!(said.contains("factory reset done"), "{said}");
    let after = machine.disk();
    assert!(after[START..DATA].iter().all(|&byte| byte == 0), "something is left of the header");
    assert!(before[DATA..DATA + 10] == after[DATA..DATA + 10], "the data need not be touched");
    for copy in [&after[..40 << 10], &after[after.len() - (40 << 10)..]] {
        let label = utf16("casemate-state");
        assert!(!copy.windows(label.len()).any(|text| text == label), "the table has it");
    }

    // A copy of the state that was made before does not fit the TPM, and a new state begins later.
    machine.appliance.start().wait_refused("counter");
    fs::remove_dir_all(machine.appliance.path("ledger")).unwrap();
    let (same, anew) = serve_once(&machine);
    assert!(same == name && anew > began, "{anew} after {began}");

    let (again, said) = machine.reset(&machine.order(&name), &[0, 2]);
    assert!(!again && said.contains("has 0 partitions \"casemate-state\""), "{said}");
}

#[test]
fn an_order_that_is_none_for_this_state_changes_nothing() {
    let Some(machine) = Machine::new() else { return };
    let (name, began) = serve_once(&machine);
    let before = machine.disk();
    let order = machine.order(&name);
    let refused = |order: &Order, signers: &[usize], why: &str| {
        let (done, said) = machine.reset(order, signers);
        assert!(!done && said.contains(why), "{said}");
        assert!(machine.disk() == before, "the disk was changed");
    };
    refused(&order, &[1], "1 of 2 needed signatures");
    let other = Order { machine: format!("000b{}", "7a".repeat(32)), ..order.clone() };
    refused(&other, &[0, 1], "the order is for the machine");
    let earlier = Order { state: "0".repeat(36), ..order };
    refused(&earlier, &[0, 1], "the order is for the state");
    // The TPM still has the counter.
    assert_eq!(serve_once(&machine), (name, began));
}

#[test]
fn a_disk_that_cannot_be_reset_whole_keeps_the_tpm_s_keys() {
    let Some(machine) = Machine::new() else { return };
    let (name, began) = serve_once(&machine);
    let disk = fs::File::options().read(true).write(true).open(machine.path("dev/vda")).unwrap();
    let backup = disk.metadata().unwrap().len() - 512;
    for header in [512, backup] {
        disk.write_all_at(&[0xff], header + 20).unwrap();
    }
    let (done, said) = machine.reset(&machine.order(&name), &[0, 1]);
    assert!(!done && said.contains("no copy of the partition table is whole"), "{said}");
    assert_eq!(serve_once(&machine), (name, began));
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
