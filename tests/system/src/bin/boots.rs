//! Times cold boots of the appliance to a healthy agent beside those of a stock Debian, in turns on one machine.
//!
//! Both start from the same firmware, QEMU and TPM, and neither is booted for the first time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use qemu::{Accel, Config, Machine, accel};
use system_tests::api::Api;
use system_tests::bench::{
    ADMITTED, AGENTD_READY, BOOT_LIMIT, BUNDLE_LIMIT, Bench, Bundles, HEALTH_LIMIT, Inputs,
    wait_admitted, wait_ready,
};
use system_tests::ratios::spread;

/// What the stock Debian's last unit writes on its console.
const STOCK_READY: &str = "stock: default target reached";

/// Boots both in turns.
#[derive(Debug, Parser)]
struct Cli {
    /// Folder made by `casemate build`.
    #[arg(long)]
    image: PathBuf,
    /// Folder made by `casemate keys`.
    #[arg(long)]
    keys: PathBuf,
    /// Good bundle medium.
    #[arg(long)]
    bundle: PathBuf,
    /// Folder with the stock Debian as `casemate.raw`, and a variable store.
    #[arg(long)]
    stock: PathBuf,
    /// Folder with `casemate-verify`.
    #[arg(long)]
    programs: PathBuf,
    /// Folder for the machines; removed at the end.
    #[arg(long)]
    work: PathBuf,
    /// Boots of each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=20))]
    rounds: u32,
}

/// One boot, from the start of QEMU.
#[derive(Clone, Copy, Debug)]
struct Times {
    ready: Duration,
    /// `/healthz` says 200: the model is loaded.
    healthy: Duration,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let accel = accel::probe(Some(&cli.image), &accel::default_cache_folder()?)?.accel;
    if cli.work.exists() {
        std::fs::remove_dir_all(&cli.work)?;
    }
    std::fs::create_dir_all(&cli.work)?;
    let bench = bench(&cli, accel)?;
    println!("{} boots of each under {accel}, in turns; first boots not counted", cli.rounds);
    let (mut ours, mut stock) = (Vec::new(), Vec::new());
    let mut appliance = Appliance::install(&bench, &cli)?;
    let mut debian = Config::new(&cli.stock, cli.work.join("stock"), accel);
    debian.memory_mib = bench.inputs.memory_mib;
    boot_stock(&debian)?;
    for round in 1..=cli.rounds {
        stock.push(boot_stock(&debian)?);
        ours.push(appliance.boot()?);
        let (Some(stock), Some(ours)) = (stock.last(), ours.last()) else { continue };
        println!(
            "  {round}: stock Debian {:.1} s; agent ready {:.1} s, healthy with the model {:.1} s",
            stock.as_secs_f64(),
            ours.ready.as_secs_f64(),
            ours.healthy.as_secs_f64()
        );
    }
    let ratios = |time: fn(&Times) -> Duration| {
        ours.iter().zip(&stock).map(|(ours, stock)| time(ours).div_duration_f64(*stock)).collect()
    };
    println!("agent ready / stock Debian:        {}", spread(ratios(|times| times.ready), "boots"));
    println!(
        "healthy, model loaded / stock:     {}",
        spread(ratios(|times| times.healthy), "boots")
    );
    Ok(std::fs::remove_dir_all(&cli.work)?)
}

fn bench(cli: &Cli, accel: Accel) -> anyhow::Result<Bench> {
    let absolute = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    Ok(Bench::new(Inputs {
        image: absolute(&cli.image)?,
        image_older: None,
        image_newer: None,
        image_broken: None,
        image_rotated: None,
        image_retired: None,
        own_kernel: None,
        gpu_nvidia: None,
        keys: absolute(&cli.keys)?,
        bundles: Bundles { good: Some(absolute(&cli.bundle)?), ..Bundles::default() },
        encoder: None,
        python: None,
        programs: absolute(&cli.programs)?,
        results: absolute(&cli.work)?,
        accel,
        crowded: false,
        memory_mib: 2048,
        long: false,
    }))
}

/// The appliance after its first boot, which makes the state partition.
struct Appliance<'a> {
    bench: &'a Bench,
    config: Config,
    pin: PathBuf,
}

impl<'a> Appliance<'a> {
    fn install(bench: &'a Bench, cli: &Cli) -> anyhow::Result<Self> {
        let mut config = bench.config(&cli.work.join("appliance"));
        let mut machine = Machine::boot(config.clone())?;
        let ak_name = wait_ready(&mut machine)?;
        let pin = bench.pin(&machine, &cli.work.join("auditor"), &ak_name, HEALTH_LIMIT)?;
        machine.quit()?;
        config.bundles = bench.inputs.bundles.good.iter().cloned().collect();
        let mut appliance = Self { bench, config, pin };
        // The bundle's version is written down once.
        appliance.boot()?;
        Ok(appliance)
    }

    fn boot(&mut self) -> anyhow::Result<Times> {
        let started = Instant::now();
        let mut machine = Machine::boot(self.config.clone())?;
        machine.wait_for(AGENTD_READY, BOOT_LIMIT)?;
        let ready = started.elapsed();
        if machine.console().transcript.find(ADMITTED).is_none() {
            wait_admitted(&mut machine)?;
        }
        let deadline = Instant::now() + BUNDLE_LIMIT;
        let scratch = self.bench.inputs.results.join("requests");
        std::fs::create_dir_all(&scratch)?;
        let api = Api::new(machine.port(), &self.bench.site(), &self.pin, &scratch, deadline);
        api.wait_health(200, HEALTH_LIMIT)?;
        let healthy = started.elapsed();
        machine.quit()?;
        Ok(Times { ready, healthy })
    }
}

fn boot_stock(config: &Config) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut machine = Machine::boot(config.clone())?;
    machine.wait_for(STOCK_READY, BOOT_LIMIT)?;
    let ready = started.elapsed();
    machine.quit()?;
    Ok(ready)
}
