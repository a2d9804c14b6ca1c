//! `casemate-engine`: the engine on the command line, for whoever tries it outside the appliance or replays a receipt.
//!
//! It is not in the image and confines itself in no way; what it runs is the appliance's own engine.
//!
//! Exit status: 0 done, 1 a replay differs, 2 unusable input or usage.

mod bench;
mod embed;
mod generate;
mod inspect;
mod model;
mod pack;
mod quantize;
mod receipt;
mod replay;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kernels::Avx512;

/// Runs a model as the appliance does.
#[derive(Debug, Parser)]
#[command(name = "casemate-engine", version, about)]
#[command(after_help = "Exit status: 0 done, 1 a replay differs, 2 unusable input or usage.")]
struct Cli {
    /// Leave AVX-512 unused, as on a processor without it: slower, to the same bits.
    #[arg(long, global = true)]
    no_avx512: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a text, or answer a request.
    Generate(generate::Args),
    /// The vectors of texts, by a sentence encoder.
    Embed(embed::Args),
    /// The logits after each token of a sequence.
    Logits(inspect::LogitsArgs),
    /// The tokens of a text.
    Tokenize(inspect::TokenizeArgs),
    /// Tokens per second on this machine.
    Bench(bench::Args),
    /// Interleave a model file's rows as the kernels read them fastest, for a bundle.
    Pack(pack::Args),
    /// Round a model in plain floats to blocks of 4 or 8 bits, in a GGUF file.
    Quantize(quantize::Args),
    /// Answer on a Unix socket, unconfined: for development only.
    Serve(serve::Args),
    /// Run a request again and compare it with its receipt.
    Replay(replay::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let failed = error.use_stderr();
            // Without a terminal there is nobody to tell.
            drop(error.print());
            return if failed { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    if cli.no_avx512 {
        Avx512::leave_unused();
    }
    let done = match cli.command {
        Command::Generate(args) => generate::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Logits(args) => inspect::logits(&args),
        Command::Tokenize(args) => inspect::tokenize(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Replay(args) => replay::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("casemate-engine: {error:#}");
        ExitCode::from(2)
    })
}
