//! The real binary where the disk is full, or where it is killed while it downloads: a clear error, nothing half written
//! under a final name, and the next run goes on. Skips, saying so, where a tool is missing.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod tools;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

const NEEDED: [&str; 6] = [
    "/usr/bin/curl",
    "/usr/bin/dpkg-deb",
    "/usr/bin/softhsm2-util",
    "/usr/bin/unshare",
    "/usr/bin/virt-fw-vars",
    "/usr/share/OVMF/OVMF_VARS_4M.fd",
];
/// Longer than the small disk, and no package: a build that has it fails at the next step.
const LONG: &[u8] = &[7; 3 << 20];
const SHORT: &[u8] = b"kern";
/// `$1` where a small disk is mounted; then the command. Prints what is on the disk at the end.
const ON_A_SMALL_DISK: &str = r#"
disk=$1; shift
# In the tools tree / is no mount point, and what is mounted stays within already.
if mountpoint --quiet /; then mount --make-rprivate /; fi
mount -t tmpfs -o size=1m tmpfs "$disk"
status=0; "$@" || status=$?
cd "$disk"; find . -mindepth 1
exit $status
"#;

static KEYS: LazyLock<PathBuf> = LazyLock::new(|| {
    let keys = tools::scratch("bad-input", "keys").join("set");
    let made = casemate().arg("keys").arg(&keys).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    keys
});

fn casemate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
    command.stdin(Stdio::null()).env_remove("SOFTHSM2_CONF").env_remove("http_proxy");
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// A repository whose lock has two packages, `a` and a kernel, and a mirror with both.
struct Desk {
    dir: PathBuf,
    packages: [String; 2],
}

impl Desk {
    fn new(name: &str) -> Option<Self> {
        if !tools::are_there(&NEEDED) {
            return None;
        }
        let dir = tools::scratch("bad-input", name);
        let (pool, config) = (dir.join("mirror/pool"), dir.join("source/image/config"));
        for folder in [&pool, &config] {
            fs::create_dir_all(folder).unwrap();
        }
        let publish = |name: &str, content: &[u8]| {
            let path = pool.join(name);
            fs::write(&path, content).unwrap();
            sha256(&path)
        };
        let packages = [publish("a.deb", LONG), publish("k.deb", SHORT)];
        let [a, kernel] = &packages;
        let (long, short) = (LONG.len(), SHORT.len());
        let lock = format!(
            "lock 1\nlisted a 1 all {long} {a} main pool/a.deb\n\
             kernel linux-image-k 1 amd64 {short} {kernel} main pool/k.deb\n"
        );
        fs::write(config.join("packages.list"), "a # the only one\n").unwrap();
        fs::write(config.join("packages.lock"), lock).unwrap();
        Some(Self { dir, packages })
    }

    /// The arguments of a build with its packages in `debs`.
    fn build(&self, mirror: &str, debs: &Path) -> Vec<PathBuf> {
        let mut args = vec!["build".into(), "--mirror".into(), mirror.into()];
        let folders = [
            ("--keys", KEYS.clone()),
            ("--out", self.dir.join("image")),
            ("--source", self.dir.join("source")),
            ("--cache", self.dir.join("cache")),
            ("--debs", debs.to_owned()),
        ];
        args.extend(folders.into_iter().flat_map(|(option, folder)| [option.into(), folder]));
        args
    }

    fn mirror(&self) -> String {
        format!("file://{}", self.dir.join("mirror").display())
    }

    /// With room and a whole mirror, a build has all packages and sees at the next step that they are none.
    fn check_goes_on(&self, debs: &Path) {
        let output = casemate().args(self.build(&self.mirror(), debs)).output().unwrap();
        let said = said(&output);
        assert!(!output.status.success() && said.contains("dpkg-deb ended with"), "{said}");
        let mut expected = self.packages.each_ref().map(|sha256| format!("{sha256}.deb")).to_vec();
        expected.push(".lock".to_owned());
        expected.sort();
        assert_eq!(names(debs), expected);
        assert_eq!(sha256(&debs.join(format!("{}.deb", self.packages[0]))), self.packages[0]);
    }

    /// Nothing that could be taken for a build's output, or for an entry of the cache.
    fn check_no_output(&self) {
        assert_eq!(names(&self.dir.join("image")), [".work", "logs"]);
        let cached = names(&self.dir.join("cache"));
        assert!(cached.iter().all(|name| name.starts_with('.')), "{cached:?}");
    }
}

/// Names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| name(entry).into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_is_named_and_the_next_run_goes_on() {
    let Some(desk) = Desk::new("full") else { return };
    let disk = desk.dir.join("small");
    fs::create_dir(&disk).unwrap();
    let args = desk.build(&desk.mirror(), &disk.join("debs"));
    let Some((said, left)) = fail_on_a_small_disk(&disk, &args) else { return };
    // The two come side by side: the long one fills the disk, and either finds it full.
    let named = |partial| said.contains(&format!("debs/{partial}: No space left on device"));
    assert!(named(".a.partial") || named(".linux-image-k.partial"), "{said}");
    let whole = format!("./debs/{}.deb", desk.packages[1]);
    assert!(left.lines().all(|name| ["./debs", "./debs/.lock", &whole].contains(&name)), "{left}");
    desk.check_no_output();
    desk.check_goes_on(&desk.dir.join("debs"));
}

#[test]
fn a_model_folder_on_a_full_disk_is_not_there() {
    let dir = tools::scratch("bad-input", "model");
    let (disk, gguf) = (dir.join("small"), dir.join("w.gguf"));
    fs::create_dir(&disk).unwrap();
    fs::write(&gguf, [b"GGUF", LONG].concat()).unwrap();
    let mut args: Vec<PathBuf> =
        ["bundle", "model", "--model-id", "m", "--gguf"].map(Into::into).into();
    args.extend([gguf, "--out".into(), disk.join("model")]);
    let Some((said, left)) = fail_on_a_small_disk(&disk, &args) else { return };
    assert!(said.contains("small/model: No space left on device"), "{said}");
    assert_eq!(left, "");
}

/// Runs `casemate` with a disk of 1 MiB at `disk`; returns what it said and what is on the disk then.
fn fail_on_a_small_disk(disk: &Path, args: &[PathBuf]) -> Option<(String, String)> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=unchanged", "sh", "-euc", ON_A_SMALL_DISK, "small"]);
    command.arg(disk).arg(env!("CARGO_BIN_EXE_casemate")).env_remove("SOFTHSM2_CONF");
    let output = command.args(args).output().unwrap();
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    if ["unshare failed", "permission denied"].iter().any(|words| said.contains(words)) {
        println!("skipped: only root mounts a small disk; run it in the tools tree");
        return None;
    }
    Some((said, String::from_utf8(output.stdout).unwrap()))
}

#[test]
fn a_download_that_was_killed_is_begun_anew_by_the_next_run() {
    let Some(desk) = Desk::new("killed") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || stall(&listener));
    let debs = desk.dir.join("debs");
    let mut build = casemate()
        .args(desk.build(&mirror, &debs))
        .env("no_proxy", "127.0.0.1")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (partial, started) = (debs.join(".a.partial"), Instant::now());
    while fs::metadata(&partial).map_or(0, |file| file.len()) == 0 {
        assert!(build.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(started.elapsed() < Duration::from_secs(120), "it downloads nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
    build.kill().unwrap();
    build.wait().unwrap();
    assert!(partial.exists() && !debs.join(format!("{}.deb", desk.packages[0])).exists());
    desk.check_no_output();
    desk.check_goes_on(&debs);
}

/// A mirror that gives the kernel, and half of the other package, and then nothing more.
fn stall(listener: &TcpListener) {
    let answer = |stream: &mut TcpStream| -> std::io::Result<()> {
        let mut request = [0; 1024];
        let length = stream.read(&mut request)?;
        let is_kernel = String::from_utf8_lossy(&request[..length]).contains("k.deb");
        let (content, sent) = if is_kernel { (SHORT, SHORT.len()) } else { (LONG, LONG.len() / 2) };
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len())?;
        stream.write_all(&content[..sent])
    };
    let mut open = Vec::new();
    for mut stream in listener.incoming().flatten() {
        // Who was killed hears no answer.
        let _ended = answer(&mut stream);
        open.push(stream);
    }
}
