//! Evidence, and what an auditor makes of it.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::auditor::{self, Verdict};
use crate::bench::{Fetched, HEALTH_LIMIT, Scene};
use crate::tool;

/// Longest that one of tpm2-tools may take.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

impl Fetched {
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

/// Established, every logged event explained, and what is known of the boot told.
pub(super) fn established(scene: &Scene<'_>) -> anyhow::Result<()> {
    let fetched = scene.bench.fetched()?;
    let verdict = fetched.verify(scene, &fetched.text, &fetched.ak_name, &fetched.nonce)?;
    verdict.expect_established()?;
    let report = &verdict.report;
    ensure!(
        !report.contains("unexplained: event"),
        "a real boot has unexplained events:\n{report}"
    );
    ensure!(!report.contains("not measured in its place"), "a section is amiss:\n{report}");
    for fact in
        ["· db: 1 certificates", "· dbx: 0 certificates", "· db admitted it by", "section .linux:"]
    {
        ensure!(report.contains(fact), "the report does not say {fact:?}:\n{report}");
    }
    auditor::record_of(&fetched.text, &fetched.request)?.context("the exchange has no record")?;
    Ok(())
}

/// tpm2-tools reads the same quote and log as we do.
pub(super) fn tpm2_tools(scene: &Scene<'_>) -> anyhow::Result<()> {
    const QUOTE: [&str; 12] = [
        "-u",
        "public.pem",
        "-m",
        "attest.bin",
        "-s",
        "signature.bin",
        "-f",
        "pcrs.bin",
        "-q",
        "qualification.bin",
        "-g",
        "sha256",
    ];
    let fetched = scene.bench.fetched()?;
    let (folder, files) = (scene.path("auditor"), "tpm2");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("evidence.json"), &fetched.text)?;
    let auditor = scene.bench.auditor();
    let export = ["export", "tpm2-tools", "--evidence", "evidence.json", "--out"];
    let (code, said) = auditor.run(&folder, &export, std::path::Path::new(files))?;
    ensure!(code == Some(0), "{said}");
    let files = folder.join(files);
    let run = |program: &str, args: &[&str]| {
        let mut command = tool::command(program);
        tool::run(command.args(args).current_dir(&files), &folder, TOOL_LIMIT)
    };
    let quote = run("tpm2_checkquote", &QUOTE)?;
    ensure!(quote.code == Some(0), "{}", quote.said());
    let log = run("tpm2_eventlog", &["eventlog.bin"])?;
    ensure!(log.code == Some(0), "{}", log.said());
    let evidence: evidence::format::Evidence = serde_json::from_str(&fetched.text)?;
    // Only the firmware extends these.
    for index in [0, 1, 2, 3, 4, 6, 7] {
        let value = &evidence.quote.pcrs[&index];
        let shown = |text: &str| text.to_lowercase().contains(value);
        ensure!(shown(&quote.stdout), "tpm2_checkquote shows another PCR {index} than {value}");
        ensure!(shown(&log.stdout), "tpm2_eventlog gives another PCR {index} than {value}");
    }
    let mut signature = std::fs::read(files.join("signature.bin"))?;
    *signature.last_mut().context("no signature")? ^= 1;
    std::fs::write(files.join("signature.bin"), signature)?;
    ensure!(run("tpm2_checkquote", &QUOTE)?.code != Some(0), "an edited signature verified");
    Ok(())
}

pub(super) fn edited_ledger(scene: &Scene<'_>) -> anyhow::Result<()> {
    let fetched = scene.bench.fetched()?;
    fetched.expect_established(scene)?;
    let (edited, index) = auditor::edit_newest_exchange(&fetched.text)?;
    let verdict = fetched.verify(scene, &edited, &fetched.ak_name, &fetched.nonce)?;
    verdict.expect_refuted(&["REFUTED", "ledger", "record", &index.to_string()])
}

pub(super) fn wrong_nonce(scene: &Scene<'_>) -> anyhow::Result<()> {
    let fetched = scene.bench.fetched()?;
    fetched.expect_established(scene)?;
    let verdict = fetched.verify(scene, &fetched.text, &fetched.ak_name, &auditor::nonce()?)?;
    verdict.expect_refuted(&["REFUTED", "fresh"])
}

/// Evidence of two machines with the same image: neither is the other's.
pub(super) fn other_machine(scene: &Scene<'_>) -> anyhow::Result<()> {
    let fetched = scene.bench.fetched()?;
    fetched.expect_established(scene)?;
    let second = scene.bench.second()?;
    let verdict = fetched.verify(scene, &fetched.text, &second.ak_name, &fetched.nonce)?;
    verdict.expect_refuted(&["REFUTED", "machine"])?;
    let [pin, first] = [&second.pin, &scene.bench.ready()?.pin].map(std::fs::read);
    ensure!(pin? != first?, "two machines, one key");
    let machine = scene.fork_second()?;
    let api = scene.api_of(&machine, &second.pin);
    api.wait_health(503, scene.within(HEALTH_LIMIT)?)?;
    let nonce = auditor::nonce()?;
    let text = api.evidence(&nonce)?;
    let verdict = fetched.verify(scene, &text, &fetched.ak_name, &nonce)?;
    verdict.expect_refuted(&["REFUTED", "machine"])
}
