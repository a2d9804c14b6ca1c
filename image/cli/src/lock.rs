//! `casemate lock`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use builder::{Difference, Lock, LockTarget};

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
    /// Repository with image/config and kernel-config
    #[arg(long, value_name = "DIR", default_value = build::SOURCE)]
    source: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let apt = build::cache_folder(args.cache.as_deref())?.join("apt");
    let mirror = build::mirror(&args.mirror);
    let source = build::absolute(&args.source)?;
    let mut failed = Vec::new();
    for target in LockTarget::ALL {
        let now = builder::resolve(&source, target, mirror, &apt)?;
        let file = File { source: &source, target };
        let result = match (args.update, Lock::read(&source, target)) {
            _ if !file.path().exists() => file.create(&now),
            (true, Ok(locked)) => file.update(&locked, &now),
            (true, Err(error)) => {
                println!("{error}\nIt is replaced as a whole.");
                file.create(&now)
            }
            (false, locked) => {
                locked.map_err(Into::into).and_then(|locked| file.check(&locked, &now, mirror))
            }
        };
        // The other one is looked at all the same.
        failed.extend(result.err().map(|error| format!("{error:#}")));
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}

/// One of the repository's lock files.
struct File<'a> {
    source: &'a Path,
    target: LockTarget,
}

impl File<'_> {
    fn name(&self) -> &'static str {
        self.target.lock_file()
    }

    fn path(&self) -> PathBuf {
        self.source.join(self.name())
    }

    fn create(&self, now: &Lock) -> anyhow::Result<()> {
        self.write(now)?;
        println!("{}: {} packages", self.name(), now.packages_count());
        Ok(())
    }

    fn update(&self, locked: &Lock, now: &Lock) -> anyhow::Result<()> {
        let difference = Difference::between(locked, now);
        if difference.is_empty() {
            println!("{}: {} packages, none changed", self.name(), locked.packages_count());
            return Ok(());
        }
        println!("{difference}");
        self.write(now)?;
        println!("{} is written; build, test and commit it", self.name());
        Ok(())
    }

    /// Says what changed upstream; fails where a build without a filled cache would.
    fn check(&self, locked: &Lock, now: &Lock, mirror: &str) -> anyhow::Result<()> {
        locked.check_list(self.source, self.target)?;
        let difference = Difference::between(locked, now);
        if difference.is_empty() {
            println!("{}: {} packages, all current", self.name(), locked.packages_count());
            return Ok(());
        }
        println!("Changed on {mirror} since {} was made:\n{difference}", self.name());
        let gone = difference.gone(mirror)?;
        if gone.is_empty() {
            println!(
                "All locked packages can still be downloaded; `casemate lock --update` takes the new ones"
            );
            return Ok(());
        }
        let gone: Vec<String> = gone.iter().map(ToString::to_string).collect();
        bail!(
            "{mirror} no longer has {} of the packages in {}:\n  {}\nTake the new ones with `casemate lock --update`",
            gone.len(),
            self.name(),
            gone.join("\n  ")
        )
    }

    /// Written aside and renamed: an interrupted run leaves the old file.
    fn write(&self, lock: &Lock) -> anyhow::Result<()> {
        let path = self.path();
        let aside = path.with_extension("lock.new");
        fs::write(&aside, lock.text()).with_context(|| aside.display().to_string())?;
        fs::rename(&aside, &path).with_context(|| path.display().to_string())
    }
}
