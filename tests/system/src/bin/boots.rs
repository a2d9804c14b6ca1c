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
/// Of every machine.
const MEMORY_MIB: u32 = 2048;

/// Boots both in turns.
#[derive(Debug, Parser)]
struct Cli {
    /// Folders made by `casemate build`, by what is said of them: `WORDS=FOLDER`.
    #[arg(long, required = true, value_parser = named)]
    image: Vec<(String, PathBuf)>,
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

/// One boot, from power-on: QEMU runs, and has its memory.
#[derive(Clone, Copy, Debug)]
struct Times {
    ready: Duration,
    /// `/healthz` says 200: the model is loaded.
    healthy: Duration,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let first = cli.image.first().map(|(_, image)| image.as_path());
    let accel = accel::probe(first, &accel::default_cache_folder()?)?.accel;
    if cli.work.exists() {
        std::fs::remove_dir_all(&cli.work)?;
    }
    println!("{} boots of each under {accel}, in turns; first boots not counted", cli.rounds);
    let mut appliances = Vec::new();
    for (at, (name, image)) in cli.image.iter().enumerate() {
        let work = cli.work.join(format!("appliance-{at}"));
        appliances.push((name, Appliance::install(&cli, image, &work, accel)?, Vec::new()));
    }
    let mut debian = Config::new(&cli.stock, cli.work.join("stock"), accel);
    debian.memory_mib = MEMORY_MIB;
    debian.memory_at_once = true;
    boot_stock(&debian)?;
    for round in 1..=cli.rounds {
        let stock = boot_stock(&debian)?;
        println!("  {round}: stock Debian {:.1} s", stock.as_secs_f64());
        for (name, appliance, ratios) in &mut appliances {
            let Times { ready, healthy } = appliance.boot()?;
            let (ready_s, healthy_s) = (ready.as_secs_f64(), healthy.as_secs_f64());
            println!("     {name}: agent {ready_s:.1} s, healthy with the model {healthy_s:.1} s");
            ratios.push([ready, healthy].map(|time| time.div_duration_f64(stock)));
        }
    }
    for (name, _, ratios) in &appliances {
        let of = |which: usize| spread(ratios.iter().map(|both| both[which]).collect(), "boots");
        println!("{name}: agent ready / stock Debian: {}", of(0));
        println!("{name}: healthy, model loaded / stock: {}", of(1));
    }
    Ok(std::fs::remove_dir_all(&cli.work)?)
}

/// `WORDS=FOLDER`.
fn named(text: &str) -> anyhow::Result<(String, PathBuf)> {
    let (name, folder) = text.split_once('=').context("it has no `=`")?;
    Ok((name.to_owned(), PathBuf::from(folder)))
}

fn bench(cli: &Cli, image: &Path, work: &Path, accel: Accel) -> anyhow::Result<Bench> {
    let absolute = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    Ok(Bench::new(Inputs {
        image: absolute(image)?,
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
        results: absolute(work)?,
        accel,
        crowded: false,
        memory_mib: MEMORY_MIB,
        long: false,
    }))
}

/// The appliance after its first boot, which makes the state partition.
struct Appliance {
    bench: Bench,
    config: Config,
    pin: PathBuf,
}

impl Appliance {
    fn install(cli: &Cli, image: &Path, work: &Path, accel: Accel) -> anyhow::Result<Self> {
        std::fs::create_dir_all(work)?;
        let bench = bench(cli, image, work, accel)?;
        let mut config = bench.config(&work.join("machine"));
        config.memory_at_once = true;
        let mut machine = Machine::boot(config.clone())?;
        let ak_name = wait_ready(&mut machine)?;
        let pin = bench.pin(&machine, &work.join("auditor"), &ak_name, HEALTH_LIMIT)?;
        machine.quit()?;
        config.bundles = bench.inputs.bundles.good.iter().cloned().collect();
        let mut appliance = Self { bench, config, pin };
        // The bundle's version is written down once.
        appliance.boot()?;
        Ok(appliance)
    }

    fn boot(&mut self) -> anyhow::Result<Times> {
        let mut machine = Machine::boot(self.config.clone())?;
        let started = Instant::now();
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
    let mut machine = Machine::boot(config.clone())?;
    let started = Instant::now();
    machine.wait_for(STOCK_READY, BOOT_LIMIT)?;
    let ready = started.elapsed();
    machine.quit()?;
    Ok(ready)
}
