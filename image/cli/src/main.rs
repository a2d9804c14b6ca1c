//! casemate: the integrator's one tool.

mod build;
mod bundle;
mod demo;
mod exception;
mod forecast;
mod kernel;
mod keys;
mod lock;
mod output;
mod recovery;
mod reseal;
mod reset;
mod tool;
mod update;
mod verify_build;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, signs and tries sealed AI appliances.
#[derive(Debug, Parser)]
#[command(name = "casemate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key set, its keys in PKCS#11 tokens, or rotate a key of it.
    Keys(Box<keys::Args>),
    /// Lock the Debian packages of image and kernel to exact versions.
    Lock(lock::Args),
    /// Build our own kernel ahead of an image, or resolve its configuration.
    Kernel(kernel::Args),
    /// Build the signed image and its reference values.
    Build(build::Args),
    /// Check what a build gave: the signature over it, and every file.
    VerifyBuild(verify_build::Args),
    /// Make, sign, verify and pack model bundles.
    Bundle(bundle::Args),
    /// Allow one machine once what it refuses: an older image or bundle, another state.
    Exception(exception::Args),
    /// Write an image onto a server's disk, and list the disks.
    Flash(flash::Args),
    /// Say what an update of firmware, dbx, db or image will do to a machine, and prepare the reseal.
    Forecast(Box<forecast::Args>),
    /// Open the recovery key of a machine's state partition by the escrow key.
    Recovery(recovery::Args),
    /// Pack a signed reseal order.
    Reseal(reseal::Args),
    /// Order the state of a machine destroyed, its keys first.
    Reset(reset::Args),
    /// Make the signed medium that updates machines to a build, and check one.
    Update(update::Args),
    /// Run an image in QEMU with OVMF and a software TPM.
    Vm(vm::Args),
    /// Show the whole appliance at work, refusals included.
    Demo(Box<demo::Args>),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("casemate: {error:#}");
            flash::exit_code(&error)
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Keys(args) => keys::run(&args),
        Command::Lock(args) => lock::run(&args),
        Command::Kernel(args) => kernel::run(&args),
        Command::Build(args) => build::run(&args),
        Command::VerifyBuild(args) => verify_build::run(&args),
        Command::Bundle(args) => bundle::run(&args),
        Command::Exception(args) => exception::run(&args),
        Command::Flash(args) => flash::run(&args, verify_build::key),
        Command::Forecast(args) => forecast::run(&args),
        Command::Recovery(args) => recovery::run(&args),
        Command::Reseal(args) => reseal::run(&args),
        Command::Reset(args) => reset::run(&args),
        Command::Update(args) => update::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Demo(args) => demo::run(&args),
    }
}
