//! A dbx update: foreseen, prepared and made; and made without preparation.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use evidence::forecast::{DatabaseName, Measured};
use evidence::format::{Evidence, Machine as Pin};
use qemu::{Config, Machine};
use serde_json::Value;

use super::tamper::{set_variables, state_stays_closed};
use super::{bundles, enrolment};
use crate::auditor::{self, Auditor, Gateway};
use crate::bench::{BOOT_LIMIT, HEALTH_LIMIT, Ready, Scene, wait_admitted, wait_ready};

/// Longest from plugging the order in to the word on it.
const ORDER_LIMIT: Duration = Duration::from_secs(60);
/// Printed when an order is kept for the next boot.
const ACCEPTED: &str = " accepted (signed by ";
/// Printed when a key slot was added.
const APPLIED: &str = " applied (signed by ";
/// Printed before the reason.
const REFUSED: &str = "reseal: order refused: ";
/// Printed when a slot of the old state is gone.
const WIPED: &str = " wiped: ";
/// Digest of a program that nobody has.
const FORBIDDEN: [u8; 32] = [0xd5; 32];

/// An update of a machine's dbx, and what `casemate forecast` makes of it.
struct Foreseen {
    /// The machine's evidence before.
    before: Evidence,
    /// The update, as a file.
    update: PathBuf,
    /// The order's.
    folder: PathBuf,
    /// Reference values after the update.
    reference: PathBuf,
    /// PCR 7 after the update.
    forecast: String,
}

impl Foreseen {
    fn of(scene: &Scene<'_>, ready: &Ready, machine: &Machine) -> anyhow::Result<Self> {
        let before = evidence(scene, machine)?;
        let update = scene.path("dbx.auth");
        std::fs::write(&update, new_dbx(&before)?)?;
        let folder = scene.path("order");
        let reference = scene.path("reference.json");
        let files = [&update, &folder, &reference];
        let forecast = forecast(scene, &before, &ready.ak_name, files)?;
        Ok(Self { before, update, folder, reference, forecast })
    }
}

/// A bundle that is encrypted to the machine as it will be after the update. The one for its present state is foreseen to
/// break, this one to open.
fn packed_again(
    scene: &Scene<'_>,
    machine: &Machine,
    foreseen: &Foreseen,
) -> anyhow::Result<PathBuf> {
    let good = scene.bench.inputs.bundles.good.as_deref().context("no --bundle")?;
    let (plain, api) = (bundles::unpack(scene, good)?, scene.api(machine)?);
    let desk = enrolment::enrolled(scene, machine, &api)?;
    let present = bundles::seal(scene, &plain, &desk, &scene.bench.auditor().reference)?;
    let again = bundles::seal(scene, &plain, &desk, &foreseen.reference)?;
    let evidence = scene.path("evidence.json");
    std::fs::write(&evidence, serde_json::to_vec(&foreseen.before)?)?;
    let mut command = scene.casemate();
    command.arg("forecast").arg(&evidence).arg("--dbx").arg(&foreseen.update).arg("--json");
    for medium in [&present, &again] {
        command.arg("--sealed").arg(bundles::unpack(scene, medium)?);
    }
    let said: Value = serde_json::from_str(&scene.run(&mut command)?)?;
    let seals = said.get("seals").and_then(Value::as_array).context("no seals")?;
    let found: Vec<_> = seals.iter().map(|seal| (&seal["fate"], &seal["pcrs"])).collect();
    let (breaks, opens) = (Value::from("breaks"), Value::from("opens"));
    let (by_7, by_none) = (Value::from([7]), Value::Array(Vec::new()));
    let expected = [(&breaks, &by_7), (&breaks, &by_7), (&opens, &by_none)];
    ensure!(found == expected, "state, present and new bundle: {found:?}");
    Ok(again)
}

/// The forecast is what the machine then shows; the order keeps its state open, and a bundle that was packed anew too.
pub(super) fn dbx_update_forecast(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let mut machine = scene.fork_ready()?;
    let foreseen = Foreseen::of(scene, ready, &machine)?;
    let bundle = packed_again(scene, &machine, &foreseen)?;
    let Foreseen { before, update, folder, reference, forecast } = foreseen;

    let medium = signed(scene, &folder, &["release-1", "release-3"])?;
    machine.plug_bundle(&medium)?;
    let order = |machine: &mut Machine, wanted: &str| {
        let (index, line) = machine.wait_for_any(&[wanted, REFUSED], ORDER_LIMIT)?;
        ensure!(index == 0, "{line}");
        anyhow::Ok(())
    };
    order(&mut machine, ACCEPTED)?;
    let config = machine.config().clone();
    machine.quit()?;

    let mut machine = Machine::boot(config)?;
    let (index, line) = machine.wait_for_any(&[APPLIED, REFUSED], scene.within(BOOT_LIMIT)?)?;
    ensure!(index == 0, "{line}");
    let same = wait_ready(&mut machine)? == ready.ak_name;
    ensure!(same, "another attestation key");
    // The medium is still there, and its order is used.
    let console = machine.console().transcript.text().to_owned();
    let line = match console.lines().find(|line| line.contains(REFUSED)) {
        Some(line) => line.to_owned(),
        None => machine.wait_for(REFUSED, ORDER_LIMIT)?,
    };
    ensure!(line.contains("used already"), "{line}");
    let config = machine.config().clone();
    machine.quit()?;

    set_dbx(scene, &config, &update)?;
    let mut machine = Machine::boot(config)?;
    machine.wait_for(WIPED, scene.within(BOOT_LIMIT)?)?;
    ensure!(wait_ready(&mut machine)? == ready.ak_name, "another attestation key");
    let after = evidence(scene, &machine)?;
    let found = after.quote.pcrs.get(&7).context("no PCR 7")?;
    ensure!(*found == forecast, "PCR 7 is {found}, the forecast was {forecast}");
    ensure!(before.quote.pcrs.get(&7) != Some(found), "PCR 7 did not change");

    // Only the reference values that were made with the forecast still describe the machine.
    let (site, limit) = (scene.bench.site(), scene.within(HEALTH_LIMIT)?);
    let gateway = Gateway { port: machine.port(), site: &site };
    let auditor = scene.bench.auditor();
    let now = Auditor { reference, ..scene.bench.auditor() };
    now.pin(&scene.path("auditor"), gateway, &ready.ak_name, limit)?;
    let (nonce, api) = (auditor::nonce()?, scene.api(&machine)?);
    let text = api.evidence(&nonce)?;
    let old = auditor.verify(&scene.path("old-reference"), &text, &ready.ak_name, &nonce)?;
    old.expect_refuted(&["REFUTED", "secure-boot"])?;
    machine.plug_bundle(&bundle)?;
    wait_admitted(&mut machine).map(drop)
}

/// The control: the same update without an order keeps the state closed.
pub(super) fn dbx_update_without_reseal(scene: &Scene<'_>) -> anyhow::Result<()> {
    let machine = scene.fork_ready()?;
    let update = scene.path("dbx.auth");
    std::fs::write(&update, new_dbx(&evidence(scene, &machine)?)?)?;
    let config = machine.config().clone();
    machine.quit()?;
    set_dbx(scene, &config, &update)?;
    state_stays_closed(scene, config).map(drop)
}

/// Orders that must not be applied: too few signatures, and another machine's.
pub(super) fn reseal_order_refused(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let mut machine = scene.fork_ready()?;
    let folder = Foreseen::of(scene, ready, &machine)?.folder;
    let one = signed(scene, &folder, &["release-2"])?;
    let refused = |machine: &mut Machine, medium: &Path, cause: &str| {
        machine.plug_bundle(medium)?;
        let (index, line) = machine.wait_for_any(&[REFUSED, ACCEPTED], ORDER_LIMIT)?;
        ensure!(index == 0 && line.contains(cause), "not refused for {cause:?}: {line}");
        anyhow::Ok(())
    };
    refused(&mut machine, &one, "1 of 2 needed signatures")?;
    drop(machine);

    let other = folder.join("reseal.json");
    let text = std::fs::read_to_string(&other)?.replace(&ready.ak_name, &format!("000b{:064}", 7));
    let folder = scene.path("other-order");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("reseal.json"), text)?;
    let other = signed(scene, &folder, &["release-1", "release-2"])?;
    let mut machine = scene.fork_ready()?;
    refused(&mut machine, &other, "the order is for the machine")
}

pub(super) fn evidence(scene: &Scene<'_>, machine: &Machine) -> anyhow::Result<Evidence> {
    let api = scene.api(machine)?;
    api.wait_health(503, scene.within(HEALTH_LIMIT)?)?;
    Ok(serde_json::from_str(&api.evidence(&auditor::nonce()?)?)?)
}

/// The machine's dbx with one digest more, as an authenticated variable that virt-fw-vars takes.
fn new_dbx(evidence: &Evidence) -> anyhow::Result<Vec<u8>> {
    let mut content = Measured::by_evidence(evidence)?.database(DatabaseName::Dbx)?;
    // EFI_SIGNATURE_LIST: type, sizes of list, header and signature; then owner and digest.
    content.extend(evidence::sigdb::CERT_SHA256);
    for size in [28 + 48_u32, 0, 48] {
        content.extend(size.to_le_bytes());
    }
    content.extend([0x11; 16]);
    content.extend(FORBIDDEN);
    // EFI_VARIABLE_AUTHENTICATION_2: no time, and a certificate without data of EFI_CERT_TYPE_PKCS7_GUID.
    let mut file = vec![0; 16];
    file.extend(24_u32.to_le_bytes());
    file.extend([0x00, 0x02, 0xf1, 0x0e]);
    file.extend(b"\x9d\xd2\xaf\x4a\xdf\x68\xee\x49\x8a\xa9\x34\x7d\x37\x56\x65\xa7");
    file.extend(content);
    Ok(file)
}

/// Runs `casemate forecast`; makes the order in `folder` and returns the PCR 7 that it foresees.
fn forecast(
    scene: &Scene<'_>,
    evidence: &Evidence,
    ak_name: &str,
    [dbx, folder, reference]: [&PathBuf; 3],
) -> anyhow::Result<String> {
    let (file, machine) = (scene.path("evidence.json"), scene.path("machine.json"));
    std::fs::write(&file, serde_json::to_vec(evidence)?)?;
    let pin = Pin::from_console(ak_name);
    std::fs::write(&machine, serde_json::to_vec(&pin)?)?;
    let mut command = scene.casemate();
    command.arg("forecast").arg(&file).arg("--machine").arg(&machine).arg("--dbx").arg(dbx);
    command.arg("--json").arg("--reseal").arg(folder);
    command.arg("--reference").arg(scene.bench.auditor().reference);
    command.arg("--new-reference").arg(reference);
    let said: Value = serde_json::from_str(&scene.run(&mut command)?)?;
    let fate = said.pointer("/seals/0/fate").and_then(Value::as_str);
    ensure!(fate == Some("breaks"), "the seal must break: {said}");
    for pcr in ["0", "4", "11", "12"] {
        let outlook = said.pointer(&format!("/pcrs/{pcr}/outlook")).and_then(Value::as_str);
        ensure!(outlook == Some("stays"), "PCR {pcr}: {outlook:?}");
    }
    let after = said.pointer("/pcrs/7/after").and_then(Value::as_str);
    Ok(after.with_context(|| format!("no PCR 7: {said}"))?.to_owned())
}

/// The order on a medium, signed by these keys.
fn signed(scene: &Scene<'_>, folder: &Path, keys: &[&str]) -> anyhow::Result<PathBuf> {
    scene.signed_medium(folder, keys, [["bundle", "sign"], ["reseal", "pack"]])
}

/// What a dbx update leaves in the variable store of a machine that is off.
fn set_dbx(scene: &Scene<'_>, config: &Config, update: &Path) -> anyhow::Result<()> {
    set_variables(scene, config, &["--set-dbx".as_ref(), update.as_os_str()])
}
