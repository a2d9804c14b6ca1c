use std::os::unix::fs::symlink;

use super::*;

/// A machine's sysfs, procfs and udev database, as files.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine.file("proc/self/mountinfo", "22 1 0:21 / /proc rw - proc proc rw\n");
        machine.file("proc/swaps", "Filename Type Size Used Priority\n");
        fs::create_dir_all(machine.0.path().join("sys/block")).unwrap();
        machine
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A disk of 4 GiB below `bus`.
    fn disk(&self, bus: &str, name: &str, dev: &str) {
        let block = format!("sys/devices/{bus}/block/{name}");
        for (file, content) in [
            ("dev", dev),
            ("size", "8388608"),
            ("ro", "0"),
            ("removable", "0"),
            ("queue/logical_block_size", "512"),
        ] {
            self.file(&format!("{block}/{file}"), format!("{content}\n"));
        }
        symlink(
            format!("../devices/{bus}/block/{name}"),
            self.0.path().join("sys/block").join(name),
        )
        .unwrap();
    }

    /// A file of a disk, through /sys/block.
    fn set(&self, name: &str, file: &str, content: impl AsRef<[u8]>) {
        self.file(&format!("sys/block/{name}/{file}"), content);
    }

    fn partition(&self, disk: &str, name: &str, dev: &str, label: &str) {
        self.set(disk, &format!("{name}/partition"), "1\n");
        self.set(disk, &format!("{name}/dev"), format!("{dev}\n"));
        self.set(disk, &format!("{name}/size"), "2048\n");
        self.set(disk, &format!("{name}/uevent"), format!("DEVTYPE=partition\nPARTNAME={label}\n"));
    }

    fn read(&self) -> Inventory {
        Inventory::read(self.0.path()).unwrap()
    }
}

impl Inventory {
    fn named(&self, name: &str) -> &Disk {
        self.disks.iter().find(|disk| disk.name == name).unwrap()
    }

    fn said(&self, name: &str) -> String {
        let needs = Needs { bytes: 1 << 30, sector_bytes: 512 };
        let refusals = self.refusals(self.named(name), Some(needs));
        refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

const PCI: &str = "pci0000:00/0000:00:1f.2";

#[test]
fn a_disk_is_described_by_what_its_bus_says() {
    let machine = Machine::new();
    machine.disk(&format!("{PCI}/ata1/host0/target0:0:0/0:0:0:0"), "sda", "8:0");
    machine.set("sda", "device/vendor", "ATA     \n");
    machine.set("sda", "device/model", "INTEL SSDSC2KB48\n");
    machine.set("sda", "device/vpd_pg80", b"\x00\x80\x00\x14    BTYF012345678901");
    machine.partition("sda", "sda1", "8:1", "EFI\u{1b}[2J");
    machine.file("run/udev/data/b8:0", "S:disk/by-id/x\nE:ID_PART_TABLE_TYPE=gpt\n");
    machine.file("run/udev/data/b8:1", "E:ID_FS_TYPE=vfat\nE:ID_FS_LABEL=ESP\n");
    machine.disk(&format!("{PCI}/nvme/nvme0"), "nvme0n1", "259:0");
    machine.set("nvme0n1", "device/serial", "S64GNE0R  \n");
    machine.disk(&format!("{PCI}/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0"), "sdb", "8:16");
    machine.set("sdb", "removable", "1\n");
    let usb = format!("sys/devices/{PCI}/usb2/2-1");
    machine.file(&format!("{usb}/idVendor"), "0781\n");
    machine.file(&format!("{usb}/serial"), "4C53\n");
    let scsi = machine.0.path().join(format!("{usb}/2-1:1.0/host6/target6:0:0/6:0:0:0"));
    symlink(&scsi, machine.0.path().join("sys/block/sdb/device")).unwrap();

    let inventory = machine.read();
    let sda = inventory.named("sda");
    assert_eq!(sda.model.as_deref(), Some("INTEL SSDSC2KB48"));
    assert_eq!(inventory.identity(sda), Identity::Serial("BTYF012345678901".to_owned()));
    assert_eq!((sda.transport, sda.bytes, sda.table.as_deref()), ("sata", 4 << 30, Some("gpt")));
    assert_eq!(sda.content[0].label.as_deref(), Some("EFI?[2J"));
    assert_eq!(sda.content[0].filesystem.as_deref(), Some("vfat"));
    assert_eq!(inventory.identity(inventory.named("nvme0n1")).text(), "S64GNE0R");
    let sdb = inventory.named("sdb");
    assert_eq!((sdb.transport, sdb.is_removable), ("usb", true));
    assert_eq!(inventory.identity(sdb).text(), "4C53");
    assert_eq!(inventory.said("sda") + &inventory.said("nvme0n1") + &inventory.said("sdb"), "");
}

#[test]
fn what_is_used_is_refused_and_says_by_what() {
    let machine = Machine::new();
    for (name, dev) in [
        ("sda", "8:0"),
        ("sdb", "8:16"),
        ("sdc", "8:32"),
        ("sdd", "8:48"),
        ("sde", "8:64"),
        ("sdf", "8:80"),
    ] {
        machine.disk(PCI, name, dev);
    }
    machine.partition("sda", "sda2", "8:2", "root");
    machine.partition("sdb", "sdb1", "8:17", "");
    machine.set("sdb", "sdb1/holders/dm-0", "");
    machine.disk("virtual", "dm-0", "254:0");
    machine.set("dm-0", "dm/name", "vg-srv\n");
    machine.partition("sdc", "sdc1", "8:33", "swap");
    machine.set("sdd", "holders/md127", "");
    machine.disk("virtual", "md127", "9:127");
    machine.disk("virtual", "loop3", "7:3");
    machine.set("loop3", "loop/backing_file", "/dev/sde\n");
    machine.file("sys/fs/btrfs/features/raid56", "0\n");
    machine.file("sys/fs/btrfs/c0ffee/devices/sdf", "");
    machine.file(
        "proc/self/mountinfo",
        "20 1 8:2 /srv /srv2 rw - ext4 /dev/root rw\n27 1 8:2 / / rw - ext4 /dev/root rw\n28 27 254:0 / /srv rw - xfs /dev/mapper/vg-srv rw\n",
    );
    machine.file("proc/swaps", "Filename Type\n/dev/sdc1 partition 1 1 1\n");
    let inventory = machine.read();
    for (name, reason) in [
        ("sda", "sda2 is mounted at /: the running system; sda2 is mounted at /srv2"),
        ("sdb", "sdb1, through dm-0 (vg-srv), is mounted at /srv"),
        ("sdc", "sdc1 is swap space in use"),
        ("sdd", "sdd is held by md127"),
        ("sde", "sde is held by loop3"),
        ("sdf", "sdf is held by btrfs c0ffee"),
        ("loop3", ""),
    ] {
        assert_eq!(inventory.said(name), reason);
    }
    assert_eq!(
        inventory.find("254:0"),
        Found::NoDisk { name: "dm-0".to_owned(), what: "a device-mapper volume" }
    );
    assert_eq!(
        inventory.find("8:2"),
        Found::Partition { name: "sda2".to_owned(), disk: inventory.named("sda") }
    );
    assert_eq!(inventory.find("8:16"), Found::Disk(inventory.named("sdb")));
    assert_eq!(inventory.find("1:1"), Found::Unknown);
}

#[test]
fn what_does_not_fit_is_refused() {
    let machine = Machine::new();
    for (name, file, content) in [
        ("sda", "size", "2097151\n"),
        ("sdb", "queue/logical_block_size", "4096\n"),
        ("sdc", "ro", "1\n"),
        ("sdd", "ro", ""),
    ] {
        machine.disk(PCI, name, &format!("8:{name}"));
        machine.set(name, file, content);
    }
    machine.disk(PCI, "sr0", "11:0");
    machine.disk(PCI, "nbd0", "43:0");
    machine.set("nbd0", "size", "0\n");
    let inventory = machine.read();
    assert!(inventory.said("sda").contains("1073741312 bytes, the image needs 1073741824"));
    assert!(inventory.said("sdb").contains("sectors have 4096 bytes"));
    assert!(inventory.said("sdc").contains("read-only"));
    assert!(inventory.said("sdd").contains("read-only"));
    assert_eq!(inventory.disks.len(), 4);
}

#[test]
fn one_disk_on_two_paths_is_used_if_either_is() {
    let machine = Machine::new();
    for (name, dev) in [("sda", "8:0"), ("sdb", "8:16"), ("nvme0n1", "259:0"), ("nvme0n2", "259:1")]
    {
        machine.disk(PCI, name, dev);
        machine.set(name, "serial", "SAME\n");
        if name.starts_with("nvme") {
            machine.set(name, "wwid", format!("eui.{dev}\n"));
        } else {
            machine.set(name, "device/wwid", "naa.5000\n");
        }
    }
    machine.file(
        "proc/self/mountinfo",
        "27 1 8:0 / /srv rw - ext4 /dev/sda rw\n28 1 259:0 / /var rw - ext4 /dev/nvme0n1 rw\n",
    );
    let inventory = machine.read();
    assert!(inventory.said("sdb").contains("identity of /dev/sda, and sda is mounted at /srv"));
    // Two namespaces share a serial number, and are two disks: neither is named by it.
    assert_eq!(inventory.said("nvme0n2"), "");
    let identity = inventory.identity(inventory.named("nvme0n2"));
    assert_eq!(identity, Identity::PathAndSize("/dev/nvme0n2:4294967296".to_owned()));
}

#[test]
fn a_machine_that_does_not_say_what_is_used_gets_no_disk_written() {
    let machine = Machine::new();
    machine.disk(PCI, "sda", "8:0");
    machine.file("proc/self/mountinfo", "nonsense\n");
    assert!(matches!(Inventory::read(machine.0.path()), Err(DisksError::Table(_))));
    fs::remove_file(machine.0.path().join("proc/self/mountinfo")).unwrap();
    assert!(matches!(Inventory::read(machine.0.path()), Err(DisksError::File { .. })));

    let machine = Machine::new();
    machine.file("proc/swaps", "");
    assert!(matches!(Inventory::read(machine.0.path()), Err(DisksError::Table(_))));
    fs::remove_file(machine.0.path().join("proc/swaps")).unwrap();
    assert!(machine.read().disks.is_empty());
}
