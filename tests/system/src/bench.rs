//! What all scenarios share: the inputs, and one boot.
//!
//! The appliance boots once for all: [`Bench::ready`] is that boot without a bundle, [`Bench::serving`] a fork of it with
//! the good bundle admitted, [`Bench::second`] another machine. They are frozen; a scenario forks them in about two
//! seconds. [`Bench::fetched`] is what an auditor got from such a fork.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use qemu::{Accel, Config, Machine, Snapshot};
use serde_json::Value;

use crate::api::Api;
use crate::auditor::{self, Auditor, Gateway};
use crate::{flashed, tool};

/// Longest boot: 22 to 60 s of guest time were seen without KVM, up to 90 s on the wall with other work beside it.
pub const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// Longest time from plugging a medium to agentd's decision on it: 100 MB are hashed twice by an emulated CPU.
pub const BUNDLE_LIMIT: Duration = Duration::from_secs(180);
/// Longest time from agentd's decision to the gateway's word on it.
pub const HEALTH_LIMIT: Duration = Duration::from_secs(120);

/// Longest until an auditor has what he asked a fork for, after two answers of the model.
const FETCH_LIMIT: Duration = Duration::from_secs(300);

/// Longest that a tool of the host may take.
const TOOL_LIMIT: Duration = Duration::from_secs(120);

/// What most scenarios ask the model.
pub const PROMPT: &str = "Name a colour.";

/// Printed by agentd when it answers requests.
pub const AGENTD_READY: &str = "agentd: ready";
/// Printed by agentd before the Name of its attestation key.
pub const ATTESTATION_KEY: &str = "agentd: attestation key ";
/// Printed by agentd before model, digest and signers.
pub const ADMITTED: &str = "agentd: bundle admitted ";
/// Printed by agentd before the reason.
pub const REFUSED: &str = "agentd: bundle refused: ";

/// What the scenarios are given.
#[derive(Debug)]
pub struct Inputs {
    /// Folder made by `casemate build`.
    pub image: PathBuf,
    /// Folder made by `casemate keys`.
    pub keys: PathBuf,
    /// Folder made by `casemate build`, with a version below `image`.
    pub image_older: Option<PathBuf>,
    /// Folder made by `casemate build`, with a version above `image`.
    pub image_newer: Option<PathBuf>,
    /// The same, with an agent that does not start.
    pub image_broken: Option<PathBuf>,
    /// The same as `image`, by a new key of PCR policies and the one of `image`; its stick is for a disk's serial number.
    pub image_rotated: Option<PathBuf>,
    /// The same by the new key alone.
    pub image_retired: Option<PathBuf>,
    /// The same as `image` with our own kernel.
    pub own_kernel: Option<OwnKernel>,
    /// The same as `image` with our kernel for NVIDIA's driver.
    pub gpu_nvidia: Option<OwnKernel>,
    /// Bundle media, by name.
    pub bundles: Bundles,
    /// Folder of a sentence encoder.
    pub encoder: Option<PathBuf>,
    /// Python with the `openai` package.
    pub python: Option<PathBuf>,
    /// Folder with `casemate-verify`.
    pub programs: PathBuf,
    /// Folder of the results.
    pub results: PathBuf,
    /// What executes the guest's code.
    pub accel: Accel,
    /// The machines side by side have more CPUs than the host.
    pub crowded: bool,
    /// Memory of each machine in MiB.
    pub memory_mib: u32,
    /// Repetitions too.
    pub long: bool,
}

/// A kernel of ours, and an image with it.
#[derive(Debug)]
pub struct OwnKernel {
    /// Folder made by `casemate build --kernel`.
    pub image: PathBuf,
    /// Folder that `casemate kernel` names.
    pub kernel: PathBuf,
}

/// Bundle media, as `casemate bundle pack` makes them.
#[derive(Debug, Default)]
pub struct Bundles {
    /// Signed by the quorum.
    pub good: Option<PathBuf>,
    /// The good one with one byte of the weights flipped.
    pub flipped: Option<PathBuf>,
    /// Signed by one key of the two needed.
    pub one_signature: Option<PathBuf>,
    /// The good one with a file that nobody signed.
    pub extra_file: Option<PathBuf>,
    /// Signed by the quorum, one version below the good one.
    pub older: Option<PathBuf>,
}

/// The appliance, booted from cold without a bundle.
#[derive(Debug)]
pub struct Ready {
    /// Frozen right after agentd was ready.
    pub snapshot: Snapshot,
    /// Name of the attestation key, as whoever installs the machine reads it on the console.
    pub ak_name: String,
    /// The gateway's certificate, pinned after its evidence was established.
    pub pin: PathBuf,
}

/// The appliance with the good bundle admitted.
#[derive(Debug)]
pub struct Serving {
    /// Frozen when `/healthz` was ok.
    pub snapshot: Snapshot,
    /// Name of the attestation key.
    pub ak_name: String,
    /// The model's name for clients.
    pub model: String,
}

/// Another appliance by the same vendor: the same image on another disk, without a bundle.
#[derive(Debug)]
pub struct Second {
    /// Frozen when its evidence was established.
    pub snapshot: Snapshot,
    /// Name of its attestation key.
    pub ak_name: String,
    /// Its gateway's certificate, pinned after its evidence was established.
    pub pin: PathBuf,
    /// Whether `casemate flash` wrote its disk.
    pub flashed: bool,
}

/// What an auditor has of an appliance that answered twice.
#[derive(Debug)]
pub struct Fetched {
    /// Evidence after the first answer, under another nonce.
    pub earlier: String,
    /// Evidence after the second.
    pub text: String,
    /// Its nonce.
    pub nonce: String,
    /// The second answer's identifier.
    pub request: String,
    /// Name of the attestation key.
    pub ak_name: String,
}

/// A stage that is made once; a failure is kept, so that it is not made again and again.
#[derive(Debug)]
struct Stage<T> {
    made: OnceLock<Result<T, String>>,
    being_made: AtomicBool,
}

impl<T> Stage<T> {
    const fn new() -> Self {
        Self { made: OnceLock::new(), being_made: AtomicBool::new(false) }
    }

    fn busy(&self) -> bool {
        self.made.get().is_none() && self.being_made.load(Ordering::Acquire)
    }

    fn get(&self, name: &str, make: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<&T> {
        self.being_made.store(true, Ordering::Release);
        let made = self.made.get_or_init(|| {
            let start = Instant::now();
            let made = make().map_err(|error| format!("{error:#}"));
            let outcome = if made.is_ok() { "frozen" } else { "FAILED" };
            println!("  ({name}: {outcome} after {:.0} s)", start.elapsed().as_secs_f64());
            made
        });
        made.as_ref().map_err(|error| anyhow!("the shared {name} failed: {error}"))
    }
}

/// Inputs and the shared stages.
#[derive(Debug)]
pub struct Bench {
    /// What the scenarios are given.
    pub inputs: Inputs,
    ready: Stage<Ready>,
    serving: Stage<Serving>,
    second: Stage<Second>,
    fetched: Stage<Fetched>,
}

impl Bench {
    /// Nothing boots yet.
    #[must_use]
    pub const fn new(inputs: Inputs) -> Self {
        Self {
            inputs,
            ready: Stage::new(),
            serving: Stage::new(),
            second: Stage::new(),
            fetched: Stage::new(),
        }
    }

    /// The shared boot.
    pub fn ready(&self) -> anyhow::Result<&Ready> {
        self.ready.get("boot", || {
            once_more(|attempt| {
                let state = self.inputs.results.join(format!("shared-ready-{attempt}"));
                let mut machine = Machine::boot(self.config(&state))?;
                let ak_name = wait_ready(&mut machine)?;
                let pin = self.pin(&machine, &state.join("auditor"), &ak_name, HEALTH_LIMIT)?;
                let api = self.stage_api(&machine, &pin, &state, HEALTH_LIMIT);
                api.wait_health(503, HEALTH_LIMIT)?;
                Ok(Ready { snapshot: machine.snapshot()?, ak_name, pin })
            })
        })
    }

    /// The shared admission of the good bundle. The model has answered once: the prompt of most scenarios, whose tokens
    /// the engine then keeps.
    pub fn serving(&self) -> anyhow::Result<&Serving> {
        let ready = self.ready()?;
        self.serving.get("admission", || {
            let state = self.inputs.results.join("shared-serving");
            let good = self.inputs.bundles.good.as_deref().context("no --bundle")?;
            let mut machine = ready.snapshot.fork(&state)?;
            machine.plug_bundle(good)?;
            let model = wait_admitted(&mut machine)?;
            let api = self.stage_api(&machine, &ready.pin, &state, FETCH_LIMIT);
            api.wait_health(200, HEALTH_LIMIT)?;
            api.chat(&model, PROMPT, 1)?;
            let ak_name = ready.ak_name.clone();
            Ok(Serving { snapshot: machine.snapshot()?, ak_name, model })
        })
    }

    /// The shared boot of another machine, from a disk that `casemate flash` wrote where this host lends a loop device.
    pub fn second(&self) -> anyhow::Result<&Second> {
        let first = self.ready()?;
        self.second.get("second machine", || {
            once_more(|attempt| {
                let folder = self.inputs.results.join(format!("shared-second-{attempt}"));
                std::fs::create_dir(&folder)?;
                let scene = Scene::new(self, folder, Instant::now() + BOOT_LIMIT + HEALTH_LIMIT);
                let image = flashed::server(&scene)?;
                let flashed = image.is_some();
                let mut config = self.config(&scene.path("machine"));
                config.image = image.unwrap_or(config.image);
                config.vendor = Some(first.snapshot.config().vendor_folder());
                let mut machine = Machine::boot(config)?;
                let ak_name = wait_ready(&mut machine)?;
                ensure!(ak_name != first.ak_name, "two TPMs have the attestation key {ak_name}");
                let pin = self.pin(&machine, &scene.path("auditor"), &ak_name, HEALTH_LIMIT)?;
                Ok(Second { snapshot: machine.snapshot()?, ak_name, pin, flashed })
            })
        })
    }

    /// Shared evidence of a fork that has answered.
    pub fn fetched(&self) -> anyhow::Result<&Fetched> {
        let (ready, serving) = (self.ready()?, self.serving()?);
        self.fetched.get("evidence", || {
            let folder = self.inputs.results.join("shared-fetched");
            let machine = serving.snapshot.fork(&folder)?;
            let api = self.stage_api(&machine, &ready.pin, &folder, FETCH_LIMIT);
            api.chat(&serving.model, PROMPT, 4)?;
            let earlier = api.evidence(&auditor::nonce()?)?;
            let request = api.chat(&serving.model, PROMPT, 4)?.id;
            let nonce = auditor::nonce()?;
            let text = api.evidence(&nonce)?;
            Ok(Fetched { earlier, text, nonce, request, ak_name: serving.ak_name.clone() })
        })
    }

    /// Whether another thread is making what this need waits for.
    #[must_use]
    pub fn busy(&self, needs: Needs) -> bool {
        match needs {
            Needs::Nothing => false,
            Needs::Ready => self.ready.busy(),
            Needs::Serving => self.ready.busy() || self.serving.busy(),
            Needs::Second => self.ready.busy() || self.second.busy(),
            Needs::Fetched => self.ready.busy() || self.serving.busy() || self.fetched.busy(),
        }
    }

    /// Makes what a scenario starts from, outside its own time.
    pub fn provide(&self, needs: Needs) -> anyhow::Result<()> {
        match needs {
            Needs::Nothing => Ok(()),
            Needs::Ready => self.ready().map(drop),
            Needs::Serving => self.serving().map(drop),
            Needs::Second => self.second().map(drop),
            Needs::Fetched => self.fetched().map(drop),
        }
    }

    /// A new machine with the image under test.
    #[must_use]
    pub fn config(&self, state: &Path) -> Config {
        let mut config = Config::new(&self.inputs.image, state, self.inputs.accel);
        config.memory_mib = self.inputs.memory_mib;
        config.one_thread = self.inputs.crowded;
        config
    }

    /// Whoever judges the evidence.
    #[must_use]
    pub fn auditor(&self) -> Auditor {
        Auditor {
            program: self.inputs.programs.join("casemate-verify"),
            reference: self.inputs.image.join("reference.json"),
            policy: self.inputs.keys.join("policy.json"),
        }
    }

    /// Attests a machine that has no bundle yet; returns the pin of its gateway.
    pub fn pin(
        &self,
        machine: &Machine,
        folder: &Path,
        ak_name: &str,
        limit: Duration,
    ) -> anyhow::Result<PathBuf> {
        self.pin_of(&self.inputs.image, machine, folder, ak_name, limit)
    }

    /// The same for a machine with another image, made by the same keys.
    pub fn pin_of(
        &self,
        image: &Path,
        machine: &Machine,
        folder: &Path,
        ak_name: &str,
        limit: Duration,
    ) -> anyhow::Result<PathBuf> {
        let gateway = Gateway { port: machine.port(), site: &self.site() };
        let auditor = Auditor { reference: image.join("reference.json"), ..self.auditor() };
        auditor.pin(folder, gateway, ak_name, limit)
    }

    /// Folder with the certificates of clients.
    #[must_use]
    pub fn site(&self) -> PathBuf {
        self.inputs.keys.join("site")
    }

    fn stage_api(&self, machine: &Machine, pin: &Path, scratch: &Path, limit: Duration) -> Api {
        Api::new(machine.port(), &self.site(), pin, scratch, Instant::now() + limit)
    }
}

/// What a scenario starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// It boots by itself.
    Nothing,
    /// [`Bench::ready`].
    Ready,
    /// [`Bench::serving`].
    Serving,
    /// [`Bench::second`], beside [`Bench::ready`].
    Second,
    /// [`Bench::fetched`].
    Fetched,
}

/// One run of one scenario: its folder, its time.
#[derive(Debug)]
pub struct Scene<'a> {
    /// What all share.
    pub bench: &'a Bench,
    folder: PathBuf,
    deadline: Instant,
    names: AtomicU32,
}

impl<'a> Scene<'a> {
    /// A scene with an empty `folder` of its own.
    #[must_use]
    pub const fn new(bench: &'a Bench, folder: PathBuf, deadline: Instant) -> Self {
        Self { bench, folder, deadline, names: AtomicU32::new(0) }
    }

    /// A path in the scene's folder that is not used yet.
    pub fn path(&self, name: &str) -> PathBuf {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        self.folder.join(format!("{number}-{name}"))
    }

    /// What is left of `limit` or of the scene's own time.
    pub fn within(&self, limit: Duration) -> anyhow::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the scenario's time is up");
        Ok(left.min(limit))
    }

    /// Runs a tool of the host, which must succeed; returns what it printed.
    pub fn run(&self, command: &mut Command) -> anyhow::Result<String> {
        let scratch = self.path("tool");
        std::fs::create_dir(&scratch)?;
        let ended = tool::run(command, &scratch, self.within(TOOL_LIMIT)?)?;
        ensure!(ended.code == Some(0), "{command:?}: {}", ended.said());
        Ok(ended.stdout)
    }

    /// Copies a disk from one of QEMU's formats to another.
    pub fn convert(&self, formats: [&str; 2], from: &Path, to: &Path) -> anyhow::Result<()> {
        let mut command = tool::command("qemu-img");
        command.args(["convert", "-f", formats[0], "-O", formats[1]]).arg(from).arg(to);
        self.run(&mut command).map(drop)
    }

    /// Reads the disk of a machine that is off.
    pub fn read_disk<T>(
        &self,
        config: &Config,
        read: impl FnOnce(&Path) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let raw = self.path("disk.raw");
        self.convert(["qcow2", "raw"], &config.state.join("disk.qcow2"), &raw)?;
        let found = read(&raw)?;
        std::fs::remove_file(raw)?;
        Ok(found)
    }

    /// Changes the disk of a machine that is off.
    pub fn edit_disk(
        &self,
        config: &Config,
        edit: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.read_disk(config, |raw| {
            edit(raw)?;
            self.convert(["raw", "qcow2"], raw, &config.state.join("disk.qcow2"))
        })
    }

    /// `casemate`, as whoever signs runs it.
    #[must_use]
    pub fn casemate(&self) -> Command {
        tool::command(self.bench.inputs.programs.join("casemate"))
    }

    /// A medium with `what`, signed by these release keys: `sign` and `pack` are the words of `casemate` for its kind.
    pub fn signed_medium(
        &self,
        what: &Path,
        keys: &[&str],
        [sign, pack]: [[&str; 2]; 2],
    ) -> anyhow::Result<PathBuf> {
        let out = self.path("signed.img");
        let mut packed = self.casemate();
        packed.args(pack).arg(what).arg("--out").arg(&out);
        for key in keys {
            let uri = self.bench.inputs.keys.join(format!("release/{key}.uri"));
            let signature = self.path(&format!("{key}.sig"));
            let mut signed = self.casemate();
            signed.args(sign).arg(what).arg("--key").arg(uri).arg("--out").arg(&signature);
            self.run(&mut signed)?;
            packed.arg("--signature").arg(signature);
        }
        self.run(&mut packed)?;
        Ok(out)
    }

    /// A running copy of the appliance before any bundle.
    pub fn fork_ready(&self) -> anyhow::Result<Machine> {
        Ok(self.bench.ready()?.snapshot.fork(&self.path("fork"))?)
    }

    /// A running copy of the appliance that serves the model.
    pub fn fork_serving(&self) -> anyhow::Result<Machine> {
        Ok(self.bench.serving()?.snapshot.fork(&self.path("fork"))?)
    }

    /// A running copy of the other machine.
    pub fn fork_second(&self) -> anyhow::Result<Machine> {
        Ok(self.bench.second()?.snapshot.fork(&self.path("second"))?)
    }

    /// The site's client of a machine that was forked from the shared boot, or boots its disk.
    pub fn api(&self, machine: &Machine) -> anyhow::Result<Api> {
        Ok(self.api_of(machine, &self.bench.ready()?.pin))
    }

    /// The site's client of a machine with another key.
    pub fn api_of(&self, machine: &Machine, pin: &Path) -> Api {
        Api::new(machine.port(), &self.bench.site(), pin, &self.folder, self.deadline)
    }
}

/// Does it a second time if the emulator lost the guest's timer in the first: no fault of what is tested.
pub(crate) fn once_more<T>(attempt: impl Fn(u32) -> anyhow::Result<T>) -> anyhow::Result<T> {
    match attempt(1) {
        Err(error) if format!("{error:#}").contains(qemu::console::LOST_TIMER) => {
            println!("  (once more, since the emulator lost the guest's timer: {error:#})");
            attempt(2)
        }
        result => result,
    }
}

/// Waits for agentd; returns the Name of its attestation key.
pub fn wait_ready(machine: &mut Machine) -> anyhow::Result<String> {
    machine.wait_for(AGENTD_READY, BOOT_LIMIT)?;
    attestation_key(machine)
}

/// The Name of the attestation key, as agentd printed it in this boot.
pub fn attestation_key(machine: &Machine) -> anyhow::Result<String> {
    let console = &machine.console().transcript;
    let line = console.find(ATTESTATION_KEY).context("agentd did not print its key")?;
    let name = after(line, ATTESTATION_KEY).trim().to_owned();
    // TPM 2.0 Library Part 1, "Names": algorithm 000b (SHA-256) and the digest.
    let is_name = name.len() == 68
        && name.starts_with("000b")
        && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    ensure!(is_name, "not the Name of a key: {line}");
    Ok(name)
}

/// Waits for agentd's decision, which must be to admit; returns the model's name.
pub fn wait_admitted(machine: &mut Machine) -> anyhow::Result<String> {
    match machine.wait_for_any(&[ADMITTED, REFUSED], BUNDLE_LIMIT)? {
        (0, line) => {
            let model = after(&line, ADMITTED).split_whitespace().next();
            Ok(model.with_context(|| format!("no model in: {line}"))?.to_owned())
        }
        (_, line) => bail!("the good bundle was refused: {line}"),
    }
}

/// Waits for agentd's decision, which must be to refuse; returns the reason.
pub fn wait_refused(machine: &mut Machine) -> anyhow::Result<String> {
    match machine.wait_for_any(&[REFUSED, ADMITTED], BUNDLE_LIMIT)? {
        (0, line) => Ok(after(&line, REFUSED).trim().to_owned()),
        (_, line) => bail!("the bad bundle was admitted: {line}"),
    }
}

/// Number of records in the ledger, as `/healthz` says.
pub fn ledger_records(health: &Value) -> anyhow::Result<u64> {
    health.get("ledger_records").and_then(Value::as_u64).with_context(|| format!("in {health}"))
}

fn after<'a>(line: &'a str, marker: &str) -> &'a str {
    line.split_once(marker).map_or("", |(_, rest)| rest)
}
