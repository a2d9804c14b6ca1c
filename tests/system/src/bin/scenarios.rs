//! Boots the image under test and watches what it does; see `--list`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use clap::Parser;
use qemu::{Accel, CPUS, accel};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use system_tests::bench::{Bench, Bundles, Inputs, Needs, OwnKernel};
use system_tests::media;
use system_tests::runner::{self, Ended, Scenario};
use system_tests::scenarios;

/// Boots an image once, freezes it, and tries each behaviour on a fork.
#[derive(Debug, Parser)]
struct Cli {
    /// Say what there is, and do nothing.
    #[arg(long)]
    list: bool,
    /// Folder made by `casemate build`.
    #[arg(long, required_unless_present = "list")]
    image: Option<PathBuf>,
    /// The same with a version below.
    #[arg(long)]
    image_older: Option<PathBuf>,
    /// Image folder with a version above, for the updates.
    #[arg(long)]
    image_newer: Option<PathBuf>,
    /// The same with an agent that does not start, for the update that falls back.
    #[arg(long)]
    image_broken: Option<PathBuf>,
    /// The same by a new key of PCR policies beside the first.
    #[arg(long)]
    image_rotated: Option<PathBuf>,
    /// The same by the new key alone.
    #[arg(long)]
    image_retired: Option<PathBuf>,
    /// The same as `--image` with our own kernel.
    #[arg(long, requires = "own_kernel")]
    image_own_kernel: Option<PathBuf>,
    /// That kernel, as `casemate kernel` names its folder.
    #[arg(long, requires = "image_own_kernel")]
    own_kernel: Option<PathBuf>,
    /// The same as `--image` with our kernel for NVIDIA's driver.
    #[arg(long, requires = "gpu_nvidia")]
    image_gpu_nvidia: Option<PathBuf>,
    /// That kernel, as `casemate kernel` names its folder.
    #[arg(long, requires = "image_gpu_nvidia")]
    gpu_nvidia: Option<PathBuf>,
    /// Folder made by `casemate keys`.
    #[arg(long, required_unless_present = "list")]
    keys: Option<PathBuf>,
    /// Model folder from which the good and the bad media are made.
    #[arg(long, requires = "signature", conflicts_with = "bundle")]
    model: Option<PathBuf>,
    /// Signature of that folder; as many as the policy needs.
    #[arg(long)]
    signature: Vec<PathBuf>,
    /// Bundle medium that the quorum signed.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// The same with one byte of the weights flipped.
    #[arg(long)]
    bundle_flipped_byte: Option<PathBuf>,
    /// The same with one signature of the two needed.
    #[arg(long)]
    bundle_one_signature: Option<PathBuf>,
    /// The same with a file that nobody signed.
    #[arg(long)]
    bundle_extra_file: Option<PathBuf>,
    /// Signed by the quorum, one version below the good one.
    #[arg(long)]
    bundle_older: Option<PathBuf>,
    /// Folder of a sentence encoder, as sentence-transformers writes it.
    #[arg(long)]
    encoder: Option<PathBuf>,
    /// Python with the package `openai`.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Folder with `casemate-verify` and `casemate`; without it, this program's own folder.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Folder for logs of failures and for `results.txt`; it may be thrown away.
    #[arg(long, default_value = "target/scenarios")]
    results: PathBuf,
    /// Only these scenarios.
    #[arg(long)]
    only: Vec<String>,
    /// Repetitions too.
    #[arg(long)]
    long: bool,
    /// Scenarios side by side.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
    jobs: u8,
    /// Memory of each machine in MiB.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(512..=65_536))]
    memory: u32,
    /// What executes the guest's code; without it, found out by booting.
    #[arg(long, value_parser = parse_accel)]
    accel: Option<Accel>,
}

fn parse_accel(text: &str) -> Result<Accel, String> {
    match text {
        "kvm" => Ok(Accel::Kvm),
        "tcg" => Ok(Accel::Tcg),
        other => Err(format!("{other:?} is neither kvm nor tcg")),
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if cli.list {
        for Scenario { name, about, .. } in scenarios::ALL {
            println!("{name:28} {about}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Needed where this is the first process of a namespace, whose default is to ignore signals. The machines end with
    // the threads that started them.
    for signal in [SIGINT, SIGTERM] {
        let always = Arc::new(AtomicBool::new(true));
        flag::register_conditional_shutdown(signal, 128 + signal, always)
            .context("handling signals")?;
    }
    let chosen = choose(&cli.only, cli.long)?;
    let only_some = cli.only.is_empty() && !cli.long;
    let jobs = usize::from(cli.jobs);
    let inputs = inputs(cli)?;
    check(&inputs, &chosen)?;
    println!("{} scenarios under {}, {jobs} side by side", chosen.len(), inputs.accel);
    if only_some {
        println!("({} more with --long)", scenarios::ALL.len() - chosen.len());
    }
    let results = inputs.results.clone();
    let outcomes = runner::run(&Bench::new(inputs), &chosen, jobs);
    let table = runner::table(&outcomes);
    std::fs::write(results.join("results.txt"), &table)
        .with_context(|| results.display().to_string())?;
    print!("{table}");
    runner::slim(&results)?;
    let passed = outcomes.iter().all(|outcome| !matches!(outcome.ended, Ended::Failed(_)));
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn choose(only: &[String], long: bool) -> anyhow::Result<Vec<Scenario>> {
    if let Some(name) = only.iter().find(|name| scenarios::ALL.iter().all(|s| s.name != **name)) {
        bail!("no scenario {name:?}; --list names them");
    }
    let waits = |name: &str| scenarios::ONLY_LONG.iter().any(|(waiting, _)| *waiting == name);
    let wanted = |scenario: &&Scenario| match only.is_empty() {
        true => long || !waits(scenario.name),
        false => only.iter().any(|name| name == scenario.name),
    };
    Ok(scenarios::ALL.iter().filter(wanted).copied().collect())
}

fn inputs(cli: Cli) -> anyhow::Result<Inputs> {
    let image = absolute(&cli.image.context("no --image")?)?;
    let accel = match cli.accel {
        Some(accel) => accel,
        None => accel::probe(Some(&image), &accel::default_cache_folder()?)?.accel,
    };
    let program = std::env::current_exe()?;
    let beside = program.parent().context("this program has no folder")?;
    empty_results(&cli.results).with_context(|| cli.results.display().to_string())?;
    let results = absolute(&cli.results)?;
    let programs = absolute(&cli.programs.unwrap_or_else(|| beside.to_owned()))?;
    let optional = |path: Option<PathBuf>| path.as_ref().map(absolute).transpose();
    let with_kernel = |image, kernel| -> anyhow::Result<Option<OwnKernel>> {
        let folders = optional(image)?.zip(optional(kernel)?);
        Ok(folders.map(|(image, kernel)| OwnKernel { image, kernel }))
    };
    let bundles = match &cli.model {
        Some(model) => {
            println!("packing media");
            media::make(&programs.join("casemate"), model, &cli.signature, &results.join("media"))?
        }
        None => Bundles {
            good: optional(cli.bundle)?,
            flipped: optional(cli.bundle_flipped_byte)?,
            one_signature: optional(cli.bundle_one_signature)?,
            extra_file: optional(cli.bundle_extra_file)?,
            older: None,
        },
    };
    let bundles = Bundles { older: optional(cli.bundle_older)?, ..bundles };
    Ok(Inputs {
        image,
        image_older: optional(cli.image_older)?,
        image_newer: optional(cli.image_newer)?,
        image_broken: optional(cli.image_broken)?,
        image_rotated: optional(cli.image_rotated)?,
        image_retired: optional(cli.image_retired)?,
        own_kernel: with_kernel(cli.image_own_kernel, cli.own_kernel)?,
        gpu_nvidia: with_kernel(cli.image_gpu_nvidia, cli.gpu_nvidia)?,
        keys: absolute(&cli.keys.context("no --keys")?)?,
        bundles,
        encoder: optional(cli.encoder)?,
        // Not resolved: a virtual environment is found by the path of its link.
        python: cli.python.map(std::path::absolute).transpose()?,
        programs,
        results,
        accel,
        crowded: usize::from(cli.jobs * CPUS) > std::thread::available_parallelism()?.get(),
        memory_mib: cli.memory,
        long: cli.long,
    })
}

/// States of an earlier run must not be taken for this one's; and nothing but results is removed.
fn empty_results(folder: &Path) -> anyhow::Result<()> {
    let mark = folder.join(".scenario-results");
    if mark.exists() {
        std::fs::remove_dir_all(folder)?;
    } else if folder.exists() && folder.read_dir()?.next().is_some() {
        bail!("not empty, and not the results of an earlier run; choose another folder");
    }
    std::fs::create_dir_all(folder)?;
    Ok(std::fs::write(mark, "")?)
}

fn absolute(path: &PathBuf) -> anyhow::Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| path.display().to_string())
}

/// What a chosen scenario will need is there before anything boots.
fn check(inputs: &Inputs, chosen: &[Scenario]) -> anyhow::Result<()> {
    let chosen_has = |name: &str| chosen.iter().any(|scenario| scenario.name == name);
    let own_kernel = inputs.own_kernel.is_some() && chosen_has("own-kernel");
    let serving =
        own_kernel || chosen.iter().any(|s| matches!(s.needs, Needs::Serving | Needs::Fetched));
    let bundles = &inputs.bundles;
    let missing = [
        (
            (serving || ["sealed-bundle", "evidence-other-machine"].iter().any(|n| chosen_has(n)))
                && bundles.good.is_none(),
            "--bundle",
        ),
        (
            ["model-answers", "embeddings"].iter().any(|n| chosen_has(n))
                && inputs.python.is_none(),
            "--python",
        ),
        (chosen_has("embeddings") && inputs.encoder.is_none(), "--encoder"),
        (chosen_has("bundle-flipped-byte") && bundles.flipped.is_none(), "--bundle-flipped-byte"),
        (
            chosen_has("bundle-one-signature") && bundles.one_signature.is_none(),
            "--bundle-one-signature",
        ),
        (chosen_has("image-rolled-back") && inputs.image_older.is_none(), "--image-older"),
        (
            ["update-applied", "update-refused", "update-power-cut"].iter().any(|n| chosen_has(n))
                && inputs.image_newer.is_none(),
            "--image-newer",
        ),
        (chosen_has("update-refused") && inputs.image_older.is_none(), "--image-older"),
        (chosen_has("update-falls-back") && inputs.image_broken.is_none(), "--image-broken"),
        (chosen_has("bundle-rolled-back") && bundles.older.is_none(), "--bundle-older"),
        (chosen_has("bundle-extra-file") && bundles.extra_file.is_none(), "--bundle-extra-file"),
    ];
    let missing: Vec<_> = missing.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        bail!("missing for the chosen scenarios: {}; or choose with --only", missing.join(", "));
    }
    Ok(())
}
