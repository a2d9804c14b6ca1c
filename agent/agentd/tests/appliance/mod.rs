//! What surrounds agentd on an appliance, for one test: TPM, files, systemd's part of the start, engine.

pub(crate) mod engine;
pub(crate) mod medium;
mod swtpm;
pub(crate) mod volume;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use evidence::format::{Confinement, Policy, SITE_SCHEMA, Site};
use ipc::{AgentReply, AgentRequest, AgentStatus};
use rustix::process::{Pid, Signal, kill_process};
use sandbox::{AGENTD, AgentdFolders, ENGINE, GATEWAY, Profile, agentd_paths};
use sha2::{Digest as _, Sha256};
use swtpm::Swtpm;

/// Longest that anything here may take on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Nothing here speaks TLS; only its digest counts.
const CLIENT_CA: &str = "authority of the clients";
/// Passes descriptors as systemd does: sd_listen_fds(3).
const START: &str = r#"
exec 3<&0 4<"$FIRMWARE_LOG" 5<"$USERSPACE_LOG" 0</dev/null
export LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=gateway:firmware-log:userspace-log
if [ -e "$RECOVERY" ]; then
    exec 6<"$RECOVERY"
    export LISTEN_FDS=4 LISTEN_FDNAMES=$LISTEN_FDNAMES:recovery
fi
exec "$@"
"#;

pub(crate) struct Appliance {
    swtpm: Swtpm,
    folder: tempfile::TempDir,
    pub(crate) firmware_log: PathBuf,
    boots: u32,
    /// Seconds that a refused start waits for an exception.
    pub(crate) exception_wait_s: u32,
}

/// os-release of the image with this version.
pub(crate) fn os_release(index: u64) -> String {
    format!("IMAGE_VERSION=0.{index}\nVARIANT_ID=development\nCASEMATE_VERSION_INDEX={index}\n")
}

/// A started agentd; killed when dropped.
pub(crate) struct Agentd {
    process: Child,
    console: PathBuf,
    socket: PathBuf,
}

impl Appliance {
    /// A measured boot of an image whose policy is two of three keys; `None` without swtpm.
    pub(crate) fn boot() -> Option<Self> {
        let appliance = Self::boot_unmeasured()?;
        for pcr in [7, 11] {
            appliance.extend(pcr);
        }
        Some(appliance)
    }

    /// The same, with all PCRs zero.
    pub(crate) fn boot_unmeasured() -> Option<Self> {
        Some(Self::around(Swtpm::start()?))
    }

    /// A measured boot of a machine whose TPM has EK certificates.
    pub(crate) fn boot_certified() -> Option<Self> {
        let appliance = Self::around(Swtpm::manufactured()?);
        for pcr in [7, 11] {
            appliance.extend(pcr);
        }
        Some(appliance)
    }

    /// What an auditor trusts to certify this machine's TPM.
    pub(crate) fn roots(&self) -> Vec<Vec<u8>> {
        self.swtpm.roots()
    }

    fn around(swtpm: Swtpm) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let policy = serde_json::to_string(&medium::policy()).unwrap();
        fs::write(path("policy.json"), policy).unwrap();
        fs::write(path("os-release"), os_release(1)).unwrap();
        fs::write(path("firmware-log"), b"firmware events").unwrap();
        fs::write(path("userspace-log"), b"userspace events").unwrap();
        fs::create_dir(path("run")).unwrap();
        fs::create_dir(path("site")).unwrap();
        fs::write(path("site/client-ca.pem"), CLIENT_CA).unwrap();
        let site = Site {
            schema: SITE_SCHEMA.to_owned(),
            version: 1,
            server_names: vec!["casemate".to_owned(), "127.0.0.1".to_owned()],
            client_ca_sha256: hex::encode(Sha256::digest(CLIENT_CA)),
            recovery_escrow: None,
        };
        fs::write(path("site/site.json"), serde_json::to_string(&site).unwrap()).unwrap();
        fs::create_dir(path("bundle")).unwrap();
        fs::create_dir(path("exchange")).unwrap();
        let firmware_log = path("firmware-log");
        Self { swtpm, folder, firmware_log, boots: 1, exception_wait_s: 0 }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Lets a program that takes `--tcti` talk to this TPM; agentd must not run meanwhile.
    pub(crate) fn reach_tpm(&self, command: &mut Command) {
        command.args(["--tcti", &self.swtpm.tcti()]);
        command.env("LD_LIBRARY_PATH", self.swtpm.libraries());
    }

    pub(crate) fn policy_text(&self) -> String {
        fs::read_to_string(self.path("policy.json")).unwrap()
    }

    pub(crate) fn policy(&self) -> Policy {
        serde_json::from_str(&self.policy_text()).unwrap()
    }

    /// Power off and on; agentd must not run.
    pub(crate) fn reboot(&mut self) {
        self.swtpm.reset();
        fs::remove_dir_all(self.path("run")).unwrap();
        fs::create_dir(self.path("run")).unwrap();
        self.boots += 1;
        for pcr in [7, 11] {
            self.extend(pcr);
        }
    }

    /// The next image that starts is of this version.
    pub(crate) fn install(&self, index: u64) {
        fs::write(self.path("os-release"), os_release(index)).unwrap();
    }

    /// Runs one of tpm2-tools; agentd must not run meanwhile.
    pub(crate) fn tool(&self, command: &[&str]) {
        self.swtpm.tool(command);
    }

    pub(crate) fn site_sha256(&self) -> String {
        hex::encode(Sha256::digest(fs::read(self.path("site/site.json")).unwrap()))
    }

    /// What the builder would predict, for this test's folders.
    pub(crate) fn confinement(&self) -> BTreeMap<String, Confinement> {
        let [exchange, ledger, tls, runtime] =
            ["exchange", "ledger", "tls", "run"].map(|name| self.path(name));
        let folders = AgentdFolders {
            media: self.folder.path(),
            exchange: &exchange,
            ledger: &ledger,
            tls: &tls,
            runtime: &runtime,
        };
        [Profile { paths: &agentd_paths(&folders), ..AGENTD }, ENGINE, GATEWAY]
            .map(|profile| {
                let report = engine::report(&profile);
                let (table_sha256, self_test) = (report.table_sha256, report.self_test);
                (report.process, Confinement { table_sha256, self_test })
            })
            .into()
    }

    /// What somebody else than agentd does to the TPM; agentd must not run meanwhile.
    pub(crate) fn extend(&self, pcr: u8) {
        self.swtpm.extend(pcr, [1; 32]);
    }

    /// Starts agentd with the descriptors that its unit passes.
    pub(crate) fn start(&self) -> Agentd {
        let (console, socket) = (self.path("console"), self.path("agentd.sock"));
        if socket.exists() {
            fs::remove_file(&socket).unwrap();
        }
        let listener = OwnedFd::from(UnixListener::bind(&socket).unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", START, "sh", env!("CARGO_BIN_EXE_agentd")]);
        command.args(["--boot", &format!("{:032x}", self.boots), "--tcti", &self.swtpm.tcti()]);
        command.args(["--exception-wait-s", &self.exception_wait_s.to_string()]);
        for (option, name) in [
            ("--policy", "policy.json"),
            ("--os-release", "os-release"),
            ("--state", "ledger"),
            ("--site", "site"),
            ("--tls", "tls"),
            ("--runtime", "run"),
            ("--bundle", "bundle"),
            ("--exchange", "exchange/medium"),
            ("--engine-control", "engine.sock"),
        ] {
            command.arg(option).arg(self.path(name));
        }
        let process = command
            .env("FIRMWARE_LOG", &self.firmware_log)
            .env("LD_LIBRARY_PATH", self.swtpm.libraries())
            .env("USERSPACE_LOG", self.path("userspace-log"))
            .env("RECOVERY", self.path("recovery/recovery.json"))
            .stdin(Stdio::from(listener))
            .stderr(File::create(&console).unwrap())
            .spawn()
            .unwrap();
        Agentd { process, console, socket }
    }

    /// Starts agentd and waits until it serves.
    pub(crate) fn start_ready(&self) -> Agentd {
        let mut agentd = self.start();
        agentd.wait_for("agentd: ready");
        agentd
    }
}

impl Agentd {
    /// What the kernel says of each thread: proc_pid_status(5).
    pub(crate) fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap()).collect()
    }

    pub(crate) fn console(&self) -> String {
        fs::read_to_string(&self.console).unwrap()
    }

    /// Waits for `text` on the console.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + WAIT_MAX;
        while !self.console().contains(text) {
            let left = self.process.try_wait().unwrap();
            let late = Instant::now() > deadline;
            assert!(left.is_none() && !late, "{left:?}, no {text:?} in:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it refuses to start, for a reason that contains `text`.
    pub(crate) fn wait_refused(mut self, text: &str) {
        let status = self.wait();
        let console = self.console();
        assert_eq!(status.code(), Some(1), "{console}");
        assert!(console.contains(text) && !console.contains("agentd: ready"), "{console}");
    }

    pub(crate) fn ask(&self, request: &AgentRequest) -> AgentReply {
        ask(&self.socket, request)
    }

    pub(crate) fn status(&self) -> AgentStatus {
        let AgentReply::Status(status) = self.ask(&AgentRequest::Status) else {
            panic!("another answer than a status")
        };
        status
    }

    /// Reports for the gateway, as it does at its start.
    pub(crate) fn report_gateway(&self) {
        let report = AgentRequest::Confined(engine::report(&GATEWAY));
        let reply = self.ask(&report);
        assert!(matches!(reply, AgentReply::Measured), "{reply:?}");
    }

    /// Asks for the status until it fits.
    pub(crate) fn wait_status(&self, fits: impl Fn(&AgentStatus) -> bool) -> AgentStatus {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let status = self.status();
            if fits(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:?} in:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGTERM; returns how it ended.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        self.wait()
    }

    /// SIGKILL, as a power cut does to a process.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.wait();
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "agentd does not end:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Agentd {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }
}

fn ask(socket: &Path, request: &AgentRequest) -> AgentReply {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    ipc::write_frame(&mut stream, request, ipc::FRAME_BYTES_MAX).unwrap();
    ipc::read_frame(&mut stream, ipc::EVIDENCE_BYTES_MAX).unwrap()
}
