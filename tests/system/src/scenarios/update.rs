//! Updates: a later image from a medium, one that is never healthy, ones that are refused, and power cuts meanwhile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use evidence::update::{TRIES, Update, entry_name};
use qemu::disk::Disk;
use qemu::{Config, Machine};

use crate::auditor::{self, Auditor, Gateway};
use crate::bench::{AGENTD_READY, BOOT_LIMIT, HEALTH_LIMIT, Scene, wait_ready};

/// Longest from plugging an update in to the last word on it: 256 MB are written and read back.
const UPDATE_LIMIT: Duration = Duration::from_secs(240);
/// Printed when writing begins.
const ACCEPTED: &str = "update: update accepted: ";
/// Printed when all is on the disk.
const WRITTEN: &str = "update: update written: ";
/// Printed before the reason.
const REFUSED: &str = "update: update refused: ";
/// Printed once agent and gateway of a new image run.
const BLESSED: &str = " is blessed";
/// Folder of the boot entries on the ESP, in the words of mtools.
const ENTRIES: &str = "::EFI/Linux";
/// Printed by agentd with the image's version.
const VERSION: &str = "agentd: image ";
/// Power cuts: in each run, and with `--long`.
const CUTS: u32 = 3;
const CUTS_LONG: u32 = 20;
/// Longest that the power stays on after an update was accepted.
const CUT_WITHIN_MS: u64 = 12_000;

/// The name of a build's boot entry, without counter and suffix.
pub(super) fn entry(image: &Path) -> anyhow::Result<String> {
    let path = image.join("update.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let Update { version_index, root_hash, .. } = Update::parse(&text)?;
    Ok(entry_name(version_index, &root_hash))
}

/// From the medium to established evidence under the new build's reference values.
pub(super) fn applied(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let newer = scene.bench.inputs.image_newer.as_ref().context("no --image-newer")?;
    let config = write(scene, &medium(scene, newer)?)?;

    let mut machine = Machine::boot(config.clone())?;
    ensure!(wait_ready(&mut machine)? == ready.ak_name, "another attestation key");
    let line = match machine.console().transcript.find(BLESSED) {
        Some(line) => line.to_owned(),
        None => machine.wait_for(BLESSED, scene.within(HEALTH_LIMIT)?)?,
    };
    ensure!(line.contains(&entry(newer)?), "another entry was blessed: {line}");
    let (site, limit) = (scene.bench.site(), scene.within(HEALTH_LIMIT)?);
    let gateway = Gateway { port: machine.port(), site: &site };
    let (old, reference) = (scene.bench.auditor(), newer.join("reference.json"));
    let new = Auditor { reference, ..scene.bench.auditor() };
    new.pin(&scene.path("auditor"), gateway, &ready.ak_name, limit)?;
    let (nonce, api) = (auditor::nonce()?, scene.api(&machine)?);
    let text = api.evidence(&nonce)?;
    let verdict = old.verify(&scene.path("old-reference"), &text, &ready.ak_name, &nonce)?;
    verdict.expect_refuted(&["REFUTED", "image"])?;
    machine.quit()?;

    // The entry lost its counter on the disk, and not only for this boot.
    let names = entries(scene, &config)?;
    let blessed = format!("{}.efi", entry(newer)?);
    ensure!(names.lines().any(|name| name.ends_with(&blessed)), "no {blessed} in\n{names}");
    Ok(())
}

/// A correctly signed image whose agent never starts is tried three times; then the old one serves again. Without
/// `--long` the first two tries are only counted.
pub(super) fn falls_back(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let broken = scene.bench.inputs.image_broken.as_ref().context("no --image-broken")?;
    let config = write(scene, &medium(scene, broken)?)?;
    let first = if scene.bench.inputs.long { 1 } else { TRIES };
    if first > 1 {
        use_up(scene, &config, &entry(broken)?, first - 1)?;
    }
    for attempt in first..=TRIES {
        let mut machine = Machine::boot(config.clone())?;
        machine
            .wait_stopped(scene.within(BOOT_LIMIT)?)
            .with_context(|| format!("try {attempt}"))?;
        for line in [AGENTD_READY, VERSION, BLESSED] {
            machine.forbid(line).with_context(|| format!("try {attempt}"))?;
        }
    }
    let mut machine = Machine::boot(config)?;
    ensure!(wait_ready(&mut machine)? == ready.ak_name, "another attestation key");
    // The medium is still there, and is not tried without end.
    let line = match machine.console().transcript.find(REFUSED) {
        Some(line) => line.to_owned(),
        None => machine.wait_for(REFUSED, scene.within(UPDATE_LIMIT)?)?,
    };
    ensure!(line.contains("was never healthy"), "{line}");
    let folder = scene.path("auditor");
    scene.bench.pin(&machine, &folder, &ready.ak_name, scene.within(HEALTH_LIMIT)?).map(drop)
}

/// A medium that another key signed or somebody changed, and one with an older image.
pub(super) fn refused(scene: &Scene<'_>) -> anyhow::Result<()> {
    let newer = scene.bench.inputs.image_newer.as_ref().context("no --image-newer")?;
    let older = scene.bench.inputs.image_older.as_ref().context("no --image-older")?;
    let changed = medium(scene, newer)?;
    flip(&changed, b"\"payload\":\"")?;
    let older = medium(scene, older)?;
    let mut machine = scene.fork_ready()?;
    for (medium, cause) in
        [(&changed, "not signed by the build key"), (&older, "only a later one is taken")]
    {
        machine.plug_bundle(medium)?;
        let seen = [REFUSED, ACCEPTED];
        let (index, line) = machine.wait_for_any(&seen, scene.within(UPDATE_LIMIT)?)?;
        ensure!(index == 0 && line.contains(cause), "not refused for {cause:?}: {line}");
        // One medium at a time: the label's device is that of the one that was there.
        machine.quit()?;
        machine = scene.fork_ready()?;
    }
    Ok(())
}

/// QEMU is killed at random moments of an update; the machine always boots, and the update can be repeated.
pub(super) fn power_cut(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let newer = scene.bench.inputs.image_newer.as_ref().context("no --image-newer")?;
    let medium = medium(scene, newer)?;
    let cuts = if scene.bench.inputs.long { CUTS_LONG } else { CUTS };
    for cut in 1..=cuts {
        let mut machine = scene.fork_ready()?;
        machine.plug_bundle(&medium)?;
        let seen = [ACCEPTED, REFUSED];
        let (index, line) = machine.wait_for_any(&seen, scene.within(UPDATE_LIMIT)?)?;
        ensure!(index == 0, "{line}");
        let after = random_below(CUT_WITHIN_MS)?;
        std::thread::sleep(Duration::from_millis(after));
        let config = machine.config().clone();
        machine.cut_power()?;
        let mut machine = Machine::boot(config)?;
        let again = || format!("cut {cut}, {after} ms after the update was accepted");
        let same = wait_ready(&mut machine).with_context(again)? == ready.ak_name;
        ensure!(same, "another attestation key");
        let version = machine.console().transcript.find(VERSION).map(str::to_owned);
        println!("  ({}: {})", again(), version.context("no version")?);
        // With the medium still there the update is continued, or is done.
        let seen = [WRITTEN, "which runs already", "runs for the first time", REFUSED];
        let transcript = machine.console().transcript.text().to_owned();
        if !seen[..3].iter().any(|word| transcript.contains(word)) {
            let limit = scene.within(UPDATE_LIMIT)?;
            let (index, line) = machine.wait_for_any(&seen, limit).with_context(again)?;
            ensure!(index < 3, "{}: {line}", again());
        }
    }
    Ok(())
}

/// A medium made of a build, which is whole by the builder's key.
fn medium(scene: &Scene<'_>, image: &Path) -> anyhow::Result<PathBuf> {
    let out = scene.path("update.img");
    scene.run(scene.casemate().args(["update", "create"]).arg(image).arg("--out").arg(&out))?;
    let key = scene.bench.inputs.keys.join("build/build.pub.pem");
    let mut verify = scene.casemate();
    scene.run(verify.args(["update", "verify"]).arg(&out).arg("--key").arg(key))?;
    Ok(out)
}

/// Plugs the medium into a running appliance until it is written; returns the machine that is off then.
fn write(scene: &Scene<'_>, medium: &Path) -> anyhow::Result<Config> {
    let mut machine = scene.fork_ready()?;
    machine.plug_bundle(medium)?;
    let (index, line) = machine.wait_for_any(&[WRITTEN, REFUSED], scene.within(UPDATE_LIMIT)?)?;
    ensure!(index == 0, "{line}");
    let config = machine.config().clone();
    machine.quit()?;
    Ok(config)
}

/// Names in the folder of the boot entries of a machine that is off.
fn entries(scene: &Scene<'_>, config: &Config) -> anyhow::Result<String> {
    scene.read_disk(config, |raw| scene.run(on_esp("mdir", raw)?.args(["-b", ENTRIES])))
}

/// Counts tries of a new entry as if the boot menu had made them; systemd-boot(7), "Boot Counting".
fn use_up(scene: &Scene<'_>, config: &Config, entry: &str, tries: u32) -> anyhow::Result<()> {
    let name = |counter: &str| format!("{ENTRIES}/{entry}+{counter}.efi");
    let (fresh, used) = (name(&TRIES.to_string()), name(&format!("{}-{tries}", TRIES - tries)));
    scene.edit_disk(config, |raw| scene.run(on_esp("mren", raw)?.args([fresh, used])).map(drop))
}

/// One of mtools, on the ESP of a disk.
fn on_esp(program: &str, disk: &Path) -> anyhow::Result<Command> {
    let esp = Disk::open(disk)?.partition(qemu::disk::TYPE_ESP)?;
    let mut command = crate::tool::command(program);
    command.env("MTOOLS_SKIP_CHECK", "1").arg("-i");
    command.arg(format!("{}@@{}", disk.display(), esp.offset));
    Ok(command)
}

/// Flips a bit a while behind the first place where `words` stand in a file.
fn flip(file: &Path, words: &[u8]) -> anyhow::Result<()> {
    let bytes = std::fs::read(file)?;
    let at = bytes.windows(words.len()).position(|window| window == words);
    let at = at.context("the words are not in the medium")? + words.len() + 1000;
    Ok(Disk::open(file)?.flip_byte(at as u64)?)
}

fn random_below(limit: u64) -> anyhow::Result<u64> {
    let nonce = auditor::nonce()?;
    Ok(u64::from_str_radix(&nonce[..8], 16)? % limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_number_is_below_its_limit() {
        for _ in 0..100 {
            assert!(random_below(7).unwrap() < 7);
        }
    }
}
