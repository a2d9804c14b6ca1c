//! Updates the appliance: writes a signed image beside the one that runs, and blesses one that became healthy.
//!
//! `apply` runs when a medium with an update appears, as root without privileges: what the build key signed goes onto the
//! set of partitions that does not run, and is read back. `bless` runs once the agent of a new image answers: it takes the
//! counter of tries off its boot entry.
//!
//! Invariants: the set that runs, found by the device-mapper's own word, and its boot entry are never written; at every
//! moment the boot manager's best entry is one whose partitions are whole; nothing of a medium means anything before
//! its signature is verified.

mod apply;
mod discoverable;
mod entries;
mod esp;
#[expect(dead_code, reason = "files of the EFI system partition are replaced in another way")]
#[path = "../../files.rs"]
mod files;
#[cfg_attr(not(test), expect(dead_code, reason = "an update takes no partition away"))]
#[path = "../../gpt.rs"]
mod gpt;
#[path = "../../image.rs"]
mod image;
#[path = "../../journal.rs"]
mod journal;
mod medium;
mod options;
mod parts;
mod sets;
#[path = "../../trial.rs"]
mod trial;

use std::process::ExitCode;

use clap::Parser as _;

use journal::say;
use options::{Command, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    let (done, what) = match &options.command {
        Command::Apply(paths) => (apply::run(&options, paths), "update refused"),
        Command::Bless => (entries::bless(&options), "image not blessed"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{what}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
