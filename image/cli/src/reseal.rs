//! `casemate reseal`: an order from the folder to the medium.

use anyhow::Context as _;
use clap::Subcommand;
use evidence::reseal::{ORDER_BYTES_MAX, ORDER_FILE, Order, approve};

use crate::bundle::medium::Medium;
use crate::bundle::{self, order::Pack};

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

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Command::Pack(args) = &args.command;
    let path = args.dir.join(ORDER_FILE);
    let file = bundle::read(&path, ORDER_BYTES_MAX)?;
    let order = Order::parse(&file).with_context(|| path.display().to_string())?;
    if let Some((quorum, signatures)) = args.quorum()? {
        approve(&quorum, &signatures, &file)?;
    }
    args.pack(&Medium::RESEAL)?;
    println!(
        "{}: machine {}, PCR 7 {} -> {}",
        args.out.display(),
        order.ak_name,
        order.pcr7_present,
        order.pcr7_forecast
    );
    Ok(())
}
