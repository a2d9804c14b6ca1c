//! Keys of the state partition, other than those that `reseal` adds.
//!
//! `recovery` runs early in each boot, while the image's signed policy lets the TPM release the volume key: it gives the
//! partition a recovery key once, and sees to it that the key's holder can learn it.
//!
//! Invariants: a recovery key is on the console only if the site names no escrow key; a partition has one recovery key
//! whose fate is known, also when the power was cut between making it and keeping it; whatever fails, the boot goes on.

#[path = "../../files.rs"]
mod files;
#[path = "../../journal.rs"]
mod journal;
#[path = "../../luks.rs"]
mod luks;
mod options;
mod recovery;

use std::process::ExitCode;

use clap::Parser as _;

use journal::say;
use options::{Command, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.command {
        Command::Recovery(paths) => recovery::run(&options, paths),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{}: {error:#}", options.command.failed()));
            ExitCode::FAILURE
        }
    }
}
