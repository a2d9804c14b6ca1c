//! `casemate vm`: an image in QEMU, with OVMF and a software TPM.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use qemu::{Accel, Config, Machine, accel};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Time that the guest has to power off after the first Ctrl-C.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Boot an image; its serial console comes on standard output.
    Run(Run),
    /// Say which accelerator works on this host, and why.
    Probe(Probe),
}

/// Ctrl-C presses the power button; a second one cuts the power.
#[derive(Debug, clap::Args)]
struct Run {
    /// Folder made by `casemate build`.
    #[arg(long)]
    image: PathBuf,
    /// Folder of the machine's own disk, variables and TPM; made if absent, used again if there.
    #[arg(long)]
    state: PathBuf,
    /// Bundle medium made by `casemate bundle pack`; may be given several times.
    #[arg(long)]
    bundle: Vec<PathBuf>,
    /// Port on 127.0.0.1 that leads to the gateway.
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Memory in MiB.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    memory: u32,
    /// What executes the guest's code; `auto` finds out by booting.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    accel: Choice,
}

#[derive(Debug, clap::Args)]
struct Probe {
    /// Folder made by `casemate build`; without one, only the firmware is tried.
    #[arg(long)]
    image: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Choice {
    Auto,
    Kvm,
    Tcg,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Run(args) => run_image(args),
        Command::Probe(args) => {
            let probe = accel::probe(args.image.as_deref(), &accel::default_cache_folder()?)?;
            println!("{}: {}", probe.accel, probe.reason);
            Ok(())
        }
    }
}

fn run_image(args: &Run) -> anyhow::Result<()> {
    let accel = match args.accel {
        Choice::Kvm => Accel::Kvm,
        Choice::Tcg => Accel::Tcg,
        Choice::Auto => {
            accel::probe(Some(&args.image), &accel::default_cache_folder()?)
                .context("which accelerator works; --accel tcg works everywhere")?
                .accel
        }
    };
    let mut config = Config::new(&args.image, &args.state, accel);
    config.bundles.clone_from(&args.bundle);
    config.port = Some(args.port);
    config.memory_mib = args.memory;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("handling Ctrl-C")?;
    let machine = Machine::boot(config)?;
    eprintln!("{accel}; gateway at https://127.0.0.1:{}; Ctrl-C powers off", machine.port());
    follow(machine, &mut signals)
}

/// Copies the console until the guest stops, or has to.
fn follow(mut machine: Machine, signals: &mut Signals) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let mut power_off_deadline: Option<Instant> = None;
    let mut pressed = 0;
    loop {
        let (text, ended) = machine.poll()?;
        out.write_all(&text).and_then(|()| out.flush()).context("writing the console")?;
        if let Some(status) = ended {
            if !status.success() {
                bail!("QEMU ended with {status}; see qemu.log in the state folder");
            }
            return Ok(());
        }
        pressed += signals.pending().count();
        match (pressed, power_off_deadline) {
            (0, _) => {}
            (1, None) => {
                let limit_s = POWER_OFF_LIMIT.as_secs();
                eprintln!(
                    "power button pressed; in {limit_s} s, or on another Ctrl-C, the power is cut"
                );
                machine.press_power_button()?;
                power_off_deadline = Some(Instant::now() + POWER_OFF_LIMIT);
            }
            (1, Some(deadline)) if Instant::now() < deadline => {}
            _ => {
                machine.cut_power()?;
                let why = if pressed > 1 { "on the second Ctrl-C" } else { "it did not power off" };
                bail!("power cut: {why}");
            }
        }
        std::thread::sleep(POLL);
    }
}
