//! How much the image is. Nothing boots.

use std::fs::File;
use std::io::{BufReader, Read as _};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::bench::Scene;

/// Without a GPU's libraries; what comparable immutable systems weigh.
const CONTENT_BYTES_MAX: u64 = 100_000_000;
/// A minimal Debian has some five hundred.
const PROGRAMS_IN_PATH_MAX: u64 = 150;
const BLOCK_BYTES: usize = 4096;

/// The image is as large as its bill of materials says, and below our bounds.
pub(super) fn small_image(scene: &Scene<'_>) -> anyhow::Result<()> {
    let folder = &scene.bench.inputs.image;
    let bill: Value = serde_json::from_slice(&std::fs::read(folder.join("sbom.cdx.json"))?)?;
    let content_bytes = property(&bill, "casemate:content-bytes")?;
    let programs = property(&bill, "casemate:programs-in-path")?;
    println!(
        "  (disk image: {:.1} MB of content, at most {} MB; {programs} programs in PATH, at most {PROGRAMS_IN_PATH_MAX})",
        mega(content_bytes),
        CONTENT_BYTES_MAX / 1_000_000
    );
    ensure!(content_bytes <= CONTENT_BYTES_MAX, "{content_bytes} bytes are too many");
    ensure!(programs <= PROGRAMS_IN_PATH_MAX, "{programs} programs are too many");

    let mut disk = BufReader::with_capacity(1 << 20, File::open(folder.join("casemate.raw"))?);
    let (mut block, mut found) = ([0; BLOCK_BYTES], 0);
    let blocks = disk.get_ref().metadata()?.len() / BLOCK_BYTES as u64;
    for _ in 0..blocks {
        disk.read_exact(&mut block)?;
        if block != [0; BLOCK_BYTES] {
            found += BLOCK_BYTES as u64;
        }
    }
    ensure!(found == content_bytes, "the disk image holds {found} bytes, not {content_bytes}");
    Ok(())
}

/// A number among the bill's properties of the image.
fn property(bill: &Value, name: &str) -> anyhow::Result<u64> {
    let properties = bill["metadata"]["component"]["properties"].as_array();
    let named = properties.into_iter().flatten().find(|property| property["name"] == name);
    let text = named.and_then(|property| property["value"].as_str());
    text.with_context(|| format!("the SBOM has no {name}"))?.parse().context(name.to_owned())
}

fn mega(bytes: u64) -> f64 {
    // Exact to the tenth that is shown.
    u32::try_from(bytes / 100_000).map_or(f64::INFINITY, |tenths| f64::from(tenths) / 10.0)
}
