//! Times writes to an encrypted volume with dm-integrity beside the same without, in turns inside one machine: what
//! integrity protection of the state partition would cost.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use qemu::{Accel, Config, Machine, SpareDisk, accel};
use system_tests::ratios::spread;

/// How the machine's lines begin: `integrity: ROUND DISK WORKLOAD NANOSECONDS`.
const MARK: &str = "integrity: ";
/// Its last line.
const DONE: &str = "integrity: done";
/// Or this, with the reason.
const FAILED: &str = "integrity: failed: ";
/// The machine's two disks, by serial number: encrypted, and encrypted with tags.
const DISKS: [&str; 2] = ["plain", "tags"];
/// Bytes of each.
const DISK_BYTES: u64 = 256 << 20;
/// Longest wait: formatting with tags writes the whole disk.
const LIMIT: Duration = Duration::from_secs(900);

/// Boots the machine that measures.
#[derive(Debug, Parser)]
struct Cli {
    /// Folder with that machine's disk as `casemate.raw`, and a variable store.
    #[arg(long)]
    machine: PathBuf,
    /// Folder for the machine; removed at the end.
    #[arg(long)]
    work: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if cli.work.exists() {
        std::fs::remove_dir_all(&cli.work)?;
    }
    std::fs::create_dir_all(&cli.work)?;
    let accel: Accel = accel::probe(Some(&cli.machine), &accel::default_cache_folder()?)?.accel;
    let mut config = Config::new(&cli.machine, cli.work.join("machine"), accel);
    for serial in DISKS {
        let file = cli.work.join(serial);
        File::create(&file)?.set_len(DISK_BYTES)?;
        config.disks.push(SpareDisk { file, serial: serial.to_owned() });
    }
    let mut machine = Machine::boot(config)?;
    let (end, line) = machine.wait_for_any(&[DONE, FAILED], LIMIT)?;
    ensure!(end == 0, "{line}");
    let console = machine.console().transcript.text().to_owned();
    machine.quit()?;
    println!("under {accel}, seconds with integrity / without, in turns");
    for (workload, [plain, tags]) in times(&console)? {
        ensure!(!plain.is_empty() && plain.len() == tags.len(), "{workload}: a round is missing");
        let ratios = tags.iter().zip(&plain).map(|(tags, plain)| tags / plain).collect();
        println!("{workload:>12}: {}", spread(ratios, "rounds"));
    }
    Ok(std::fs::remove_dir_all(&cli.work)?)
}

/// Nanoseconds by workload, in the order of [`DISKS`].
fn times(console: &str) -> anyhow::Result<BTreeMap<String, [Vec<f64>; 2]>> {
    let mut times = BTreeMap::<String, [Vec<f64>; 2]>::new();
    for line in console.lines() {
        let Some((_, text)) = line.split_once(MARK) else { continue };
        let [_, disk, workload, nanoseconds] = text.split_whitespace().collect::<Vec<_>>()[..]
        else {
            continue;
        };
        let place = DISKS.iter().position(|name| *name == disk);
        let place = place.with_context(|| format!("no such disk: {line}"))?;
        let value = nanoseconds.parse::<f64>().with_context(|| line.to_owned())?;
        times.entry(workload.to_owned()).or_default()[place].push(value);
    }
    ensure!(!times.is_empty(), "nothing was measured:\n{console}");
    Ok(times)
}
