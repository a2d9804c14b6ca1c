//! `cargo xtask test`: every check, in the order in which it fails fastest.

use std::path::PathBuf;

use anyhow::Result;

use crate::material::{self, Material};
use crate::peer;
use crate::steps::{Steps, sh};
use crate::tree::Tree;

/// Version of cargo-deny that the cache holds.
const CARGO_DENY: &str = "0.20.2";

/// Runs the whole suite.
pub(crate) fn run(tree: &Tree, steps: &mut Steps, long: bool, only: Option<&str>) -> Result<()> {
    if only.is_none() {
        steps.run("Rust dependencies", || material::fetch_crates(tree))?;
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
        })?;
    }
    if long && only.is_some_and(|name| !name.is_empty() && peer::AGREES.starts_with(name)) {
        return peer::agrees(tree, steps);
    }
    let material = material::prepare(tree, steps)?;
    if only.is_none() {
        steps.run("unit and integration tests", || {
            let mut command = tree.enter("/usr/bin/env");
            command.arg(format!("CASEMATE_TEST_MODEL={}", material.model.display()));
            command.args(["cargo", "test", "--workspace", "--locked", "--offline"]);
            sh(&mut command)
        })?;
    }
    if long && only.is_none() {
        peer::agrees(tree, steps)?;
    }
    steps.show("boot scenarios", || scenarios(tree, &material, long, only))
}

/// Builds cargo-deny once for this cache.
fn cargo_deny(tree: &Tree) -> Result<PathBuf> {
    let root = tree.cache().join(format!("cargo-deny-{CARGO_DENY}"));
    let binary = root.join("bin/cargo-deny");
    if !binary.exists() {
        let mut command = tree.enter("cargo");
        command.args(["install", "--locked", "--quiet", "--debug", "--root"]).arg(&root);
        sh(command.arg(format!("cargo-deny@{CARGO_DENY}")))?;
    }
    Ok(binary)
}

fn scenarios(tree: &Tree, material: &Material, long: bool, only: Option<&str>) -> Result<()> {
    let mut command = tree.enter(material.binaries.join("scenarios"));
    command.arg("--image").arg(&material.image).arg("--keys").arg(&material.keys);
    command.arg("--bundle").arg(&material.bundles.good);
    command.arg("--bundle-flipped-byte").arg(&material.bundles.flipped_byte);
    command.arg("--bundle-one-signature").arg(&material.bundles.one_signature);
    command.arg("--bundle-extra-file").arg(&material.bundles.extra_file);
    command.arg("--python").arg(&material.python);
    command.arg("--results").arg(tree.cache().join("scenarios"));
    if long {
        command.arg("--long");
    }
    if let Some(name) = only {
        command.args(["--only", name]);
    }
    sh(&mut command)
}
