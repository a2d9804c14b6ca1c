//! `cargo xtask bench boot`: how long the appliance takes to boot, beside a stock Debian in the same minutes, and how
//! long a build takes after a change of the agent.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::material::{self, Material, keyed};
use crate::steps::{Steps, sh};
use crate::tree::{SUITE, Tree};

/// The same kernel and init as the appliance's, with Debian's own initrd; e2fsprogs makes and checks its root.
const PACKAGES: &str =
    "linux-image-cloud-amd64,systemd,systemd-sysv,udev,initramfs-tools,e2fsprogs,zstd";
/// The last unit of the boot runs a script, which speaks through the kernel's log: the login prompt hangs up the
/// terminal of whoever writes to it, with what is not sent yet.
const LAST: &str =
    "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=/bin/sh /etc/last.sh\n";

/// A disk with a stock Debian.
struct Debian {
    /// Of its cache folder.
    name: &'static str,
    /// Beside [`PACKAGES`].
    more: &'static str,
    /// What its last unit runs.
    last: &'static str,
}

/// Its line is what `boots` waits for; critical, so that `quiet` shows it.
const BOOTED: Debian = Debian {
    name: "stock-debian",
    more: "",
    last: "echo '<2>stock: default target reached' > /dev/kmsg\n",
};
const INTEGRITY: Debian = Debian {
    name: "stock-debian-integrity",
    more: ",cryptsetup-bin",
    last: include_str!("integrity.sh"),
};

/// As Debian's installer sets it, and the same consoles as the appliance's.
const CMDLINE: &str = "root=PARTLABEL=root ro quiet console=tty0 console=ttyS0";
const ESP: &str =
    "[Partition]\nType=esp\nFormat=vfat\nSizeMinBytes=128M\nSizeMaxBytes=128M\nCopyFiles=/esp:/\n";
const ROOT: &str =
    "[Partition]\nType=root-x86-64\nLabel=root\nFormat=ext4\nSizeMinBytes=1G\nCopyFiles=/root:/\n";
/// Debian's variable store without keys: nothing of a stock Debian is signed by us.
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// Bytes that stand for a changed source file: the program is another one, and does the same.
const CHANGE: &[u8] = b"changed";

/// Measures both.
pub(crate) fn bench(tree: &Tree, steps: &mut Steps, rounds: u32) -> Result<()> {
    let material = material::prepare(tree, steps, &[])?;
    let own = || material::own_kernel_image(tree, &material, "own", false);
    let own = steps.run("image with kernel own", own)?;
    let stock = steps.run("stock Debian", || stock(tree, &BOOTED))?;
    steps.show("measure: build after a change of the agent", || rebuild(tree, &material))?;
    steps.show("measure: boots", || {
        let mut command = tree.enter(material.binaries.join("boots"));
        let images = [("Debian's kernel", &material.image)].into_iter();
        for (name, image) in images.chain(own.as_ref().map(|[_, image]| ("own kernel", image))) {
            command.arg("--image").arg(format!("{name}={}", image.display()));
        }
        command.arg("--keys").arg(&material.keys);
        command.arg("--bundle").arg(&material.bundles.good).arg("--stock").arg(&stock);
        command.arg("--programs").arg(&material.binaries);
        command.arg("--work").arg(tree.cache().join("boots"));
        sh(command.arg("--rounds").arg(rounds.to_string()))
    })
}

/// Measures what dm-integrity costs the writes of a state partition.
pub(crate) fn integrity(tree: &Tree, steps: &mut Steps) -> Result<()> {
    let selection = ["--package", "system-tests", "--bin", "integrity"];
    let binaries = material::programs(tree, steps, &selection)?;
    let machine = steps.run("stock Debian with cryptsetup", || stock(tree, &INTEGRITY))?;
    steps.show("measure: integrity", || {
        let mut command = tree.enter(binaries.join("integrity"));
        command.arg("--machine").arg(&machine);
        sh(command.arg("--work").arg(tree.cache().join("integrity")))
    })
}

/// Builds the image once more with another agentd, and shows the steps: what a change costs beside cargo's own time.
fn rebuild(tree: &Tree, material: &Material) -> Result<()> {
    let folder = tree.cache().join("rebuild");
    let remove = || sh(tree.enter("rm").args(["-rf", "--one-file-system"]).arg(&folder));
    remove()?;
    let agent = folder.join("agent");
    fs::create_dir_all(&agent)?;
    for entry in fs::read_dir(&material.binaries)? {
        let program = entry?;
        // Beside cargo's own files, which have a suffix.
        let name = program.file_name();
        if program.file_type()?.is_file() && Path::new(&name).extension().is_none() {
            fs::copy(program.path(), agent.join(name))?;
        }
    }
    fs::File::options().append(true).open(agent.join("agentd"))?.write_all(CHANGE)?;
    let mut command = tree.enter(material.binaries.join("casemate"));
    command.arg("build").arg("--keys").arg(&material.keys).arg("--out").arg(folder.join("image"));
    command.arg("--agent").arg(&agent).arg("--mirror").arg(tree.mirror());
    sh(command.arg("--cache").arg(tree.cache()))?;
    remove()
}

/// A disk with a stock Debian, as an image folder; from the cache if it is there.
fn stock(tree: &Tree, debian: &Debian) -> Result<PathBuf> {
    let parts = [PACKAGES, debian.more, LAST, debian.last, CMDLINE, ESP, ROOT, tree.mirror()];
    let folder = keyed(tree, debian.name, &parts);
    if folder.join("complete").exists() {
        return Ok(folder);
    }
    let remove = |path: &Path| sh(tree.enter("rm").args(["-rf", "--one-file-system"]).arg(path));
    remove(&folder)?;
    let content = folder.join("content");
    for made in [&content.join("esp/EFI/BOOT"), &folder.join("repart.d")] {
        fs::create_dir_all(made)?;
    }
    let root = content.join("root");
    bootstrap(tree, debian, &folder, &root)?;
    fs::write(folder.join("repart.d/10-esp.conf"), ESP)?;
    fs::write(folder.join("repart.d/20-root.conf"), ROOT)?;
    disk(tree, &folder, &content)?;
    remove(&content)?;
    fs::copy(tree.path(VARIABLES), folder.join("OVMF_VARS.fd"))?;
    fs::write(folder.join("complete"), "")?;
    Ok(folder)
}

fn bootstrap(tree: &Tree, debian: &Debian, folder: &Path, root: &Path) -> Result<()> {
    let (unit, script) = (folder.join("last.service"), folder.join("last.sh"));
    fs::write(&unit, LAST)?;
    fs::write(&script, debian.last)?;
    let mut command = tree.enter("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--quiet"]);
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    command.arg("--keyring=/usr/share/keyrings/debian-archive-keyring.gpg");
    command.arg(format!("--include={PACKAGES}{}", debian.more));
    command.arg(format!("--customize-hook=copy-in '{}' /etc/systemd/system", unit.display()));
    command.arg(format!("--customize-hook=copy-in '{}' /etc", script.display()));
    command
        .arg("--customize-hook=systemctl --root=\"$1\" add-wants multi-user.target last.service");
    command.arg("--customize-hook=systemctl --root=\"$1\" set-default multi-user.target");
    sh(command.arg(SUITE).arg(root).arg(tree.mirror()))
}

/// Kernel and initrd as one EFI program, so that firmware starts them without a boot menu; then the disk.
fn disk(tree: &Tree, folder: &Path, content: &Path) -> Result<()> {
    let root = content.join("root");
    let mut ukify = tree.enter("ukify");
    ukify.arg("build").arg(format!("--cmdline={CMDLINE}"));
    ukify.arg(format!("--linux={}", root.join("vmlinuz").display()));
    ukify.arg(format!("--initrd={}", root.join("initrd.img").display()));
    ukify.arg(format!("--os-release=@{}", root.join("usr/lib/os-release").display()));
    ukify.arg(format!("--output={}", content.join("esp/EFI/BOOT/BOOTX64.EFI").display()));
    sh(&mut ukify)?;
    let mut repart: Command = tree.enter("/usr/bin/env");
    // mkfs.ext4 comes from the stock Debian, which is of the same release as the tools tree.
    repart.arg(format!("PATH=/usr/sbin:/usr/bin:{}", root.join("usr/sbin").display()));
    repart.arg(format!("LD_LIBRARY_PATH={}", root.join("usr/lib/x86_64-linux-gnu").display()));
    repart.args(["systemd-repart", "--offline=yes", "--empty=create", "--size=2G"]);
    repart.args(["--dry-run=no", "--no-pager", "--sector-size=512"]);
    repart.arg(format!("--definitions={}", folder.join("repart.d").display()));
    repart.arg(format!("--copy-source={}", content.display()));
    sh(repart.arg(folder.join("casemate.raw")))
}
