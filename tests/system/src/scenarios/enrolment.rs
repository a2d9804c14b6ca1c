//! Enrolment of a booted machine: its key is in the TPM that its vendor certified, or it is refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use evidence::format::{self, Challenge, Identity, Machine};
use qemu::Machine as Appliance;

use crate::api::{Api, Response};
use crate::auditor;
use crate::bench::Scene;
use crate::stick::Stick;

/// Longest that agentd may take with a medium: an RSA key is made again by an emulated CPU.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(120);
/// How often a busy TPM is asked again.
const BUSY_MAX: u32 = 10;
/// Printed by agentd when a medium may be pulled.
const EXCHANGED: &str = "agentd: exchange medium: done";

/// An auditor's folder with one enrolment in it.
pub(super) struct Desk<'a> {
    scene: &'a Scene<'a>,
    folder: PathBuf,
    roots: PathBuf,
}

impl<'a> Desk<'a> {
    fn new(scene: &'a Scene<'a>, appliance: &Appliance) -> anyhow::Result<Self> {
        let folder = scene.path("desk");
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { scene, folder, roots: appliance.config().vendor_roots() })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        std::fs::write(self.path(name), text).with_context(|| self.path(name).display().to_string())
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> anyhow::Result<T> {
        let text = std::fs::read(self.path(name)).with_context(|| name.to_owned())?;
        serde_json::from_slice(&text).with_context(|| name.to_owned())
    }

    /// `casemate-verify enrol challenge`, which must succeed.
    fn challenge(&self) -> anyhow::Result<Challenge> {
        let verdict = self.enrol(&["challenge", "--out", "."], &["--roots"], &self.roots)?;
        ensure!(verdict.0 == Some(0), "{}", verdict.1);
        ensure!(verdict.1.contains("model swtpm"), "no TPM in: {}", verdict.1);
        self.read("challenge.json")
    }

    /// `casemate-verify enrol finish`: exit code and report.
    fn finish(&self) -> anyhow::Result<(Option<i32>, String)> {
        let args = ["finish", "--response", "response.json", "--out", "machine.json"];
        self.enrol(&args, &["--secret"], Path::new("secret.json"))
    }

    fn enrol(
        &self,
        args: &[&str],
        option: &[&str],
        value: &Path,
    ) -> anyhow::Result<(Option<i32>, String)> {
        let args = [&["enrol"], args, &["--identity", "identity.json"], option].concat();
        self.scene.bench.auditor().run(&self.folder, &args, value)
    }

    /// The finished enrolment's pin, and evidence that is established with it and names it.
    fn expect_established(&self, evidence: &str, nonce: &str) -> anyhow::Result<()> {
        let machine: Machine = self.read("machine.json")?;
        ensure!(machine.enrolment.is_some(), "not enrolled: {machine:?}");
        let folder = self.scene.path("auditor");
        let verdict = self.scene.bench.auditor().judge(&folder, evidence, &machine, nonce)?;
        verdict.expect_established()?;
        ensure!(verdict.report.contains("enrolled: EK certificate"), "{}", verdict.report);
        Ok(())
    }
}

pub(super) fn over_gateway(scene: &Scene<'_>) -> anyhow::Result<()> {
    let appliance = scene.fork_serving()?;
    let api = scene.api(&appliance)?;
    let desk = enrolled(scene, &appliance, &api)?;
    let nonce = auditor::nonce()?;
    desk.expect_established(&api.evidence(&nonce)?, &nonce)
}

/// Enrols the machine over its gateway; `identity.json` and `machine.json` then lie on the desk.
pub(super) fn enrolled<'a>(
    scene: &'a Scene<'a>,
    appliance: &Appliance,
    api: &Api,
) -> anyhow::Result<Desk<'a>> {
    let desk = Desk::new(scene, appliance)?;
    desk.write("identity.json", &api.get("/casemate/identity")?.expect(200)?.body)?;
    desk.challenge()?;
    desk.write("response.json", &answer(api, &desk)?)?;
    let (code, report) = desk.finish()?;
    ensure!(code == Some(0) && report.contains("ENROLLED"), "{report}");
    Ok(desk)
}

/// The gateway's answer to the challenge on the desk.
fn answer(api: &Api, desk: &Desk<'_>) -> anyhow::Result<String> {
    let challenge = std::fs::read_to_string(desk.path("challenge.json"))?;
    Ok(enrol(api, &challenge)?.expect(200)?.body)
}

/// Asks again while the TPM has just answered a challenge.
fn enrol(api: &Api, challenge: &str) -> anyhow::Result<Response> {
    let mut response = api.post("/casemate/enrol", challenge)?;
    for _ in 0..BUSY_MAX {
        if response.status != 429 {
            break;
        }
        std::thread::sleep(Duration::from_secs(2));
        response = api.post("/casemate/enrol", challenge)?;
    }
    Ok(response)
}

pub(super) fn by_stick(scene: &Scene<'_>) -> anyhow::Result<()> {
    let mut appliance = scene.fork_serving()?;
    let desk = Desk::new(scene, &appliance)?;
    let stick = Stick::format(&scene.path("stick"))?;
    exchange(scene, &mut appliance, &stick)?;
    desk.write("identity.json", &stick.take("identity.json")?)?;
    desk.challenge()?;
    let nonce = auditor::nonce()?;
    desk.write("nonce.txt", &(nonce.clone() + "\n"))?;
    for name in ["challenge.json", "nonce.txt"] {
        stick.put(&desk.path(name), name)?;
    }
    exchange(scene, &mut appliance, &stick)?;
    desk.write("response.json", &stick.take("response.json")?)?;
    let (code, report) = desk.finish()?;
    ensure!(code == Some(0), "{report}");
    desk.expect_established(&stick.take("evidence.json")?, &nonce)
}

/// Plugs the stick in until agentd is done with it.
fn exchange(scene: &Scene<'_>, appliance: &mut Appliance, stick: &Stick) -> anyhow::Result<()> {
    appliance.plug_exchange(stick.image())?;
    appliance.wait_for(EXCHANGED, scene.within(EXCHANGE_LIMIT)?)?;
    appliance.pull_exchange(scene.within(EXCHANGE_LIMIT)?)?;
    Ok(())
}

/// A second machine by the same vendor: it cannot answer the first one's challenge, what it answers to its own is not
/// an answer to the first one's, and its evidence is by a key that was never enrolled.
pub(super) fn of_another_tpm(scene: &Scene<'_>) -> anyhow::Result<()> {
    let first = scene.fork_ready()?;
    let api = scene.api(&first)?;
    let desk = Desk::new(scene, &first)?;
    desk.write("identity.json", &api.get("/casemate/identity")?.expect(200)?.body)?;
    let challenge = std::fs::read_to_string({
        desk.challenge()?;
        desk.path("challenge.json")
    })?;

    let second = scene.fork_second()?;
    let other_api = scene.api_of(&second, &scene.bench.second()?.pin);
    let refused = enrol(&other_api, &challenge)?.expect(400)?.body;
    ensure!(refused.contains("the challenge is for the attestation key"), "{refused}");
    // The name on the challenge is not what protects it: the TPM is.
    let other = Desk::new(scene, &second)?;
    other.write("identity.json", &other_api.get("/casemate/identity")?.expect(200)?.body)?;
    let others = other.challenge()?;
    let mut renamed: Challenge = serde_json::from_str(&challenge)?;
    renamed.ak_name.clone_from(&others.ak_name);
    let refused = enrol(&other_api, &serde_json::to_string(&renamed)?)?.expect(400)?.body;
    ensure!(refused.contains("TPM2_ActivateCredential failed"), "{refused}");

    let response = answer(&other_api, &other)?;
    other.write("response.json", &response)?;
    desk.write("response.json", &response)?;
    let (code, report) = desk.finish()?;
    ensure!(code == Some(1), "{report}");
    ensure!(report.contains("does not hold the challenge's secret"), "{report}");
    let (code, report) = other.finish()?;
    ensure!(code == Some(0), "{report}");
    mixed(&desk, &other, &response)?;

    let nonce = auditor::nonce()?;
    let evidence = api.evidence(&nonce)?;
    let enrolled: Machine = other.read("machine.json")?;
    let folder = scene.path("auditor");
    let verdict = scene.bench.auditor().judge(&folder, &evidence, &enrolled, &nonce)?;
    verdict.expect_refuted(&["REFUTED", "machine", "never enrolled"])
}

/// The second machine's certificate with the first one's attestation key is refused before any challenge.
fn mixed(desk: &Desk<'_>, other: &Desk<'_>, response: &str) -> anyhow::Result<()> {
    let response: format::Response = serde_json::from_str(response)?;
    ensure!(response.secret.len() == 64, "no secret in the response");
    let first: Identity = desk.read("identity.json")?;
    let second: Identity = other.read("identity.json")?;
    let mixed = Identity { ek_certificates: second.ek_certificates, ..first };
    desk.write("identity.json", &serde_json::to_string(&mixed)?)?;
    let args = ["challenge", "--out", "mixed"];
    let (code, report) = desk.enrol(&args, &["--roots"], &desk.roots)?;
    ensure!(code == Some(1), "{report}");
    ensure!(report.contains("another endorsement key than the TPM's"), "{report}");
    Ok(())
}
