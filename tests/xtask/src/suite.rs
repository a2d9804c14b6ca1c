//! `cargo xtask test`: every check, in the order in which it fails fastest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::material::{self, Material};
use crate::peer;
use crate::steps::{Steps, sh};
use crate::tree::Tree;

/// Version of cargo-deny that the cache holds.
const CARGO_DENY: &str = "0.20.2";

/// Seconds for each fuzz target with `--long`.
const FUZZ_SECONDS: &str = "60";

/// Scenarios that boot an image with a kernel of ours, and that kernel's word in `casemate build --kernel`.
const OWN_KERNELS: &[[&str; 2]] = &[["own-kernel", "own"], ["gpu-nvidia", "gpu-nvidia"]];
/// A scenario installs from the stick that is built with the image.
const STICK: &[&str] = &["--installer"];

/// Runs the whole suite, or only the boot scenarios called `only`.
pub(crate) fn run(tree: &Tree, steps: &mut Steps, long: bool, only: &[String]) -> Result<()> {
    if !only.is_empty() {
        let material = material::prepare(tree, steps, STICK)?;
        let encoder = steps.run("encoder from PyPI", || material::encoder(tree))?;
        return scenarios(tree, steps, &material, &encoder, long, only);
    }
    static_checks(tree, steps)?;
    let material = material::prepare(tree, steps, STICK)?;
    let encoder = steps.run("encoder from PyPI", || material::encoder(tree))?;
    steps.run("unit and integration tests", || {
        let mut command = tree.enter("/usr/bin/env");
        command.arg(format!("CASEMATE_TEST_MODEL={}", material.model.display()));
        command.arg(format!("CASEMATE_TEST_ENCODER={}", encoder.display()));
        command.arg(format!("CASEMATE_OPENAI_PYTHON={}", material.python.display()));
        command.args(["cargo", "test", "--workspace", "--locked", "--offline"]);
        sh(&mut command)
    })?;
    steps.run("reproducible image", || material::reproduce(tree, &material))?;
    if long {
        peer::agrees(tree, steps)?;
        steps.show("reproducible kernel", || material::reproduce_kernel(tree, &material))?;
        steps.show("fuzzing", || fuzz(tree))?;
    }
    scenarios(tree, steps, &material, &encoder, long, &[])
}

fn static_checks(tree: &Tree, steps: &mut Steps) -> Result<()> {
    steps.run("rustfmt", || sh(tree.enter("cargo").args(["fmt", "--all", "--check"])))?;
    steps.run("clippy", || {
        let mut command = tree.enter("cargo");
        command.args(["clippy", "--workspace", "--all-targets", "--locked", "--offline"]);
        sh(command.args(["--", "-D", "warnings"]))
    })?;
    let deny = steps.run("cargo-deny from crates.io", || cargo_deny(tree))?;
    steps.run("licences, sources, bans", || {
        eprintln!("    (no advisory database here: it is not on a package registry)");
        let mut command = tree.enter(deny);
        sh(command.args(["--offline", "check", "bans", "licenses", "sources"]))
    })
}

/// Fuzzing needs a nightly compiler, which only the host may have.
fn fuzz(tree: &Tree) -> Result<()> {
    let nightly = Command::new("cargo").args(["+nightly", "--version"]).output();
    if !nightly.is_ok_and(|output| output.status.success()) {
        eprintln!("    SKIPPED: no nightly toolchain (rustup toolchain install nightly)");
        return Ok(());
    }
    let mut command = Command::new(tree.workspace().join("tests/fuzz/run"));
    sh(command.arg(FUZZ_SECONDS).env("CARGO_TARGET_DIR", tree.target().join("fuzz")))
}

/// Builds cargo-deny once for this cache.
fn cargo_deny(tree: &Tree) -> Result<PathBuf> {
    let root = tree.cache().join(format!("cargo-deny-{CARGO_DENY}"));
    let binary = root.join("bin/cargo-deny");
    if !binary.exists() {
        let mut command = tree.enter("cargo");
        // It runs once: what counts is how long it takes to compile.
        command.args(["--config", "profile.dev.debug=false"]);
        command.args(["install", "--locked", "--quiet", "--debug", "--root"]).arg(&root);
        sh(command.arg(format!("cargo-deny@{CARGO_DENY}")))?;
    }
    Ok(binary)
}

fn scenarios(
    tree: &Tree,
    steps: &mut Steps,
    material: &Material,
    encoder: &Path,
    long: bool,
    only: &[String],
) -> Result<()> {
    let older = steps.run("older image", || material::older_image(tree, material))?;
    let newer = steps.run("newer image", || material::newer_image(tree, material))?;
    let broken = steps.run("image without agent", || material::broken_image(tree, material))?;
    let rotated = steps.run("images by another PCR key", || material::rotated(tree, material))?;
    let mut own_kernels = Vec::new();
    for &[scenario, kernel] in OWN_KERNELS {
        if only.is_empty() || only.iter().any(|name| name == scenario) {
            let image = || material::own_kernel_image(tree, material, kernel, long);
            let image = steps.run(&format!("image with kernel {kernel}"), image)?;
            own_kernels.extend(image.map(|folders| (scenario, folders)));
        }
    }
    let mut command = tree.enter(material.binaries.join("scenarios"));
    command.arg("--image").arg(&material.image).arg("--keys").arg(&material.keys);
    command.arg("--image-older").arg(older);
    command.arg("--image-newer").arg(newer).arg("--image-broken").arg(broken);
    for (option, image) in ["--image-rotated", "--image-retired"].into_iter().zip(rotated) {
        command.arg(option).arg(image);
    }
    command.arg("--bundle").arg(&material.bundles.good);
    command.arg("--bundle-flipped-byte").arg(&material.bundles.flipped_byte);
    command.arg("--bundle-one-signature").arg(&material.bundles.one_signature);
    command.arg("--bundle-extra-file").arg(&material.bundles.extra_file);
    command.arg("--bundle-older").arg(&material.bundles.older);
    command.arg("--encoder").arg(encoder);
    command.arg("--python").arg(&material.python);
    command.arg("--results").arg(tree.cache().join("scenarios"));
    for (scenario, [kernel, image]) in own_kernels {
        command.arg(format!("--{scenario}")).arg(kernel);
        command.arg(format!("--image-{scenario}")).arg(image);
    }
    if long {
        command.arg("--long");
    }
    for name in only {
        command.args(["--only", name]);
    }
    steps.show("boot scenarios", || sh(&mut command))
}
