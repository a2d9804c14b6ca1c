//! llama.cpp, the engine's peer: the second opinion on its answers, and the measure of its speed.
//!
//! Invariant: a folder of the cache that holds `complete` has everything, built for this processor.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::material::{self, keyed};
use crate::steps::{Steps, sh};
use crate::tree::Tree;

/// PyPI package whose source holds llama.cpp, and the sdist's SHA-256.
const SDIST_REQUIREMENT: &str = "llama-cpp-python==0.3.36 \
    --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
/// The sdist's name without `.tar.gz`, which is also its top folder's.
const SDIST: &str = "llama_cpp_python-0.3.36";

/// As its authors build it for speed, less what is not needed here.
fn options(no_avx512: bool) -> [&'static str; 8] {
    [
        "CMAKE_BUILD_TYPE=Release",
        // The libraries are found beside the program, wherever the folder is moved.
        "CMAKE_BUILD_RPATH_USE_ORIGIN=ON",
        // For any processor with AVX2, FMA, F16C and BMI2, or for this one, with all that it has.
        if no_avx512 { "GGML_NATIVE=OFF" } else { "GGML_NATIVE=ON" },
        "LLAMA_OPENSSL=OFF",
        "LLAMA_BUILD_APP=OFF",
        "LLAMA_BUILD_EXAMPLES=OFF",
        "LLAMA_BUILD_SERVER=OFF",
        "LLAMA_BUILD_TESTS=OFF",
    ]
}

/// Parts of the comparison, as `engine_bench.py` knows them.
pub(crate) const PARTS: [&str; 8] =
    ["smollm2", "q4_0", "q8_0", "q4_k", "bf16", "batched", "prefix", "busy"];
/// The library, and its measures of one sequence and of several.
const TARGETS: &[&str] = &["llama", "llama-bench", "llama-batched-bench"];

/// A built llama.cpp.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Holds the bindings, `llama_cpp/`, and the programs and libraries, `bin/`.
    folder: PathBuf,
    python: PathBuf,
}

/// Fetches and builds llama.cpp, or finds it in the cache.
fn prepare(tree: &Tree, steps: &mut Steps, no_avx512: bool) -> Result<Peer> {
    let options = options(no_avx512);
    let requirements = tree.workspace().join("tests/system/clients/peer-requirements.txt");
    let pinned = fs::read_to_string(&requirements)?;
    let python = steps.run("llama.cpp's Python packages from PyPI", || {
        material::environment(tree, "peer-python", &requirements, "import jinja2, numpy")
    })?;
    let folder = keyed(
        tree,
        "llama-cpp",
        &[
            &pinned,
            SDIST_REQUIREMENT,
            &options.join(" "),
            &TARGETS.join(" "),
            &processor_features()?,
        ],
    );
    if folder.join("complete").exists() {
        return Ok(Peer { folder, python });
    }
    empty(&folder)?;
    steps.run("llama.cpp from PyPI", || fetch(tree, &python, &folder))?;
    steps.show("build llama.cpp", || build(tree, &folder, &options))?;
    fs::write(folder.join("complete"), SDIST)?;
    Ok(Peer { folder, python })
}

fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(fs::create_dir_all(folder)?)
}

/// The vocabularies of other models, with the tokens that these make of texts; in llama.cpp's source, and not ours to
/// keep with our own.
fn vocabularies(tree: &Tree, steps: &mut Steps, python: &Path) -> Result<PathBuf> {
    let folder = keyed(tree, "vocabularies", &[SDIST_REQUIREMENT]);
    if !folder.join("complete").exists() {
        empty(&folder)?;
        steps.run("vocabularies from PyPI", || fetch(tree, python, &folder))?;
        let source = folder.join(SDIST);
        fs::rename(source.join("vendor/llama.cpp/models"), folder.join("models"))?;
        fs::remove_dir_all(&source)?;
        fs::write(folder.join("complete"), SDIST)?;
    }
    Ok(folder.join("models"))
}

/// Compares the engine's answers with llama.cpp's, and its tokens and prompts with what is known of other models.
pub(crate) fn agrees(tree: &Tree, steps: &mut Steps) -> Result<()> {
    let model = steps.run("model from PyPI", || material::model(tree))?;
    let peer = prepare(tree, steps, false)?;
    let vocabularies = vocabularies(tree, steps, &peer.python)?;
    steps.show("vocabularies and templates of other models", || {
        let mut command = tree.enter("/usr/bin/env");
        command.arg(format!("CASEMATE_VOCABULARIES={}", vocabularies.display()));
        command.args(["cargo", "test", "--locked", "--offline", "--package", "engine"]);
        command.args(["--lib", "--test", "vocabularies", "--"]);
        sh(command.args(["texts_become_the_tokens", "templates_of_models", "--nocapture"]))
    })?;
    let engine = engine(tree, steps)?;
    steps.show("llama.cpp agrees", || {
        let mut command = peer.script(tree, "llama_agrees.py");
        command.arg("--model").arg(&model).arg("--engine").arg(engine.join("engine"));
        sh(command.arg("--examples").arg(engine.join("examples")))
    })?;
    steps.show("llama.cpp reads the families as transformers does", || {
        let mut command = peer.script(tree, "llama_families.py");
        command.arg("--examples").arg(engine.join("examples"));
        sh(command.arg("--golden").arg(tree.workspace().join("agent/engine/tests/golden")))
    })
}

/// Measures the engine beside llama.cpp: the parts named in `only`, or all.
pub(crate) fn bench(
    tree: &Tree,
    steps: &mut Steps,
    rounds: u32,
    only: &[String],
    no_avx512: bool,
) -> Result<()> {
    let model = steps.run("model from PyPI", || material::model(tree))?;
    let peer = prepare(tree, steps, no_avx512)?;
    let engine = engine(tree, steps)?;
    let random = steps.run("random models", || random_models(tree, &peer))?;
    steps.show("measure", || {
        let mut command = peer.script(tree, "engine_bench.py");
        command.arg("--smollm2").arg(&model).arg("--random").arg(&random);
        command.arg("--engine").arg(engine.join("casemate-engine"));
        command.arg("--llama").arg(peer.folder.join("bin"));
        command.arg("--rounds").arg(rounds.to_string());
        only.iter().for_each(|part| _ = command.args(["--only", part]));
        command.args(no_avx512.then_some("--no-avx512"));
        sh(&mut command)
    })
}

/// Models with the shape of Llama 3.2 1B and random weights; returns their folder.
fn random_models(tree: &Tree, peer: &Peer) -> Result<PathBuf> {
    const SCRIPT: &str = "random_model.py";
    let source = tree.workspace().join("tests/system/clients").join(SCRIPT);
    let folder = keyed(tree, "random-models", &[&fs::read_to_string(source)?]);
    if !folder.join("complete").exists() {
        fs::create_dir_all(&folder)?;
        sh(peer.script(tree, SCRIPT).arg(&folder))?;
        fs::write(folder.join("complete"), SCRIPT)?;
    }
    Ok(folder)
}

impl Peer {
    /// A script of `tests/system/clients` that can import llama.cpp's bindings.
    fn script(&self, tree: &Tree, name: &str) -> Command {
        let mut command = tree.enter("/usr/bin/env");
        command.arg(format!("PYTHONPATH={}", self.folder.display()));
        command.arg(format!("LLAMA_CPP_LIB_PATH={}", self.folder.join("bin").display()));
        // Nothing is written beside the scripts.
        command.arg("PYTHONDONTWRITEBYTECODE=1").arg(&self.python);
        command.arg(tree.workspace().join("tests/system/clients").join(name));
        command
    }
}

/// Downloads and unpacks the sdist. pip asks the sdist's own build system for its metadata; that is in the environment
/// by hash, so that nothing else is fetched for it.
fn fetch(tree: &Tree, python: &Path, folder: &Path) -> Result<()> {
    let requirement = folder.join("requirements.txt");
    fs::write(&requirement, SDIST_REQUIREMENT)?;
    let mut pip = tree.enter(python);
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]);
    pip.args(["--no-build-isolation", "--require-hashes", "--dest"]).arg(folder);
    sh(pip.arg("--requirement").arg(&requirement))?;
    let archive = folder.join(format!("{SDIST}.tar.gz"));
    let mut tar = tree.enter("tar");
    tar.args(["--extract", "--no-same-owner", "--directory"]).arg(folder);
    sh(tar.arg("--file").arg(&archive))?;
    fs::remove_file(&archive).context("the sdist has another name")
}

/// Builds the library and its programs, and keeps them and the bindings.
fn build(tree: &Tree, folder: &Path, options: &[&str]) -> Result<()> {
    let (source, target) = (folder.join(SDIST), folder.join("build"));
    let mut configure = tree.enter("cmake");
    configure.args(["-Wno-dev", "--log-level=WARNING", "-S"]).arg(source.join("vendor/llama.cpp"));
    configure.arg("-B").arg(&target).args(options.iter().map(|option| format!("-D{option}")));
    sh(&mut configure)?;
    let jobs = std::thread::available_parallelism()?;
    let mut build = tree.enter("cmake");
    build.arg("--build").arg(&target).args(["--parallel", &jobs.to_string()]);
    sh(build.arg("--target").args(TARGETS))?;
    fs::rename(target.join("bin"), folder.join("bin"))?;
    fs::rename(source.join("llama_cpp"), folder.join("llama_cpp"))?;
    fs::remove_dir_all(&target)?;
    fs::remove_dir_all(&source)?;
    Ok(())
}

/// Builds the engine, its command line and its examples as the appliance's programs are built; returns their folder.
fn engine(tree: &Tree, steps: &mut Steps) -> Result<PathBuf> {
    steps.run("engine and its examples (release)", || {
        let mut command = tree.enter("cargo");
        command.args(["build", "--release", "--locked", "--offline"]);
        command.args(["--package", "engine", "--package", "engine-cli"]);
        sh(command.args(["--bins", "--examples"]))?;
        Ok(tree.target().join("release"))
    })
}

/// What a build for this processor depends on.
fn processor_features() -> Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let flags = info.lines().find(|line| line.starts_with("flags"));
    Ok(flags.context("/proc/cpuinfo has no flags")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdist_is_the_one_that_is_required() {
        let (name, rest) = SDIST_REQUIREMENT.split_once("==").unwrap();
        let version = rest.split_whitespace().next().unwrap();
        assert_eq!(SDIST, format!("{}-{version}", name.replace('-', "_")));
        assert!(rest.contains("--hash=sha256:"));
    }

    #[test]
    fn this_processor_has_features() {
        assert!(processor_features().unwrap().contains("sse2"));
    }
}
