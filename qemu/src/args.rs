//! QEMU's command line, and why each part of it is there.

use std::path::Path;

use serde_json::json;

use crate::machine::{BUNDLE_SLOTS, Config, GATEWAY_PORT};

/// OVMF with Secure Boot and SMM, from Debian's `ovmf`.
pub(crate) const FIRMWARE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";

/// Block node of the exchange medium.
pub(crate) const EXCHANGE: &str = "exchange";
/// Its device.
pub(crate) const EXCHANGE_DEVICE: &str = "stick";

/// The files of one launch.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    pub(crate) disk: &'a Path,
    pub(crate) vars: &'a Path,
    pub(crate) serial: &'a Path,
    pub(crate) tpm_socket: &'a Path,
    pub(crate) qmp_socket: &'a Path,
}

/// Arguments for `qemu-system-x86_64`.
pub(crate) fn qemu(config: &Config, files: &Files<'_>, incoming: bool) -> Vec<String> {
    let mut args = Args(Vec::new());
    args.platform(config);
    args.storage(config, files);
    args.devices(config, files);
    if incoming {
        // The state comes by QMP, where a failure has words.
        args.add("-incoming", "defer");
    }
    args.0
}

struct Args(Vec<String>);

impl Args {
    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }

    fn platform(&mut self, config: &Config) {
        self.0.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
        // A reboot of the guest ends QEMU: the test decides whether there is a next boot.
        self.0.push("-no-reboot".to_owned());
        self.add("-display", "none");
        self.add("-machine", "q35,smm=on,vmport=off,pflash0=code,pflash1=vars");
        // Only code in SMM writes the variable store, so the guest cannot change the Secure Boot keys.
        self.add("-global", "driver=cfi.pflash01,property=secure,value=on");
        // OVMF with SMM does not resume from S3.
        self.add("-global", "ICH9-LPC.disable_s3=1");
        self.add("-accel", config.accel.argument(config.one_thread));
        self.add("-cpu", config.accel.cpu());
        self.add("-smp", config.cpus.to_string());
        self.add("-m", config.memory_mib.to_string());
        if config.memory_at_once {
            self.0.push("-mem-prealloc".to_owned());
        }
        for value in &config.smbios {
            self.add("-smbios", format!("type=11,value={}", escape(value)));
        }
        for (name, content) in &config.fw_cfg {
            self.add("-fw_cfg", format!("name=opt/{},string={}", escape(name), escape(content)));
        }
    }

    fn storage(&mut self, config: &Config, files: &Files<'_>) {
        self.add("-blockdev", blockdev("raw", "code", Path::new(FIRMWARE_CODE), true));
        self.add("-blockdev", blockdev("qcow2", "vars", files.vars, false));
        self.add("-blockdev", blockdev("qcow2", "disk", files.disk, false));
        self.add("-device", "virtio-blk-pci,id=system,drive=disk,bootindex=1");
        for (index, disk) in config.disks.iter().enumerate() {
            self.add("-blockdev", blockdev("raw", &format!("spare{index}"), &disk.file, false));
            let serial = escape(&disk.serial);
            self.add("-device", format!("virtio-blk-pci,drive=spare{index},serial={serial}"));
        }
        for slot in 0..BUNDLE_SLOTS {
            // q35 takes new devices only behind root ports that were there at boot.
            let chassis = slot + 1;
            self.add(
                "-device",
                format!("pcie-root-port,id=slot{slot},chassis={chassis},slot={chassis}"),
            );
        }
        let last = BUNDLE_SLOTS + 1;
        self.add("-device", format!("pcie-root-port,id=slotx,chassis={last},slot={last}"));
        for (slot, bundle) in config.bundles.iter().enumerate() {
            self.add("-blockdev", blockdev("raw", &bundle_node(slot), bundle, true));
            self.add("-device", bundle_device(slot).to_string());
        }
    }

    fn devices(&mut self, config: &Config, files: &Files<'_>) {
        self.add("-chardev", format!("socket,id=tpm,path={}", escape_path(files.tpm_socket)));
        self.add("-tpmdev", "emulator,id=tpm0,chardev=tpm");
        self.add("-device", "tpm-crb,tpmdev=tpm0");
        // `restrict=on`: the guest reaches nobody; port 0 lets the kernel choose, so that no two machines race.
        let port = config.port.unwrap_or(0);
        let forward = format!("tcp:127.0.0.1:{port}-:{GATEWAY_PORT}");
        self.add("-netdev", format!("user,id=net0,restrict=on,hostfwd={forward}"));
        self.add("-device", "virtio-net-pci,id=nic,netdev=net0,romfile=");
        self.add("-object", "rng-random,id=random,filename=/dev/urandom");
        self.add("-device", "virtio-rng-pci,id=rng,rng=random");
        self.add("-chardev", format!("file,id=serial,path={}", escape_path(files.serial)));
        self.add("-serial", "chardev:serial");
        let socket = escape_path(files.qmp_socket);
        self.add("-chardev", format!("socket,id=qmp,path={socket},server=on,wait=off"));
        self.add("-mon", "chardev=qmp,mode=control");
    }
}

/// Name of the block node of a bundle medium.
pub(crate) fn bundle_node(slot: usize) -> String {
    format!("bundle{slot}")
}

/// `device_add` arguments of a bundle medium; the same at boot and when hot-plugged, so that a fork finds it.
pub(crate) fn bundle_device(slot: usize) -> serde_json::Value {
    json!({
        "driver": "virtio-blk-pci",
        "id": format!("medium{slot}"),
        "bus": format!("slot{slot}"),
        "drive": bundle_node(slot),
    })
}

/// `device_add` arguments of the exchange medium.
pub(crate) fn exchange_device() -> serde_json::Value {
    json!({
        "driver": "virtio-blk-pci",
        "id": EXCHANGE_DEVICE,
        "bus": "slotx",
        "drive": EXCHANGE,
    })
}

/// `blockdev-add` arguments, as JSON: no character of a path is special in it.
pub(crate) fn blockdev(driver: &str, node: &str, file: &Path, read_only: bool) -> String {
    json!({
        "driver": driver,
        "node-name": node,
        "read-only": read_only,
        "file": { "driver": "file", "filename": file.to_string_lossy(), "read-only": read_only },
    })
    .to_string()
}

/// In QEMU's option strings a comma within a value is doubled.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

fn escape_path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Accel;

    fn args(config: &Config, incoming: bool) -> Vec<String> {
        let files = Files {
            disk: Path::new("/s/disk.qcow2"),
            vars: Path::new("/s/vars.qcow2"),
            serial: Path::new("/s/a,b/serial.log"),
            tpm_socket: Path::new("/t/t"),
            qmp_socket: Path::new("/t/q"),
        };
        qemu(config, &files, incoming)
    }

    fn value_of(args: &[String], name: &str, part: &str) -> String {
        let found: Vec<_> = args
            .windows(2)
            .filter(|pair| pair[0] == name && pair[1].contains(part))
            .map(|pair| pair[1].clone())
            .collect();
        assert_eq!(found.len(), 1, "{name} with {part}: {found:?}");
        found[0].clone()
    }

    #[test]
    fn the_guest_reaches_nobody_and_only_loopback_reaches_it() {
        let args = args(&Config::new("/i", "/s", Accel::Tcg), false);
        let netdev = value_of(&args, "-netdev", "user");
        assert_eq!(netdev, "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:0-:8443");
        assert_eq!(args.iter().filter(|arg| *arg == "-netdev").count(), 1);
        assert!(args.contains(&"-nodefaults".to_owned()));
    }

    #[test]
    fn commas_are_doubled_in_options_and_free_in_json() {
        let mut config = Config::new("/i", "/s", Accel::Tcg);
        config.smbios.push("io.systemd.stub.kernel-cmdline-extra=a,b".to_owned());
        config.bundles.push("/b,c/good.img".into());
        let args = args(&config, false);
        assert!(value_of(&args, "-chardev", "id=serial").ends_with("path=/s/a,,b/serial.log"));
        assert!(value_of(&args, "-smbios", "type=11").ends_with("=a,,b"));
        let medium: serde_json::Value =
            serde_json::from_str(&value_of(&args, "-blockdev", "good.img")).unwrap();
        assert_eq!(medium["file"]["filename"], "/b,c/good.img");
        assert_eq!(medium["read-only"], true);
    }

    #[test]
    fn a_spare_disk_is_written_and_not_started_from() {
        let mut config = Config::new("/i", "/s", Accel::Tcg);
        config.disks.push(crate::SpareDisk { file: "/spare.raw".into(), serial: "a,1".to_owned() });
        let args = args(&config, false);
        assert!(value_of(&args, "-blockdev", "spare.raw").contains("\"read-only\":false"));
        let device = value_of(&args, "-device", "drive=spare0");
        assert!(device.ends_with("serial=a,,1") && !device.contains("bootindex"), "{device}");
    }

    #[test]
    fn a_fork_has_the_devices_of_its_snapshot() {
        let mut config = Config::new("/i", "/s", Accel::Tcg);
        config.bundles.push("/good.img".into());
        let booted = args(&config, false);
        let forked = args(&config, true);
        assert_eq!(forked[..booted.len()], booted);
        assert_eq!(forked[booted.len()..], ["-incoming", "defer"]);
    }

    #[test]
    fn one_host_thread_is_for_the_translator() {
        for (accel, expected) in [(Accel::Tcg, "tcg,thread=single,"), (Accel::Kvm, "kvm")] {
            let mut config = Config::new("/i", "/s", accel);
            config.one_thread = true;
            assert!(value_of(&args(&config, false), "-accel", "").starts_with(expected));
        }
    }

    #[test]
    fn every_bundle_slot_has_its_root_port() {
        let args = args(&Config::new("/i", "/s", Accel::Kvm), false);
        for slot in 0..BUNDLE_SLOTS {
            value_of(&args, "-device", &format!("pcie-root-port,id=slot{slot},"));
        }
        assert_eq!(value_of(&args, "-accel", "kvm"), "kvm");
    }
}
