//! `casemate build`.

use std::path::PathBuf;

use anyhow::Context as _;

/// Date of the image's files where SOURCE_DATE_EPOCH is not set: 2026-01-01.
const SOURCE_DATE_S: u32 = 1_767_225_600;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Key set made by `casemate keys`
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Where the image and its reference values go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// `development` is marked as such in the image and its evidence
    #[arg(long, default_value = "development")]
    profile: String,
    /// Folder with the programs agentd, engine and gateway
    #[arg(long, value_name = "DIR")]
    agent: Option<PathBuf>,
    /// What is kept between builds [default: casemate/build in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Debian mirror; security updates come from URL-security
    #[arg(long, value_name = "URL", default_value = "http://deb.debian.org/debian")]
    mirror: String,
    /// Repository with image/config, kernel-config and systemd
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))]
    source: PathBuf,
    /// Date of the image's files, seconds since 1970 [default: SOURCE_DATE_EPOCH, or a fixed date]
    #[arg(long, value_name = "SECONDS")]
    source_date: Option<u32>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cache = match &args.cache {
        Some(folder) => folder.clone(),
        None => default_cache().context("no HOME; say --cache DIR")?,
    };
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let absolute = |path: &PathBuf| path.canonicalize().with_context(|| path.display().to_string());
    let options = builder::Options {
        keys: absolute(&args.keys)?,
        out: absolute(&args.out)?,
        profile: args.profile.clone(),
        agent: args.agent.as_ref().map(absolute).transpose()?,
        cache: absolute(&cache)?,
        mirror: args.mirror.trim_end_matches('/').to_owned(),
        source: absolute(&args.source)?,
        source_date_s: source_date_s(args.source_date)?,
    };
    let built = builder::build(&options)?;
    println!("root hash {}", built.root_hash);
    for output in &built.outputs {
        println!("{}", output.display());
    }
    println!("{}", built.steps.table());
    Ok(())
}

fn source_date_s(argument: Option<u32>) -> anyhow::Result<u32> {
    match (argument, std::env::var("SOURCE_DATE_EPOCH")) {
        (Some(seconds), _) => Ok(seconds),
        (None, Ok(text)) => text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text}")),
        (None, Err(_)) => Ok(SOURCE_DATE_S),
    }
}

fn default_cache() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let folder =
        folder.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    folder.map(|folder| folder.join("casemate/build"))
}
