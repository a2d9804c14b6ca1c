//! Flashing through the real binary: refusals anywhere, whole disks on loop devices where this machine lends them
//! (root, /dev/loop-control). Skips, saying so, where it does not.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

mod builder_key;

use builder_key::Key;
use rustix::pty::OpenptFlags;
use sha2::{Digest as _, Sha256};

const MIB: u64 = 1 << 20;
const IMAGE_BYTES: u64 = 24 * MIB;
/// Longer than the image, and no multiple of anything large.
const DISK_BYTES: u64 = 40 * MIB + 512 * 7;

/// A folder for one test, with an image in it.
struct Desk(PathBuf);

/// A disk for as long as the value is there.
struct Loop(PathBuf);

impl Desk {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("flash").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        let desk = Self(folder);
        let image = File::create(desk.image()).unwrap();
        image.set_len(IMAGE_BYTES).unwrap();
        for (at, bytes, fill) in [
            (MIB, 300_000, 1),
            (5 * MIB + 4096, 4096, 2),
            (9 * MIB, 6 * MIB, 3),
            (IMAGE_BYTES - 9000, 9000, 4),
        ] {
            image.write_all_at(&vec![fill; usize::try_from(bytes).unwrap()], at).unwrap();
        }
        image.write_all_at(&[0x55, 0xaa], 510).unwrap();
        image.write_all_at(b"EFI PART", 512).unwrap();
        image.write_all_at(&(IMAGE_BYTES / 512 - 1).to_le_bytes(), 512 + 32).unwrap();
        assert!(image.metadata().unwrap().blocks() * 512 < IMAGE_BYTES / 2, "no sparse files here");
        desk.sign(&desk.sha256());
        fs::write(desk.0.join("build.pub.pem"), Key::new(1).pem()).unwrap();
        desk
    }

    fn image(&self) -> PathBuf {
        self.0.join("casemate.raw")
    }

    fn sign(&self, sha256: &str) {
        Key::new(1).sign(&self.0, "casemate.raw", sha256);
    }

    fn sha256(&self) -> String {
        hex::encode(Sha256::digest(fs::read(self.image()).unwrap()))
    }

    fn attach(&self, name: &str) -> Option<Loop> {
        let output =
            Command::new("losetup").args(["--find", "--show"]).arg(self.0.join(name)).output();
        match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap();
                Some(Loop(PathBuf::from(path.trim())))
            }
            other => {
                println!("skipped: no loop device: {other:?}");
                None
            }
        }
    }

    /// A disk full of garbage; `None`, and a word about it, if there can be none.
    fn disk(&self, name: &str, bytes: u64) -> Option<Loop> {
        fs::write(self.0.join(name), garbage(bytes)).unwrap();
        self.attach(name)
    }

    fn content(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.join(name)).unwrap()
    }

    fn command(&self, device: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.env("RUST_BACKTRACE", "0").arg("flash").arg(self.image()).arg(device).args(args);
        command.arg("--key").arg(self.0.join("build.pub.pem"));
        command.stdin(Stdio::null());
        command
    }

    fn check_refused(&self, device: &Path, args: &[&str], because: &str) {
        let output = self.command(device, args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(because), "{because:?}: {said}");
    }
}

impl Loop {
    /// What must be typed: a loop device has no serial number.
    fn identity(&self, bytes: u64) -> String {
        format!("{}:{bytes}", self.0.display())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach".as_ref(), self.0.as_os_str()]);
    }
}

fn garbage(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| 0x5a ^ u8::try_from(at % 251).unwrap()).collect()
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

#[test]
fn a_disk_full_of_garbage_becomes_the_image() {
    let desk = Desk::new("good");
    let Some(disk) = desk.disk("disk", DISK_BYTES) else { return };
    let identity = disk.identity(DISK_BYTES);
    let output = desk.command(&disk.0, &["--yes-serial", &identity]).output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for word in
        ["as the builder signed", "clearing the gaps", "writing", "reading back", &desk.sha256()]
    {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains('\r'), "no terminal, no line written over: {said}");
    drop(disk);
    let (content, image) = (desk.content("disk"), desk.content("casemate.raw"));
    assert!(content[..image.len()] == image, "the disk is not the image");
    let end = content.len() - usize::try_from(MIB).unwrap();
    assert!(content[end..].iter().all(|&byte| byte == 0), "an old backup table could be there");
    let before = garbage(DISK_BYTES);
    assert!(
        content[image.len()..end] == before[image.len()..end],
        "more was written than asked for"
    );
}

#[test]
fn a_disk_as_large_as_the_image_takes_it() {
    let desk = Desk::new("exact");
    let Some(disk) = desk.disk("disk", IMAGE_BYTES) else { return };
    let identity = disk.identity(IMAGE_BYTES);
    let output = desk.command(&disk.0, &["--yes-serial", &identity]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    drop(disk);
    assert!(desk.content("disk") == desk.content("casemate.raw"));
}

#[test]
fn whatever_is_not_named_fitting_and_free_keeps_every_byte() {
    let desk = Desk::new("refused");
    let Some(disk) = desk.disk("disk", DISK_BYTES) else { return };
    let Some(small) = desk.disk("small", IMAGE_BYTES - 512) else { return };
    let identity = disk.identity(DISK_BYTES);
    desk.check_refused(&disk.0, &["--yes-serial", "WD-1"], "is another disk");
    desk.check_refused(&disk.0, &["--yes-serial", &disk.0.display().to_string()], "another disk");
    desk.check_refused(&disk.0, &[], "no terminal to type at");
    desk.check_refused(
        &small.0,
        &["--yes-serial", &small.identity(IMAGE_BYTES - 512)],
        "it is too small",
    );
    desk.sign(&"0".repeat(64));
    desk.check_refused(&disk.0, &["--yes-serial", &identity], "is not what was built");
    Key::new(2).sign(&desk.0, "casemate.raw", &desk.sha256());
    desk.check_refused(&disk.0, &["--yes-serial", &identity], "none of its 1 signatures");
    desk.sign(&desk.sha256());
    assert!(run("blockdev", &["--setro".as_ref(), disk.0.as_os_str()]));
    desk.check_refused(&disk.0, &["--yes-serial", &identity], "read-only");
    assert!(run("blockdev", &["--setrw".as_ref(), disk.0.as_os_str()]));
    drop((disk, small));
    assert!(desk.content("disk") == garbage(DISK_BYTES));
    assert!(desk.content("small") == garbage(IMAGE_BYTES - 512));
}

#[test]
fn a_mounted_disk_is_refused() {
    let desk = Desk::new("mounted");
    let Some(disk) = desk.disk("disk", DISK_BYTES) else { return };
    let mountpoint = desk.0.join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let is_mounted = run("mkfs.erofs", &[disk.0.as_os_str(), mountpoint.as_os_str()])
        && run("mount", &["-oro".as_ref(), disk.0.as_os_str(), mountpoint.as_os_str()]);
    if !is_mounted {
        println!("skipped: nothing can be mounted here");
        return;
    }
    let identity = disk.identity(DISK_BYTES);
    desk.check_refused(&disk.0, &["--yes-serial", &identity], "is mounted at /");
    assert!(run("umount", &[mountpoint.as_os_str()]));
}

#[test]
fn a_disk_that_runs_full_says_where_and_does_not_boot() {
    let desk = Desk::new("full");
    let pool = desk.0.join("pool");
    fs::create_dir(&pool).unwrap();
    // Room for the edges, and for a part of the data.
    let args = ["-t", "tmpfs", "-o", "size=6m", "tmpfs"].map(AsRef::as_ref);
    if !run("mount", &[&args[..], &[pool.as_os_str()]].concat()) {
        println!("skipped: nothing can be mounted here");
        return;
    }
    File::create(pool.join("disk")).unwrap().set_len(DISK_BYTES).unwrap();
    let flashed = desk.attach("pool/disk").map(|disk| {
        let identity = disk.identity(DISK_BYTES);
        desk.command(&disk.0, &["--yes-serial", &identity]).output().unwrap()
    });
    let content = desk.content("pool/disk");
    assert!(run("umount", &[pool.as_os_str()]));
    let Some(output) = flashed else { return };
    let said = said(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for word in ["cannot write the disk at offset ", "does NOT boot", &format!("{}", 9 * MIB)] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let edge = usize::try_from(MIB).unwrap();
    assert!(content[..edge].iter().all(|&byte| byte == 0));
}

#[test]
fn a_use_that_no_table_shows_is_refused_by_the_kernel() {
    let desk = Desk::new("held");
    let Some(disk) = desk.disk("disk", DISK_BYTES) else { return };
    // As a mount in another namespace holds it, or a virtual machine.
    let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap();
    let holder = File::options().read(true).custom_flags(exclusive).open(&disk.0).unwrap();
    let list =
        Command::new(env!("CARGO_BIN_EXE_casemate")).args(["flash", "--list"]).output().unwrap();
    let shown = format!("{}:", disk.0.display());
    let (_, mine) =
        said(&list).split_once(&shown).map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let reason = mine.lines().find(|line| line.contains("overwritten")).unwrap().to_owned();
    assert!(reason.contains("NOT to be overwritten: it is in use"), "{reason}");
    let identity = disk.identity(DISK_BYTES);
    desk.check_refused(&disk.0, &["--yes-serial", &identity], "the kernel lends it to nobody else");
    drop((holder, disk));
    assert!(desk.content("disk") == garbage(DISK_BYTES));
}

#[test]
fn a_disk_is_overwritten_once_its_name_is_typed() {
    let desk = Desk::new("typed");
    let Some(disk) = desk.disk("disk", DISK_BYTES) else { return };
    let typed = |line: &str| {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&master).and_then(|()| rustix::pty::unlockpt(&master)).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let terminal = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        rustix::io::write(&master, line.as_bytes()).unwrap();
        let output = desk.command(&disk.0, &[]).stdin(terminal).output().unwrap();
        drop(master);
        output
    };
    let wrong = typed("yes\n");
    assert_eq!(wrong.status.code(), Some(1), "{}", said(&wrong));
    assert!(said(&wrong).contains("\"yes\" is another disk"), "{}", said(&wrong));
    assert!(desk.content("disk") == garbage(DISK_BYTES));
    let identity = disk.identity(DISK_BYTES);
    let right = typed(&format!("{identity}\n"));
    assert!(right.status.success(), "{}", said(&right));
    assert!(
        said(&right).contains(&format!("Type {identity} to overwrite it: ")),
        "{}",
        said(&right)
    );
}

#[test]
fn an_interrupted_disk_has_no_partition_table() {
    let desk = Desk::new("interrupted");
    let Some(disk) = desk.disk("disk", DISK_BYTES) else { return };
    let identity = disk.identity(DISK_BYTES);
    let mut child =
        desk.command(&disk.0, &["--yes-serial", &identity]).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("clearing the gaps") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before it wrote");
    }
    assert!(run("kill", &["-INT".as_ref(), child.id().to_string().as_ref()]));
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    let status = child.wait().unwrap();
    drop(disk);
    let content = desk.content("disk");
    if status.success() {
        // Fast machine: it was done before the signal came.
        println!("skipped: not interrupted in time");
        return;
    }
    assert_eq!(status.code(), Some(130), "{rest}");
    assert!(rest.contains("does NOT boot"), "{rest}");
    let edge = usize::try_from(MIB).unwrap();
    let image = usize::try_from(IMAGE_BYTES).unwrap();
    for part in [&content[..edge], &content[image - edge..image], &content[content.len() - edge..]]
    {
        assert!(part.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn what_is_no_disk_is_refused() {
    let desk = Desk::new("no-disk");
    desk.check_refused(&desk.image(), &["--yes-serial", "x"], "is no block device");
    desk.check_refused(Path::new("/dev/null"), &["--yes-serial", "x"], "is no block device");
    desk.check_refused(&desk.0.join("missing"), &["--yes-serial", "x"], "No such file");
    fs::write(desk.image(), "other").unwrap();
    desk.check_refused(Path::new("/dev/null"), &["--yes-serial", "x"], "no GUID partition table");
}

#[test]
fn the_running_root_is_listed_and_not_to_be_overwritten() {
    let desk = Desk::new("list");
    let list = |args: &[&std::ffi::OsStr]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_casemate")).arg("flash").args(args).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let all = list(&["--list".as_ref()]);
    let fitting = list(&[desk.image().as_os_str()]);
    assert!(all == fitting || !all.contains("may be overwritten") || fitting.contains("NOT"));
    let root = fs::metadata(env!("CARGO_TARGET_TMPDIR")).unwrap().dev();
    let is_block = Path::new("/sys/dev/block").join(device(root)).exists();
    if is_block {
        assert!(all.contains("is mounted at"), "{all}");
    } else {
        println!("skipped in part: this folder is on no disk");
    }
    let usage = Command::new(env!("CARGO_BIN_EXE_casemate")).arg("flash").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

/// Linux' 32-bit device number, as in `8:0`.
fn device(number: u64) -> String {
    format!("{}:{}", (number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}
