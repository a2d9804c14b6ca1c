//! `casemate reset`: an order to destroy a machine's state, from the folder to the medium.
//!
//! The order's folder is signed as a model is: `casemate bundle sign`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use evidence::reset::{ORDER_BYTES_MAX, ORDER_FILE, Order, RESET_SCHEMA, approve};

use crate::bundle::medium::Medium;
use crate::bundle::{self, order::Pack};
use crate::{output, recovery};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write an order to destroy the state of one machine, to be signed with `casemate bundle sign`
    Create(Create),
    /// Pack an order and its signatures into the disk image of a medium
    Pack(Pack),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// recovery.json of the machine, or the line of its console that holds it: names machine and state
    recovery: PathBuf,
    /// Why; the console shows it
    #[arg(long)]
    reason: String,
    /// Folder to make
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Create(args) => create(args),
        Command::Pack(args) => pack(args),
    }
}

fn create(args: &Create) -> anyhow::Result<()> {
    let named = recovery::read(&args.recovery)?;
    let order = Order {
        schema: RESET_SCHEMA.to_owned(),
        machine: named.machine,
        state: named.state,
        reason: args.reason.clone(),
    };
    let text = order.to_json()?;
    output::new_folder(&args.out, |folder| output::write_new(&folder.join(ORDER_FILE), &text))?;
    println!("{}: {}", args.out.display(), describe(&order));
    Ok(())
}

fn pack(args: &Pack) -> anyhow::Result<()> {
    let path = args.dir.join(ORDER_FILE);
    let file = bundle::read(&path, ORDER_BYTES_MAX)?;
    let order = Order::parse(&file).with_context(|| path.display().to_string())?;
    if let Some((quorum, signatures)) = args.quorum()? {
        approve(&quorum, &signatures, &file)?;
    }
    args.pack(&Medium::RESET)?;
    println!("{}: {}", args.out.display(), describe(&order));
    Ok(())
}

fn describe(order: &Order) -> String {
    let Order { machine, state, reason, .. } = order;
    format!("destroys the state {state} of the machine {machine} for good; because {reason:?}")
}
