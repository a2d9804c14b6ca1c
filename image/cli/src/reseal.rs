//! `casemate reseal`: an order from the folder to the medium.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use evidence::bundle::Quorum;
use evidence::reseal::{ORDER_BYTES_MAX, ORDER_FILE, Order, approve};

use crate::bundle::medium::{self, Medium};
use crate::bundle::{folder, verify};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pack an order made by `casemate forecast --reseal` and its signatures into the disk image of a medium
    Pack(Pack),
}

#[derive(Debug, clap::Args)]
struct Pack {
    /// The folder with the order
    dir: PathBuf,
    /// Signature files to put on the medium
    #[arg(long)]
    signature: Vec<PathBuf>,
    /// Disk image to make
    #[arg(long)]
    out: PathBuf,
    /// Fail if the signatures do not meet this quorum policy
    #[arg(long)]
    policy: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Command::Pack(args) = &args.command;
    let path = args.dir.join(ORDER_FILE);
    let file = crate::bundle::read(&path, ORDER_BYTES_MAX)?;
    let order = Order::parse(&file).with_context(|| path.display().to_string())?;
    if let Some(path) = &args.policy {
        let quorum = Quorum::parse(&verify::policy(path)?)?;
        approve(&quorum, &crate::bundle::read_signatures(&args.signature)?, &file)?;
    }
    let found = folder::read(&args.dir)?;
    if found.len() != 1 {
        bail!("{} holds {} files; an order is one", args.dir.display(), found.len());
    }
    medium::pack(&Medium::RESEAL, (&args.dir, &found), &args.signature, &args.out)?;
    println!(
        "{}: machine {}, PCR 7 {} -> {}",
        args.out.display(),
        order.ak_name,
        order.pcr7_present,
        order.pcr7_forecast
    );
    Ok(())
}
