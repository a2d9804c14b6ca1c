//! `casemate lock`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use builder::{Difference, LOCK_FILE, Lock};

use crate::build;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show what changed on the mirror since the lock file was made, and write the new one
    #[arg(long)]
    update: bool,
    /// Debian mirror; security updates come from URL-security
    #[arg(long, value_name = "URL", default_value = build::MIRROR)]
    mirror: String,
    /// Where apt's indices are kept [default: casemate/build in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Repository with image/config
    #[arg(long, value_name = "DIR", default_value = build::SOURCE)]
    source: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let apt = build::cache_folder(args.cache.as_deref())?.join("apt");
    let mirror = build::mirror(&args.mirror);
    let source = build::absolute(&args.source)?;
    let now = builder::resolve(&source, mirror, &apt)?;
    if !source.join(LOCK_FILE).exists() {
        write(&source, &now)?;
        println!("{LOCK_FILE}: {} packages", now.packages_count());
        return Ok(());
    }
    match (args.update, Lock::read(&source)) {
        (true, Ok(locked)) => update(&source, &locked, &now),
        (true, Err(error)) => {
            write(&source, &now)?;
            println!("{error}\nIt was replaced as a whole: {} packages", now.packages_count());
            Ok(())
        }
        (false, locked) => check(&source, &locked?, &now, mirror),
    }
}

fn update(source: &Path, locked: &Lock, now: &Lock) -> anyhow::Result<()> {
    let difference = Difference::between(locked, now);
    if difference.is_empty() {
        println!("{LOCK_FILE}: {} packages, none changed", locked.packages_count());
        return Ok(());
    }
    println!("{difference}");
    write(source, now)?;
    println!("{LOCK_FILE} is written; build, test and commit it");
    Ok(())
}

/// Says what changed upstream; fails where a build without a filled cache would.
fn check(source: &Path, locked: &Lock, now: &Lock, mirror: &str) -> anyhow::Result<()> {
    locked.check_list(source)?;
    let difference = Difference::between(locked, now);
    if difference.is_empty() {
        println!("{LOCK_FILE}: {} packages, all current", locked.packages_count());
        return Ok(());
    }
    println!("Changed on {mirror} since {LOCK_FILE} was made:\n{difference}");
    let gone = difference.gone(mirror)?;
    if gone.is_empty() {
        println!(
            "All locked packages can still be downloaded; `casemate lock --update` takes the new ones"
        );
        return Ok(());
    }
    let gone: Vec<String> = gone.iter().map(ToString::to_string).collect();
    bail!(
        "{mirror} no longer has {} of the locked packages:\n  {}\nTake the new ones with `casemate lock --update`",
        gone.len(),
        gone.join("\n  ")
    )
}

/// Written aside and renamed: an interrupted run leaves the old file.
fn write(source: &Path, lock: &Lock) -> anyhow::Result<()> {
    let path = source.join(LOCK_FILE);
    let aside = path.with_extension("lock.new");
    fs::write(&aside, lock.text()).with_context(|| aside.display().to_string())?;
    fs::rename(&aside, &path).with_context(|| path.display().to_string())
}
