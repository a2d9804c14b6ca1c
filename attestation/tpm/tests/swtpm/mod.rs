//! A TPM for one test: swtpm on two ports of its own, killed when dropped.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that swtpm may take to listen.
const START_MAX: Duration = Duration::from_secs(20);
/// The transport wants its control channel on the next port; two tests may race for one.
const PORT_ATTEMPTS_MAX: u32 = 20;

#[path = "../../../../qemu/src/manufacture.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
mod manufacture;

#[derive(Debug)]
pub(crate) struct Swtpm {
    process: Child,
    port: u16,
    state: tempfile::TempDir,
}

impl Swtpm {
    /// Starts one, or says loudly why the test is skipped.
    #[allow(dead_code, reason = "each test binary uses a part of this module")]
    pub(crate) fn start() -> Option<Self> {
        if let Err(error) = Command::new("swtpm").arg("--version").stdout(Stdio::null()).status() {
            eprintln!("SKIPPED: swtpm does not start ({error}); run in the tools tree");
            return None;
        }
        for _ in 0..PORT_ATTEMPTS_MAX {
            if let Some(swtpm) = Self::on(free_port()) {
                return Some(swtpm);
            }
        }
        panic!("swtpm found no two free ports in {PORT_ATTEMPTS_MAX} attempts");
    }

    /// Starts one that its factory certified, by an authority of its own.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn manufactured() -> Option<Self> {
        if let Err(error) = Command::new("swtpm_setup").arg("--version").output() {
            eprintln!("SKIPPED: swtpm_setup does not start ({error}); run in the tools tree");
            return None;
        }
        for _ in 0..PORT_ATTEMPTS_MAX {
            let state = tempfile::tempdir().unwrap();
            manufacture::manufacture(state.path(), &state.path().join("vendor")).unwrap();
            if let Some(swtpm) = Self::with(free_port(), state) {
                return Some(swtpm);
            }
        }
        panic!("swtpm found no two free ports in {PORT_ATTEMPTS_MAX} attempts");
    }

    /// Certificates of the factory's authority, DER.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn roots(&self) -> Vec<Vec<u8>> {
        let folder = manufacture::roots(&self.state.path().join("vendor"));
        let files = std::fs::read_dir(folder).unwrap();
        let read = |file: std::io::Result<std::fs::DirEntry>| {
            evidence::enrol::certificates(&std::fs::read(file.unwrap().path()).unwrap()).unwrap()
        };
        files.flat_map(read).collect()
    }

    /// Writes an NV index as a factory does; nobody else may be connected meanwhile.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn write_nv(&self, index: u32, content: &[u8]) {
        let (file, index) = (self.state.path().join("content"), format!("{index:#x}"));
        std::fs::write(&file, content).unwrap();
        let attributes = "authread|ownerread|ppread|ppwrite|platformcreate|no_da";
        let size = content.len().to_string();
        let file = format!("--input={}", file.display());
        for arguments in [
            &["tpm2_nvdefine", "-C", "p", "-s", &size, "-a", attributes, &index][..],
            &["tpm2_nvwrite", "-C", "p", &file, &index],
        ] {
            let mut command = Command::new(arguments[0]);
            let output = command.args(["-T", &self.tcti()]).args(&arguments[1..]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// What opens it.
    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// Runs one of tpm2-tools on it; nobody else may have it open. Says loudly if the tools are not there.
    #[allow(dead_code, reason = "not every test program needs tools")]
    pub(crate) fn tool(&self, command: &[&str]) -> Option<()> {
        let [program, args @ ..] = command else { panic!("no program") };
        let status = Command::new(program).args(args).env("TPM2TOOLS_TCTI", self.tcti()).status();
        match status {
            Ok(status) => assert!(status.success(), "{command:?}: {status}"),
            Err(error) => {
                eprintln!("SKIPPED: {program} does not start ({error}); run in the tools tree");
                return None;
            }
        }
        Some(())
    }

    #[allow(dead_code, reason = "as above")]
    fn on(port: u16) -> Option<Self> {
        Self::with(port, tempfile::tempdir().unwrap())
    }

    fn with(port: u16, state: tempfile::TempDir) -> Option<Self> {
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg(format!("--tpmstate=dir={}", state.path().display()))
            .arg(format!("--server=type=tcp,bindaddr=127.0.0.1,port={port}"))
            .arg(format!("--ctrl=type=tcp,bindaddr=127.0.0.1,port={}", port + 1))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut swtpm = Self { process, port, state };
        let deadline = Instant::now() + START_MAX;
        while Instant::now() < deadline {
            if swtpm.process.try_wait().unwrap().is_some() {
                return None;
            }
            // Only the control channel: the data channel serves one connection, which is the test's.
            if TcpStream::connect(("127.0.0.1", port + 1)).is_ok() {
                return Some(swtpm);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("swtpm did not listen on port {} within {START_MAX:?}", port + 1);
    }
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

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    // The control channel takes the next port.
    listener.local_addr().unwrap().port().min(u16::MAX - 1)
}
