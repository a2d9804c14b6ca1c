//! A TPM for one test: swtpm on two ports of its own, killed when dropped.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that swtpm may take to listen.
const START_MAX: Duration = Duration::from_secs(20);
/// The transport wants its control channel on the next port; two tests may race for one.
const PORT_ATTEMPTS_MAX: u32 = 20;

#[derive(Debug)]
pub(crate) struct Swtpm {
    process: Child,
    port: u16,
    _state: tempfile::TempDir,
}

impl Swtpm {
    /// Starts one, or says loudly why the test is skipped.
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

    /// What opens it.
    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    fn on(port: u16) -> Option<Self> {
        let state = tempfile::tempdir().unwrap();
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg(format!("--tpmstate=dir={}", state.path().display()))
            .arg(format!("--server=type=tcp,bindaddr=127.0.0.1,port={port}"))
            .arg(format!("--ctrl=type=tcp,bindaddr=127.0.0.1,port={}", port + 1))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut swtpm = Self { process, port, _state: state };
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
