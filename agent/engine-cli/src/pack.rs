//! `pack`: a model file whose rows are interleaved, as the kernels read them fastest.
//!
//! The appliance reads a bundle where it lies, in sealed memory, and interleaves nothing: this is done before it is signed.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::model::read;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// GGUF file.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// File to make; must be absent.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut bytes = read(&args.model)?;
    let count = engine::pack::pack(&mut bytes)
        .with_context(|| format!("{} is not usable", args.model.display()))?;
    let written = File::create_new(&args.out).and_then(|mut out| {
        out.write_all(&bytes)?;
        out.sync_all()
    });
    written.with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("{}: {count} tensors packed, {} bytes", args.out.display(), bytes.len());
    Ok(ExitCode::SUCCESS)
}
