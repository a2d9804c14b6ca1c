//! The gateway's process between its peers, started as systemd starts it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::certificates::{Authority, Leaf, client_config, write_credentials};
use crate::client::Https;
use crate::peers::{self, AgentState, EngineState, PATIENCE, Watched};

/// systemd passes the socket as descriptor 3 and names the process that it is for (sd_listen_fds(3)).
/// A shell does both without unsafe code: it keeps its process id when it becomes the gateway.
const ACTIVATE: &str = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ exec "$0" "$@""#;

pub(crate) struct Appliance {
    pub(crate) directory: TempDir,
    pub(crate) authority: Authority,
    pub(crate) alice: Leaf,
    pub(crate) agent: Arc<Watched<AgentState>>,
    pub(crate) engine: Arc<Watched<EngineState>>,
    pub(crate) address: SocketAddr,
    process: Child,
    log: Arc<Mutex<String>>,
}

impl Appliance {
    /// Everything runs.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let agent = peers::agent(&directory.path().join("agentd.sock"));
        let engine = peers::engine(&directory.path().join("engine.sock"));
        Self::start_between(directory, agent, engine)
    }

    fn start_between(
        directory: TempDir,
        agent: Arc<Watched<AgentState>>,
        engine: Arc<Watched<EngineState>>,
    ) -> Self {
        let authority = Authority::new();
        write_credentials(directory.path(), &authority);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ready = UnixDatagram::bind(directory.path().join("notify.sock")).unwrap();
        let mut process = Command::new("sh")
            .args(["-c", ACTIVATE, env!("CARGO_BIN_EXE_gateway")])
            .arg("--engine")
            .arg(directory.path().join("engine.sock"))
            .arg("--agent")
            .arg(directory.path().join("agentd.sock"))
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "https")
            .env("NOTIFY_SOCKET", directory.path().join("notify.sock"))
            .env("CREDENTIALS_DIRECTORY", directory.path())
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, copy) = (BufReader::new(process.stderr.take().unwrap()), Arc::clone(&log));
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                copy.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        ready.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut said = [0; 64];
        let length = ready.recv(&mut said).expect("the gateway did not say READY=1");
        assert_eq!(String::from_utf8_lossy(&said[..length]).trim_end(), "READY=1");
        let alice = authority.client(&["alice"]);
        Self { directory, authority, alice, agent, engine, address, process, log }
    }

    /// Nobody listens on agentd's socket any more.
    pub(crate) fn stop_agent(&self) {
        fs::remove_file(self.directory.path().join("agentd.sock")).unwrap();
    }

    /// Nobody listens on the engine's socket any more.
    pub(crate) fn stop_engine(&self) {
        fs::remove_file(self.directory.path().join("engine.sock")).unwrap();
    }

    /// A connection of `leaf`.
    pub(crate) fn connect_as(&self, leaf: &Leaf) -> Https {
        let config = client_config(&self.authority, Some(leaf), &rustls::version::TLS13);
        Https::connect(self.address, config).unwrap()
    }

    /// A connection of alice.
    pub(crate) fn connect(&self) -> Https {
        self.connect_as(&self.alice)
    }

    /// Waits until the log holds a line with all of `words`; returns it.
    pub(crate) fn wait_log(&self, words: &[&str]) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            let mut lines = log.lines();
            if let Some(line) = lines.find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            assert!(Instant::now() < until, "no line with {words:?} in:\n{log}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the gateway does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        // Fails only if the process has ended, which is what is wanted.
        drop(self.process.kill());
        drop(self.process.wait());
        if thread::panicking() {
            eprintln!("log of the gateway:\n{}", self.log());
        }
    }
}
