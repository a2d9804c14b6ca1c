//! The recovery key: what it is good for when the machine is gone.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use evidence::recovery::{Recovery, RecoveryKey};
use qemu::disk::{self, Disk};

use crate::bench::Scene;
use crate::tool;

/// Printed by `state` before the encrypted key.
const ESCROWED: &str = "state: recovery key, encrypted to the escrow key: ";
/// Bytes that are searched at once.
const CHUNK_BYTES: usize = 4 << 20;

/// Of the machine there is its disk and what its console said. The officer with the escrow key reads the state.
pub(super) fn escrowed_key(scene: &Scene<'_>) -> anyhow::Result<()> {
    let ready = scene.bench.ready()?;
    let console = ready.snapshot.console();
    let said = escrowed_line(console)?;
    let line = said.to_json()?;
    let word = |word: &&str| RecoveryKey::parse(word).is_ok();
    ensure!(!console.split_whitespace().any(|text| word(&text)), "the key is on the console");
    let file = scene.path("line.txt");
    std::fs::write(&file, format!("[    7.000000] {ESCROWED}{line}"))?;
    ensure!(said.machine == ready.ak_name, "of another machine: {said:?}");

    let volume = state_partition(scene)?;
    let key = open(scene, &file)?;
    let passphrase = scene.path("passphrase");
    std::fs::write(&passphrase, &key)?;
    let mut test = cryptsetup("open");
    test.args(["--test-passphrase", "--key-file"]).arg(&passphrase).arg(&volume);
    scene.run(&mut test)?;
    let mut decrypt = cryptsetup("reencrypt");
    decrypt.args(["--decrypt", "--force-offline-reencrypt", "--key-file"]).arg(&passphrase);
    decrypt.arg("--header").arg(scene.path("header")).arg(&volume);
    scene.run(&mut decrypt)?;
    // The partition holds the very file.
    ensure!(holds(&volume, line.trim().as_bytes())?, "what was opened is not this machine's state");
    Ok(())
}

/// What the console said of the recovery key.
pub(super) fn escrowed_line(console: &str) -> anyhow::Result<Recovery> {
    let line = console.lines().find_map(|line| Some(line.split_once(ESCROWED)?.1));
    let line = line.with_context(|| format!("no escrowed key on the console:\n{console}"))?;
    Ok(Recovery::parse(line.trim().as_bytes())?)
}

fn open(scene: &Scene<'_>, file: &Path) -> anyhow::Result<String> {
    let uri = scene.bench.inputs.keys.join("escrow/escrow.uri");
    let mut command = scene.casemate();
    command.args(["recovery", "open"]).arg(file).arg("--key").arg(uri);
    Ok(scene.run(&mut command)?.trim().to_owned())
}

/// The state partition of the shared boot's disk, as a file.
fn state_partition(scene: &Scene<'_>) -> anyhow::Result<PathBuf> {
    let config = scene.bench.ready()?.snapshot.transplant(&scene.path("disk-alone"))?;
    let volume = scene.path("volume");
    scene.read_disk(&config, |raw| {
        let partition = Disk::open(raw)?.partition(disk::TYPE_LINUX)?;
        let mut from = File::open(raw)?;
        from.seek(SeekFrom::Start(partition.offset))?;
        std::io::copy(&mut from.take(partition.bytes), &mut File::create_new(&volume)?)?;
        Ok(())
    })?;
    Ok(volume)
}

fn cryptsetup(action: &str) -> std::process::Command {
    let mut command = tool::command("cryptsetup");
    command.args([action, "--batch-mode"]);
    command
}

/// Whether a file holds these bytes.
pub(super) fn holds(path: &Path, wanted: &[u8]) -> anyhow::Result<bool> {
    let mut file = File::open(path)?;
    let mut window = Vec::new();
    loop {
        let kept = window.len().saturating_sub(wanted.len());
        window.drain(..kept);
        let read = file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut window)?;
        if window.windows(wanted.len()).any(|bytes| bytes[0] == wanted[0] && bytes == wanted) {
            return Ok(true);
        }
        if read == 0 {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_across_chunks() {
        let file = std::env::temp_dir().join(format!("casemate-holds-{}", std::process::id()));
        let mut content = vec![b'x'; 2 * CHUNK_BYTES + 100];
        content[CHUNK_BYTES - 2..CHUNK_BYTES + 2].copy_from_slice(b"find");
        std::fs::write(&file, content).unwrap();
        assert!(holds(&file, b"find").unwrap());
        assert!(!holds(&file, b"fine").unwrap());
        std::fs::remove_file(file).unwrap();
    }
}
