//! `casemate kernel`: our own kernel, without an image around it.

use std::path::PathBuf;

use anyhow::Context as _;
use builder::{Kernel, KernelPlace};

use crate::build;

/// Arguments. Without one, the kernel is built if the cache has none.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `own`, or `gpu-nvidia`: the same with NVIDIA's driver
    #[arg(long, default_value = "own")]
    kernel: Kernel,
    /// Only resolve the fragments, and write resolved.config beside them
    #[arg(long, conflicts_with = "cached")]
    update: bool,
    /// Build nothing: print no folder if the cache has no kernel of these fragments
    #[arg(long)]
    cached: bool,
    /// What is kept between builds [default: casemate/build in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Debian packages by SHA-256; if all are there, no mirror is asked [default: debs in the cache]
    #[arg(long, value_name = "DIR")]
    debs: Option<PathBuf>,
    /// Debian mirror; security updates come from URL-security
    #[arg(long, value_name = "URL", default_value = build::MIRROR)]
    mirror: String,
    /// Repository with kernel-config
    #[arg(long, value_name = "DIR", default_value = build::SOURCE)]
    source: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cache = build::cache_folder(args.cache.as_deref())?;
    let debs = args.debs.clone().unwrap_or_else(|| cache.join("debs"));
    std::fs::create_dir_all(&debs).with_context(|| debs.display().to_string())?;
    let place = KernelPlace {
        kernel: args.kernel,
        source: build::absolute(&args.source)?,
        mirror: build::mirror(&args.mirror).to_owned(),
        debs: build::absolute(&debs)?,
        cache,
        source_date_s: build::source_date_s(None)?,
    };
    if args.update {
        let file = place.agree()?;
        println!("{} is written; look at what changed, build, test and commit it", file.display());
        return Ok(());
    }
    let folder = if args.cached { place.cached()? } else { Some(place.build()?) };
    if let Some(folder) = folder {
        println!("{}", folder.display());
    }
    Ok(())
}
