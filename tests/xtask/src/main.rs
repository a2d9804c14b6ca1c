//! Sets up and runs everything: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench`.
//!
//! Compiles on a machine that has only a Rust toolchain. Everything else is built and run inside a
//! Debian 13 tree (see `tree`), so that every host gives the same result.

mod boot;
mod demo;
mod host;
mod material;
mod peer;
mod steps;
mod suite;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::steps::Steps;
use crate::tree::Tree;

/// Sets up, shows and tests the appliance.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    /// Only check that the needed packages are there; install nothing.
    #[arg(long, global = true)]
    no_install: bool,
    /// Where downloads and builds are kept.
    #[arg(long, global = true, value_name = "DIR", env = "CASEMATE_CACHE")]
    cache: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the image, boot it, load a signed model, ask it a question, prove what ran.
    Demo,
    /// Set up and pass every test.
    Test {
        /// Add repetitions: power cuts, fuzzing time, the comparison with llama.cpp.
        #[arg(long)]
        long: bool,
        /// Run only the boot scenario of this name; may be said again.
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
    },
    /// Measure, beside a peer in the same minutes.
    Bench {
        #[command(subcommand)]
        part: Bench,
    },
    /// Run `casemate` (the integrator's tool) in the tools tree.
    Casemate {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run any command in the tools tree, for instance `cargo test -p tpm`.
    Enter {
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The engine beside llama.cpp on this processor: prefill, decode, batches, a busy machine; shared prefixes, memory.
    Engine {
        /// How often each program runs; every round gives one ratio per shape.
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=100))]
        rounds: u32,
        /// Only this part, a few minutes each; may be said again: smollm2, q4_0, q8_0, q4_k, bf16, batched, prefix, busy.
        #[arg(long, value_name = "PART", value_parser = peer::PARTS)]
        only: Vec<String>,
        /// Neither program uses AVX-512, as on a processor without it.
        #[arg(long)]
        no_avx512: bool,
    },
    /// Cold boots to a healthy agent beside a stock Debian's, and a build after a change of the agent.
    Boot {
        /// How often each boots.
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=20))]
        rounds: u32,
    },
    /// What dm-integrity costs writes to an encrypted volume.
    Integrity,
    /// What evidence costs: a quote under swtpm, judging a file, and a proxy that attests before it forwards.
    Evidence,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut steps = Steps::default();
    let outcome = run(&cli, &mut steps);
    if matches!(cli.command, Command::Demo | Command::Test { .. } | Command::Bench { .. }) {
        eprint!("\n{}", steps.table());
    }
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli, steps: &mut Steps) -> Result<ExitCode> {
    let cache = match &cli.cache {
        Some(dir) => dir.clone(),
        None => default_cache()?,
    };
    std::fs::create_dir_all(&cache)
        .with_context(|| format!("cannot make the cache folder {}", cache.display()))?;
    let cache = cache.canonicalize()?;
    steps.run("host packages", || host::prepare(cli.no_install))?;
    let tree = steps.run("tools tree", || Tree::prepare(&cache))?;
    // On the host: inside the tree cargo works offline.
    steps.run("Rust dependencies", || {
        let mut command = std::process::Command::new("cargo");
        steps::sh(command.args(["fetch", "--locked"]).current_dir(tree.workspace()))
    })?;
    match &cli.command {
        Command::Demo => demo::run(&tree, steps).map(|()| ExitCode::SUCCESS),
        Command::Test { long, only } => {
            let outcome = suite::run(&tree, steps, *long, only);
            let results = cache.join("results.txt");
            std::fs::write(&results, steps.table())
                .with_context(|| format!("cannot write {}", results.display()))?;
            eprintln!(
                "    times: {}; scenarios: scenarios/results.txt beside it",
                results.display()
            );
            outcome.map(|()| ExitCode::SUCCESS)
        }
        Command::Bench { part: Bench::Engine { rounds, only, no_avx512 } } => {
            peer::bench(&tree, steps, *rounds, only, *no_avx512).map(|()| ExitCode::SUCCESS)
        }
        Command::Bench { part: Bench::Boot { rounds } } => {
            boot::bench(&tree, steps, *rounds).map(|()| ExitCode::SUCCESS)
        }
        Command::Bench { part: Bench::Integrity } => {
            boot::integrity(&tree, steps).map(|()| ExitCode::SUCCESS)
        }
        Command::Bench { part: Bench::Evidence } => {
            for (package, bench) in
                [("tpm", "quote"), ("evidence", "rates"), ("verifier", "proxy_latency")]
            {
                steps.show(&format!("measure: {bench}"), || {
                    let mut command = tree.enter("cargo");
                    command.args(["bench", "--quiet", "--locked", "--offline"]);
                    steps::sh(command.args([
                        "--package",
                        package,
                        "--bench",
                        bench,
                        "--all-features",
                    ]))
                })?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Casemate { args } => {
            let binaries = material::binaries(&tree, steps)?;
            let mut command = tree.enter(binaries.join("casemate"));
            steps::exit_code(command.args(args))
        }
        Command::Enter { args } => steps::exit_code(tree.enter(&args[0]).args(&args[1..])),
    }
}

fn default_cache() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(dir).join("casemate"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set; give --cache DIR")?;
    Ok(PathBuf::from(home).join(".cache/casemate"))
}
