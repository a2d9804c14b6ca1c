//! Evidence, and what an auditor makes of it.

use anyhow::{Context, ensure};
use qemu::Machine;

use crate::auditor::{self, Verdict};
use crate::bench::{HEALTH_LIMIT, Scene, wait_ready};

/// Evidence of a fork that has answered once.
struct Fetched {
    nonce: String,
    text: String,
    ak_name: String,
    request: String,
}

impl Fetched {
    fn fetch(scene: &Scene<'_>) -> anyhow::Result<Self> {
        let serving = scene.bench.serving()?;
        let machine = scene.fork_serving()?;
        let api = scene.api(&machine)?;
        let request = api.chat(&serving.model, "Name a colour.", 4)?.id;
        let nonce = auditor::nonce()?;
        let text = api.evidence(&nonce)?;
        Ok(Self { nonce, text, ak_name: serving.ak_name.clone(), request })
    }

    fn verify(
        &self,
        scene: &Scene<'_>,
        text: &str,
        ak_name: &str,
        nonce: &str,
    ) -> anyhow::Result<Verdict> {
        scene.bench.auditor().verify(&scene.path("auditor"), text, ak_name, nonce)
    }

    /// As it was fetched: what the refusals are compared with.
    fn expect_established(&self, scene: &Scene<'_>) -> anyhow::Result<()> {
        self.verify(scene, &self.text, &self.ak_name, &self.nonce)?.expect_established()
    }
}

pub(super) fn established(scene: &Scene<'_>) -> anyhow::Result<()> {
    let fetched = Fetched::fetch(scene)?;
    fetched.expect_established(scene)?;
    auditor::record_of(&fetched.text, &fetched.request)?.context("the exchange has no record")?;
    Ok(())
}

pub(super) fn edited_ledger(scene: &Scene<'_>) -> anyhow::Result<()> {
    let fetched = Fetched::fetch(scene)?;
    fetched.expect_established(scene)?;
    let (edited, index) = auditor::edit_newest_exchange(&fetched.text)?;
    let verdict = fetched.verify(scene, &edited, &fetched.ak_name, &fetched.nonce)?;
    verdict.expect_refuted(&["REFUTED", "ledger", "record", &index.to_string()])
}

pub(super) fn wrong_nonce(scene: &Scene<'_>) -> anyhow::Result<()> {
    let fetched = Fetched::fetch(scene)?;
    fetched.expect_established(scene)?;
    let verdict = fetched.verify(scene, &fetched.text, &fetched.ak_name, &auditor::nonce()?)?;
    verdict.expect_refuted(&["REFUTED", "fresh"])
}

/// A second machine boots the same image; its evidence is not the first one's, nor the other way round.
pub(super) fn other_machine(scene: &Scene<'_>) -> anyhow::Result<()> {
    let fetched = Fetched::fetch(scene)?;
    fetched.expect_established(scene)?;
    let mut second = Machine::boot(scene.bench.config(&scene.path("second")))?;
    let other = wait_ready(&mut second)?;
    ensure!(other != fetched.ak_name, "two TPMs have the same attestation key {other}");
    let verdict = fetched.verify(scene, &fetched.text, &other, &fetched.nonce)?;
    verdict.expect_refuted(&["REFUTED", "machine"])?;
    let nonce = auditor::nonce()?;
    let folder = scene.path("second-auditor");
    let pin = scene.bench.pin(&second, &folder, &other, scene.within(HEALTH_LIMIT)?)?;
    ensure!(
        std::fs::read(&pin)? != std::fs::read(&scene.bench.ready()?.pin)?,
        "two machines, one key"
    );
    let api = scene.api_of(&second, &pin);
    api.wait_health(503, scene.within(HEALTH_LIMIT)?)?;
    let text = api.evidence(&nonce)?;
    let verdict = fetched.verify(scene, &text, &fetched.ak_name, &nonce)?;
    verdict.expect_refuted(&["REFUTED", "machine"])
}
