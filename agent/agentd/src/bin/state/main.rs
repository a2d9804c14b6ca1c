//! Keys of the state partition, other than those that `reseal` adds: one more, and none at all.
//!
//! `recovery` runs early in each boot, while the image's signed policy lets the TPM release the volume key: it gives the
//! partition a recovery key once, and sees to it that the key's holder can learn it.
//!
//! `reset` runs when a medium with an order appears, at any time. Confined before it reads a byte of the medium, it
//! destroys the state that the quorum signed away, in an order that a power cut cannot spoil.
//!
//! Invariants: a recovery key is on the console only if the site names no escrow key; a partition has one recovery key
//! whose fate is known, also when the power was cut between making it and keeping it; nothing is destroyed before the order was
//! approved for this machine and this very state, and the keys in the TPM go before anything else.

#[path = "../../files.rs"]
mod files;
#[cfg_attr(not(test), expect(dead_code, reason = "a reset takes no note of a type"))]
#[path = "../../gpt.rs"]
mod gpt;
#[path = "../../journal.rs"]
mod journal;
#[path = "../../luks.rs"]
mod luks;
mod options;
#[path = "../../policy.rs"]
mod policy;
mod recovery;
mod reset;
#[path = "../../signed.rs"]
mod signed;
#[path = "../../site.rs"]
mod site;

use std::process::ExitCode;

use clap::Parser as _;

use journal::say;
use options::{Command, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.command {
        Command::Recovery(paths) => recovery::run(&options, paths),
        Command::Reset(paths) => reset::run(&options, paths),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{}: {error:#}", options.command.failed()));
            ExitCode::FAILURE
        }
    }
}
