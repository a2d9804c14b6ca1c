//! A TPM for one test: swtpm on Unix sockets of its own, killed when dropped.
//!
//! A confined agentd has no other sockets, and the transport for swtpm connects anew for each command. tss-esapi
//! cannot name a Unix socket to that transport but passes any path to the one for devices. So agentd is started
//! with a library folder in which the one stands in for the other; agentd itself knows nothing of it.

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that swtpm may take to listen.
const START_MAX: Duration = Duration::from_secs(20);
/// Debian's package libtss2-tcti-swtpm0.
const TRANSPORT: &str = "/usr/lib/x86_64-linux-gnu/libtss2-tcti-swtpm.so.0";
/// What tpm2-tss loads for `device:`.
const STAND_IN: &str = "libtss2-tcti-device.so.0";

#[path = "../../../../qemu/src/manufacture.rs"]
#[allow(unreachable_pub, reason = "public where the file comes from")]
mod manufacture;

#[derive(Debug)]
pub(crate) struct Swtpm {
    process: Child,
    folder: tempfile::TempDir,
}

impl Swtpm {
    /// Starts one, or says loudly why the test is skipped.
    pub(crate) fn start() -> Option<Self> {
        if let Err(error) = Command::new("swtpm").arg("--version").stdout(Stdio::null()).status() {
            eprintln!("SKIPPED: swtpm does not start ({error}); run in the tools tree");
            return None;
        }
        Some(Self::with(tempfile::tempdir().unwrap()))
    }

    /// Starts one that its factory certified, by an authority of its own.
    pub(crate) fn manufactured() -> Option<Self> {
        if let Err(error) = Command::new("swtpm_setup").arg("--version").output() {
            eprintln!("SKIPPED: swtpm_setup does not start ({error}); run in the tools tree");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        manufacture::manufacture(folder.path(), &folder.path().join("vendor")).unwrap();
        Some(Self::with(folder))
    }

    /// Certificates of the factory's authority, DER.
    pub(crate) fn roots(&self) -> Vec<Vec<u8>> {
        let folder = manufacture::roots(&self.folder.path().join("vendor"));
        let read = |file: std::io::Result<std::fs::DirEntry>| {
            evidence::enrol::certificates(&std::fs::read(file.unwrap().path()).unwrap()).unwrap()
        };
        std::fs::read_dir(folder).unwrap().flat_map(read).collect()
    }

    fn with(folder: tempfile::TempDir) -> Self {
        let path = |name: &str| folder.path().join(name);
        assert!(Path::new(TRANSPORT).exists(), "{TRANSPORT} is not there; run in the tools tree");
        std::fs::create_dir(path("lib")).unwrap();
        symlink(TRANSPORT, path("lib").join(STAND_IN)).unwrap();
        let process = spawn(folder.path());
        let mut swtpm = Self { process, folder };
        swtpm.wait_listening();
        swtpm
    }

    /// Cuts its power and switches it on again: registers are zero, what was in NV memory is still there.
    pub(crate) fn reset(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        for socket in ["tpm", "tpm.ctrl"] {
            std::fs::remove_file(self.folder.path().join(socket)).unwrap();
        }
        self.process = spawn(self.folder.path());
        self.wait_listening();
    }

    /// Runs one of tpm2-tools on it; agentd must not run meanwhile.
    pub(crate) fn tool(&self, command: &[&str]) {
        let (program, args) = command.split_first().unwrap();
        let tcti = format!("swtpm:path={}", self.folder.path().join("tpm").display());
        let output = Command::new(program).args(args).env("TPM2TOOLS_TCTI", tcti).output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    }

    fn wait_listening(&mut self) {
        let deadline = Instant::now() + START_MAX;
        // Only the control channel: the data channel serves one connection at a time.
        while UnixStream::connect(self.folder.path().join("tpm.ctrl")).is_err() {
            let left = self.process.try_wait().unwrap();
            let late = Instant::now() > deadline;
            assert!(
                left.is_none() && !late,
                "swtpm does not listen within {START_MAX:?}: {left:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What opens it, by a process that has [`Self::libraries`] as `LD_LIBRARY_PATH`.
    pub(crate) fn tcti(&self) -> String {
        format!("device:path={}", self.folder.path().join("tpm").display())
    }

    pub(crate) fn libraries(&self) -> PathBuf {
        self.folder.path().join("lib")
    }

    /// TPM2_PCR_Extend with SHA-256 (TPM 2.0 Library Part 3), by nobody's library.
    pub(crate) fn extend(&self, pcr: u8, digest: [u8; 32]) {
        let mut command = Vec::new();
        // TPM_ST_SESSIONS, the command's length, TPM_CC_PCR_Extend, the register's handle.
        command.extend_from_slice(&[0x80, 0x02, 0, 0, 0, 65, 0, 0, 0x01, 0x82, 0, 0, 0, pcr]);
        // One password session (TPM_RS_PW) with an empty password.
        command.extend_from_slice(&[0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0]);
        // One digest, TPM_ALG_SHA256.
        command.extend_from_slice(&[0, 0, 0, 1, 0, 0x0b]);
        command.extend_from_slice(&digest);
        assert_eq!(command.len(), 65);
        let mut tpm = UnixStream::connect(self.folder.path().join("tpm")).unwrap();
        tpm.write_all(&command).unwrap();
        let mut header = [0; 10];
        tpm.read_exact(&mut header).unwrap();
        assert_eq!(header[6..], [0; 4], "TPM_RC_SUCCESS");
    }
}

fn spawn(folder: &Path) -> Child {
    let path = |name: &str| folder.join(name);
    Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .arg(format!("--tpmstate=dir={}", folder.display()))
        .arg(format!("--server=type=unixio,path={}", path("tpm").display()))
        .arg(format!("--ctrl=type=unixio,path={}", path("tpm.ctrl").display()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // By its id; an error means that it is gone already.
        if let Err(error) = self.process.kill() {
            eprintln!("swtpm was gone before the end of the test: {error}");
        }
        if let Err(error) = self.process.wait() {
            eprintln!("swtpm left no status: {error}");
        }
    }
}
