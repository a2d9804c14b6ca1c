//! `casemate kernel`: the configuration of our own kernel.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::build;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Resolve the fragments of kernel-config and write kernel-config/resolved.config
    #[arg(long, required = true)]
    update: bool,
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
    let source = build::absolute(&args.source)?;
    let mirror = build::mirror(&args.mirror);
    let written = builder::agree(&source, mirror, &build::absolute(&debs)?, &cache)?;
    println!("{} is written; look at the difference, build, test and commit it", written.display());
    Ok(())
}
