//! Runs scenarios, two side by side at most, and says how each ended.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use crate::bench::{Bench, Needs, Scene, once_more};

/// Two machines of two emulated CPUs each keep two cores busy.
pub const JOBS_MAX: usize = 2;

/// One behaviour of a booted appliance.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name, as on the command line and in the results.
    pub name: &'static str,
    /// The behaviour, in one line.
    pub about: &'static str,
    /// Most seconds, the shared boot not counted.
    pub limit_s: u64,
    /// Factor on `limit_s` with `--long`.
    pub long_factor: u32,
    /// What it starts from.
    pub needs: Needs,
    /// Does it; an error is a failure.
    pub run: fn(&Scene<'_>) -> anyhow::Result<()>,
}

/// The error of a scenario that lacks what not every host has, which it says; this is no failure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skipped(pub &'static str);

/// What came of a scenario.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The behaviour was seen.
    Passed,
    /// What was missing.
    Skipped(&'static str),
    /// What was seen instead.
    Failed(String),
}

impl Ended {
    fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Skipped(_) => "skipped",
            Self::Failed(_) => "FAILED",
        }
    }
}

/// How one scenario ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its name.
    pub name: &'static str,
    /// What came of it.
    pub ended: Ended,
    /// Seconds, the shared boot not counted.
    pub seconds: f64,
}

/// Runs them all, at most `jobs` at once, and returns the outcomes in the order of `scenarios`.
pub fn run(bench: &Bench, scenarios: &[Scenario], jobs: usize) -> Vec<Outcome> {
    let waiting = Mutex::new(scenarios.to_vec());
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..jobs.clamp(1, JOBS_MAX) {
            threads.spawn(|| {
                while let Some(scenario) = next(bench, &waiting) {
                    let outcome = run_one(bench, scenario);
                    print(&outcome);
                    lock(&outcomes).push(outcome);
                }
            });
        }
    });
    let mut outcomes = lock(&outcomes).drain(..).collect::<Vec<_>>();
    let place = |name: &str| scenarios.iter().position(|scenario| scenario.name == name);
    outcomes.sort_by_key(|outcome| place(outcome.name));
    outcomes
}

/// The results as a table, and the closing line.
#[must_use]
pub fn table(outcomes: &[Outcome]) -> String {
    let width = outcomes.iter().map(|outcome| outcome.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Outcome { name, ended, seconds } in outcomes {
        text += &format!("{name:width$}  {:7}  {seconds:7.1} s\n", ended.word());
    }
    let count = |word| outcomes.iter().filter(|outcome| outcome.ended.word() == word).count();
    let [passed, skipped, failed] = ["passed", "skipped", "FAILED"].map(count);
    text + &format!("{passed} passed, {skipped} skipped, {failed} failed\n")
}

/// The first that need not wait for a boot which another thread is making; else the first.
fn next(bench: &Bench, waiting: &Mutex<Vec<Scenario>>) -> Option<Scenario> {
    let mut waiting = lock(waiting);
    let free = waiting.iter().position(|scenario| !bench.busy(scenario.needs)).unwrap_or(0);
    (!waiting.is_empty()).then(|| waiting.remove(free))
}

fn run_one(bench: &Bench, scenario: Scenario) -> Outcome {
    // A thread of its own: a panic is this scenario's failure, and its machines end with it.
    let joined = std::thread::scope(|threads| {
        threads.spawn(|| attempt(bench, scenario)).join().map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("panicked: {}", text.unwrap_or("no message"))
        })
    });
    let (ended, seconds) = match joined {
        Ok((Ok(()), seconds)) => (Ended::Passed, seconds),
        Ok((Err(error), seconds)) => match error.downcast_ref() {
            Some(Skipped(missing)) => (Ended::Skipped(missing), seconds),
            None => (Ended::Failed(format!("{error:#}")), seconds),
        },
        Err(panic) => (Ended::Failed(panic), 0.0),
    };
    Outcome { name: scenario.name, ended, seconds }
}

fn attempt(bench: &Bench, scenario: Scenario) -> (anyhow::Result<()>, f64) {
    if let Err(error) = bench.provide(scenario.needs) {
        return (Err(error), 0.0);
    }
    let start = Instant::now();
    let factor = if bench.inputs.long { u64::from(scenario.long_factor) } else { 1 };
    let limit = Duration::from_secs(scenario.limit_s * factor);
    let folder = bench.inputs.results.join(scenario.name);
    let result = once_more(|_| {
        fresh_folder(&folder)?;
        let scene = Scene::new(bench, folder.clone(), Instant::now() + limit);
        (scenario.run)(&scene)?;
        scene.within(limit).map(drop)
    });
    let seconds = start.elapsed().as_secs_f64();
    let failed = result.as_ref().is_err_and(|error| !error.is::<Skipped>());
    let tidied = if failed { keep_logs(&folder) } else { remove(&folder) };
    let result = match (result, tidied) {
        (Err(error), Err(also)) => Err(anyhow!("{error:#}; also {also:#}")),
        (Err(error), Ok(())) | (Ok(()), Err(error)) => Err(error),
        (Ok(()), Ok(())) => Ok(()),
    };
    (result, seconds)
}

fn print(Outcome { name, ended, seconds }: &Outcome) {
    let word = ended.word();
    match ended {
        Ended::Passed => println!("{word}  {name} ({seconds:.1} s)"),
        Ended::Skipped(missing) => println!("{word} {name}: {missing}"),
        Ended::Failed(error) => println!("{word}  {name} ({seconds:.1} s)\n{error}"),
    }
}

fn fresh_folder(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        remove(folder)?;
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(folder).with_context(|| folder.display().to_string())
}

/// Takes what is large out of the results: the frozen machines and the media. The logs of the shared boot stay.
pub fn slim(results: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(results).with_context(|| results.display().to_string())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("shared-")) {
            keep_logs(&path)?;
        } else if path.ends_with("media") {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Of a failure the logs stay; disks, memory and TPM secrets go.
fn keep_logs(folder: &Path) -> anyhow::Result<()> {
    const KEPT: &[&str] = &["log", "json", "txt"];
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            keep_logs(&path)?;
            // Not empty is no error: it holds what was kept.
            fs::remove_dir(&path).ok();
        } else if !path.extension().is_some_and(|end| KEPT.iter().any(|kept| end == *kept)) {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// A poisoned lock holds what was there before the panic, which is what is wanted here.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bundles, Inputs};
    use qemu::Accel;

    fn bench(results: &Path) -> Bench {
        Bench::new(Inputs {
            image_older: None,
            image_newer: None,
            image_broken: None,
            image_rotated: None,
            image_retired: None,
            own_kernel: None,
            gpu_nvidia: None,
            image: results.join("no-image"),
            keys: results.join("no-keys"),
            bundles: Bundles::default(),
            encoder: None,
            python: None,
            programs: results.to_owned(),
            results: results.to_owned(),
            accel: Accel::Tcg,
            crowded: false,
            memory_mib: 256,
            long: false,
        })
    }

    fn scenario(name: &'static str, run: fn(&Scene<'_>) -> anyhow::Result<()>) -> Scenario {
        let (about, needs) = ("", Needs::Nothing);
        Scenario { name, about, limit_s: 5, long_factor: 1, needs, run }
    }

    #[test]
    fn failures_panics_and_lateness_are_failures_and_logs_stay() {
        let dir = std::env::temp_dir().join(format!("casemate-runner-{}", std::process::id()));
        let bench = bench(&dir);
        let mut all = [
            scenario("passes", |_| Ok(())),
            scenario("fails", |scene| {
                fs::write(scene.path("serial.log"), "text")?;
                fs::write(scene.path("disk.qcow2"), "secret")?;
                anyhow::bail!("seen")
            }),
            scenario("panics", |_| panic!("oh")),
            scenario("late", |_| Ok(())),
            scenario("needs-a-boot", |_| Ok(())),
            scenario("lacks", |_| Err(Skipped("no disk").into())),
        ];
        all[3].limit_s = 0;
        all[4].needs = Needs::Ready;
        let outcomes = run(&bench, &all, 2);
        let failure = |text: &str| Ended::Failed(text.to_owned());
        assert_eq!(outcomes[0].ended, Ended::Passed);
        assert_eq!(outcomes[1].ended, failure("seen"));
        assert_eq!(outcomes[2].ended, failure("panicked: oh"));
        assert_eq!(outcomes[3].ended, failure("the scenario's time is up"));
        let Ended::Failed(text) = &outcomes[4].ended else { panic!("{:?}", outcomes[4]) };
        assert!(text.starts_with("the shared boot failed"), "{text}");
        assert_eq!(outcomes[5].ended, Ended::Skipped("no disk"));
        assert!(dir.join("fails/0-serial.log").exists());
        assert!(!dir.join("fails/1-disk.qcow2").exists());
        assert!(!dir.join("passes").exists() && !dir.join("lacks").exists());
        assert!(table(&outcomes).ends_with("1 passed, 1 skipped, 4 failed\n"));
        fs::create_dir_all(dir.join("media")).unwrap();
        fs::create_dir_all(dir.join("shared-ready")).unwrap();
        fs::write(dir.join("shared-ready/vm.state"), "secret").unwrap();
        fs::write(dir.join("shared-ready/serial-1.log"), "text").unwrap();
        slim(&dir).unwrap();
        assert!(dir.join("shared-ready/serial-1.log").exists());
        assert!(!dir.join("shared-ready/vm.state").exists() && !dir.join("media").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
