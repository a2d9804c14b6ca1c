//! Bundle media, good and bad, made from one model folder and its signatures by `casemate bundle pack`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use qemu::disk::Disk;

use crate::bench::Bundles;
use crate::tool;

/// Longest time to pack one medium: a few hundred megabytes are copied and compressed.
const PACK_LIMIT: Duration = Duration::from_secs(300);

/// Makes the good medium and three bad ones in `folder`. The signatures must be as many as the policy needs, since one
/// less must be too few.
pub fn make(
    casemate: &Path,
    model: &Path,
    signatures: &[PathBuf],
    folder: &Path,
) -> anyhow::Result<Bundles> {
    let (first, rest) = signatures.split_first().context("no --signature")?;
    ensure!(!rest.is_empty(), "one signature is no quorum");
    std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    let pack = |name: &str, model: &Path, signatures: &[PathBuf]| {
        pack(casemate, model, signatures, &folder.join(name))
    };
    let good = pack("good.img", model, signatures)?;
    let one_signature = pack("one-signature.img", model, std::slice::from_ref(first))?;
    let changed = folder.join("changed");
    copy_folder(model, &changed)?;
    let weights = weights(&changed)?;
    let bytes = std::fs::metadata(&weights)?.len();
    Disk::open(&weights)?.flip_byte(bytes / 2)?;
    let flipped = pack("flipped-byte.img", &changed, signatures)?;
    Disk::open(&weights)?.flip_byte(bytes / 2)?;
    std::fs::write(changed.join("extra.txt"), "nobody signed this\n")?;
    let extra_file = pack("extra-file.img", &changed, signatures)?;
    std::fs::remove_dir_all(&changed)?;
    Ok(Bundles {
        good: Some(good),
        flipped: Some(flipped),
        one_signature: Some(one_signature),
        extra_file: Some(extra_file),
        older: None,
    })
}

fn pack(
    casemate: &Path,
    model: &Path,
    signatures: &[PathBuf],
    out: &Path,
) -> anyhow::Result<PathBuf> {
    let scratch = out.with_extension("log");
    std::fs::create_dir(&scratch)?;
    let mut command = tool::command(casemate);
    command.args(["bundle", "pack"]).arg(model).arg("--out").arg(out);
    for signature in signatures {
        command.arg("--signature").arg(signature);
    }
    let ended = tool::run(&mut command, &scratch, PACK_LIMIT)?;
    ensure!(ended.code == Some(0), "casemate bundle pack: {}", ended.said());
    Ok(out.to_owned())
}

fn weights(model: &Path) -> anyhow::Result<PathBuf> {
    let card = model.join("casemate.json");
    let text = std::fs::read(&card).with_context(|| card.display().to_string())?;
    let card: evidence::format::ModelCard = serde_json::from_slice(&text)?;
    Ok(model.join(card.weights))
}

/// Copies a model folder; it may have folders in it.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(to).with_context(|| to.display().to_string())?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            std::fs::copy(&path, &target).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
