//! One machine: its state folder, its processes, and what can be done to it.
//!
//! | in the state folder | what |
//! |---|---|
//! | `disk.qcow2`, `vars.qcow2` | overlays of the image's disk and variable store |
//! | `tpm/` | swtpm's permanent state: the machine's TPM |
//! | `vendor/` | the authority that certified that TPM, unless it is another folder |
//! | `origin.json` | which build of the image the overlays belong to |
//! | `serial-N.log` | console of the N-th boot |
//! | `vm.state` | only in a snapshot: memory and devices |

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::accel::Accel;
use crate::args;
use crate::console::{Console, ConsoleError};
use crate::manufacture;
use crate::process::{self, Daemon, POLL, ProcessError};
use crate::qmp::{self, Qmp, QmpError};

/// Bundle media that a machine can hold at once.
pub const BUNDLE_SLOTS: usize = 4;
/// The gateway's port in the guest.
pub const GATEWAY_PORT: u16 = 8443;

/// Longest path of a unix socket: `sun_path` of unix(7), less its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Longest wait for a process to open its socket, on a machine with more work than cores.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for swtpm to write its state and go, once QEMU is gone.
const TPM_END_LIMIT: Duration = Duration::from_secs(5);
/// States of QEMU in which the guest will not go on by itself.
const STUCK: &[&str] = &["internal-error", "io-error", "guest-panicked"];
/// Boots of one state folder that keep their serial logs apart.
const BOOTS_MAX: u32 = 10_000;

/// Failures of a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A process of the machine failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The serial log failed.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// QEMU's control socket failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// A file of the machine failed.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// The state folder cannot be used.
    #[error("{path}: {problem}; remove the folder, or use another")]
    State {
        /// The state folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The request does not fit the machine.
    #[error("{0}")]
    Invalid(String),
    /// QEMU or swtpm ended while starting.
    #[error("{program} did not start: {detail}")]
    Start {
        /// Name of the program.
        program: &'static str,
        /// How it ended, and the end of its output.
        detail: String,
    },
    /// What was awaited on the console did not come.
    #[error("waited for {wanted:?}: {outcome}\n--- {log}\n{tail}\n---")]
    NotSeen {
        /// What was awaited.
        wanted: Vec<String>,
        /// What happened instead.
        outcome: String,
        /// The serial log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// Something on the console that must not be there.
    #[error("{pattern:?} must not appear on the console, but: {line}\n--- {log}\n{tail}\n---")]
    Forbidden {
        /// What must not be there.
        pattern: String,
        /// The line in which it is.
        line: String,
        /// The serial log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
}

/// A disk beside the one that firmware starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpareDisk {
    /// A raw image, which the guest writes.
    pub file: PathBuf,
    /// Serial number that the guest sees; virtio has room for twenty characters.
    pub serial: String,
}

/// Virtual CPUs, unless told otherwise.
pub const CPUS: u8 = 2;

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of a built image: `casemate.raw` and `OVMF_VARS.fd` in it are used, and never written.
    pub image: PathBuf,
    /// Folder of this machine's own state; made if absent, used again if there.
    pub state: PathBuf,
    /// How guest code is executed.
    pub accel: Accel,
    /// The translator executes all virtual CPUs in one host thread: atomic instructions need no lock then, and no guest
    /// was seen to lose a timer. Right when machines run side by side and fill the host's CPUs anyway.
    pub one_thread: bool,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The host gives all of it before the guest starts, so that no boot is slower for using more: a server has its own.
    pub memory_at_once: bool,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Bundle media (raw images, read-only), by slot; at most [`BUNDLE_SLOTS`].
    pub bundles: Vec<PathBuf>,
    /// Further disks of the machine, which are written.
    pub disks: Vec<SpareDisk>,
    /// SMBIOS OEM strings (type 11), as somebody with the management controller could set.
    pub smbios: Vec<String>,
    /// Files of QEMU's firmware configuration device: name below `opt/`, content.
    pub fw_cfg: Vec<(String, String)>,
    /// Port on 127.0.0.1 that leads to the gateway; `None` takes a free one.
    pub port: Option<u16>,
    /// Folder of the authority that certifies new TPMs; `vendor` in the state folder if not given.
    pub vendor: Option<PathBuf>,
}

impl Config {
    /// Two CPUs, 2 GiB, no bundle, nothing injected, a free port.
    pub fn new(image: impl Into<PathBuf>, state: impl Into<PathBuf>, accel: Accel) -> Self {
        Self {
            image: image.into(),
            state: state.into(),
            accel,
            one_thread: false,
            memory_mib: 2048,
            memory_at_once: false,
            cpus: CPUS.into(),
            bundles: Vec::new(),
            disks: Vec::new(),
            smbios: Vec::new(),
            fw_cfg: Vec::new(),
            port: None,
            vendor: None,
        }
    }

    /// Folder with certificates of the TPM's vendor: what an auditor trusts to certify this machine's TPM.
    #[must_use]
    pub fn vendor_roots(&self) -> PathBuf {
        manufacture::roots(&self.vendor_folder())
    }

    /// Folder of that vendor's authority: for another machine of the same vendor.
    #[must_use]
    pub fn vendor_folder(&self) -> PathBuf {
        self.vendor.clone().unwrap_or_else(|| self.state.join("vendor"))
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.state.join("disk.qcow2")
    }

    pub(crate) fn vars(&self) -> PathBuf {
        self.state.join("vars.qcow2")
    }

    /// Memory and devices of a snapshot.
    pub(crate) fn vm_state(&self) -> PathBuf {
        self.state.join("vm.state")
    }

    pub(crate) fn origin(&self) -> PathBuf {
        self.state.join("origin.json")
    }

    fn check(&self) -> Result<(), MachineError> {
        let slots = self.bundles.len();
        if slots > BUNDLE_SLOTS {
            return Err(MachineError::Invalid(format!("{slots} bundles; {BUNDLE_SLOTS} slots")));
        }
        let disks = self.disks.iter().map(|disk| &disk.file);
        let mut paths = self.bundles.iter().chain([&self.image, &self.state]).chain(disks);
        if let Some(path) = paths.find(|path| path.to_str().is_none()) {
            return Err(MachineError::Invalid(format!("{} is not UTF-8", path.display())));
        }
        Ok(())
    }
}

/// Which build of an image the overlays of a state folder belong to.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    disk_bytes: u64,
    disk_modified_ns: i128,
}

impl Origin {
    fn of(disk: &Path) -> Result<Self, MachineError> {
        let meta = fs::metadata(disk).map_err(|cause| file_error(disk, cause))?;
        let modified = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Ok(Self { disk_bytes: meta.len(), disk_modified_ns: modified })
    }
}

/// A running machine. Dropping it cuts its power.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    // Declared before `swtpm`, so that QEMU dies before its TPM does.
    qemu: Daemon,
    swtpm: Daemon,
    qmp: Qmp,
    console: Console,
    port: u16,
    /// Keeps the folder of the sockets alive.
    _sockets: tempfile::TempDir,
}

impl Machine {
    /// Boots from cold. A state folder that is there already is the same machine again: same disk, same TPM.
    pub fn boot(config: Config) -> Result<Self, MachineError> {
        prepare(&config)?;
        // Absolute and readable before the TPM is made: swtpm_setup is told where in settings files.
        let (tpm, vendor) = (config.state.join("tpm"), config.vendor_folder());
        make_folder(&tpm)?;
        make_folder(&vendor)?;
        let absolute = |path: &Path| fs::canonicalize(path).map_err(|e| file_error(path, e));
        manufacture::manufacture(&absolute(&tpm)?, &absolute(&vendor)?)
            .map_err(|cause| file_error(&tpm, cause))?;
        Self::launch(config, false)
    }

    /// Starts the processes; with `incoming`, waiting for a snapshot's state.
    pub(crate) fn launch(config: Config, incoming: bool) -> Result<Self, MachineError> {
        config.check()?;
        let sockets = socket_folder()?;
        let (tpm_socket, qmp_socket) = (sockets.path().join("t"), sockets.path().join("q"));
        let serial = next_serial_log(&config.state)?;
        let mut swtpm = start_swtpm(&config.state, &tpm_socket)?;
        let (disk, vars) = (config.disk(), config.vars());
        let files = args::Files {
            disk: &disk,
            vars: &vars,
            serial: &serial,
            tpm_socket: &tpm_socket,
            qmp_socket: &qmp_socket,
        };
        await_socket("swtpm", &mut swtpm, &tpm_socket)?;
        let mut qemu = Daemon::start(
            "qemu-system-x86_64",
            &args::qemu(&config, &files, incoming),
            &config.state.join("qemu.log"),
        )?;
        await_socket("qemu-system-x86_64", &mut qemu, &qmp_socket)?;
        let mut qmp = match Qmp::connect(&qmp_socket) {
            Ok(qmp) => qmp,
            Err(error) => return Err(start_error("qemu-system-x86_64", &mut qemu, &error)),
        };
        let usernet = qmp.human("info usernet")?;
        let port = qmp::forwarded_port(&usernet).ok_or_else(|| MachineError::Start {
            program: "qemu-system-x86_64",
            detail: format!("no forwarded port in: {usernet}"),
        })?;
        let console = Console::new(serial);
        Ok(Self { config, qemu, swtpm, qmp, console, port, _sockets: sockets })
    }

    /// What it is made of, hot-plugged bundles included: booting that again is the same machine.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Port on 127.0.0.1 that leads to the gateway.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The serial console.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// QEMU's control socket.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Reads what the guest wrote on the console since the last look, raw, and says whether QEMU has ended.
    pub fn poll(&mut self) -> Result<(Vec<u8>, Option<ExitStatus>), MachineError> {
        // In this order: what was written before the end is read.
        let ended = self.qemu.ended()?;
        Ok((self.console.poll()?, ended))
    }

    /// Waits for a line with `pattern` after the last one that was waited for, and returns it.
    pub fn wait_for(&mut self, pattern: &str, limit: Duration) -> Result<String, MachineError> {
        self.wait_for_any(&[pattern], limit).map(|(_, line)| line)
    }

    /// As [`Self::wait_for`], for the first of several; also returns which.
    ///
    /// Fails at once when the machine stops, or a line of [`crate::console::FATAL`] appears that holds none of
    /// `patterns`.
    pub fn wait_for_any(
        &mut self,
        patterns: &[&str],
        limit: Duration,
    ) -> Result<(usize, String), MachineError> {
        let deadline = Instant::now() + limit;
        for round in 1_u32.. {
            let (_, ended) = self.poll()?;
            if let Some(found) = self.console.transcript.advance(patterns) {
                return Ok(found);
            }
            let outcome = if let Some(line) = self.console.transcript.fatal() {
                format!("but the guest failed: {line}")
            } else if let Some(status) = ended {
                format!("but the machine stopped ({status}); {}", self.qemu.tail())
            } else if Instant::now() >= deadline {
                format!("not within {} s", limit.as_secs())
            } else if round % 25 == 0
                && let Some(status) = self.stuck()?
            {
                format!("but the machine is in state {status}; {}", self.qemu.tail())
            } else {
                std::thread::sleep(POLL);
                continue;
            };
            return Err(self.not_seen(patterns, outcome));
        }
        unreachable!("a round sleeps, and the deadline ends the loop long before 2^32 of them")
    }

    /// Fails if a line with `pattern` has appeared on the console in this boot.
    pub fn forbid(&mut self, pattern: &str) -> Result<(), MachineError> {
        self.console.poll()?;
        let text = self.console.transcript.text();
        let Some(line) = text.lines().find(|line| line.contains(pattern)) else { return Ok(()) };
        Err(MachineError::Forbidden {
            pattern: pattern.to_owned(),
            line: line.to_owned(),
            log: self.console.path().to_owned(),
            tail: self.console.tail(),
        })
    }

    /// Waits for the guest to stop (power off, or a reboot, which ends QEMU too).
    pub fn wait_stopped(&mut self, limit: Duration) -> Result<ExitStatus, MachineError> {
        let ended = self.qemu.wait(limit)?;
        self.console.poll()?;
        ended.ok_or_else(|| {
            let outcome = format!("not within {} s", limit.as_secs());
            self.not_seen(&["the machine to stop"], outcome)
        })
    }

    /// Plugs a bundle medium into the running machine, as an operator would plug a stick.
    pub fn plug_bundle(&mut self, bundle: &Path) -> Result<(), MachineError> {
        let slot = self.config.bundles.len();
        self.config.bundles.push(bundle.to_owned());
        if let Err(error) = self.config.check() {
            self.config.bundles.pop();
            return Err(error);
        }
        let node = args::blockdev("raw", &args::bundle_node(slot), bundle, true);
        let node = serde_json::from_str(&node)
            .map_err(|error| MachineError::Invalid(error.to_string()))?;
        self.qmp.execute("blockdev-add", &node)?;
        self.qmp.execute("device_add", &args::bundle_device(slot))?;
        Ok(())
    }

    /// Plugs an exchange medium into the running machine: writable, and the only one at a time.
    pub fn plug_exchange(&mut self, medium: &Path) -> Result<(), MachineError> {
        let node = args::blockdev("raw", args::EXCHANGE, medium, false);
        let node = serde_json::from_str(&node)
            .map_err(|error| MachineError::Invalid(error.to_string()))?;
        self.qmp.execute("blockdev-add", &node)?;
        self.qmp.execute("device_add", &args::exchange_device())?;
        Ok(())
    }

    /// Pulls the exchange medium out, and waits until the guest has let go of it: the file is complete then.
    pub fn pull_exchange(&mut self, limit: Duration) -> Result<(), MachineError> {
        self.qmp.take_events();
        self.qmp.execute("device_del", &json!({ "id": args::EXCHANGE_DEVICE }))?;
        let deadline = Instant::now() + limit;
        loop {
            // Events are read with replies.
            self.qmp.execute("query-status", &json!({}))?;
            if self.qmp.take_events().iter().any(|event| event == "DEVICE_DELETED") {
                break;
            }
            if Instant::now() >= deadline {
                let outcome = format!("not within {} s", limit.as_secs());
                return Err(self.not_seen(&["the exchange medium to be let go"], outcome));
            }
            std::thread::sleep(POLL);
        }
        self.qmp.execute("blockdev-del", &json!({ "node-name": args::EXCHANGE }))?;
        Ok(())
    }

    /// Presses the power button; the guest decides what it does.
    pub fn press_power_button(&mut self) -> Result<(), MachineError> {
        self.qmp.execute("system_powerdown", &json!({}))?;
        Ok(())
    }

    /// Cuts the power: SIGKILL to QEMU and to its TPM, nothing is flushed.
    pub fn cut_power(mut self) -> Result<(), MachineError> {
        self.qemu.kill()?;
        self.swtpm.kill()?;
        Ok(())
    }

    /// Ends QEMU in order, whatever the guest does: every write that it acknowledged is in the state folder.
    pub fn quit(mut self) -> Result<(), MachineError> {
        self.qmp.execute("quit", &json!({}))?;
        self.wait_stopped(START_LIMIT)?;
        if self.swtpm.wait(TPM_END_LIMIT)?.is_none() {
            self.swtpm.kill()?;
        }
        Ok(())
    }

    fn stuck(&mut self) -> Result<Option<String>, MachineError> {
        let reply = match self.qmp.execute("query-status", &json!({})) {
            Ok(reply) => reply,
            // The next look at the process tells how QEMU ended.
            Err(QmpError::Closed { .. } | QmpError::Io { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let status = reply.get("status").and_then(|status| status.as_str()).unwrap_or("none");
        Ok(STUCK.contains(&status).then(|| status.to_owned()))
    }

    fn not_seen(&self, wanted: &[&str], outcome: String) -> MachineError {
        MachineError::NotSeen {
            wanted: wanted.iter().map(|&pattern| pattern.to_owned()).collect(),
            outcome,
            log: self.console.path().to_owned(),
            tail: self.console.tail(),
        }
    }
}

/// Makes the state folder, or checks that it is this image's.
fn prepare(config: &Config) -> Result<(), MachineError> {
    let image = fs::canonicalize(&config.image).map_err(|e| file_error(&config.image, e))?;
    let (disk, vars) = (image.join("casemate.raw"), image.join("OVMF_VARS.fd"));
    let origin = Origin::of(&disk)?;
    make_folder(&config.state)?;
    let state_error = |problem: String| MachineError::State { path: config.state.clone(), problem };
    if config.vm_state().exists() {
        return Err(state_error("this is a snapshot, which only forks may use".to_owned()));
    }
    match fs::read(config.origin()) {
        Ok(bytes) => {
            let found: Origin =
                serde_json::from_slice(&bytes).map_err(|error| state_error(error.to_string()))?;
            if found != origin {
                let disk = disk.display();
                return Err(state_error(format!("it belongs to another build of {disk}")));
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_overlay(&disk, "raw", &config.disk())?;
            create_overlay(&vars, "raw", &config.vars())?;
            // Last: a folder whose making was interrupted has no origin, and is made again.
            let text = serde_json::to_vec(&origin).map_err(|e| state_error(e.to_string()))?;
            fs::write(config.origin(), text).map_err(|e| file_error(&config.origin(), e))
        }
        Err(error) => Err(file_error(&config.origin(), error)),
    }
}

/// A qcow2 file that holds what differs from `base`.
pub(crate) fn create_overlay(
    base: &Path,
    format: &str,
    overlay: &Path,
) -> Result<(), MachineError> {
    let mut args: Vec<&std::ffi::OsStr> =
        ["create", "-q", "-f", "qcow2", "-F", format, "-b"].map(std::ffi::OsStr::new).to_vec();
    args.extend([base.as_os_str(), overlay.as_os_str()]);
    Ok(process::run("qemu-img", &args)?)
}

/// A state folder holds a TPM's secrets: for its owner only.
pub(crate) fn make_folder(path: &Path) -> Result<(), MachineError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| file_error(path, cause))
}

pub(crate) fn file_error(path: &Path, cause: io::Error) -> MachineError {
    MachineError::File { path: path.to_owned(), cause }
}

fn socket_folder() -> Result<tempfile::TempDir, MachineError> {
    let folder = tempfile::Builder::new().prefix("cm").tempdir();
    let folder = folder.map_err(|cause| file_error(&std::env::temp_dir(), cause))?;
    let bytes = folder.path().as_os_str().len() + "/q".len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(MachineError::Invalid(format!(
            "{} is too long for a unix socket ({bytes} bytes, at most {SOCKET_PATH_BYTES_MAX}): set \
             TMPDIR to a shorter folder",
            folder.path().display()
        )));
    }
    Ok(folder)
}

/// The first `serial-N.log` that is not there yet.
fn next_serial_log(state: &Path) -> Result<PathBuf, MachineError> {
    let path = |boot| state.join(format!("serial-{boot}.log"));
    (1..=BOOTS_MAX).map(path).find(|path| !path.exists()).ok_or_else(|| MachineError::State {
        path: state.to_owned(),
        problem: format!("it was booted {BOOTS_MAX} times"),
    })
}

/// swtpm ends by itself when QEMU's connection does (`terminate`).
fn start_swtpm(state: &Path, socket: &Path) -> Result<Daemon, MachineError> {
    let folder = state.join("tpm");
    make_folder(&folder)?;
    let args = [
        "socket".to_owned(),
        "--tpm2".to_owned(),
        "--tpmstate".to_owned(),
        format!("dir={},mode=0600", folder.display()),
        "--ctrl".to_owned(),
        format!("type=unixio,path={},mode=0600", socket.display()),
        "--terminate".to_owned(),
    ];
    if folder.to_string_lossy().contains(',') {
        let folder = folder.display();
        return Err(MachineError::Invalid(format!("{folder}: swtpm takes no path with a comma")));
    }
    Ok(Daemon::start("swtpm", &args, &state.join("swtpm.log"))?)
}

fn await_socket(
    program: &'static str,
    daemon: &mut Daemon,
    socket: &Path,
) -> Result<(), MachineError> {
    let deadline = Instant::now() + START_LIMIT;
    while !socket.exists() {
        if daemon.ended()?.is_some() || Instant::now() >= deadline {
            let limit_s = START_LIMIT.as_secs();
            return Err(start_error(program, daemon, &format!("no socket within {limit_s} s")));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn start_error(
    program: &'static str,
    daemon: &mut Daemon,
    seen: &dyn std::fmt::Display,
) -> MachineError {
    let ended = match daemon.ended() {
        Ok(Some(status)) => format!("it ended with {status}"),
        Ok(None) => seen.to_string(),
        Err(error) => error.to_string(),
    };
    MachineError::Start { program, detail: format!("{ended}: {}", daemon.tail()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_logs_of_several_boots_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(next_serial_log(dir.path()).unwrap(), dir.path().join("serial-1.log"));
        fs::write(dir.path().join("serial-1.log"), "").unwrap();
        assert_eq!(next_serial_log(dir.path()).unwrap(), dir.path().join("serial-2.log"));
    }

    #[test]
    fn more_bundles_than_slots_are_refused() {
        let mut config = Config::new("/i", "/s", Accel::Tcg);
        config.bundles = vec!["/b.img".into(); BUNDLE_SLOTS];
        config.check().unwrap();
        config.bundles.push("/b.img".into());
        assert!(matches!(config.check(), Err(MachineError::Invalid(_))));
    }

    #[test]
    fn a_snapshot_and_another_builds_state_do_not_boot() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path().join("image"), dir.path().join("state"), Accel::Tcg);
        fs::create_dir_all(&config.image).unwrap();
        fs::create_dir_all(&config.state).unwrap();
        fs::write(config.image.join("casemate.raw"), [0; 512]).unwrap();
        fs::write(config.origin(), r#"{"disk_bytes":511,"disk_modified_ns":0}"#).unwrap();
        let error = prepare(&config).unwrap_err().to_string();
        assert!(error.contains("another build"), "{error}");
        fs::write(config.vm_state(), "").unwrap();
        let error = prepare(&config).unwrap_err().to_string();
        assert!(error.contains("snapshot"), "{error}");
    }
}
